"""The metrics stream: history, system metrics, console lines and signs of life, folded in one pass over a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from icecore.events import ConsoleLogged, MetricsLogged, RunHeartbeat, SystemLogged
from icecore.limits import most
from icecore_projections.folds import Applied, Changes, Rows, activity, console
from icecore_projections.folds.activity import Activity
from icecore_projections.folds.columns import Columns, Ints, PerSegment, Shape, checked_rows, flatten
from icecore_projections.folds.series import NewSeries, SeriesState, Statistics, accumulate
from icecore_projections.folds.texts import Texts
from icecore_projections.schema import run_number

TYPES: Final = frozenset({MetricsLogged.TYPE, SystemLogged.TYPE, ConsoleLogged.TYPE, RunHeartbeat.TYPE})


@dataclass(slots=True)
class MetricsState:
    """What the fold reads: the series and activity of every run of the batch that the store knows."""

    series: SeriesState = field(default_factory=SeriesState)
    activity: dict[str, Activity] = field(default_factory=dict)

    def advance(self, folded: MetricsFolded) -> None:
        """Make a fold's result the state."""
        self.series.advance(folded.new, folded.slots, folded.statistics, folded.texts)
        self.activity.update(folded.activity)


@dataclass(frozen=True, slots=True)
class MetricsFolded:
    """A batch folded: rows for the tables, and what the state becomes."""

    changes: Changes
    rejected: Sequence[tuple[Applied, str]]
    new: NewSeries
    slots: Ints
    statistics: Statistics
    texts: Mapping[int, str]
    activity: Mapping[str, Activity]


def runs(events: Sequence[Applied]) -> set[str]:
    """The run paths whose state the fold needs."""
    return {event.event.run for event in events}  # type: ignore[attr-defined]


def fold(state: MetricsState, partition: int, events: Sequence[Applied]) -> MetricsFolded:
    """Fold consecutive events of one partition.

    Raises:
        Invalid: an event breaks the rules of its blocks; nothing tells here which.
    """
    return _Pass(state, partition).run(events)


def kind_of(event: MetricsLogged | SystemLogged) -> str:
    """The kind of an event's numeric series."""
    return "metric" if isinstance(event, MetricsLogged) else "system"


