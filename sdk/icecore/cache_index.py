"""The SQLite files of a cache: shared by processes, and whatever is in them can be had again."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def open_index(path: Path, schema: str) -> sqlite3.Connection:
    """Open one, made where it is not there; a damaged one is deleted, and the next call begins anew.

    Raises:
        sqlite3.Error, OSError: it cannot be used now.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=10.0)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")
        db.executescript(schema)
    except sqlite3.OperationalError:
        db.close()
        raise
    except sqlite3.DatabaseError:
        db.close()
        path.unlink(missing_ok=True)
        raise
    return db
