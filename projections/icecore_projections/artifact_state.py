"""What stands around `folds.artifacts`: the rows it reads, loaded on demand, and the tables its changes become."""

from __future__ import annotations

from collections.abc import Collection as Sized
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import duckdb
import msgspec
import orjson
import pyarrow as pa

from icecore.position import LEDGER, Place
from icecore_projections.folds import Applied, Changes, Rows, artifacts
from icecore_projections.folds.artifact_rows import Collection, Version
from icecore_projections.folds.artifacts import ArtifactChanges, ArtifactState, DigestKey
from icecore_projections.folds.retention import VersionKey
from icecore_projections.registry_state import registry_tables
from icecore_projections.retention_state import load_keeps, load_scopes, retention_tables
from icecore_projections.schema import artifact_number, run_number
from icecore_projections.streams import Folded

REMEMBERED: Final = 50_000
"""Rows remembered between batches; above it all are dropped, and loaded again on demand."""


K = TypeVar("K", str, VersionKey, DigestKey)
R = TypeVar("R", Collection, Version)


class ArtifactsFold:
    """`artifacts.fold` and its state."""

    stream = LEDGER
    types = frozenset(cls.TYPE for cls in artifacts.HANDLED)

    def __init__(self) -> None:
        self._state = ArtifactState()
        self._looked_up: set[str | VersionKey | DigestKey] = set()
        """What was asked of the store, found or not."""
        self._scopes_looked_up: set[str] = set()

    def load(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Take in the rows of the events' artifacts and versions that are not in memory."""
        if not events:
            return
        paths = self._unknown(artifacts.artifacts(events))
        digests = self._unknown(artifacts.digest_keys(events))
        versions = self._unknown(artifacts.version_keys(events))
        self._load_collections(con, paths)
        if digests:
            self._load_versions(con, "digest", [(key.artifact, key.digest) for key in digests])
        self._load_numbered(con, versions)
        load_keeps(con, self._state.retention, paths)
        self._load_further(con, events)
        scopes = artifacts.scopes(events, self._state.digests) - self._scopes_looked_up
        load_scopes(con, self._state.retention, scopes)
        self._scopes_looked_up |= scopes

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:  # noqa: ARG002 - one partition
        """Fold the events of the ledger."""
        result = artifacts.fold(self._state, events)
        return Folded(_tables(result), result.rejected, result)

    def advance(self, folded: Folded) -> None:
        """Make a result the state of the next fold."""
        if isinstance(folded.result, ArtifactChanges):
            new = folded.result.state
            self._state.collections.update(new.collections)
            self._state.versions.update(new.versions)
            self._state.digests.update(new.digests)
            self._looked_up.update(new.collections, new.versions, new.digests)
            kept = folded.result.retention.state
            self._state.retention.scopes.update(kept.scopes)
            self._state.retention.keeps.update(kept.keeps)
            self._scopes_looked_up.update(kept.scopes)

    @property
    def full(self) -> bool:
        """Whether more than `REMEMBERED` rows are remembered."""
        return len(self._looked_up) + len(self._scopes_looked_up) > REMEMBERED

    def trim(self) -> None:
        """Drop the state where it is full."""
        if self.full:
            self.forget()

    def forget(self) -> None:
        """Drop the state."""
        self._state = ArtifactState()
        self._looked_up = set()
        self._scopes_looked_up = set()

    def _load_further(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Take in what the rows say that the events are about, and what those say, until they say nothing new."""
        while True:
            further = artifacts.further_keys(events, self._state)
            numbers = self._unknown(further)
            self._load_numbered(con, numbers)
            paths = self._unknown({key.artifact for key in further})
            self._load_collections(con, paths)
            load_keeps(con, self._state.retention, paths)
            if not numbers:
                return

    def _unknown(self, keys: set[K]) -> set[K]:
        """Those that were not looked up yet; they count as looked up from now on."""
        unknown = {key for key in keys if key not in self._looked_up}
        self._looked_up |= unknown
        return unknown

    def _load_collections(self, con: duckdb.DuckDBPyConnection, paths: Sized[str]) -> None:
        if not paths:
            return
        found = con.execute(
            "SELECT doc, off, off_first FROM current_collections WHERE artifact IN (SELECT unnest(?::BIGINT[]))",
            [[artifact_number(path) for path in paths]],
        ).fetchall()
        for doc, off, off_first in found:
            row = _row(Collection, doc, off, off_first)
            self._state.collections[row.path] = row

    def _load_numbered(self, con: duckdb.DuckDBPyConnection, keys: Sized[VersionKey]) -> None:
        if keys:
            self._load_versions(con, "version", [(key.artifact, key.version) for key in keys])

    def _load_versions(self, con: duckdb.DuckDBPyConnection, column: str, keys: Sequence[tuple[str, Any]]) -> None:
        found = con.execute(
            f"SELECT doc, off, off_first FROM current_versions WHERE (artifact, {column}) IN "  # noqa: S608
            "(SELECT (unnest(?::BIGINT[]), unnest(?)))",
            [[artifact_number(path) for path, _ in keys], [wanted for _, wanted in keys]],
        ).fetchall()
        for doc, off, off_first in found:
            row = _row(Version, doc, off, off_first)
            key = VersionKey(row.artifact, row.number)
            self._state.versions.setdefault(key, row)
            self._state.digests.setdefault(DigestKey(row.artifact, row.digest), row.number)
            self._looked_up |= {key, DigestKey(row.artifact, row.digest)}


def _row(kind: type[R], doc: str, off: int, off_first: int) -> R:
    return msgspec.convert({**orjson.loads(doc), "off": off, "off_first": off_first}, kind)


def _tables(changes: ArtifactChanges) -> Changes:
    """The rows that changes become."""
    append: dict[str, list[pa.Table]] = {}
    replace: dict[str, list[Rows]] = {}
    if changes.collections:
        append["collections"] = [_collections(changes.collections)]
        current = _current_collections(list(changes.state.collections.values()))
        replace["current_collections"] = [Rows(("artifact",), current)]
    if changes.versions:
        append["versions"] = [_versions(changes.versions)]
        current = _current_versions(list(changes.state.versions.values()))
        replace["current_versions"] = [Rows(("artifact", "version"), current)]
    if changes.moves:
        append["alias_moves"] = [_moves(changes)]
    if changes.edges:
        append["artifact_edges"] = [_edges(changes)]
    return Changes.merged(
        [Changes(append=append, replace=replace), retention_tables(changes.retention), registry_tables(changes)]
    )


def _collections(rows: Sequence[Collection]) -> pa.Table:
    return _table(
        artifact=(pa.int64(), [row.number for row in rows]),
        off=(pa.int64(), [row.off for row in rows]),
        doc=(pa.string(), [row.to_doc() for row in rows]),
    )


def _current_collections(rows: Sequence[Collection]) -> pa.Table:
    parts = [row.path.split("/") for row in rows]
    return _table(
        artifact=(pa.int64(), [row.number for row in rows]),
        off=(pa.int64(), [row.off for row in rows]),
        off_first=(pa.int64(), [row.off_first for row in rows]),
        entity=(pa.string(), [entity for entity, _, _ in parts]),
        project=(pa.string(), [project for _, project, _ in parts]),
        name=(pa.string(), [name for _, _, name in parts]),
        type=(pa.string(), [row.type for row in rows]),
        versions=(pa.int32(), [row.versions for row in rows]),
        created_ts=(pa.int64(), [row.created_ts for row in rows]),
        username=(pa.string(), [row.user for row in rows]),
        doc=(pa.string(), [row.to_doc() for row in rows]),
    )


def _versions(rows: Sequence[Version]) -> pa.Table:
    return _table(
        artifact=(pa.int64(), [artifact_number(row.artifact) for row in rows]),
        version=(pa.int32(), [row.number for row in rows]),
        off=(pa.int64(), [row.off for row in rows]),
        doc=(pa.string(), [row.to_doc() for row in rows]),
    )


def _current_versions(rows: Sequence[Version]) -> pa.Table:
    return _table(
        artifact=(pa.int64(), [artifact_number(row.artifact) for row in rows]),
        version=(pa.int32(), [row.number for row in rows]),
        off=(pa.int64(), [row.off for row in rows]),
        off_first=(pa.int64(), [row.off_first for row in rows]),
        digest=(pa.string(), [row.digest for row in rows]),
        files=(pa.int64(), [row.files for row in rows]),
        size=(pa.int64(), [row.size for row in rows]),
        tags=(pa.list_(pa.string()), [row.tags for row in rows]),
        username=(pa.string(), [row.user for row in rows]),
        created_ts=(pa.int64(), [row.created_ts for row in rows]),
        updated_ts=(pa.int64(), [row.updated_ts for row in rows]),
        deleted=(pa.bool_(), [row.deleted for row in rows]),
        doc=(pa.string(), [row.to_doc() for row in rows]),
    )


def _moves(changes: ArtifactChanges) -> pa.Table:
    moves = changes.moves
    return _table(
        artifact=(pa.int64(), [artifact_number(move.artifact) for move in moves]),
        alias=(pa.string(), [move.alias for move in moves]),
        version=(pa.int32(), [move.version for move in moves]),
        version_before=(pa.int32(), [move.before for move in moves]),
        off=(pa.int64(), [move.off for move in moves]),
        ts=(pa.int64(), [move.ts for move in moves]),
        username=(pa.string(), [move.user for move in moves]),
        credential=(pa.string(), [move.credential for move in moves]),
        reason=(pa.string(), [move.reason for move in moves]),
    )


def _edges(changes: ArtifactChanges) -> pa.Table:
    edges = changes.edges
    return _table(
        run=(pa.int64(), [run_number(edge.run) for edge in edges]),
        path=(pa.string(), [edge.run for edge in edges]),
        artifact=(pa.int64(), [artifact_number(edge.artifact) for edge in edges]),
        version=(pa.int32(), [edge.version for edge in edges]),
        kind=(pa.string(), [edge.kind for edge in edges]),
        alias=(pa.string(), [edge.alias for edge in edges]),
        off=(pa.int64(), [edge.off for edge in edges]),
        ts=(pa.int64(), [edge.ts for edge in edges]),
    )


def _table(**columns: tuple[pa.DataType, Iterable[object]]) -> pa.Table:
    return pa.table({name: pa.array(list(values), kind) for name, (kind, values) in columns.items()})
