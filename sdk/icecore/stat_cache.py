"""Digests of files that were hashed before, so that an unchanged folder costs a look at each file.

A file counts as unchanged when its path, size, inode, and times of change of its content and of its inode are what
they were. A file that was changed just before it was hashed is not remembered: its next change could bear the same
time. The cache may be deleted at any moment.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from icecore.cache_index import open_index

SETTLED_NS: Final = 2_000_000_000
"""How long a file must have been left alone: the coarsest clock of the file systems in use."""
ROWS_MOST: Final = 5_000_000
_NAMES: Final = sys.getfilesystemencoding()

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER, digest BLOB
) WITHOUT ROWID
"""


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """From what the system says of a file."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, inode_of(stat))


def inode_of(stat: os.stat_result) -> int:
    """A file's inode, as SQLite can keep it."""
    return stat.st_ino & ((1 << 63) - 1)


Known = tuple[bytes, int, int, int, int, bytes]
"""A row: path, the fields of `Stamp`, digest. As it comes: there may be millions."""


class StatCache:
    """Path -> digest of files that have not changed since. One file, shared by processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def below(self, folder: str) -> dict[str, Known]:
        """What is known of all files below a folder (an absolute path), or of that one file, by path."""
        first = os.fsencode(folder)
        base = first.rstrip(b"/") + b"/"
        query = "SELECT path, size, mtime, ctime, inode, digest FROM files WHERE path = ? OR (path >= ? AND path < ?)"
        try:
            with closing(open_index(self._path, _SCHEMA)) as db:
                rows = db.execute(query, (first, base, base[:-1] + b"0")).fetchall()
        except (sqlite3.Error, OSError):
            return {}  # a cache never fails its user
        return {str(row[0], _NAMES, "surrogateescape"): row for row in rows}

    def remember(self, found: Iterable[tuple[str, Stamp, str]]) -> None:
        """Keep the digests of files, as (absolute path, stamp, digest)."""
        settled = time.time_ns() - SETTLED_NS
        rows = [
            (os.fsencode(path), *stamp, bytes.fromhex(digest))
            for path, stamp, digest in found
            if max(stamp.mtime_ns, stamp.ctime_ns) < settled
        ]
        if not rows:
            return
        with suppress(sqlite3.Error, OSError), closing(open_index(self._path, _SCHEMA)) as db, db:
            if db.execute("SELECT count(*) FROM files").fetchone()[0] > ROWS_MOST:
                db.execute("DELETE FROM files")
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
