"""What stands around the pure folds of each stream: the state they read, loaded on demand and kept between batches.

A state is only moved on by what a fold returned, and dropped whole after a failed commit, so it never says anything
that the store does not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import duckdb
import orjson
import pyarrow as pa

from icecore.position import LEDGER, METRICS, Place
from icecore_projections.folds import Applied, Changes, Rows, metrics, runs
from icecore_projections.folds.activity import Activity
from icecore_projections.folds.metrics import MetricsState
from icecore_projections.folds.series import PARTITIONS_MOST, STATISTICS
from icecore_projections.schema import name_number, run_number

SERIES_CACHED: Final = 1_000_000
"""Series remembered between batches: about 300 MB. Above it all are dropped, and loaded again on demand."""

RUNS_CACHED: Final = 10_000
"""Run rows remembered between batches, the longest unused dropped first."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A batch of one partition, folded: what to write, and what was decided against."""

    changes: Changes
    rejected: Sequence[tuple[Applied, str]]
    result: object
    """What `advance` takes."""


class StreamFold(Protocol):
    """The folds of one stream."""

    stream: str
    types: frozenset[str]
    """Event types that change something; others are passed over."""

    def load(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Take in what the store says about the subjects of `events`."""
        ...

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:
        """Fold without changing anything; may be tried on parts of a batch.

        Raises:
            Exception: some event cannot be folded.
        """
        ...

    def advance(self, folded: Folded) -> None:
        """Make a result the state of the next fold."""
        ...

    @property
    def full(self) -> bool:
        """Whether so much is remembered that `trim` would drop some."""
        ...

    def trim(self) -> None:
        """Drop what is too much; only while all results are committed, as `load` brings back what the store says."""
        ...

    def forget(self) -> None:
        """Drop the state; `load` brings it back."""
        ...


class MetricsFold:
    """`metrics.fold` and its state."""

    stream = METRICS
    types = metrics.TYPES

    def __init__(self) -> None:
        self._state = MetricsState()
        self._loaded: set[str] = set()

    def load(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Take in the series and activity of the runs that are not in memory."""
        wanted = metrics.runs(events) - self._loaded
        if not self._loaded:
            self._load_ordinals(con)
        if wanted:
            self._load_runs(con, wanted)

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:
        """Fold the events of one partition."""
        result = metrics.fold(self._state, place.partition, events)
        return Folded(result.changes, result.rejected, result)

    def advance(self, folded: Folded) -> None:
        """Make a result the state of the next fold."""
        if isinstance(folded.result, metrics.MetricsFolded):
            self._state.advance(folded.result)

    @property
    def full(self) -> bool:
        """Whether more series than `SERIES_CACHED` are remembered."""
        return len(self._state.series) > SERIES_CACHED

    def trim(self) -> None:
        """Drop the state where it is full."""
        if self.full:
            self.forget()

    def forget(self) -> None:
        """Drop the state."""
        self._state = MetricsState()
        self._loaded = set()

    def _load_ordinals(self, con: duckdb.DuckDBPyConnection) -> None:
        found = con.execute(
            f"SELECT series % {PARTITIONS_MOST}, max(series // {PARTITIONS_MOST}) + 1 FROM series GROUP BY 1"  # noqa: S608
        ).fetchall()
        self._state.series.ordinals = dict(found)

    def _load_runs(self, con: duckdb.DuckDBPyConnection, paths: set[str]) -> None:
        by_number = {run_number(path): path for path in paths}
        fields = ", ".join(f'"{name}"' for name in Activity._fields)
        known = con.execute(
            f"SELECT run, {fields} FROM run_activity WHERE run IN (SELECT unnest(?::BIGINT[]))",  # noqa: S608
            [list(by_number)],
        ).fetchall()
        for number, *row in known:
            self._state.activity[by_number[number]] = Activity(*row)
        if known:
            statistics = ", ".join(f'"{name}"' for name in STATISTICS.names or ())
            found = con.execute(
                f"SELECT run, kind, key, series, last_text, {statistics} FROM series "  # noqa: S608
                "WHERE run IN (SELECT unnest(?::BIGINT[]))",
                [[number for number, *_ in known]],
            ).fetchall()
            for number, kind, key, series, last_text, *row in found:
                self._state.series.add(by_number[number], (kind, key), series, tuple(row), last_text)
        self._loaded |= paths


class RunsFold:
    """`runs.fold` and its state."""

    stream = LEDGER
    types = frozenset(cls.TYPE for cls in runs.HANDLED)

    def __init__(self) -> None:
        self._rows: OrderedDict[int, runs.RunRow | None] = OrderedDict()

    def load(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Take in the current rows of the runs that are not in memory."""
        numbers = {run_number(path) for path in runs.keys(events)}
        wanted = [number for number in numbers if number not in self._rows]
        found = con.execute(
            "SELECT run, doc, off, off_first FROM current_runs WHERE run IN (SELECT unnest(?::BIGINT[]))", [wanted]
        ).fetchall()
        self._rows.update(dict.fromkeys(wanted))
        for number, doc, off, off_first in found:
            self._rows[number] = runs.RunRow.from_doc(doc, off=off, off_first=off_first)
        for number in numbers:
            self._rows.move_to_end(number)

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:  # noqa: ARG002 - one partition
        """Fold the events of the ledger."""
        numbers = {run_number(path) for path in runs.keys(events)}
        state = {row.path: row for number in numbers if (row := self._rows.get(number)) is not None}
        result = runs.fold(state, events)
        by_offset = {applied.position.offset: applied for applied in events}
        rejected = [(by_offset[no.position.offset], no.reason) for no in result.rejections]
        return Folded(_run_tables(result), rejected, result)

    def advance(self, folded: Folded) -> None:
        """Make a result the state of the next fold."""
        if isinstance(folded.result, runs.RunChanges):
            for row in folded.result.current.values():
                self._rows[row.number] = row

    @property
    def full(self) -> bool:
        """Whether more runs than `RUNS_CACHED` are remembered."""
        return len(self._rows) > RUNS_CACHED

    def trim(self) -> None:
        """Drop the runs longest unused."""
        while self.full:
            self._rows.popitem(last=False)

    def forget(self) -> None:
        """Drop the state."""
        self._rows.clear()


def _run_tables(changes: runs.RunChanges) -> Changes:
    """The rows of `runs`, `current_runs` and `run_values` that versions make."""
    if not changes.versions:
        return Changes()
    current = list(changes.current.values())
    versions = pa.table(
        {
            "run": pa.array([row.number for row in changes.versions], pa.int64()),
            "off": pa.array([row.off for row in changes.versions], pa.int64()),
            "doc": pa.array([row.to_doc() for row in changes.versions], pa.string()),
        }
    )
    leaves = [(row.number, value) for row in current for value in runs.values(row)]
    values = pa.table(
        {
            "run": pa.array([number for number, _ in leaves], pa.int64()),
            "path": pa.array([value.path for _, value in leaves], pa.string()),
            "number": pa.array([value.number for _, value in leaves], pa.float64()),
            "text": pa.array([value.text for _, value in leaves], pa.string()),
            "path_number": pa.array([name_number(value.path) for _, value in leaves], pa.int64()),
        }
    )
    changed = pa.table({"run": pa.array([row.number for row in current], pa.int64())})
    return Changes(
        append={"runs": [versions], "run_values": [values]},
        replace={"current_runs": [Rows(("run",), _current(current))]},
        delete={"run_values": [Rows(("run",), changed)]},
    )


_CURRENT: Final[Mapping[str, pa.DataType]] = {
    "off": pa.int64(),
    "off_first": pa.int64(),
    "entity": pa.string(),
    "project": pa.string(),
    "id": pa.string(),
    "name": pa.string(),
    "group": pa.string(),
    "job_type": pa.string(),
    "tags": pa.list_(pa.string()),
    "notes": pa.string(),
    "state": pa.string(),
    "exit_code": pa.int32(),
    "created_ts": pa.int64(),
    "started_ts": pa.int64(),
    "finished_ts": pa.int64(),
    "runtime_ms": pa.int64(),
    "heard_ts": pa.int64(),
    "deleted": pa.bool_(),
}
"""Columns of `current_runs` that are fields of `RunRow` by the same name."""


def _current(rows: Iterable[runs.RunRow]) -> pa.Table:
    rows = list(rows)
    return pa.table(
        {
            "run": pa.array([row.number for row in rows], pa.int64()),
            **{name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _CURRENT.items()},
            "username": pa.array([row.user for row in rows], pa.string()),
            "doc": pa.array([row.to_doc() for row in rows], pa.string()),
            "metrics": pa.array([_json(row.metrics) if row.metrics else None for row in rows], pa.string()),
        }
    )


def _json(tree: Mapping[str, object]) -> str:
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode()
