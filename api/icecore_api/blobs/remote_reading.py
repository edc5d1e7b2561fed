"""Reading blobs from a bucket: in pieces, the small ones checked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Final

from icecore.errors import BlobDamaged
from icecore_api.blobs.packs import HEAD, frame_head
from icecore_api.blobs.remote_index import Place
from icecore_api.blobs.remote_objects import PIECE_BYTES, Objects, Span, spans_of
from icecore_api.blobs.store import SMALL_BYTES

_BATCH_BYTES: Final = 8 << 20
Find = Callable[[str], Place | None]


def spans(place: Place, start: int, stop: int) -> Iterator[Span]:
    """Where a range of a blob lies."""
    if place.join is None:
        yield from spans_of(place.key, place.offset + start, place.offset + stop)
        return
    parts = place.join.parts
    for part in range(start // parts.part_size, -(-stop // parts.part_size)):
        first = part * parts.part_size
        until = min(stop, first + parts.size_of(part))
        yield from spans_of(place.join.key(part), max(start, first) - first, until - first)


class RemoteBlob:
    """A `Blob` in a bucket.

    Args:
        objects: of the bucket.
        place: where it lies.
        find: where it lies now: a pack may be written anew, without what was erased.
        closed: called once nobody reads it any more.
    """

    def __init__(self, objects: Objects, place: Place, find: Find, closed: Callable[[], None]) -> None:
        self._objects = objects
        self._place = place
        self._find = find
        self._closed: Callable[[], None] | None = closed

    @property
    def digest(self) -> str:
        """What it is named by."""
        return self._place.digest

    @property
    def size(self) -> int:
        """In bytes."""
        return self._place.size

    async def read(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes from `start` to before `stop`, in pieces."""
        stop = self.size if stop is None else min(stop, self.size)
        if start == 0 and stop == self.size <= SMALL_BYTES:
            got = await self._piece(0, stop)
            check(self._place.digest, hashlib.sha256(got).hexdigest())
            yield got
        elif self._place.packed:
            yield await self._piece(start, stop)
        else:
            try:
                async for piece in self._objects.stream(list(spans(self._place, start, stop))):
                    yield piece
            except FileNotFoundError as error:
                raise gone(self._place) from error

    async def checked(self) -> AsyncIterator[bytes]:
        """All bytes; the last piece is held back until the digest is checked.

        Raises:
            BlobDamaged: they are not what the digest says.
        """
        hashed, before = hashlib.sha256(), b""
        async for piece in self.read():
            if before:
                yield before
            before = piece
            await asyncio.to_thread(hashed.update, piece)
        check(self._place.digest, hashed.hexdigest())
        yield before

    async def _piece(self, start: int, stop: int) -> bytes:
        """A range of a small blob; looked for again where its pack has gone meanwhile."""
        while True:
            try:
                return b"".join([await self._objects.get(one) for one in spans(self._place, start, stop)])
            except FileNotFoundError as error:
                now = self._find(self._place.digest)
                if now is None or now == self._place:
                    raise gone(self._place) from error
                self._place = now

    def __del__(self) -> None:
        """An answer that was never begun lets go of it too."""
        self.close()

    def close(self) -> None:
        """Say that nobody reads it any more."""
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()


async def frames_of(
    digests: Sequence[str], places: dict[str, Place], objects: Objects, opened: Callable[[str], RemoteBlob]
) -> AsyncIterator[bytes]:
    """Frames of blobs in their order, each blob checked; packed ones that follow each other by few requests.

    Args:
        digests: of the blobs.
        places: where they lie.
        objects: of the bucket.
        opened: opens a blob that lies alone, or whose pack has gone meanwhile.
    """
    batch: list[Place] = []
    held = 0
    for digest in digests:
        place = places[digest]
        if place.packed and held < _BATCH_BYTES:
            batch.append(place)
            held += place.size
            continue
        async for piece in _batch(batch, objects, opened):
            yield piece
        batch, held = [], 0
        if place.packed:
            batch, held = [place], place.size
            continue
        async for piece in _frame(opened(digest)):
            yield piece
    async for piece in _batch(batch, objects, opened):
        yield piece


async def _batch(batch: Sequence[Place], objects: Objects, opened: Callable[[str], RemoteBlob]) -> AsyncIterator[bytes]:
    """Frames of small packed blobs."""
    by_pack: dict[str, list[Place]] = {}
    for place in batch:
        by_pack.setdefault(place.key, []).append(place)
    found = dict(
        pair for pairs in await asyncio.gather(*(_of_pack(objects, *one) for one in by_pack.items())) for pair in pairs
    )
    again = [place.digest for place in batch if place.digest not in found]  # their packs were written anew
    for digest in again:
        found[digest] = b"".join([piece async for piece in _frame(opened(digest))])[HEAD.size :]
    if batch:
        yield await asyncio.to_thread(_joined, batch, found)


def _joined(batch: Sequence[Place], found: Mapping[str, bytes | memoryview]) -> bytes:
    """The frames of blobs, each checked."""
    pieces: list[bytes | memoryview] = []
    for place in batch:
        content = found[place.digest]
        check(place.digest, hashlib.sha256(content).hexdigest())
        pieces += (frame_head(bytes.fromhex(place.digest), len(content)), content)
    return b"".join(pieces)


async def _of_pack(objects: Objects, key: str, places: Sequence[Place]) -> list[tuple[str, bytes | memoryview]]:
    """Blobs of one pack; nothing where it has gone: it was written anew."""
    some = [place for place in places if place.size]
    starts, stops = [place.offset for place in some], [place.offset + place.size for place in some]
    first, last = min(starts, default=0), max(stops, default=0)
    got: Sequence[bytes | memoryview]
    try:
        if last - first <= 2 * sum(place.size for place in some) + PIECE_BYTES // 8:  # near each other
            whole = memoryview(await objects.get(Span(key, first, last)))
            got = [whole[start - first : stop - first] for start, stop in zip(starts, stops, strict=True)]
        else:
            got = await objects.several(key, starts, stops)
    except FileNotFoundError:
        return []
    return [(place.digest, b"") for place in places if not place.size] + [
        (place.digest, content) for place, content in zip(some, got, strict=True)
    ]


async def _frame(blob: RemoteBlob) -> AsyncIterator[bytes]:
    try:
        yield frame_head(bytes.fromhex(blob.digest), blob.size)
        async for piece in blob.checked():
            yield piece
    finally:
        blob.close()


def check(digest: str, got: str) -> None:
    """Whether bytes are those of a digest.

    Raises:
        BlobDamaged: they are not.
    """
    if got != digest:
        raise BlobDamaged(
            f"expected blob {digest} as it was stored, but its bytes have the SHA-256 {got}",
            hint="somebody changed the bucket's object: bring it back from a version of the bucket, or send it again",
            digest=digest,
        )


def gone(place: Place) -> BlobDamaged:
    """The error for a blob whose object is not there any more."""
    return BlobDamaged(
        f"expected blob {place.digest} as it was stored, but {place.key} is not in the bucket",
        hint="somebody removed the bucket's object: bring it back from a version of the bucket, or send it again",
        digest=place.digest,
    )
