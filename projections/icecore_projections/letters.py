"""Rows about records that changed nothing: dead letters, rejections, and counts of unknown events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import duckdb
import pyarrow as pa

from icecore.log import StoredRecord
from icecore.position import Place
from icecore_projections.folds import Applied, Changes, Rows
from icecore_projections.poison import Dead


def dead_rows(dead: Sequence[Dead]) -> pa.Table:
    """Rows of `dead_letters`."""
    records = [letter.record for letter in dead]
    return (
        _letters(records)
        .append_column("attempts", pa.array([d.attempts for d in dead], pa.int32()))
        .append_column("ts_server", pa.array([record.envelope.ts_server for record in records], pa.int64()))
        .append_column("reason", pa.array([d.reason for d in dead], pa.string()))
    )


def rejected_rows(rejected: Sequence[tuple[Applied, str]]) -> Changes:
    """Rows of `rejections`: what a fold decided against, and why."""
    if not rejected:
        return Changes()
    rows = _letters([applied for applied, _ in rejected])
    return Changes({"rejections": [rows.append_column("reason", pa.array([why for _, why in rejected], pa.string()))]})


def skipped_rows(
    con: duckdb.DuckDBPyConnection, place: Place, records: Sequence[StoredRecord]
) -> dict[str, list[Rows]]:
    """The counts of unknown events, with those of this batch added."""
    if not records:
        return {}
    skipped = Counter((record.envelope.type, record.envelope.v) for record in records)
    key = ("stream", "part", "type", "v")
    found = con.execute(
        "SELECT type, v, n FROM skipped WHERE stream = ? AND part = ?", [place.stream, place.partition]
    ).fetchall()
    before = {(kind, v): n for kind, v, n in found}
    rows = pa.table(
        {
            "stream": pa.array([place.stream] * len(skipped), pa.string()),
            "part": pa.array([place.partition] * len(skipped), pa.int32()),
            "type": pa.array([kind for kind, _ in skipped], pa.string()),
            "v": pa.array([v for _, v in skipped], pa.int32()),
            "n": pa.array([n + before.get(name, 0) for name, n in skipped.items()], pa.int64()),
        }
    )
    return {"skipped": [Rows(key, rows)]}


def _letters(records: Sequence[StoredRecord | Applied]) -> pa.Table:
    """The columns that dead letters and rejections share."""
    return pa.table(
        {
            "stream": pa.array([record.position.stream for record in records], pa.string()),
            "part": pa.array([record.position.partition for record in records], pa.int32()),
            "off": pa.array([record.position.offset for record in records], pa.int64()),
            "id": pa.array([record.envelope.id for record in records], pa.string()),
            "type": pa.array([record.envelope.type for record in records], pa.string()),
            "key": pa.array([record.key for record in records], pa.string()),
        }
    )
