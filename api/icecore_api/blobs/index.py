"""Which pack a small blob lies in, and where: DATA/blobs/index.db.

It knows nothing that the packs do not say themselves. What it lacks is read from them when it is opened, and where
it is damaged it is made anew. Large blobs are files named by their digest, and need no row.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icecore_api.blobs.packs import Entry, read_entries

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS blobs (
    digest BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (digest BLOB PRIMARY KEY, size INTEGER NOT NULL, pack TEXT NOT NULL) WITHOUT ROWID;
"""
_VERSION: Final = 1
_AT_ONCE: Final = 10_000
"""Digests of one statement."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a packed blob lies."""

    pack: str
    offset: int
    size: int


class Index:
    """The index of one folder of packs. May be used from any thread.

    Args:
        path: the SQLite file; None keeps it in memory, for a folder that must not change.
        packs: the folder of the packs.

    Raises:
        sqlite3.Error, OSError: it can neither be read nor made.
    """

    def __init__(self, path: Path | None, packs: Path) -> None:
        self._packs = packs
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer = self._open(path)
        self._reader = self._writer if path is None else _connect(path)
        if path is None:
            self._reading = self._writing
        self._catch_up()

    def _open(self, path: Path | None) -> sqlite3.Connection:
        if path is None:
            return _made(sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None))
        if db := _opened(path):
            return db
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _made(_connect(path))

    def close(self) -> None:
        """Close the file."""
        with self._reading:
            self._reader.close()
        if self._writer is not self._reader:
            with self._writing:
                self._writer.close()

    def find(self, digests: Sequence[str]) -> dict[str, Place]:
        """Where those of `digests` lie that are packed."""
        found: dict[str, Place] = {}
        for first in range(0, len(digests), _AT_ONCE):
            some = [bytes.fromhex(digest) for digest in digests[first : first + _AT_ONCE]]
            marks = ",".join("?" * len(some))
            with self._reading:
                rows = self._reader.execute(
                    "SELECT b.digest, p.name, b.offset, b.size FROM blobs b JOIN packs p ON p.id = b.pack "  # noqa: S608 - only question marks
                    f"WHERE b.digest IN ({marks})",
                    some,
                ).fetchall()
            found.update({digest.hex(): Place(pack, offset, size) for digest, pack, offset, size in rows})
        return found

    def add(self, pack: str, found: Iterable[Entry]) -> None:
        """Take a pack's entries, durably. A blob that is in another pack already stays there."""
        with self._writing, _transaction(self._writer):
            self._insert(pack, found)

    def packs(self) -> list[str]:
        """The names of the packs, the oldest first."""
        with self._reading:
            return [name for (name,) in self._reader.execute("SELECT name FROM packs ORDER BY id").fetchall()]

    def of_pack(self, pack: str) -> list[Entry]:
        """What lies in a pack, in its order."""
        with self._reading:
            rows = self._reader.execute(
                "SELECT b.digest, b.offset, b.size FROM blobs b JOIN packs p ON p.id = b.pack "
                "WHERE p.name = ? ORDER BY b.offset",
                (pack,),
            ).fetchall()
        return [Entry(*row) for row in rows]

    def lost(self) -> list[tuple[str, int, str]]:
        """Digest, size and pack of blobs whose pack has gone, and which did not come again since."""
        with self._reading:
            rows = self._reader.execute(
                "SELECT digest, size, pack FROM lost WHERE digest NOT IN (SELECT digest FROM blobs) ORDER BY digest"
            ).fetchall()
        return [(digest.hex(), size, pack) for digest, size, pack in rows]

    def total(self) -> tuple[int, int]:
        """How many blobs are packed, and their bytes."""
        with self._reading:
            (row,) = self._reader.execute("SELECT count(*), coalesce(sum(size), 0) FROM blobs").fetchall()
        return row[0], row[1]

    def remake(self) -> None:
        """Forget every row, and read all packs again."""
        with self._writing, _transaction(self._writer):
            self._writer.execute("DELETE FROM blobs")
            self._writer.execute("DELETE FROM packs")
        self._catch_up()

    def _catch_up(self) -> None:
        """Take packs whose rows were not written before the process ended; let those go that are not there."""
        there = {path.name for path in self._packs.glob("*.pack")}
        with self._writing:
            known = {name for (name,) in self._writer.execute("SELECT name FROM packs")}
            for name in sorted(there - known):
                with _transaction(self._writer):
                    self._insert(name, read_entries(self._packs / name))
            if gone := known - there:
                with _transaction(self._writer):
                    for name in sorted(gone):
                        self._let_go(name)

    def _insert(self, pack: str, found: Iterable[Entry]) -> None:
        number = self._writer.execute("INSERT INTO packs (name) VALUES (?)", (pack,)).lastrowid
        rows = ((entry.digest, number, entry.offset, entry.size) for entry in found)
        self._writer.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)", rows)

    def _let_go(self, pack: str) -> None:
        self._writer.execute(
            "INSERT OR REPLACE INTO lost SELECT b.digest, b.size, p.name FROM blobs b JOIN packs p ON p.id = b.pack "
            "WHERE p.name = ?",
            (pack,),
        )
        self._writer.execute("DELETE FROM blobs WHERE pack = (SELECT id FROM packs WHERE name = ?)", (pack,))
        self._writer.execute("DELETE FROM packs WHERE name = ?", (pack,))


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _opened(path: Path) -> sqlite3.Connection | None:
    """The index there, or a new one; None where what is there is damaged."""
    db = None
    try:
        db = _connect(path)
        if _sound(db):
            return _made(db)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise
    if db is not None:
        db.close()
    return None


def _sound(db: sqlite3.Connection) -> bool:
    """Whether the file is an index of ours, or empty, and whole."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return version in {0, _VERSION} and db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)


def _made(db: sqlite3.Connection) -> sqlite3.Connection:
    db.executescript(_SCHEMA)
    db.execute(f"PRAGMA user_version = {_VERSION}")
    return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
