"""The ledger's fold over runs: starts, edits, endings, deletions.

It decides, in log order: every event either makes a new version of one run's row or is rejected with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from icecore.events import (
    Envelope,
    RunDeleted,
    RunDropped,
    RunEvent,
    RunFinished,
    RunRestored,
    RunStarted,
    RunSummarised,
    RunUpdated,
)
from icecore.position import Position
from icecore_projections.folds import Applied
from icecore_projections.folds.run_row import RANK, Dropped, Ending, RunRow, Value, values
from icecore_projections.schema import run_number

__all__ = ["HANDLED", "Dropped", "Ending", "Rejection", "RunChanges", "RunRow", "Value", "fold", "keys", "values"]

HANDLED: Final = (RunStarted, RunUpdated, RunSummarised, RunFinished, RunDropped, RunDeleted, RunRestored)
"""The events this fold takes; it passes over others."""

_DROPPED_REASONS_MOST: Final = 100
_DROPPED_KEYS_MOST: Final = 100
_OTHER: Final = "other reasons"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A readable event that a fold decided against, and why."""

    position: Position
    id: str
    type: str
    key: str
    reason: str


@dataclass(slots=True)
class RunChanges:
    """What a batch of events changed."""

    versions: list[RunRow] = field(default_factory=list)
    """Every version made, in log order."""
    rejections: list[Rejection] = field(default_factory=list)

    @property
    def current(self) -> dict[str, RunRow]:
        """The last version of every run that changed, by path."""
        return {row.path: row for row in self.versions}


class _Refused(Exception):
    """The fold decides against an event; the text is the reason people read."""


def keys(events: Iterable[Applied]) -> set[str]:
    """Paths of the runs whose rows `fold` needs."""
    return {applied.event.run for applied in events if isinstance(applied.event, HANDLED)}


def fold(state: Mapping[str, RunRow], events: Sequence[Applied]) -> RunChanges:
    """Apply the run events of a batch, in order; `events` of other kinds are passed over.

    Args:
        state: the current rows whose run numbers are those of `keys(events)`, by their own paths. (Looked up by
            number and not by path, so that two paths of one number meet here and the second is rejected.)
        events: of the ledger, in log order, duplicates left out.
    """
    rows = dict(state)
    owners = {row.number: row.path for row in rows.values()}
    changes = RunChanges()
    for applied in events:
        if not isinstance(applied.event, HANDLED):
            continue
        try:
            row = _apply(rows, owners, applied, applied.event)
        except _Refused as refused:
            envelope = applied.envelope
            changes.rejections.append(
                Rejection(applied.position, envelope.id, envelope.type, applied.event.key, str(refused))
            )
        else:
            rows[row.path] = row
            owners[row.number] = row.path
            changes.versions.append(row)
    return changes


def _apply(rows: Mapping[str, RunRow], owners: Mapping[int, str], applied: Applied, event: RunEvent) -> RunRow:
    """The next version of the event's run."""
    path, envelope = event.run, applied.envelope
    owner = owners.get(run_number(path), path)
    if owner != path:
        raise _Refused(f"expected a free run number, found that {path!r} has the number of {owner!r}")
    row = rows.get(path)
    if row is None:
        if isinstance(event, RunStarted):
            return _made(event, applied)
        raise _Refused(f"no such run: expected {path!r} to have started, found none")
    if isinstance(event, RunStarted):
        row = _started(row, event, envelope)
    elif isinstance(event, RunFinished):
        row = _finished(row, event, envelope)
    elif isinstance(event, RunUpdated):
        row = _updated(row, event)
    elif isinstance(event, RunSummarised):
        row = _summarised(row, event)
    elif isinstance(event, RunDropped):
        row = msgspec.structs.replace(row, dropped=_with_dropped(row.dropped, event))
    else:
        row = _hidden(row, deleted=isinstance(event, RunDeleted))
    return msgspec.structs.replace(row, off=applied.position.offset, heard_ts=_heard(row, event, envelope))


def _made(event: RunStarted, applied: Applied) -> RunRow:
    parts = event.run.split("/")
    if len(parts) != 3 or not all(parts):
        raise _Refused(f"expected a run path entity/project/run_id, got {event.run[:200]!r}")
    entity, project, run_id = parts
    envelope, offset = applied.envelope, applied.position.offset
    return RunRow(
        path=event.run,
        entity=entity,
        project=project,
        id=run_id,
        name=event.name,
        group=event.group,
        job_type=event.job_type,
        tags=_distinct(event.tags),
        notes=event.notes,
        user=envelope.actor,
        created_ts=envelope.ts_server,
        started_ts=event.started_ts,
        heard_ts=envelope.ts_server,
        config=event.config,
        metadata=event.metadata,
        open=[envelope.producer],
        off_first=offset,
        off=offset,
    )


