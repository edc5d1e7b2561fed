"""Opens the DuckDB file of a store, and makes its tables."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from icecore.errors import StoreAhead, StoreDamaged, StoreLocked, StoreTooNew
from icecore_projections.failures import told
from icecore_projections.schema import FORMAT, INDEXES, definitions


def connect(path: Path, settings: Mapping[str, Any], *, readonly: bool) -> duckdb.DuckDBPyConnection:
    """A connection; a lock that a just-killed process leaves for a moment is waited out."""
    deadline = time.monotonic() + 2.0
    while True:
        try:
            con = duckdb.connect(path, read_only=readonly, config=dict(settings))
            # closing would write what is in memory to the file, and after a failed commit that lacks rows
            con.execute("PRAGMA disable_checkpoint_on_shutdown")
            return con
        except duckdb.Error as error:
            reason = told(error, path, opening=True)
            if not isinstance(reason, StoreLocked) or time.monotonic() > deadline:
                raise reason from error
            time.sleep(0.05)


def prepare(con: duckdb.DuckDBPyConnection, path: Path, log_id: str, *, readonly: bool) -> None:
    """Make the tables of a new file, or see that those of an old one are ours."""
    tables = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables and not readonly:
        con.begin()
        for statement in definitions():
            con.execute(statement)
        for name, columns in INDEXES.items():
            con.execute(f"CREATE INDEX {name} ON {columns}")
        con.execute("INSERT INTO meta VALUES ('format', ?), ('log_id', ?)", [str(FORMAT), log_id])
        con.commit()
        return
    if "meta" not in tables:
        raise StoreDamaged(
            f"expected an icecore store, got a DuckDB file without one: {path}",
            hint="it is set aside, and the store is rebuilt from the log",
        )
    meta = dict(con.execute("SELECT key, value FROM meta").fetchall())
    found = int(meta.get("format", 0))
    if found != FORMAT:
        kind = StoreTooNew if found > FORMAT else StoreDamaged
        raise kind(
            f"expected a store of format {FORMAT}, got format {found}: {path}",
            hint="it is set aside, and the store is rebuilt from the log",
        )
    if meta.get("log_id") != log_id:
        raise StoreAhead(
            f"expected a store folded from log {log_id}, got one of log {meta.get('log_id')}: {path}",
            hint="the log folder and the store folder are of different places: bring back the log that belongs to "
            "this store, or move the store folder away to rebuild it from this log",
        )


def is_open(path: Path) -> bool:
    """Whether this process still has the file open. Only Linux tells; elsewhere no."""
    with contextlib.suppress(OSError):
        return any(os.path.realpath(entry) == str(path.resolve()) for entry in Path("/proc/self/fd").iterdir())
    return False
