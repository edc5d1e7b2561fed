"""Which pack a small blob lies in, and where: DATA/blobs/index.db.

But for when a blob was touched it knows nothing that the packs do not say themselves. What it lacks is read from them
when it is opened, and where it is damaged it is made anew, and every blob counts as touched then. Large blobs are files
named by their digest, and need no row.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icecore_api.blobs.chunk_rows import SCHEMA, STILL_LOST, ChunkRows
from icecore_api.blobs.packs import BLOB, CHUNK, HEAD, RECIPE, ZSTD, Entry, read_entries

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS blobs (
    digest BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    touched REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blobs_of_pack ON blobs (pack, offset);
CREATE TABLE IF NOT EXISTS lost (digest BLOB PRIMARY KEY, size INTEGER NOT NULL, pack TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hurt (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS closed (well INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS doomed (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""  # and those of `chunk_rows`
_VERSION: Final = 2
TOUCHES_KEPT_S: Final = 3600.0
"""A blob's touch is written when the one that is written is older; until then it is remembered. A blob that a killed
process has touched may have been touched as much later as this."""
_TOUCHES_AT_MOST: Final = 200_000
"""Remembered."""
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
        self.new: list[str] = []
        """Packs that were found, which a process that ended may not have finished with."""
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._writer = self._open(path)
        self._reader = self._writer if path is None else _connect(path)
        self._touches: dict[bytes, float] = {}
        self.chunks = ChunkRows(packs, self._reads, self._writes)
        if path is None:
            self._reading = self._writing
        else:
            self._see_to_touches()
        self._catch_up()

    def _open(self, path: Path | None) -> sqlite3.Connection:
        if path is None:
            return _made(sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None))
        if db := _opened(path):
            return db
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _made(_connect(path))

    @contextlib.contextmanager
    def _reads(self) -> Iterator[sqlite3.Connection]:
        with self._reading:
            yield self._reader

    @contextlib.contextmanager
    def _writes(self) -> Iterator[sqlite3.Connection]:
        """A transaction, in which every touch is written."""
        with self._writing, _transaction(self._writer):
            self._keep_touches()
            yield self._writer

    def close(self) -> None:
        """Close the file."""
        with self._reading:
            self._reader.close()
        if self._writer is not self._reader:
            with self._writing:
                with contextlib.suppress(sqlite3.Error), _transaction(self._writer):  # else the next one sees to it
                    self._keep_touches()
                    self._writer.execute("INSERT OR IGNORE INTO closed VALUES (1)")
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

    def touch(self, digests: Sequence[str], now: float) -> dict[str, int]:
        """Bytes of those of `digests` that are packed, which are touched."""
        found: dict[str, int] = {}
        wanted = sorted(map(bytes.fromhex, digests))  # in the order of the tree: a third of the time
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT digest, size, touched FROM blobs WHERE digest IN ({marks})"  # noqa: S608 - as above
            with self._writing:
                rows = self._writer.execute(query, some).fetchall()
                if self._has_chunks():
                    rows += self._writer.execute(query.replace("FROM blobs", "FROM chunked"), some).fetchall()
                late = [(now, digest) for digest, _, touched in rows if touched < now - TOUCHES_KEPT_S]
                self._touches.update((digest, now) for digest, _, touched in rows if touched >= now - TOUCHES_KEPT_S)
                if late or len(self._touches) > _TOUCHES_AT_MOST:
                    with _transaction(self._writer):
                        self._touches.update((digest, now) for now, digest in late)
                        self._keep_touches()
            found.update({digest.hex(): size for digest, size, _ in rows})
        return found

    def _keep_touches(self) -> None:
        """Write the touches that are only remembered; in a transaction."""
        rows = [(now, digest) for digest, now in self._touches.items()]
        self._writer.executemany("UPDATE blobs SET touched = max(touched, ?) WHERE digest = ?", rows)
        if self._has_chunks():
            self._writer.executemany("UPDATE chunked SET touched = max(touched, ?) WHERE digest = ?", rows)
        self._touches.clear()

    def _has_chunks(self) -> bool:
        return self._writer.execute("SELECT 1 FROM chunked LIMIT 1").fetchone() is not None

    def keep_touches(self) -> None:
        """Let every touch be written."""
        with self._writing, _transaction(self._writer):
            self._keep_touches()

    def add(self, pack: str, found: Iterable[Entry]) -> None:
        """Take a pack's entries, durably. A blob that is in another pack already stays there."""
        with self._writing, _transaction(self._writer):
            self._insert(pack, found)

    def replace(
        self, pack: str, by: str, moved: Collection[Entry], gone: Collection[bytes], not_touched_since: float
    ) -> bool:
        """Let a pack's place be taken by another one, durably; the file is doomed then.

        Args:
            pack: the old one.
            by: the new one, which is durable; "" where nothing is left.
            moved: what lies in the new one, and where.
            gone: what does not.
            not_touched_since: where one of `gone` was touched since, nothing is changed.

        Returns:
            Whether it was.
        """
        with self._writes():
            for digest in gone:
                query = "SELECT 1 FROM blobs WHERE digest = ? AND touched >= ?"
                if self._writer.execute(query, (digest, not_touched_since)).fetchone():
                    return False
            self._writer.executemany("DELETE FROM blobs WHERE digest = ?", ((digest,) for digest in gone))
            if by:
                (number,) = self._writer.execute(
                    "INSERT INTO packs (name) VALUES (?) ON CONFLICT DO UPDATE SET name = name RETURNING id", (by,)
                ).fetchone()
                for kind, table in ((BLOB, "blobs"), (CHUNK, "chunks"), (ZSTD, "chunks"), (RECIPE, "chunked")):
                    rows = [(number, entry.offset, entry.digest) for entry in moved if entry.kind == kind]
                    query = f"UPDATE {table} SET pack = ?, offset = ? WHERE digest = ?"  # noqa: S608 - ours
                    self._writer.executemany(query, rows)
            self._writer.execute("DELETE FROM shrinking WHERE name = ?", (pack,))
            self._writer.execute("DELETE FROM packs WHERE name = ?", (pack,))
            self._writer.execute("INSERT OR IGNORE INTO doomed VALUES (?)", (pack,))
        return True

    def forget(self, digests: Iterable[bytes]) -> None:
        """Blobs are not there any more."""
        with self._writing, _transaction(self._writer):
            self._writer.executemany("DELETE FROM blobs WHERE digest = ?", ((digest,) for digest in digests))

    def hurt(self) -> set[bytes]:
        """Blobs that were found damaged, and did not come again since."""
        with self._reading:
            return {digest for (digest,) in self._reader.execute("SELECT digest FROM hurt").fetchall()}

    def set_hurt(self, hurt: Iterable[bytes], well: Iterable[bytes]) -> None:
        """Note that blobs are damaged, and that others are not."""
        with self._writing, _transaction(self._writer):
            self._writer.executemany("DELETE FROM hurt WHERE digest = ?", ((digest,) for digest in well))
            self._writer.executemany("INSERT OR IGNORE INTO hurt VALUES (?)", ((digest,) for digest in hurt))

    def doomed(self) -> list[str]:
        """Packs that have no blobs any more, and whose files may still be there."""
        with self._writing:
            return [name for (name,) in self._writer.execute("SELECT name FROM doomed").fetchall()]

    def shrinking(self) -> list[str]:
        """Packs that hold what is not needed any more."""
        with self._writing:
            return [name for (name,) in self._writer.execute("SELECT name FROM shrinking").fetchall()]

    def shrink(self, pack: str) -> None:
        """A pack holds what is not needed any more."""
        with self._writing:
            self._writer.execute("INSERT OR IGNORE INTO shrinking VALUES (?)", (pack,))

    def shrunk(self, pack: str) -> None:
        """A pack holds nothing that is not needed."""
        with self._writing:
            self._writer.execute("DELETE FROM shrinking WHERE name = ?", (pack,))

    def freed(self, pack: str) -> None:
        """The file of a doomed pack has gone."""
        with self._writing:
            self._writer.execute("DELETE FROM doomed WHERE name = ?", (pack,))

    def touched(self, pack: str) -> dict[bytes, float]:
        """When each blob of a pack was touched."""
        self.keep_touches()
        query = "SELECT b.digest, b.touched FROM blobs b JOIN packs p ON p.id = b.pack WHERE p.name = ?"
        with self._reading:
            return dict(self._reader.execute(query, (pack,)).fetchall())

    def each(self) -> Iterator[list[tuple[bytes, int, int, float]]]:
        """Digest, size, bytes that hold it, and time of last touch of every blob in packs, some at a time."""
        self.keep_touches()
        yield from self._each(f"SELECT digest, size, size + {2 * HEAD.size}, touched FROM blobs")  # noqa: S608 - a number
        yield from self._each("SELECT digest, size, held, touched FROM chunked")

    def _each(self, of: str) -> Iterator[list[tuple[bytes, int, int, float]]]:
        after = b""
        while True:
            query = f"{of} WHERE digest > ? ORDER BY digest LIMIT ?"
            with self._reading:
                rows = self._reader.execute(query, (after, _AT_ONCE)).fetchall()
            if not rows:
                return
            yield rows
            after = rows[-1][0]

    def packs(self) -> list[str]:
        """The names of the packs, the oldest first."""
        with self._reading:
            return [name for (name,) in self._reader.execute("SELECT name FROM packs ORDER BY id").fetchall()]

    def of_pack(self, pack: str) -> list[Entry]:
        """What lies in a pack and is needed, in its order."""
        with self._reading:
            rows = self._reader.execute(
                "WITH p AS (SELECT id FROM packs WHERE name = ?) "  # noqa: S608 - numbers only
                f"SELECT digest, offset, size, {BLOB} FROM blobs WHERE pack IN p UNION ALL "
                "SELECT digest, offset, size, kind FROM chunks WHERE pack IN p UNION ALL "
                f"SELECT digest, offset, stored, {RECIPE} FROM chunked WHERE pack IN p ORDER BY offset",
                (pack,),
            ).fetchall()
        return [Entry(*row) for row in rows]

    def lost(self) -> list[tuple[str, int, str]]:
        """Digest, size and pack of blobs whose pack has gone, and which did not come again since."""
        with self._reading:
            rows = self._reader.execute(
                f"SELECT digest, size, pack FROM lost WHERE {STILL_LOST} ORDER BY digest"  # noqa: S608 - ours
            ).fetchall()
        return [(digest.hex(), size, pack) for digest, size, pack in rows]

    def total(self) -> tuple[int, int]:
        """How many blobs are in packs, and their bytes."""
        query = "SELECT size FROM blobs UNION ALL SELECT size FROM chunked"
        with self._reading:
            (row,) = self._reader.execute(f"SELECT count(*), coalesce(sum(size), 0) FROM ({query})").fetchall()  # noqa: S608 - ours
        return row[0], row[1]

    def stored(self) -> int:
        """Bytes of everything that lies in packs, as it lies there."""
        query = "SELECT size FROM blobs UNION ALL SELECT size FROM chunks UNION ALL SELECT stored FROM chunked"
        with self._reading:
            (row,) = self._reader.execute(f"SELECT coalesce(sum(size), 0) FROM ({query})").fetchall()  # noqa: S608 - ours
        return int(row[0])

    def remake(self) -> None:
        """Forget every row, and read all packs again."""
        with self._writing, _transaction(self._writer):
            for table in ("blobs", "chunks", "chunked"):
                self._writer.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
            self._writer.execute("DELETE FROM packs")
        self._catch_up()

    def _see_to_touches(self) -> None:
        """Where the process before was killed, blobs count as touched by it as late as they can have been."""
        now = time.time()
        with _transaction(self._writer):
            if not self._writer.execute("DELETE FROM closed RETURNING well").fetchall():
                for table in ("blobs", "chunked"):
                    query = f"UPDATE {table} SET touched = min(touched + ?, ?)"  # noqa: S608 - ours
                    self._writer.execute(query, (TOUCHES_KEPT_S, now))
            for table in ("blobs", "chunked"):  # where the clock went back
                self._writer.execute(f"UPDATE {table} SET touched = ? WHERE touched > ?", (now, now))  # noqa: S608 - ours

    def _catch_up(self) -> None:
        """Take packs whose rows were not written before the process ended; let those go that are not there."""
        there = {path.name for path in self._packs.glob("*.pack")}
        with self._writing:
            there -= {name for (name,) in self._writer.execute("SELECT name FROM doomed")}
            known = {name for (name,) in self._writer.execute("SELECT name FROM packs")}
            gone = known - there
            if there == known:
                return
            with _transaction(self._writer):
                in_chunks = False
                for name in sorted(there - known):
                    in_chunks |= self._insert(name, read_entries(self._packs / name))
                    self.new.append(name)
                for name in sorted(gone):
                    in_chunks |= self._let_go(name)
                if in_chunks:
                    self.chunks.count_again(self._writer)

    def _insert(self, pack: str, found: Iterable[Entry]) -> bool:
        """Take a pack; whether there are chunks in it."""
        number = self._writer.execute("INSERT INTO packs (name) VALUES (?)", (pack,)).lastrowid
        now, others = time.time(), []

        def blobs() -> Iterator[tuple[bytes, int | None, int, int, float]]:
            for entry in found:
                if entry.kind == BLOB:
                    yield entry.digest, number, entry.offset, entry.size, now
                else:
                    others.append(entry)

        self._writer.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?)", blobs())
        if others:
            self.chunks.insert(self._writer, pack, others, now)
        return bool(others)

    def _let_go(self, pack: str) -> bool:
        """A pack has gone; whether there were chunks in it."""
        of_pack = "WHERE pack = (SELECT id FROM packs WHERE name = ?)"
        for table in ("blobs", "chunked"):
            query = f"INSERT OR REPLACE INTO lost SELECT digest, size, ? FROM {table} {of_pack}"  # noqa: S608 - ours
            self._writer.execute(query, (pack, pack))
        changed = self._writer.total_changes
        for table in ("chunks", "chunked"):
            self._writer.execute(f"DELETE FROM {table} {of_pack}", (pack,))  # noqa: S608 - ours
        in_chunks = self._writer.total_changes > changed
        self._writer.execute(f"DELETE FROM blobs {of_pack}", (pack,))  # noqa: S608 - ours
        self._writer.execute("DELETE FROM packs WHERE name = ?", (pack,))
        self._writer.execute("DELETE FROM shrinking WHERE name = ?", (pack,))
        return in_chunks


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
    db.executescript(_SCHEMA + SCHEMA)
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