def _started(row: RunRow, event: RunStarted, envelope: Envelope) -> RunRow:
    """A further process writes to the run: what it says is merged, and what it leaves empty changes nothing.

    A start while nothing else runs, or one that takes the run over (`resumed`), is a fresh one: earlier endings no
    longer count. A deleted run stays deleted, as in wandb; the start is kept and seen when the run is restored.
    """
    fresh = event.resumed or not row.open
    others = [] if fresh else [producer for producer in row.open if producer != envelope.producer]
    merged = msgspec.structs.replace(
        row,
        name=event.name or row.name,
        group=event.group or row.group,
        job_type=event.job_type or row.job_type,
        tags=_distinct(event.tags) or row.tags,
        notes=event.notes or row.notes,
        config={**row.config, **event.config},
        metadata={**row.metadata, **event.metadata},
        open=[*others, envelope.producer],
    )
    if not fresh:
        return merged
    return msgspec.structs.replace(
        merged,
        state="running",
        exit_code=None,
        error_type="",
        error_message="",
        finished_ts=None,
        worst=None,
        runtime_before_ms=row.runtime_ms,
    )


def _finished(row: RunRow, event: RunFinished, envelope: Envelope) -> RunRow:
    """A writer ended; with the last one the run does, and its state is the worst ending since the fresh start."""
    if envelope.producer not in row.open:
        return row
    worst = row.worst
    if worst is None or RANK[event.state] > RANK[worst.state]:
        worst = Ending(
            state=event.state,
            exit_code=event.exit_code,
            error_type=event.error_type,
            error_message=event.error_message,
        )
    row = msgspec.structs.replace(
        row,
        open=[producer for producer in row.open if producer != envelope.producer],
        worst=worst,
        runtime_ms=max(row.runtime_ms, row.runtime_before_ms + event.runtime_ms),
    )
    if row.open:
        return row
    return msgspec.structs.replace(
        row,
        state=worst.state,
        exit_code=worst.exit_code,
        error_type=worst.error_type,
        error_message=worst.error_message,
        finished_ts=event.finished_ts,
    )


def _updated(row: RunRow, event: RunUpdated) -> RunRow:
    """Top-level keys are removed, then set, so a key in both is set."""
    removed = set(event.config_removed)
    kept = {key: value for key, value in row.config.items() if key not in removed}
    changed: dict[str, Any] = {
        name: value for name in ("name", "group", "job_type", "notes") if (value := getattr(event, name)) is not None
    }
    if event.tags is not None:
        changed["tags"] = _distinct(event.tags)
    return msgspec.structs.replace(
        row,
        config={**kept, **event.config},
        metadata={**row.metadata, **event.metadata},
        metrics={**row.metrics, **event.metrics},
        **changed,
    )


def _summarised(row: RunRow, event: RunSummarised) -> RunRow:
    removed = set(event.removed)
    kept = {path: value for path, value in row.summary.items() if path not in removed}
    return msgspec.structs.replace(row, summary={**kept, **event.set})


def _with_dropped(so_far: list[Dropped], event: RunDropped) -> list[Dropped]:
    """The losses summed by reason, bounded: a client that loses data for days must not make rows of megabytes."""
    by_reason = {dropped.reason: dropped for dropped in so_far}
    known = event.reason in by_reason or len(by_reason) < _DROPPED_REASONS_MOST - 1
    reason = event.reason if known else _OTHER
    was = by_reason.get(reason) or Dropped(reason=reason, times=0, events=0, points=0, bytes=0, keys=[])
    by_reason[reason] = Dropped(
        reason=reason,
        times=was.times + 1,
        events=was.events + event.events,
        points=was.points + event.points,
        bytes=was.bytes + event.bytes,
        keys=sorted({*was.keys, *event.keys[:_DROPPED_KEYS_MOST]})[:_DROPPED_KEYS_MOST],
    )
    return list(by_reason.values())


def _hidden(row: RunRow, *, deleted: bool) -> RunRow:
    if row.deleted and deleted:
        raise _Refused("already deleted: expected an existing run, found a deleted one")
    if not row.deleted and not deleted:
        raise _Refused("not deleted: expected a deleted run, found an existing one")
    return msgspec.structs.replace(row, deleted=deleted)


def _heard(row: RunRow, event: RunEvent, envelope: Envelope) -> int:
    """When a writer last spoke: an open one, or one that starts or ends. The gateway's clock may jump back."""
    writer = isinstance(event, RunStarted | RunFinished) or envelope.producer in row.open
    return max(row.heard_ts, envelope.ts_server) if writer else row.heard_ts


def _distinct(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))
