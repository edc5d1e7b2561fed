"""Keeping a large file in chunks: only those that are not there are written, compressed where that helps.

Where the file is cut follows from its bytes alone (FastCDC), so that files that are nearly equal have most chunks in
common. What is new goes into packs of some hundred MiB, the last of which has the recipe; a file that has all chunks in
common with others takes a pack of its recipe alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from pyfastcdc import FastCDC

from icecore_api.blobs.chunk_rows import ChunkRows
from icecore_api.blobs.drafts import Draft
from icecore_api.blobs.erasing import Packs
from icecore_api.blobs.packs import CHUNK, HEAD, MAGIC, RECIPE, ZSTD, Entry, frame_head
from icecore_api.blobs.recipes import CHUNK_MOST, Recipe, recipe_bytes, zipped

CHUNKED_FROM: Final = 1 << 20
"""Bytes of a file from which on it is kept in chunks."""
CHUNK_AVERAGE: Final = 64 * 1024
CHUNK_LEAST: Final = 16 * 1024
PACK_BYTES: Final = 256 << 20
"""A pack that has so many is full."""
_SAVES: Final = 0.95
"""A chunk is kept compressed when it has at most this share of its bytes then."""
_AT_ONCE: Final = 64
"""Chunks asked for together."""


class Cut(NamedTuple):
    """A file in chunks: what it is made of, and packs of what is new of it, which have no names yet."""

    recipe: Recipe
    packs: list[tuple[Draft, list[Entry]]]
    known: set[bytes]
    """Chunks that were there already."""


class Chunking:
    """What cuts files.

    Args:
        rows: the chunks that are there.
        packs: the folder of the packs.
        draft: as in `Packs`.
        compress: whether chunks are compressed.
    """

    def __init__(
        self,
        rows: ChunkRows,
        packs: Packs,
        draft: Callable[[], AbstractContextManager[Draft]],
        *,
        compress: bool = True,
    ) -> None:
        self._rows = rows
        self._packs = packs
        self._draft = draft
        self._compress = compress

    def cut(self, file: Path, digest: bytes, drafts: ExitStack, damaged: AbstractSet[bytes]) -> Cut:
        """Cut a file, and write what is new of it into packs.

        Args:
            file: its bytes have the digest.
            digest: of the file.
            drafts: ends those that get no name.
            damaged: chunks that are there, and must come again.
        """
        made = Cut([], [], set())
        written: set[bytes] = set()
        chunks = _chunks(file)
        while some := list(islice(chunks, _AT_ONCE)):
            there = self._rows.where({name for name, _ in some}).keys() - damaged
            for name, content in some:
                made.recipe.append((name, len(content)))
                if name in there:
                    made.known.add(name)
                elif name not in written:
                    written.add(name)
                    self._write(made, drafts, name, *self._smaller(content))
        self._write(made, drafts, digest, RECIPE, recipe_bytes(made.recipe))
        for draft, _ in made.packs:
            draft.sync()
        return made

    def _smaller(self, content: bytes) -> tuple[int, bytes]:
        if self._compress and len(packed := zipped(content)) <= _SAVES * len(content):
            return ZSTD, packed
        return CHUNK, content

    def _write(self, made: Cut, drafts: ExitStack, name: bytes, kind: int, content: bytes) -> None:
        if not made.packs or made.packs[-1][0].size >= PACK_BYTES:
            draft = drafts.enter_context(self._draft())
            draft.write([MAGIC])
            made.packs.append((draft, []))
        draft, entries = made.packs[-1]
        entries.append(Entry(name, draft.size + HEAD.size, len(content), kind))
        draft.write([frame_head(name, len(content), kind), content])

    def whole(self, made: Cut) -> bool:
        """Whether what was there when a file was cut still is."""
        return len(self._rows.where(made.known)) == len(made.known)

    def keep(self, made: Cut, size: int, damaged: Collection[bytes]) -> None:
        """Give the packs of a file their names, durably. The caller holds the right to names, and `whole` is so.

        Args:
            made: of the file.
            size: of the file.
            damaged: those of its chunks that were there, and have come again.
        """
        named: list[tuple[str, Sequence[Entry]]] = []
        try:
            for draft, entries in made.packs:
                named.append((self._packs.seal(draft, entries), entries))
            wasteful = self._rows.add(named, size, made.recipe, damaged, time.time())
        except BaseException:
            for name, _ in named:
                (self._packs.folder / name).unlink(missing_ok=True)
            raise
        for pack in wasteful:  # of another file that came at the same time, or of a chunk that was damaged
            self._packs.compact(pack)


def _chunks(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Digest and bytes of each chunk."""
    cutter = FastCDC(CHUNK_AVERAGE, min_size=CHUNK_LEAST, max_size=CHUNK_MOST)
    for chunk in cutter.cut_file(file):
        content = bytes(chunk.data)  # a copy: what is read from a mapping may change under the eyes of the digest
        yield hashlib.sha256(content).digest(), content