class _Pass:
    """One fold: what is gathered while walking the events."""

    def __init__(self, state: MetricsState, partition: int) -> None:
        self.state = state
        self.new = NewSeries(state.series, partition)
        self.numbers = {"metric": Columns(), "system": Columns()}
        self.texts = Texts()
        self.printed: list[tuple[int, ConsoleLogged]] = []
        self.activity: dict[str, Activity] = {}
        self.rejected: list[tuple[Applied, str]] = []

    def run(self, events: Sequence[Applied]) -> MetricsFolded:
        for applied in events:
            event, off = applied.event, applied.position.offset
            if isinstance(event, MetricsLogged | SystemLogged):
                kind = kind_of(event)
                shapes = [(event.run, kind, *(block.get("cols") or ())) for block in event.blocks]
                if not self._all_known(kind, shapes, event.blocks) and (reason := self._over_limit(event)):
                    self.rejected.append((applied, reason))
                    continue
                self._heard(
                    event.run, applied, self._walk(event.run, zip(event.blocks, shapes, strict=True), kind, off)
                )
            elif isinstance(event, ConsoleLogged):
                self.printed.append((off, event))
                self._heard(event.run, applied, partial(Activity.printed, lines=console.lines(event)))
            elif isinstance(event, RunHeartbeat):
                self._heard(event.run, applied, None)
        return self._folded()

    def _all_known(self, kind: str, shapes: Sequence[Shape], blocks: Sequence[Mapping[str, Any]]) -> bool:
        """Whether an event surely names no new key: the quick answer for nearly all."""
        seen = self.numbers[kind].shapes
        return all(shape in seen for shape in shapes) and not any("text" in b or "bool" in b for b in blocks)

    def _over_limit(self, event: MetricsLogged | SystemLogged) -> str:
        """Why an event is not applied: it names more keys than a run may have. Empty where it is fine."""
        known = len(self.state.series.slots.get(event.run, ())) + len(self.new.slots.get(event.run, ()))
        limit = most("metric_keys")
        names = {
            (kind, key)
            for block in event.blocks
            for kind, columns in ((kind_of(event), "cols"), ("text", "text"), ("bool", "bool"))
            for key in block.get(columns) or ()
        }
        names -= self.state.series.slots.get(event.run, {}).keys()
        names -= self.new.slots.get(event.run, {}).keys()
        if known + len(names) <= limit:
            return ""
        return f"expected at most {limit} metric keys in a run, got {known + len(names)}"

    def _walk(
        self, run: str, blocks: Iterable[tuple[Mapping[str, Any], Shape]], kind: str, off: int
    ) -> Callable[[Activity], Activity] | None:
        """Gather an event's blocks; how they change the run's activity."""
        last_step: int | None = None
        rows = points = 0
        numbers, slot = self.numbers[kind], self.new.slot
        for block, shape in blocks:
            steps = checked_rows(block, clock_only=kind == "system")
            if not steps:
                continue
            numbers.add(block, steps, off, shape, lambda key: slot(run, kind, key))
            points += len(steps) * len(block.get("cols") or ())
            if texts := block.get("text"):
                points += self.texts.add(texts, str, block, steps, off, lambda key: slot(run, "text", key))
            if flags := block.get("bool"):
                points += self.texts.add(flags, bool, block, steps, off, lambda key: slot(run, "bool", key))
            rows += len(steps)
            highest = max(steps)
            last_step = highest if last_step is None else max(last_step, highest)
        if kind == "system":
            return None
        return lambda row: row.logged(last_step, rows, points)

    def _heard(self, run: str, applied: Applied, change: Callable[[Activity], Activity] | None) -> None:
        ts, off = applied.envelope.ts_server, applied.position.offset
        row = self.activity.get(run) or self.state.activity.get(run)
        row = activity.first_heard(ts, off) if row is None else row.heard(ts, off)
        self.activity[run] = row if change is None else change(row)

    def _folded(self) -> MetricsFolded:
        append: dict[str, list[pa.Table]] = {}
        segments: list[PerSegment] = []
        for kind, table in (("metric", "points_hot"), ("system", "system_hot")):
            found = self.numbers[kind].segments()
            if found is not None:
                numbers = np.array(self.new.number(found.slots.tolist()), np.int32)
                points, per_segment = flatten(found, numbers)
                append[table] = [pa.table(points._asdict())]
                segments.append(per_segment)
        if self.texts:
            append["texts"] = [self.texts.table(self.new)]
            segments.append(self.texts.segments())
        if (lines := console.rows(self.printed)) is not None:
            append["console"] = [lines]
        slots, statistics = np.zeros(0, np.int64), self.state.series.of(np.zeros(0, np.int64))
        if segments:
            joined = PerSegment(*(np.concatenate(columns) for columns in zip(*segments, strict=True)))
            slots, statistics = accumulate(self.state.series, joined)
        texts = self.texts.last_texts(self.state.series)
        changes = Changes(append)
        self._put_series(changes, slots, statistics, texts)
        self._put_activity(changes)
        return MetricsFolded(changes, self.rejected, self.new, slots, statistics, texts, self.activity)

    def _put_series(self, changes: Changes, slots: Ints, statistics: Statistics, texts: Mapping[int, str]) -> None:
        """New series are rows to append, known ones columns to update."""
        known = slots < len(self.state.series)
        columns = _columns(slots, statistics, texts)
        number = pa.array(self.new.number(slots.tolist()), pa.int32())
        if known.any():
            rows = pa.table({"series": number, **columns}).filter(pa.array(known))
            changes.update["series"] = [Rows(("series",), rows)]  # type: ignore[index]
        if not known.all():
            names = [self.new.names[slot - len(self.state.series)] for slot in slots[~known].tolist()]
            fresh = pa.table({"series": number, **columns}).filter(pa.array(~known))
            fresh = fresh.add_column(1, "run", pa.array([run_number(run) for run, _, _ in names], pa.int64()))
            fresh = fresh.add_column(2, "kind", pa.array([kind for _, kind, _ in names], pa.string()))
            fresh = fresh.add_column(3, "key", pa.array([key for _, _, key in names], pa.string()))
            changes.append["series"] = [fresh]  # type: ignore[index]

    def _put_activity(self, changes: Changes) -> None:
        known = {run: row for run, row in self.activity.items() if run in self.state.activity}
        fresh = {run: row for run, row in self.activity.items() if run not in self.state.activity}
        if known:
            changes.update["run_activity"] = [Rows(("run",), activity.table(known))]  # type: ignore[index]
        if fresh:
            changes.append["run_activity"] = [activity.table(fresh)]  # type: ignore[index]


def _columns(slots: Ints, statistics: Statistics, texts: Mapping[int, str]) -> dict[str, Any]:
    """The statistics as columns: least and most are NULL without a number, all of them for texts."""
    is_text = np.array([slot in texts for slot in slots.tolist()], bool)
    empty = is_text | (statistics["n"] == statistics["nans"])
    none_of = {"least": empty, "most": empty, "total": is_text, "first": is_text, "last": is_text}
    columns: dict[str, Any] = {}
    for name in statistics.dtype.names or ():
        column = np.ascontiguousarray(statistics[name])
        if name == "total":
            # which NaN a sum of infinities gives differs between machines
            column = np.where(np.isnan(column), np.nan, column)
        columns[name] = pa.array(column, mask=none_of.get(name))
        if name == "last":
            columns["last_text"] = pa.array([texts.get(slot) for slot in slots.tolist()], pa.string())
    return columns
