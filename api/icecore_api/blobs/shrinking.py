"""What a folder of blobs weighs, and how blobs leave it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from icecore_api.blobs.erasing import Packs
from icecore_api.blobs.index import Index
from icecore_api.blobs.packs import HEAD
from icecore_api.blobs.store import Erased, Kept, Usage, Weight
from icecore_api.blobs.whole import Whole

_AT_ONCE: Final = 1000
"""Files that are removed together."""


class Shrinking:
    """The blobs of a folder, by weight. Used in threads; it blocks.

    Args:
        index: of the packs.
        packs: their files.
        whole: blobs that are files of their own.
        naming: the right to names.
    """

    def __init__(self, index: Index, packs: Packs, whole: Whole, naming: threading.Lock) -> None:
        self._index = index
        self._packs = packs
        self._whole = whole
        self._naming = naming
        self._opening = threading.Lock()
        self._open: Counter[str] = Counter()

    def take(self, digest: str) -> Callable[[], None]:
        """Let a blob in chunks stay until what is answered is called."""
        with self._opening:
            self._open[digest] += 1

        def give_back() -> None:
            with self._opening:
                self._open[digest] -= 1
                if not self._open[digest]:
                    del self._open[digest]

        return give_back

    def each(self) -> Iterator[list[Kept]]:
        """Every blob, some at a time."""
        for rows in self._index.each():
            yield [Kept(digest.hex(), size, held, touched) for digest, size, held, touched in rows]
        yield from self._whole.each()

    def usage(self) -> Usage:
        """What is there in all."""
        with self._naming:
            number, logical = self._index.total()
            disk = sum(path.stat().st_size for path in self._packs.folder.glob("*.pack"))
            for found in self._whole.each():
                number += len(found)
                logical += (held := sum(blob.size for blob in found))
                disk += held
            return Usage(number, logical, disk)

    def weigh(self, digests: Sequence[str]) -> Weight:
        """What some blobs weigh together."""
        with self._naming:
            packed = {digest: place.size for digest, place in self._index.find(digests).items()}
            rest = [digest for digest in digests if digest not in packed]
            chunked = {digest: place.size for digest, place in self._index.chunks.find(rest).items()}
            alone = self._whole.sizes(digest for digest in rest if digest not in chunked)
            free, held = self._index.chunks.unneeded_without(chunked)
            whole = sum(alone.values())
            logical = sum(packed.values()) + sum(chunked.values()) + whole
            disk = sum(packed.values()) + 2 * HEAD.size * len(packed) + held + whole
            reclaimable = self._packs.reclaimable(packed) + self._packs.without(free) + whole
            return Weight(len(packed) + len(chunked) + len(alone), logical, disk, reclaimable)

    def erase(self, digests: Sequence[str], not_touched_since: float) -> Iterator[list[Erased]]:
        """Remove blobs, some at a time."""
        packed = self._index.find(digests)
        rest = [digest for digest in digests if digest not in packed]
        chunked = self._index.chunks.find(rest)
        alone = [digest for digest in rest if digest not in chunked]
        for first in range(0, len(alone), _AT_ONCE):
            with self._naming:
                erased = self._whole.erase(alone[first : first + _AT_ONCE], not_touched_since)
            yield erased
        for pack, gone in self._packs.by_pack(list(packed)).items():
            with self._naming:
                erased = self._packs.erase(pack, gone, not_touched_since)
            yield erased
        if chunked:
            erased, trouble = self._erase_chunked(list(chunked), not_touched_since)
            yield erased
            if trouble is not None:
                raise trouble

    def _erase_chunked(self, digests: Sequence[str], not_touched_since: float) -> tuple[list[Erased], OSError | None]:
        """They share chunks, so all go at once; then the packs shrink one by one.

        A pack for which there is no space while it is written again shrinks later; what it has is not freed by now.
        """
        with self._naming, self._opening:
            gone, packs = self._index.chunks.erase(digests, not_touched_since, self._open)
        freed, trouble = 0, None
        for pack in packs:
            try:
                with self._naming:
                    freed += self._packs.compact(pack)
            except OSError as error:
                trouble = error
        own = [bytes_ for _, _, bytes_ in gone]
        if own:
            own[0] += freed - sum(own)
        erased = [Erased(digest, size, bytes_) for (digest, size, _), bytes_ in zip(gone, own, strict=True)]
        return erased, trouble

    def forget(self, digests: Sequence[str]) -> None:
        """Remove blobs that are damaged; the caller holds the right to names."""
        self._whole.erase(digests, float("inf"))
        for pack, gone in self._packs.by_pack(digests).items():
            self._packs.erase(pack, gone, float("inf"))
        chunked = self._index.chunks.find(digests)
        for pack in self._index.chunks.erase(chunked, float("inf"), ())[1] if chunked else ():
            self._packs.compact(pack)
