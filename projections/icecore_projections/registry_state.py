"""The tables that the part of the fold about registries makes."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pyarrow as pa

from icecore_projections.folds import Changes
from icecore_projections.folds.artifacts import ArtifactChanges
from icecore_projections.folds.registry_rows import DraftPart, PromotionStep
from icecore_projections.schema import artifact_number


def registry_tables(changes: ArtifactChanges) -> Changes:
    """The rows that changes become."""
    append: dict[str, list[pa.Table]] = {}
    if changes.steps:
        append["promotions"] = [_steps(changes.steps)]
    if changes.drafts:
        append["draft_parts"] = [_drafts(changes.drafts)]
    return Changes(append=append)


def _steps(rows: Sequence[PromotionStep]) -> pa.Table:
    return pa.table(
        {
            "artifact": pa.array([artifact_number(row.artifact) for row in rows], pa.int64()),
            "path": pa.array([row.artifact for row in rows], pa.string()),
            "promotion": pa.array([row.promotion for row in rows], pa.string()),
            "step": pa.array([row.step for row in rows], pa.string()),
            "alias": pa.array([row.alias for row in rows], pa.string()),
            "version": pa.array([row.version for row in rows], pa.int32()),
            "off": pa.array([row.off for row in rows], pa.int64()),
            "ts": pa.array([row.ts for row in rows], pa.int64()),
            "username": pa.array([row.user for row in rows], pa.string()),
            "credential": pa.array([row.credential for row in rows], pa.string()),
            "reason": pa.array([row.reason for row in rows], pa.string()),
            "checks": pa.array([orjson.dumps(row.checks).decode() for row in rows], pa.string()),
        }
    )


def _drafts(rows: Sequence[DraftPart]) -> pa.Table:
    return pa.table(
        {
            "artifact": pa.array([artifact_number(row.artifact) for row in rows], pa.int64()),
            "distributed_id": pa.array([row.distributed_id for row in rows], pa.string()),
            "kind": pa.array([row.kind for row in rows], pa.string()),
            "digest": pa.array([row.digest for row in rows], pa.string()),
            "upto": pa.array([row.upto for row in rows], pa.int64()),
            "run": pa.array([row.run for row in rows], pa.string()),
            "off": pa.array([row.off for row in rows], pa.int64()),
            "ts": pa.array([row.ts for row in rows], pa.int64()),
            "username": pa.array([row.user for row in rows], pa.string()),
        }
    )
