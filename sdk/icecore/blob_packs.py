# ruff: noqa: PTH103, PTH104, PTH108 - a Path for each file of a large download costs more than the file
"""Small files of artifacts kept on this machine, many in one file: that is what makes 100,000 of them quick.

A pack is what came in one answer: 32 bytes of digest, 8 bytes of length (big-endian) and the bytes, one after another.
It appears by rename, whole, is read-only, and is never changed; it goes as a whole when there is no room. An index
says which pack has a blob. It may be lost at any time: what it does not know is fetched again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from icecore.cache_index import open_index

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS packs (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS blobs (
    digest BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
"""
_HEAD: Final = 40
_AT_ONCE: Final = 10_000
"""Digests of one statement."""
_USED_S: Final = 3600
"""A use is noted in the file's time when the last note is older."""


class Packed(NamedTuple):
    """Where a blob lies in a pack."""

    digest: str
    offset: int
    size: int


class BlobPacks:
    """A folder of packs, shared by processes.

    Args:
        folder: the cache's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "packs"
        self._index = folder / "packs.db"

    def find(self, digests: Sequence[str]) -> dict[str, list[Packed]]:
        """Where those of `digests` lie that are here: by the pack's name, in its order."""
        found: dict[str, list[Packed]] = {}
        if not self._index.exists():
            return found
        with contextlib.suppress(sqlite3.Error, OSError), closing(open_index(self._index, _SCHEMA)) as db:
            names = dict(db.execute("SELECT id, name FROM packs").fetchall())
            for first in range(0, len(digests), _AT_ONCE):
                some = [bytes.fromhex(digest) for digest in digests[first : first + _AT_ONCE]]
                marks = ",".join("?" * len(some))
                query = f"SELECT digest, pack, offset, size FROM blobs WHERE digest IN ({marks})"  # noqa: S608
                for digest, pack, offset, size in db.execute(query, some).fetchall():
                    if pack in names:
                        found.setdefault(names[pack], []).append(Packed(digest.hex(), offset, size))
        for places in found.values():
            places.sort(key=_offset)
        return found

    def read(self, pack: str, places: Sequence[Packed]) -> Iterator[tuple[Packed, bytes]]:
        """Blobs of one pack, in its order, not yet checked; fewer where the pack has gone or is shorter now."""
        path = self.folder / pack
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._forget([pack])
            return
        try:
            if time.time() - os.fstat(descriptor).st_mtime > _USED_S:
                with contextlib.suppress(OSError):
                    os.utime(path)
            start, stop = places[0].offset, places[-1].offset + places[-1].size
            together = sum(place.size for place in places) * 2 > stop - start
            data = os.pread(descriptor, stop - start, start) if together else b""
            for place in places:
                at = place.offset - start
                yield place, data[at : at + place.size] if together else os.pread(descriptor, place.size, place.offset)
        finally:
            os.close(descriptor)

    def add(self, blobs: Iterable[tuple[str, bytes]]) -> int:
        """Keep blobs that were checked; how many bytes that took. A folder that cannot be written keeps nothing."""
        name = f"{uuid.uuid4().hex}.pack"
        draft, target = f"{self.folder}/{name}.draft", f"{self.folder}/{name}"
        frames: list[bytes] = []
        rows: list[tuple[bytes, int, int]] = []
        at = 0
        for digest, data in blobs:
            mark = bytes.fromhex(digest)
            frames += (mark, len(data).to_bytes(8), data)
            rows.append((mark, at + _HEAD, len(data)))
            at += _HEAD + len(data)
        if not rows:
            return 0
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            _write(draft, b"".join(frames))
            os.rename(draft, target)
            with closing(open_index(self._index, _SCHEMA)) as db, db:
                number = db.execute("INSERT INTO packs (name) VALUES (?)", (name,)).lastrowid
                db.executemany(
                    "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", ((row[0], number, *row[1:]) for row in rows)
                )
        except (sqlite3.Error, OSError):
            for path in (draft, target):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            return 0
        return at

    def drop(self, digests: Sequence[str]) -> None:
        """Forget blobs whose bytes are not their digests'."""
        with contextlib.suppress(sqlite3.Error, OSError), closing(open_index(self._index, _SCHEMA)) as db, db:
            db.executemany("DELETE FROM blobs WHERE digest = ?", ((bytes.fromhex(digest),) for digest in digests))

    def remove(self, packs: Mapping[str, str]) -> None:
        """Delete packs, as name -> path; whoever reads one of them now reads on."""
        for path in packs.values():
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._forget(list(packs))

    def count(self) -> int:
        """How many blobs there are."""
        if self._index.exists():
            with contextlib.suppress(sqlite3.Error, OSError), closing(open_index(self._index, _SCHEMA)) as db:
                return int(db.execute("SELECT count(*) FROM blobs").fetchone()[0])
        return 0

    def _forget(self, packs: Sequence[str]) -> None:
        if not packs or not self._index.exists():
            return
        with contextlib.suppress(sqlite3.Error, OSError), closing(open_index(self._index, _SCHEMA)) as db, db:
            db.executemany("DELETE FROM packs WHERE name = ?", ((name,) for name in packs))
            db.execute("DELETE FROM blobs WHERE pack NOT IN (SELECT id FROM packs)")  # ids are given again


def _offset(place: Packed) -> int:
    return place.offset


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)
