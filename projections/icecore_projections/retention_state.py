"""What stands around `folds.retention`: the rows it reads, and the tables its changes become."""

from __future__ import annotations

from collections.abc import Collection as Sized
from collections.abc import Sequence

import duckdb
import msgspec
import orjson
import pyarrow as pa

from icecore_projections.folds import Changes, Rows
from icecore_projections.folds.retention import (
    Keep,
    KeepRow,
    RetentionChanges,
    RetentionState,
    Scope,
    VersionKey,
)
from icecore_projections.schema import artifact_number, scope_number


def load_keeps(con: duckdb.DuckDBPyConnection, state: RetentionState, paths: Sized[str]) -> None:
    """Take in the links and bundles that keep versions of some artifacts."""
    if not paths:
        return
    by_number = {artifact_number(path): path for path in paths}
    found = con.execute(
        "SELECT artifact, version, kind, keeper FROM artifact_keeps WHERE artifact IN (SELECT unnest(?::BIGINT[])) "
        "GROUP BY ALL HAVING arg_max(kept, off) ORDER BY max(off)",
        [list(by_number)],
    ).fetchall()
    for number, version, kind, by in found:
        key = VersionKey(by_number[number], version)
        state.keeps.setdefault(key.artifact, {}).setdefault(key, []).append(Keep(kind, by))


def load_scopes(con: duckdb.DuckDBPyConnection, state: RetentionState, scopes: Sized[str]) -> None:
    """Take in what is said of some scopes."""
    if not scopes:
        return
    found = con.execute(
        "SELECT doc, off, off_first FROM current_scopes WHERE scope IN (SELECT unnest(?::BIGINT[]))",
        [[scope_number(scope) for scope in scopes]],
    ).fetchall()
    for row in (scope_row(*each) for each in found):
        state.scopes[row.scope] = row


def scope_row(doc: str, off: int, off_first: int) -> Scope:
    """A scope as the store has it."""
    return msgspec.convert({**orjson.loads(doc), "off": off, "off_first": off_first}, Scope)


def retention_tables(changes: RetentionChanges) -> Changes:
    """The rows that changes become."""
    append: dict[str, list[pa.Table]] = {}
    replace: dict[str, list[Rows]] = {}
    if changes.scopes:
        append["scopes"] = [_scopes(changes.scopes)]
        replace["current_scopes"] = [Rows(("scope",), _current(list(changes.state.scopes.values())))]
    if changes.keeps:
        append["artifact_keeps"] = [_keeps(changes.keeps)]
    return Changes(append=append, replace=replace)


def _scopes(rows: Sequence[Scope]) -> pa.Table:
    return pa.table(
        {
            "scope": pa.array([row.number for row in rows], pa.int64()),
            "off": pa.array([row.off for row in rows], pa.int64()),
            "doc": pa.array([row.to_doc() for row in rows], pa.string()),
        }
    )


def _current(rows: Sequence[Scope]) -> pa.Table:
    return pa.table(
        {
            "scope": pa.array([row.number for row in rows], pa.int64()),
            "off": pa.array([row.off for row in rows], pa.int64()),
            "off_first": pa.array([row.off_first for row in rows], pa.int64()),
            "path": pa.array([row.scope for row in rows], pa.string()),
            "ttl": pa.array([row.ttl for row in rows], pa.int64()),
            "holds": pa.array([len(row.holds) for row in rows], pa.int32()),
            "doc": pa.array([row.to_doc() for row in rows], pa.string()),
        }
    )


def _keeps(rows: Sequence[KeepRow]) -> pa.Table:
    return pa.table(
        {
            "artifact": pa.array([artifact_number(row.key.artifact) for row in rows], pa.int64()),
            "version": pa.array([row.key.version for row in rows], pa.int32()),
            "kind": pa.array([row.keep.kind for row in rows], pa.string()),
            "keeper": pa.array([row.keep.by for row in rows], pa.string()),
            "kept": pa.array([row.kept for row in rows], pa.bool_()),
            "off": pa.array([row.off for row in rows], pa.int64()),
            "ts": pa.array([row.ts for row in rows], pa.int64()),
            "username": pa.array([row.user for row in rows], pa.string()),
        }
    )
