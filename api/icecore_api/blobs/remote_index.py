"""What lies in a bucket, and when it was last asked for: a local copy of what the bucket's objects say.

Asking a bucket about 100,000 digests would be 100,000 requests. So the names and sizes of its objects are kept in a
SQLite file, and compared with the bucket's list when the store is opened. Lost or damaged, it is made anew; only the
times of the last touch are lost with it, and then every blob counts as touched now.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icecore_api.blobs.packs import HEAD, Entry, pack_size
from icecore_api.blobs.store import Hurt, Kept, Parts, Usage

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, length INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
    digest BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    touched REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blobs_of_pack ON blobs (pack, offset);
CREATE TABLE IF NOT EXISTS joins (digest BLOB PRIMARY KEY, words TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hurt (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost (digest BLOB PRIMARY KEY, size INTEGER NOT NULL, place TEXT NOT NULL) WITHOUT ROWID;
"""
_VERSION: Final = 1
_WHOLE: Final = 0
_JOINED: Final = -1
_AT_ONCE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Join:
    """A blob that lies in several objects, and the folder of those: what the object `DIGEST.parts` says."""

    parts: Parts
    folder: str
    shas: tuple[str, ...]

    def encoded(self) -> bytes:
        """As it lies in the bucket."""
        said = {"size": self.parts.size, "part_size": self.parts.part_size, "in": self.folder, "parts": self.shas}
        return json.dumps(said, separators=(",", ":")).encode()

    @classmethod
    def decoded(cls, digest: str, words: bytes | str) -> Join:
        """Read what `encoded` made."""
        said = json.loads(words)
        return cls(Parts(digest, said["size"], said["part_size"]), said["in"], tuple(said["parts"]))

    def key(self, part: int) -> str:
        """The object that holds a part."""
        return part_key(self.folder, self.parts, part, self.shas[part])

    @property
    def length(self) -> int:
        """Bytes of all objects of it."""
        return self.parts.size + len(self.encoded())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob lies: in one object, or, where `join` is set, in several."""

    digest: str
    key: str
    offset: int
    size: int
    packed: bool = False
    join: Join | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a bucket's list says."""

    packs: Mapping[str, tuple[int, list[Entry] | None]]
    """Their lengths, and what is in those that were not known."""
    whole: Mapping[str, int]
    """Sizes of blobs that are one object."""
    joins: Mapping[str, Join | None]
    """Those in several objects, and where those are that were not known."""


def whole_key(digest: str) -> str:
    """The object of a blob that is one."""
    return f"whole/{digest[:2]}/{digest}"


def join_key(digest: str) -> str:
    """The object that says in which others a blob lies."""
    return f"{whole_key(digest)}.parts"


def part_folder(folder: str, parts: Parts) -> str:
    """Where the parts of an upload are."""
    return f"{folder}/{parts.digest}/{parts.size}-{parts.part_size}"


def part_key(folder: str, parts: Parts, part: int, sha: str) -> str:
    """The object of a part. Its name has its digest, so that what has a name never changes."""
    return f"{part_folder(folder, parts)}/{part:05}-{sha}"


def pack_length(entries: Collection[Entry]) -> int:
    """Bytes of a pack of just these; nothing is no pack."""
    return pack_size(len(entries), sum(entry.size for entry in entries)) if entries else 0


