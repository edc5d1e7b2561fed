"""Which blobs are kept in chunks, and where the chunks lie: tables of the index.

How many blobs need a chunk is counted as they come and go, in the transaction that lets them; it follows from the
recipes in the packs, and is counted again when packs are found or have gone.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple

from icecore_api.blobs.packs import HEAD, RECIPE, Entry, read_entries
from icecore_api.blobs.recipes import Recipe, recipe_of

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS chunks (
    digest BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    kind INTEGER NOT NULL, needed INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunks_of_pack ON chunks (pack, offset);
CREATE TABLE IF NOT EXISTS chunked (
    digest BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL,
    size INTEGER NOT NULL, held INTEGER NOT NULL, touched REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunked_of_pack ON chunked (pack, offset);
CREATE TABLE IF NOT EXISTS shrinking (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_AT_ONCE: Final = 10_000

Locked = Callable[[], AbstractContextManager[sqlite3.Connection]]


class ChunkPlace(NamedTuple):
    """Where a chunk lies."""

    pack: str
    offset: int
    size: int
    """As it lies there."""
    kind: int
    needed: int
    """By how many blobs."""


class RecipePlace(NamedTuple):
    """Where the recipe of a blob lies."""

    pack: str
    offset: int
    stored: int
    size: int
    """Of the blob."""


class ChunkRows:
    """The tables.

    Args:
        packs: the folder of the packs.
        reading: the connection for questions, while it is held.
        writing: the one for changes, within a transaction.
    """

    def __init__(self, packs: Path, reading: Locked, writing: Locked) -> None:
        self._packs = packs
        self._reading = reading
        self._writing = writing

    def any(self) -> bool:
        """Whether any blob is kept in chunks."""
        with self._reading() as db:
            return db.execute("SELECT 1 FROM chunked LIMIT 1").fetchone() is not None

    def find(self, digests: Sequence[str]) -> dict[str, RecipePlace]:
        """Where the recipes of those of `digests` lie that are in chunks."""
        names = [bytes.fromhex(digest) for digest in digests]
        with self._reading() as db:
            return {digest.hex(): RecipePlace(*row) for digest, *row in _rows(db, _RECIPES, names)}

    def where(self, chunks: Collection[bytes]) -> dict[bytes, ChunkPlace]:
        """Where those of some chunks lie that are there."""
        with self._reading() as db:
            return {digest: ChunkPlace(*row) for digest, *row in _rows(db, _CHUNKS, chunks)}

    def recipe(self, digest: str) -> Recipe | None:
        """What a blob is made of; None where it is not in chunks, or nothing says it any more."""
        place = self.find([digest]).get(digest)
        if place is None:
            return None
        try:
            return self._read(place)
        except FileNotFoundError:  # its pack was written again meanwhile
            return None if self.find([digest]).get(digest) == place else self.recipe(digest)

    def _read(self, place: RecipePlace) -> Recipe | None:
        handle = os.open(self._packs / place.pack, os.O_RDONLY | os.O_CLOEXEC)
        try:
            recipe = recipe_of(os.pread(handle, place.stored, place.offset))
        finally:
            os.close(handle)
        return recipe if recipe is not None and sum(size for _, size in recipe) == place.size else None

    def all(self) -> Iterator[tuple[str, RecipePlace]]:
        """Every blob that is in chunks."""
        after = b""
        query = f"{_RECIPES} WHERE x.digest > ? ORDER BY x.digest LIMIT ?"
        while True:
            with self._reading() as db:
                rows = db.execute(query, (after, _AT_ONCE)).fetchall()
            if not rows:
                return
            yield from ((digest.hex(), RecipePlace(*place)) for digest, *place in rows)
            after = rows[-1][0]

    def add(
        self,
        packs: Sequence[tuple[str, Sequence[Entry]]],
        size: int,
        recipe: Recipe,
        anew: Collection[bytes],
        now: float,
    ) -> list[str]:
        """Take a blob, durably.

        Args:
            packs: those that came with it, by name; one of them has its recipe.
            size: of the blob.
            recipe: its chunks, which are in these packs or there already.
            anew: those that are there already and damaged: the new ones take their places.
            now: when it was touched.

        Returns:
            Packs that hold what is not needed.
        """
        chunks = list({digest for digest, _ in recipe})
        with self._writing() as db:
            places = _rows(db, "SELECT x.digest, p.name FROM chunks x JOIN packs p ON p.id = x.pack", anew)
            wasteful = {pack for _, pack in places}
            for name, found in packs:
                _number_of(db, name)
                before = db.total_changes
                self.insert(db, name, found, now, sizes={RECIPE: size}, anew=anew)
                if db.total_changes - before < len(found):
                    wasteful.add(name)
            db.executemany("UPDATE chunks SET needed = needed + 1 WHERE digest = ?", ((one,) for one in chunks))
            (digest,) = {entry.digest for _, found in packs for entry in found if entry.kind == RECIPE}
            _set_held(db, digest, chunks)
        return sorted(wasteful)

    def insert(
        self,
        db: sqlite3.Connection,
        pack: str,
        found: Iterable[Entry],
        now: float,
        sizes: dict[int, int] | None = None,
        anew: Collection[bytes] = (),
    ) -> None:
        """Take the chunks and recipes of a pack; how often they are needed is counted later.

        Args:
            db: within a transaction.
            pack: a new one.
            found: what lies in it.
            now: when its blobs were touched.
            sizes: of the blob whose recipe it is; else they are in the recipes.
            anew: chunks that take the places of others.
        """
        number = _number_of(db, pack)
        for entry in found:
            if entry.kind != RECIPE:
                row = (entry.digest, number, entry.offset, entry.size, entry.kind)
                db.execute(_TAKE_PLACE if entry.digest in anew else _TAKE, row)
                continue
            if sizes is None:
                recipe = self._read_any(pack, entry)
                size = sum(length for _, length in recipe) if recipe else 0
            else:
                size = sizes[RECIPE]
            query = "INSERT OR IGNORE INTO chunked VALUES (?, ?, ?, ?, ?, ?, ?)"
            db.execute(query, (entry.digest, number, entry.offset, entry.size, size, 0, now))

    def _read_any(self, pack: str, entry: Entry) -> Recipe | None:
        with (self._packs / pack).open("rb") as file:
            return recipe_of(os.pread(file.fileno(), entry.size, entry.offset))

    def count_again(self, db: sqlite3.Connection) -> None:
        """Count how many blobs need each chunk, after packs were found or have gone; in a transaction.

        Blobs whose chunks are not all there are lost. While any is, no chunk goes: the rest may come back.
        """
        self._try_lost(db)
        db.execute("UPDATE chunks SET needed = 0")
        for digest, *row in db.execute(_RECIPES).fetchall():
            place = RecipePlace(*row)
            recipe = self._read(place)
            chunks = list({chunk for chunk, _ in recipe or ()})
            there = _rows(db, "SELECT x.digest FROM chunks x", chunks)
            if recipe is None or len(there) < len(chunks):
                db.execute("INSERT OR REPLACE INTO lost VALUES (?, ?, ?)", (digest, place.size, place.pack))
                db.execute("DELETE FROM chunked WHERE digest = ?", (digest,))
                continue
            db.executemany("UPDATE chunks SET needed = needed + 1 WHERE digest = ?", ((one,) for one in chunks))
            _set_held(db, digest, chunks)
        if not db.execute(f"SELECT 1 FROM lost WHERE {STILL_LOST} LIMIT 1").fetchone():  # noqa: S608 - ours
            _drop_unneeded(db)

    def _try_lost(self, db: sqlite3.Connection) -> None:
        """Take the recipes of lost blobs again: what was not there may have come back."""
        query = f"SELECT lost.digest, lost.pack FROM lost JOIN packs p ON p.name = lost.pack WHERE {STILL_LOST}"  # noqa: S608 - ours
        for digest, pack in db.execute(query).fetchall():
            own = [
                entry for entry in read_entries(self._packs / pack) if (entry.digest, entry.kind) == (digest, RECIPE)
            ]
            self.insert(db, pack, own, time.time())

    def erase(
        self, digests: Iterable[str], not_touched_since: float, spared: Collection[str]
    ) -> tuple[list[tuple[str, int, int]], list[str]]:
        """Let blobs go that were not touched, durably; their bytes are free once packs shrink.

        Args:
            digests: of the blobs.
            not_touched_since: those that were touched then or later stay.
            spared: those that stay too.

        Returns:
            Digest, size and bytes that nothing else needs of each, and the packs that shrink.
        """
        recipes = {digest: self.recipe(digest) for digest in digests}
        gone, unknown = [], False
        with self._writing() as db:
            for digest, recipe in recipes.items():
                if digest in spared:
                    continue
                query = "DELETE FROM chunked WHERE digest = ? AND touched < ? RETURNING pack, stored, size"
                rows = db.execute(query, (bytes.fromhex(digest), not_touched_since)).fetchall()
                if not rows:
                    continue
                (row,) = rows
                db.execute("INSERT OR IGNORE INTO shrinking SELECT name FROM packs WHERE id = ?", row[:1])
                chunks = list({chunk for chunk, _ in recipe or ()})
                db.executemany("UPDATE chunks SET needed = needed - 1 WHERE digest = ?", ((one,) for one in chunks))
                unknown |= recipe is None
                dead = sum(size + 2 * HEAD.size for (size,) in _rows(db, _UNNEEDED, chunks))
                _drop_unneeded(db, chunks)
                gone.append((digest, row[2], row[1] + 2 * HEAD.size + dead))
            if unknown:
                self.count_again(db)
            shrinking = [name for (name,) in db.execute("SELECT name FROM shrinking").fetchall()]
        return gone, shrinking

    def unneeded_without(self, digests: Iterable[str]) -> tuple[dict[str, set[bytes]], int]:
        """What is free without some blobs, by pack; and the bytes that hold them, what they share included."""
        counts: Counter[bytes] = Counter()
        free: dict[str, set[bytes]] = {}
        held = 0
        for digest, place in self.find(list(digests)).items():
            free.setdefault(place.pack, set()).add(bytes.fromhex(digest))
            held += place.stored + 2 * HEAD.size
            counts.update({chunk for chunk, _ in self.recipe(digest) or ()})
        for chunk, at in self.where(list(counts)).items():
            held += at.size + 2 * HEAD.size
            if counts[chunk] >= at.needed:
                free.setdefault(at.pack, set()).add(chunk)
        return free, held


STILL_LOST: Final = "lost.digest NOT IN (SELECT digest FROM blobs) AND lost.digest NOT IN (SELECT digest FROM chunked)"
_RECIPES: Final = "SELECT x.digest, p.name, x.offset, x.stored, x.size FROM chunked x JOIN packs p ON p.id = x.pack"
_CHUNKS: Final = (
    "SELECT x.digest, p.name, x.offset, x.size, x.kind, x.needed FROM chunks x JOIN packs p ON p.id = x.pack"
)
_TAKE: Final = "INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?, ?, 0)"
_TAKE_PLACE: Final = (
    "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE "
    "SET pack = excluded.pack, offset = excluded.offset, size = excluded.size, kind = excluded.kind"
)
_UNNEEDED: Final = "SELECT x.size FROM chunks x WHERE x.needed <= 0"


def _rows(db: sqlite3.Connection, query: str, digests: Collection[bytes]) -> list[tuple[Any, ...]]:
    """The rows of `query`, of some digests."""
    found, names = [], list(digests)
    word = "AND" if " WHERE " in query else "WHERE"
    for first in range(0, len(names), _AT_ONCE):
        some = names[first : first + _AT_ONCE]
        found += db.execute(f"{query} {word} x.digest IN ({','.join('?' * len(some))})", some).fetchall()
    return found


def _number_of(db: sqlite3.Connection, pack: str) -> int:
    db.execute("INSERT OR IGNORE INTO packs (name) VALUES (?)", (pack,))
    ((number,),) = db.execute("SELECT id FROM packs WHERE name = ?", (pack,)).fetchall()
    return int(number)


def _set_held(db: sqlite3.Connection, digest: bytes, chunks: Sequence[bytes]) -> None:
    held = sum(size + 2 * HEAD.size for (size,) in _rows(db, "SELECT x.size FROM chunks x", chunks))
    db.execute("UPDATE chunked SET held = stored + ? WHERE digest = ?", (held + 2 * HEAD.size, digest))


def _drop_unneeded(db: sqlite3.Connection, chunks: Collection[bytes] | None = None) -> None:
    """Forget chunks that no blob needs; the packs that hold them are to shrink."""
    if chunks is None:
        dead = [digest for (digest,) in db.execute("SELECT digest FROM chunks WHERE needed <= 0").fetchall()]
    else:
        dead = [digest for (digest,) in _rows(db, "SELECT x.digest FROM chunks x WHERE x.needed <= 0", chunks)]
    packs = {pack for (pack,) in _rows(db, "SELECT x.pack FROM chunks x", dead)}
    for pack in packs:
        db.execute("INSERT OR IGNORE INTO shrinking SELECT name FROM packs WHERE id = ?", (pack,))
    db.executemany("DELETE FROM chunks WHERE digest = ?", ((one,) for one in dead))
