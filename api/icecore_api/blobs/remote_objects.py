"""The objects of one bucket: put, got, listed and removed, with what goes wrong said in our words."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import obstore
from obstore import exceptions
from obstore.store import ObjectStore

from icecore.errors import BlobDamaged, BlobError, IcecoreError, Unavailable

PIECE_BYTES: Final = 8 << 20
"""What one request asks for: large enough for a bucket's latency, small enough to be asked for again."""
_AHEAD: Final = 3
_URL: Final = re.compile(r"\bhttps?://\S+")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_RETRY_AFTER_S: Final = 5


@dataclass(frozen=True, slots=True)
class Found:
    """An object of a list."""

    key: str
    size: int
    written: float
    """In seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of an object."""

    key: str
    start: int
    stop: int


class Objects:
    """The objects of one bucket, by keys below its prefix.

    Args:
        store: obstore's.
        name: of the bucket, for messages.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.store = store
        self.name = name

    @contextlib.contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Say in our words why the bucket did not do something.

        Raises:
            BlobError: it refuses our keys, or there is no such bucket.
            Unavailable: it does not answer, or not with what it should.
        """
        try:
            yield
        except (IcecoreError, exceptions.AlreadyExistsError):
            raise
        except FileNotFoundError as error:
            if any(word in str(error) for word in _NO_BUCKET):
                raise self._no_bucket() from error
            raise
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise BlobError(
                f"expected {self.name} to let this server {what}, it refuses",
                hint="look at the server's keys and at the bucket's policy: get, put, delete and list are needed",
                retry_after=_RETRY_AFTER_S,
            ) from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            if any(word in str(error) for word in _NO_BUCKET):
                raise self._no_bucket() from error
            raise Unavailable(
                f"expected {self.name} to {what}, got {_short(error)}",
                hint="look at the object store; what was acknowledged is safe, send the rest again",
                retry_after=_RETRY_AFTER_S,
            ) from error

    def _no_bucket(self) -> BlobError:
        return BlobError(
            f"expected the bucket of {self.name}, there is none",
            hint="make it, or give the server's --blobs (ICECORE_BLOBS) the name of one that is there",
            retry_after=_RETRY_AFTER_S,
        )

    async def create(self, key: str, content: bytes | bytearray) -> bool:
        """Put an object that is not there yet; False where it is. Whole and durable, or not at all."""
        with self.asking("keep an object"):
            try:
                await obstore.put_async(self.store, key, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
        return True

    async def replace(self, key: str, content: bytes | bytearray) -> None:
        """Put an object, whatever is there. Whole and durable, or not at all."""
        with self.asking("keep an object"):
            await obstore.put_async(self.store, key, content, use_multipart=False)

    async def copy(self, source: str, target: str) -> None:
        """Copy an object inside of the bucket; its bytes do not come here."""
        with self.asking("copy an object"):
            await obstore.copy_async(self.store, source, target)

    async def size(self, key: str) -> int | None:
        """Bytes of an object; None where it is not there."""
        with self.asking("answer for an object"):
            try:
                return int((await obstore.head_async(self.store, key))["size"])
            except FileNotFoundError:
                return None

    async def get(self, span: Span) -> bytes:
        """Some bytes of an object.

        Raises:
            FileNotFoundError: it is not there.
            BlobDamaged: it ends before them.
        """
        if span.start >= span.stop:
            return b""
        with self.asking("give an object"):
            got = bytes(await obstore.get_range_async(self.store, span.key, start=span.start, end=span.stop))
        return _all_of(span, got)

    def get_now(self, span: Span) -> bytes:
        """As `get`, for a thread that may wait."""
        if span.start >= span.stop:
            return b""
        with self.asking("give an object"):
            got = bytes(obstore.get_range(self.store, span.key, start=span.start, end=span.stop))
        return _all_of(span, got)

    async def stream(self, spans: Sequence[Span]) -> AsyncIterator[bytes]:
        """The bytes of spans, one after another, the next ones being asked for meanwhile."""
        coming: list[asyncio.Task[bytes]] = []
        left = iter(spans)
        try:
            while True:
                while len(coming) < _AHEAD and (span := next(left, None)) is not None:
                    coming.append(asyncio.create_task(self.get(span)))
                if not coming:
                    return
                piece = await coming[0]
                coming.pop(0)
                yield piece
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)

    async def several(self, key: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
        """Ranges of one object, near ones by one request.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self.asking("give an object"):
            got = await obstore.get_ranges_async(self.store, key, starts=starts, ends=stops)
        return [bytes(one) for one in got]

    async def list(self, prefix: str) -> AsyncIterator[Found]:
        """The objects below a prefix."""
        with self.asking("list its objects"):
            async for some in obstore.list(self.store, prefix, chunk_size=1000):
                for one in some:
                    yield Found(one["path"], one["size"], one["last_modified"].timestamp())

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        for first in range(0, len(keys), 1000):
            with self.asking("remove objects"), contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self.store, list(keys[first : first + 1000]))


def spans_of(key: str, start: int, stop: int) -> Iterator[Span]:
    """A range of an object, in pieces."""
    for at in range(start, stop, PIECE_BYTES):
        yield Span(key, at, min(at + PIECE_BYTES, stop))


def _all_of(span: Span, got: bytes) -> bytes:
    if len(got) != span.stop - span.start:
        raise BlobDamaged(
            f"expected {span.stop - span.start} bytes of {span.key}, got {len(got)}",
            hint="the bucket's object was changed by others: bring it back from a version of the bucket or a backup",
        )
    return got


def _short(error: Exception) -> str:
    """The library's words without addresses, and without its many lines."""
    words = str(error).strip()
    code = _CODE.search(words)
    line = (words.splitlines() or [type(error).__name__])[0].partition("<?xml")[0]
    return _URL.sub("…", line)[:300].rstrip(": ") + (f": {code[1]}" if code else "")