class RemoteIndex:
    """The index. May be used from any thread.

    Args:
        path: the SQLite file; None keeps it in memory, for a bucket that must not change.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._db = self._open(path)

    def _open(self, path: Path | None) -> sqlite3.Connection:
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return _made(path)
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                    raise
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _made(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # ------------------------------------------------------------------------------------------------------- asking

    def find(self, digests: Iterable[str]) -> dict[str, Place]:
        """Where those of `digests` lie that are there."""
        found: dict[str, Place] = {}
        for some, marks in _some(digests):
            with self._lock:
                rows = self._db.execute(
                    "SELECT b.digest, b.pack, b.offset, b.size, p.name, j.words FROM blobs b "  # noqa: S608 - only question marks
                    "LEFT JOIN packs p ON p.id = b.pack LEFT JOIN joins j ON j.digest = b.digest "
                    f"WHERE b.digest IN ({marks})",
                    some,
                ).fetchall()
            found.update({row[0].hex(): _place(*row) for row in rows})
        return found

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """Bytes of those that are there, and not known to be hurt; they are touched."""
        found: dict[str, int] = {}
        for some, marks in _some(digests):
            with self._writing() as db:
                rows = db.execute(
                    f"SELECT digest, size FROM blobs WHERE digest IN ({marks}) AND digest NOT IN (SELECT * FROM hurt)",  # noqa: S608 - only question marks
                    some,
                ).fetchall()
                if rows:
                    db.execute(f"UPDATE blobs SET touched = ? WHERE digest IN ({marks})", (time.time(), *some))  # noqa: S608 - only question marks
            found.update({digest.hex(): size for digest, size in rows})
        return found

    def hurt(self) -> set[str]:
        """Blobs whose bytes a scrub found damaged or gone, and which did not come again since."""
        with self._lock:
            return {digest.hex() for (digest,) in self._db.execute("SELECT digest FROM hurt").fetchall()}

    def mark_hurt(self, digest: str) -> None:
        """A blob's bytes are damaged or gone: what comes under its digest next takes their place."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO hurt SELECT digest FROM blobs WHERE digest = ?", (bytes.fromhex(digest),))

    def touched(self, digests: Iterable[str]) -> dict[str, float]:
        """When those that are there were last touched."""
        with self._lock:
            found = {}
            for digest in digests:
                for (when,) in self._db.execute("SELECT touched FROM blobs WHERE digest = ?", (bytes.fromhex(digest),)):
                    found[digest] = when
            return found

    def packs(self) -> dict[str, int]:
        """The packs and their lengths."""
        with self._lock:
            return dict(self._db.execute("SELECT name, length FROM packs ORDER BY id").fetchall())

    def of_pack(self, pack: str) -> list[Entry]:
        """What lies in a pack, in its order."""
        with self._lock:
            rows = self._db.execute(
                "SELECT digest, offset, size FROM blobs WHERE pack = (SELECT id FROM packs WHERE name = ?) "
                "ORDER BY offset",
                (pack,),
            ).fetchall()
        return [Entry(*row) for row in rows]

    def large(self) -> list[str]:
        """The blobs that are in no pack."""
        with self._lock:
            rows = self._db.execute("SELECT digest FROM blobs WHERE pack <= 0 ORDER BY digest").fetchall()
        return [digest.hex() for (digest,) in rows]

    def each(self, at_once: int = 5_000) -> Iterator[list[Kept]]:
        """Every blob, some thousands at a time."""
        after = b""
        while True:
            with self._lock:
                rows = self._db.execute(
                    "SELECT b.digest, b.size, b.touched, b.pack, j.words FROM blobs b "
                    "LEFT JOIN joins j ON j.digest = b.digest WHERE b.digest > ? ORDER BY b.digest LIMIT ?",
                    (after, at_once),
                ).fetchall()
            if not rows:
                return
            after = rows[-1][0]
            yield [
                Kept(digest.hex(), size, size + (2 * HEAD.size if pack > 0 else len(words or "")), touched)
                for digest, size, touched, pack, words in rows
            ]

    def usage(self) -> Usage:
        """What is there in all."""
        with self._lock:
            one = self._db.execute("SELECT count(*), coalesce(sum(size), 0) FROM blobs").fetchone()
            (packs,) = self._db.execute("SELECT coalesce(sum(length), 0) FROM packs").fetchone()
            (large,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM blobs WHERE pack <= 0").fetchone()
            (joins,) = self._db.execute("SELECT coalesce(sum(length(words)), 0) FROM joins").fetchone()
        return Usage(one[0], one[1], packs + large + joins)

    def lost(self) -> list[Hurt]:
        """Blobs whose objects have gone, and which did not come again since."""
        with self._lock:
            rows = self._db.execute(
                "SELECT digest, size, place FROM lost WHERE digest NOT IN (SELECT digest FROM blobs) ORDER BY digest"
            ).fetchall()
        return [Hurt(digest.hex(), size, "missing", place, "its object is not there") for digest, size, place in rows]

    # ----------------------------------------------------------------------------------------------------- changing

    def add_pack(self, name: str, length: int, found: Iterable[Entry]) -> None:
        """Take a pack's entries. A blob that lies elsewhere already stays there."""
        entries = list(found)
        with self._writing() as db:
            for entry in entries:
                _heal(db, entry.digest)
            _insert_pack(db, name, length, entries)

    def replace_pack(self, old: str, new: tuple[str, int, Sequence[Entry]] | None) -> None:
        """A pack has gone, and of its blobs only those are left that are in a new one."""
        with self._writing() as db:
            (before,) = db.execute("SELECT id FROM packs WHERE name = ?", (old,)).fetchone()
            if new is not None:
                name, length, kept = new
                number = db.execute("INSERT INTO packs (name, length) VALUES (?, ?)", (name, length)).lastrowid
                rows = ((number, entry.offset, entry.digest, before) for entry in kept)
                db.executemany("UPDATE blobs SET pack = ?, offset = ? WHERE digest = ? AND pack = ?", rows)
            db.execute("DELETE FROM blobs WHERE pack = ?", (before,))
            db.execute("DELETE FROM packs WHERE id = ?", (before,))

    def add_whole(self, digest: str, size: int) -> None:
        """A blob is there as one object."""
        with self._writing() as db:
            _heal(db, bytes.fromhex(digest))
            _insert(db, bytes.fromhex(digest), _WHOLE, 0, size)

    def add_join(self, join: Join) -> None:
        """A blob is there in several objects."""
        with self._writing() as db:
            _heal(db, bytes.fromhex(join.parts.digest))
            if _insert(db, bytes.fromhex(join.parts.digest), _JOINED, 0, join.parts.size):
                _insert_join(db, join)

    def forget(self, digest: str) -> None:
        """A blob that was in no pack has gone."""
        with self._writing() as db:
            db.execute("DELETE FROM blobs WHERE digest = ? AND pack <= 0", (bytes.fromhex(digest),))
            db.execute("DELETE FROM joins WHERE digest = ?", (bytes.fromhex(digest),))

    def reconcile(self, seen: Seen) -> None:
        """Take in what the bucket's list says; blobs that are in it no more are lost."""
        with self._writing() as db:
            before = _rows(db)
            packs = dict(db.execute("SELECT name, id FROM packs").fetchall())
            for name, number in packs.items():
                if name not in seen.packs:
                    db.execute("DELETE FROM blobs WHERE pack = ?", (number,))
                    db.execute("DELETE FROM packs WHERE id = ?", (number,))
            for digest, pack in db.execute("SELECT digest, pack FROM blobs WHERE pack <= 0").fetchall():
                if digest.hex() not in (seen.whole if pack == _WHOLE else seen.joins):
                    db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
                    db.execute("DELETE FROM joins WHERE digest = ?", (digest,))
            for name, (length, found) in sorted(
                seen.packs.items(), reverse=True
            ):  # what came last took a hurt one's place
                if found is not None:
                    _insert_pack(db, name, length, found)
            for text, size in seen.whole.items():
                _insert(db, bytes.fromhex(text), _WHOLE, 0, size)
            for text, join in seen.joins.items():
                if join is not None and _insert(db, bytes.fromhex(text), _JOINED, 0, join.parts.size):
                    _insert_join(db, join)
            db.execute("DELETE FROM hurt WHERE digest NOT IN (SELECT digest FROM blobs)")
            after = _rows(db)
            lost = [(digest, size, place) for digest, (size, place) in before.items() if digest not in after]
            db.executemany("INSERT OR REPLACE INTO lost VALUES (?, ?, ?)", lost)

    def joins(self) -> set[str]:
        """The blobs that lie in several objects."""
        with self._lock:
            return {digest.hex() for (digest,) in self._db.execute("SELECT digest FROM joins").fetchall()}

    def empty_packs(self) -> list[str]:
        """Packs all of whose blobs lie elsewhere, too: what a kill left in the middle of an erasure."""
        with self._lock:
            rows = self._db.execute("SELECT name FROM packs WHERE id NOT IN (SELECT pack FROM blobs)").fetchall()
        return [name for (name,) in rows]

    def drop_pack(self, name: str) -> None:
        """An empty pack has gone."""
        with self._writing() as db:
            db.execute("DELETE FROM packs WHERE name = ?", (name,))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _some(digests: Iterable[str]) -> Iterator[tuple[list[bytes], str]]:
    """Digests, as many at once as one statement takes, and its question marks."""
    asked = list(dict.fromkeys(digests))
    for first in range(0, len(asked), _AT_ONCE):
        some = [bytes.fromhex(digest) for digest in asked[first : first + _AT_ONCE]]
        yield some, ",".join("?" * len(some))


def _rows(db: sqlite3.Connection) -> dict[bytes, tuple[int, str]]:
    """Size and place of every blob."""
    rows = db.execute(
        "SELECT b.digest, b.size, p.name, b.pack FROM blobs b LEFT JOIN packs p ON p.id = b.pack"
    ).fetchall()
    return {
        digest: (
            size,
            f"packs/{name}" if name else whole_key(digest.hex()) if pack == _WHOLE else join_key(digest.hex()),
        )
        for digest, size, name, pack in rows
    }


def _heal(db: sqlite3.Connection, digest: bytes) -> None:
    """Let go of a blob that is hurt: it comes again."""
    if db.execute("DELETE FROM hurt WHERE digest = ?", (digest,)).rowcount:
        db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
        db.execute("DELETE FROM joins WHERE digest = ?", (digest,))


def _insert(db: sqlite3.Connection, digest: bytes, pack: int, offset: int, size: int) -> bool:
    """Whether the blob was not there yet."""
    row = (digest, pack, offset, size, time.time())
    return db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?)", row).rowcount > 0


def _insert_pack(db: sqlite3.Connection, name: str, length: int, found: Iterable[Entry]) -> None:
    number = db.execute("INSERT INTO packs (name, length) VALUES (?, ?)", (name, length)).lastrowid
    rows = ((entry.digest, number, entry.offset, entry.size, time.time()) for entry in found)
    db.executemany("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?)", rows)


def _insert_join(db: sqlite3.Connection, join: Join) -> None:
    row = (bytes.fromhex(join.parts.digest), join.encoded().decode())
    db.execute("INSERT OR REPLACE INTO joins VALUES (?, ?)", row)


def _place(digest: bytes, pack: int, offset: int, size: int, name: str | None, words: str | None) -> Place:
    text = digest.hex()
    if pack == _WHOLE:
        return Place(text, whole_key(text), 0, size)
    if words is not None:
        return Place(text, join_key(text), 0, size, join=Join.decoded(text, words))
    return Place(text, f"packs/{name}", offset, size, packed=True)


def _made(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None, timeout=10)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # the bucket has what a power cut takes
        if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise _corrupt()
        if db.execute("PRAGMA user_version").fetchone()[0] not in {0, _VERSION}:
            raise _corrupt()
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _corrupt() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("it is no index of ours, or damaged")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
