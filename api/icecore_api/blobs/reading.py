"""Reading blobs from files: in pieces, checked, and closed whoever stops first."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from icecore.errors import BlobDamaged
from icecore_api.blobs.index import Place
from icecore_api.blobs.packs import frame_head
from icecore_api.blobs.store import SMALL_BYTES

PIECE_BYTES: Final = 1 << 20


class LocalBlob:
    """A `Blob` in a file."""

    def __init__(self, digest: str, handle: int, place: Place) -> None:
        self.digest = digest
        self._place = place
        self._handle = handle
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """In bytes."""
        return self._place.size

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes from `start` to before `stop`, in pieces."""
        stop = self.size if stop is None else min(stop, self.size)
        if start == 0 and stop == self.size <= SMALL_BYTES:
            yield await asyncio.to_thread(self.whole)
            return
        for at in range(start, stop, PIECE_BYTES):
            yield await asyncio.to_thread(self.piece, at, min(PIECE_BYTES, stop - at))

    def whole(self) -> bytes:
        """All bytes, checked.

        Raises:
            BlobDamaged: they are not what the digest says.
        """
        return b"".join(self.checked_pieces())

    def checked_pieces(self) -> Iterator[bytes]:
        """All bytes; the last piece is held back until the digest is checked.

        Raises:
            BlobDamaged: they are not what the digest says.
        """
        hashed, before = hashlib.sha256(), b""
        for at in range(0, self.size, PIECE_BYTES):
            if before:
                yield before
            before = self.piece(at, min(PIECE_BYTES, self.size - at))
            hashed.update(before)
        if hashed.hexdigest() != self.digest:
            raise damaged(self.digest, f"its bytes have the SHA-256 {hashed.hexdigest()}")
        yield before

    def piece(self, at: int, size: int) -> bytes:
        """Some bytes.

        Raises:
            BlobDamaged: the file ends before them.
        """
        with self._lock:
            got = os.pread(self._handle, size, self._place.offset + at) if self._handle >= 0 else b""
        if len(got) != size:
            raise damaged(self.digest, f"its file ends {size - len(got)} bytes too early")
        return got

    def __del__(self) -> None:
        """An answer that was never begun lets go of it too."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
            self._handle = -1


def damaged(digest: str, problem: str) -> BlobDamaged:
    """The error for a blob whose bytes on the disk have changed."""
    return BlobDamaged(
        f"expected blob {digest} as it was stored, but {problem}",
        hint="the disk or a program changed it: bring its file back from a backup",
        digest=digest,
    )


def frames_of(
    digests: Sequence[str], packed: Mapping[str, Place], packs: Path, opened: Callable[[str], LocalBlob]
) -> Iterator[bytes]:
    """Frames of blobs in pieces of about a MiB, each blob checked.

    Args:
        digests: of the blobs, which are all there.
        packed: where those lie that are in packs.
        packs: the folder of the packs.
        opened: opens a blob.
    """
    batch: list[bytes] = []
    size = 0
    with _Packs(packs) as of_packs:
        for digest in digests:
            place = packed.get(digest)
            # a pack that was written again meanwhile is looked for by whoever opens the blob
            for piece in (of_packs.frame(digest, place) if place else None) or _frame_of(opened(digest)):
                batch.append(piece)
                size += len(piece)
                if size >= PIECE_BYTES:
                    yield b"".join(batch)
                    batch, size = [], 0
    if batch:
        yield b"".join(batch)


def _frame_of(blob: LocalBlob) -> Iterator[bytes]:
    try:
        yield frame_head(bytes.fromhex(blob.digest), blob.size)
        yield from blob.checked_pieces()
    finally:
        blob.close()


class _Packs:
    """Packs that are open for one answer: many blobs of it lie in few of them."""

    OPEN: Final = 32

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handles: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def frame(self, digest: str, place: Place) -> tuple[bytes, bytes] | None:
        """A blob's frame, in two pieces; None where there is no such pack.

        Raises:
            BlobDamaged: its bytes are not what the digest says.
        """
        handle = self._open(place.pack)
        if handle is None:
            return None
        content = os.pread(handle, place.size, place.offset)
        expected = bytes.fromhex(digest)
        if hashlib.sha256(content).digest() != expected:
            raise damaged(digest, f"its bytes have the SHA-256 {hashlib.sha256(content).hexdigest()}")
        return frame_head(expected, place.size), content

    def _open(self, pack: str) -> int | None:
        handle = self._handles.get(pack)
        if handle is None:
            if len(self._handles) >= self.OPEN:
                os.close(self._handles.pop(next(iter(self._handles))))
            with contextlib.suppress(FileNotFoundError):
                handle = self._handles[pack] = os.open(self._folder / pack, os.O_RDONLY | os.O_CLOEXEC)
        return handle


class Pulled:
    """An iterator that is pulled in threads, by one at a time, and closed when nobody listens any more."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._closed = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """What it gives."""
        try:
            while (piece := await asyncio.to_thread(self._next)) is not None:
                yield piece
        finally:
            # not awaited: when the client has gone, this task is cancelled at every await
            asyncio.get_running_loop().run_in_executor(None, self._close)

    def _next(self) -> bytes | None:
        with self._lock:
            return None if self._closed else next(self._source, None)

    def _close(self) -> None:
        self._closed = True
        with self._lock:
            if close := getattr(self._source, "close", None):
                close()


def sha256_of_file(handle: int) -> str:
    """The digest of a whole open file."""
    hashed, buffer, at = hashlib.sha256(), bytearray(PIECE_BYTES), 0
    with memoryview(buffer) as view:
        while got := os.preadv(handle, [buffer], at):
            hashed.update(view[:got])
            at += got
    return hashed.hexdigest()
