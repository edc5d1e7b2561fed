"""Reading a blob that is kept in chunks: each chunk is checked when it is read."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Final

from icecore_api.blobs.chunk_rows import ChunkPlace, ChunkRows
from icecore_api.blobs.index import Place
from icecore_api.blobs.packs import wrong_frame
from icecore_api.blobs.reading import LocalBlob, damaged
from icecore_api.blobs.recipes import Recipe, unzipped

_PACKS_OPEN: Final = 16


class ChunkedBlob(LocalBlob):
    """A `Blob` in chunks.

    Args:
        digest: of the blob.
        recipe: its chunks.
        rows: say where they lie.
        packs: the folder of the packs.
        closed: called once it is closed; until then the store leaves it its chunks.
    """

    def __init__(self, digest: str, recipe: Recipe, rows: ChunkRows, packs: Path, closed: Callable[[], None]) -> None:
        self._ends = list(accumulate(size for _, size in recipe))
        super().__init__(digest, -1, Place("", 0, self._ends[-1] if recipe else 0))
        self._recipe = recipe
        self._rows = rows
        self._packs = packs
        self._closed: Callable[[], None] | None = closed
        self._open: dict[str, int] = {}
        self._last: tuple[int, bytes] = -1, b""

    def piece(self, at: int, size: int) -> bytes:
        """Some bytes.

        Raises:
            BlobDamaged: a chunk is not what its digest says, or not there.
        """
        with self._lock:
            if self._closed is None:
                raise damaged(self.digest, "it was closed while it was read")
            first, stop = bisect_right(self._ends, at), bisect_right(self._ends, at + size - 1) + 1
            places = self._rows.where({digest for digest, _ in self._recipe[first:stop]})
            found = b"".join(self._chunk(number, places) for number in range(first, stop))
            skipped = at - (self._ends[first - 1] if first else 0)
        return found[skipped : skipped + size]

    def _chunk(self, number: int, places: dict[bytes, ChunkPlace]) -> bytes:
        if self._last[0] == number:  # pieces end within chunks
            return self._last[1]
        digest, size = self._recipe[number]
        stored, kind = self._stored(digest, places.get(digest))
        problem = wrong_frame(digest, kind, stored)
        content = stored if len(stored) == size else unzipped(stored)
        if problem or content is None or len(content) != size:
            start = self._ends[number] - size
            raise damaged(self.digest, f"of its chunk at byte {start} {problem or 'the length has changed'}")
        self._last = number, content
        return content

    def _stored(self, digest: bytes, place: ChunkPlace | None) -> tuple[bytes, int]:
        if place is None:
            raise damaged(self.digest, f"its chunk {digest.hex()} is not there")
        try:
            handle = self._handle_of(place.pack)
        except FileNotFoundError as error:
            now = self._rows.where([digest]).get(digest)
            if now != place:  # its pack was written again meanwhile
                return self._stored(digest, now)
            raise damaged(self.digest, f"the pack of its chunk {digest.hex()} is not there") from error
        return os.pread(handle, place.size, place.offset), place.kind

    def _handle_of(self, pack: str) -> int:
        handle = self._open.get(pack)
        if handle is None:
            if len(self._open) >= _PACKS_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            handle = self._open[pack] = os.open(self._packs / pack, os.O_RDONLY | os.O_CLOEXEC)
        return handle

    def close(self) -> None:
        """Close its files."""
        with self._lock:
            closed, self._closed = self._closed, None
            while self._open:
                os.close(self._open.popitem()[1])
        if closed is not None:
            closed()
