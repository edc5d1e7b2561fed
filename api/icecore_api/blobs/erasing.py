"""Removing blobs from packs: a pack is written again without them, or goes when nothing is left in it.

1. What stays is written into a new pack, which is made durable and gets its name.
2. The index lets the new pack take the old one's place, and dooms that: in one transaction. This is the moment.
3. The old file is removed.

Whoever is killed before 2 leaves a pack that holds nothing of its own, which goes when the folder is opened (`tidy`);
after 2, a doomed file, which goes then too. What has the old file open reads on.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from icecore.events import uuid7
from icecore_api.blobs.drafts import Draft
from icecore_api.blobs.index import Index
from icecore_api.blobs.packs import HEAD, MAGIC, Entry, frame_head, has_table, pack_size, table
from icecore_api.blobs.store import Erased
from icecore_ingest.logs.segments import sync_folder

_COPIED_AT_ONCE: Final = 1 << 20


class Packs:
    """The packs of a folder, as files that become smaller.

    Args:
        folder: of the packs.
        index: of them.
        draft: makes an empty draft; it is thrown away when the context ends, unless it got its name.
    """

    def __init__(
        self, folder: Path, index: Index, draft: Callable[[], contextlib.AbstractContextManager[Draft]]
    ) -> None:
        self.folder = folder
        self._index = index
        self._draft = draft

    def reclaimable(self, digests: Collection[str]) -> int:
        """By how many bytes the packs become smaller without these blobs."""
        return self.without(self.by_pack(digests))

    def without(self, free: Mapping[str, Collection[bytes]]) -> int:
        """By how many bytes packs become smaller without some of what is in them."""
        return sum(
            size - _size_of([entry for entry in self._index.of_pack(pack) if entry.digest not in gone])
            for pack, gone in free.items()
            if (size := self._size(pack))
        )

    def by_pack(self, digests: Collection[str]) -> dict[str, set[bytes]]:
        """Those of `digests` that are packed, by pack; the packs of which least is left come first."""
        found: dict[str, set[bytes]] = {}
        sizes: dict[str, int] = {}
        for digest, place in self._index.find(list(digests)).items():
            found.setdefault(place.pack, set()).add(bytes.fromhex(digest))
            sizes[place.pack] = sizes.get(place.pack, 0) + place.size
        left = {pack: self._size(pack) - size for pack, size in sizes.items()}
        return dict(sorted(found.items(), key=lambda one: left[one[0]]))

    def _size(self, pack: str) -> int:
        try:
            return (self.folder / pack).stat().st_size
        except FileNotFoundError:
            return 0

    def erase(self, pack: str, digests: Collection[bytes], not_touched_since: float) -> list[Erased]:
        """Write a pack again without some blobs. The caller holds the right to names."""
        while True:
            touched = self._index.touched(pack)
            gone = {digest for digest in digests if touched.get(digest, math.inf) < not_touched_since}
            if not gone:
                return []
            entries = self._index.of_pack(pack)
            before = self._size(pack)
            if not before:  # lost: nothing of it can be written again
                self._index.forget(gone)
                return [Erased(entry.digest.hex(), entry.size, 0) for entry in entries if entry.digest in gone]
            by, moved = self._written_again(pack, [entry for entry in entries if entry.digest not in gone])
            if self._index.replace(pack, by, moved, gone, not_touched_since):
                break
            self._remove(by)
        self._remove(pack)
        self._index.freed(pack)
        return _receipts([entry for entry in entries if entry.digest in gone], before - _size_of(moved))

    def _written_again(self, pack: str, stay: Sequence[Entry]) -> tuple[str, list[Entry]]:
        """A new pack of what stays, and where it lies there; "" for nothing. Damaged bytes stay as they are."""
        if not stay:
            return "", []
        moved, at = [], len(MAGIC)
        with self._draft() as draft, (self.folder / pack).open("rb") as file:
            draft.write([MAGIC])
            for entry in stay:
                draft.write([frame_head(entry.digest, entry.size, entry.kind)])
                for first in range(0, entry.size, _COPIED_AT_ONCE):
                    size = min(_COPIED_AT_ONCE, entry.size - first)
                    got = os.pread(file.fileno(), size, entry.offset + first)
                    draft.write([got.ljust(size, b"\0")])  # where the old file was cut, what is cut off stays damaged
                moved.append(Entry(entry.digest, at + HEAD.size, entry.size, entry.kind))
                at += HEAD.size + entry.size
            return self.seal(draft, moved), moved

    def seal(self, draft: Draft, found: Sequence[Entry]) -> str:
        """Make a durable pack of a draft of frames. Answers its name, which the index does not know yet."""
        name = f"{uuid7()}.pack"
        draft.write([table(found, draft.size)])
        draft.sync()
        draft.become(self.folder / name)
        return name

    def _remove(self, pack: str) -> None:
        if pack:
            (self.folder / pack).unlink(missing_ok=True)
            sync_folder(self.folder)

    def tidy(self) -> None:
        """Finish what processes that were killed have left. Nothing else is going on."""
        for pack in self._index.doomed():
            self._remove(pack)
            self._index.freed(pack)
        lost = self._index.lost()  # while anything is, it may come back, and then needs what nothing else does
        for pack in self._index.new if not lost else ():
            if has_table(self.folder / pack):
                self._index.shrink(pack)
        self._index.new.clear()
        for pack in self._index.shrinking():
            with contextlib.suppress(OSError):  # no space: it is tried again with the next erasing, or opening
                self.compact(pack)

    def compact(self, pack: str) -> int:
        """Write a pack again where it holds what is not needed. Answers the bytes that are free now."""
        entries, before = self._index.of_pack(pack), self._size(pack)
        if not before or before == _size_of(entries):
            self._index.shrunk(pack)
            return 0
        by, moved = self._written_again(pack, entries)
        self._index.replace(pack, by, moved, [], math.inf)
        self._remove(pack)
        self._index.freed(pack)
        return before - _size_of(moved)


def _size_of(entries: Sequence[Entry]) -> int:
    """Bytes of a pack of these; none for no pack."""
    return pack_size(len(entries), sum(entry.size for entry in entries)) if entries else 0


def _receipts(gone: Sequence[Entry], freed: int) -> list[Erased]:
    """Each has its own bytes; the first one also those of the pack itself, where that went."""
    own = [2 * HEAD.size + entry.size for entry in gone]
    own[0] += freed - sum(own)
    return [Erased(entry.digest.hex(), entry.size, bytes_) for entry, bytes_ in zip(gone, own, strict=True)]
