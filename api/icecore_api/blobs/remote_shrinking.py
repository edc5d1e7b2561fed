"""Removing blobs from a bucket for good. A pack that holds others, too, is written anew without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager

from icecore.events import uuid7
from icecore_api.blobs.packs import MAGIC, Entry, frame_head, table
from icecore_api.blobs.remote_index import Place, RemoteIndex, pack_length
from icecore_api.blobs.remote_objects import Objects, Span
from icecore_api.blobs.store import Erased, Weight, check_digest

Alone = Callable[[str], AbstractAsyncContextManager[None]]


class RemoteShrinking:
    """What blobs of a bucket weigh, and their end.

    Args:
        objects: of the bucket.
        index: of its blobs.
        reading: how many read each blob now.
        alone: keeps others from storing a blob meanwhile.
    """

    def __init__(self, objects: Objects, index: RemoteIndex, reading: Counter[str], alone: Alone) -> None:
        self._alone = alone
        self._objects = objects
        self._index = index
        self._reading = reading

    def weigh(self, digests: Collection[str]) -> Weight:
        """What these blobs weigh together, and how many bytes would be free without them."""
        for digest in digests:
            check_digest(digest)
        found = self._index.find(digests)
        packs, large = _by_pack(found.values())
        whole = sum(_held(place) for place in large)
        lengths = self._index.packs()
        packed = sum(40 * 2 + place.size for places in packs.values() for place in places)
        free = sum(
            lengths[pack] - pack_length(_others(self._index.of_pack(pack), places)) for pack, places in packs.items()
        )
        logical = sum(place.size for place in found.values())
        return Weight(len(found), logical, packed + whole, free + whole)

    async def erase(self, digests: Collection[str], not_touched_since: float) -> AsyncIterator[list[Erased]]:
        """Remove blobs for good, a pack or some large ones at a time."""
        for digest in digests:
            check_digest(digest)
        packs, large = _by_pack(self._index.find(digests).values())
        for place in large:
            if gone := await self._erase_large(place, not_touched_since):
                yield gone
        for pack, places in packs.items():
            if gone := await self._erase_packed(pack, places, not_touched_since):
                yield gone

    def _idle(self, places: Sequence[Place], not_touched_since: float) -> list[Place]:
        touched = self._index.touched(place.digest for place in places)
        return [
            place
            for place in places
            if touched.get(place.digest, not_touched_since) < not_touched_since and not self._reading[place.digest]
        ]

    async def _erase_large(self, place: Place, not_touched_since: float) -> list[Erased]:
        """The object that says it is there goes first: killed after it, the rest is what an upload left."""
        async with self._alone(place.digest):  # nobody puts it again before all of it has gone
            if not self._idle([place], not_touched_since):
                return []
            self._index.forget(place.digest)
            try:
                await self._objects.remove([place.key])
            except BaseException:
                self._put_back(place)
                raise
            if place.join is not None:
                await self._objects.remove([place.join.key(part) for part in range(place.join.parts.number)])
            return [Erased(place.digest, place.size, _held(place))]

    def _put_back(self, place: Place) -> None:
        if place.join is None:
            self._index.add_whole(place.digest, place.size)
        else:
            self._index.add_join(place.join)

    async def _erase_packed(self, pack: str, places: Sequence[Place], not_touched_since: float) -> list[Erased]:
        idle = self._idle(places, not_touched_since)
        if not idle:
            return []
        before = self._index.packs()[pack]
        left = _others(self._index.of_pack(pack), idle)
        made = await self._written(pack, left) if left else None
        late = {place.digest for place in idle} - {place.digest for place in self._idle(idle, not_touched_since)}
        if late:  # asked for while the new pack was written
            if made is not None:
                await self._objects.remove([f"packs/{made[0]}"])
            return await self._erase_packed(
                pack, [place for place in idle if place.digest not in late], not_touched_since
            )
        gone = {bytes.fromhex(place.digest) for place in idle}
        entries = [entry for entry in self._index.of_pack(pack) if entry.digest in gone]
        self._index.replace_pack(pack, made)
        try:
            await self._objects.remove([f"packs/{pack}"])
        except BaseException:
            self._index.add_pack(pack, before, entries)
            raise
        freed = before - (made[1] if made else 0)
        sizes = [80 + place.size for place in idle]
        firsts = [freed - sum(sizes[1:]), *sizes[1:]]
        return [Erased(place.digest, place.size, size) for place, size in zip(idle, firsts, strict=True)]

    async def _written(self, pack: str, left: Sequence[Entry]) -> tuple[str, int, list[Entry]]:
        """A new pack of what is left of an old one."""
        spans = [Span(f"packs/{pack}", entry.offset, entry.offset + entry.size) for entry in left if entry.size]
        got = (
            await self._objects.several(f"packs/{pack}", [span.start for span in spans], [span.stop for span in spans])
            if spans
            else []
        )
        contents = dict(zip((span.start for span in spans), got, strict=True))
        content, moved = bytearray(MAGIC), []
        for entry in left:
            content += frame_head(entry.digest, entry.size)
            moved.append(Entry(entry.digest, len(content), entry.size))
            content += contents[entry.offset] if entry.size else b""
        content += table(moved, len(content))
        name = f"{uuid7()}.pack"
        await self._objects.create(f"packs/{name}", content)
        return name, len(content), moved


def _by_pack(places: Collection[Place]) -> tuple[dict[str, list[Place]], list[Place]]:
    """Those in packs, by their pack, and the others."""
    packs: dict[str, list[Place]] = {}
    for place in places:
        if place.packed:
            packs.setdefault(place.key.removeprefix("packs/"), []).append(place)
    return packs, [place for place in places if not place.packed]


def _others(entries: Sequence[Entry], places: Collection[Place]) -> list[Entry]:
    named = {bytes.fromhex(place.digest) for place in places}
    return [entry for entry in entries if entry.digest not in named]


def _held(place: Place) -> int:
    """Bytes of the objects of a blob that is in no pack."""
    return place.size if place.join is None else place.join.length
