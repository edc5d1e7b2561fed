"""The metrics stream: history, system metrics, console lines and signs of life, folded in one pass over a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from icecore.events import ConsoleLogged, MetricsLogged, RunHeartbeat, SystemLogged
from icecore.limits import most
from icecore_projections.folds import Applied, Changes, Rows, activity, console
from icecore_projections.folds.activity import Activity, Tally
from icecore_projections.folds.columns import Block, Columns, Ints, PerSegment, Shape, flatten, pack
from icecore_projections.folds.series import NewSeries, SeriesState, Statistics, accumulate
from icecore_projections.folds.texts import Texts
from icecore_projections.schema import name_number, run_number

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


def packed(event: MetricsLogged | SystemLogged) -> list[Block]:
    """An event's blocks as arrays; those that were packed while it was decoded stay as they are.

    Raises:
        Invalid: a block breaks a rule.
    """
    clock_only = isinstance(event, SystemLogged)
    blocks: Sequence[Block | Mapping[str, Any]] = event.blocks
    return [block if isinstance(block, Block) else pack(block, clock_only=clock_only) for block in blocks]


class _Pass:
    """One fold: what is gathered while walking the events."""

    def __init__(self, state: MetricsState, partition: int) -> None:
        self.state = state
        self.new = NewSeries(state.series, partition)
        self.numbers = {"metric": Columns(), "system": Columns()}
        self.texts = Texts()
        self.printed: list[tuple[int, ConsoleLogged]] = []
        self.activity: dict[str, Tally] = {}
        self.rejected: list[tuple[Applied, str]] = []

    def run(self, events: Sequence[Applied]) -> MetricsFolded:
        for applied in events:
            event = applied.event
            if isinstance(event, MetricsLogged | SystemLogged):
                self._logged(applied, event)
            elif isinstance(event, ConsoleLogged):
                self.printed.append((applied.position.offset, event))
                self._heard(event.run, applied).printed(console.lines(event))
            elif isinstance(event, RunHeartbeat):
                self._heard(event.run, applied)
        return self._folded()

    def _logged(self, applied: Applied, event: MetricsLogged | SystemLogged) -> None:
        """Gather an event's blocks; they change the run's activity, unless they are system metrics."""
        kind, run, off = kind_of(event), event.run, applied.position.offset
        blocks = packed(event)
        shapes = [(run, kind, *block.keys) for block in blocks]
        if not self._all_known(kind, shapes, blocks) and (reason := self._over_limit(run, kind, blocks)):
            self.rejected.append((applied, reason))
            return
        heard = self._heard(run, applied)
        numbers, slot = self.numbers[kind], self.new.slot
        for block, shape in zip(blocks, shapes, strict=True):
            rows = len(block.steps)
            if not rows:
                continue
            numbers.add(block, off, shape, lambda key: slot(run, kind, key))
            points = len(block.values)
            if block.text:
                points += self.texts.add(block.text, str, block, off, lambda key: slot(run, "text", key))
            if block.flags:
                points += self.texts.add(block.flags, bool, block, off, lambda key: slot(run, "bool", key))
            if kind != "system":
                heard.logged(block.last_step, rows, points)

    def _all_known(self, kind: str, shapes: Sequence[Shape], blocks: Sequence[Block]) -> bool:
        """Whether an event surely names no new key: the quick answer for nearly all."""
        seen = self.numbers[kind].shapes
        return all(shape in seen for shape in shapes) and not any(block.text or block.flags for block in blocks)

    def _over_limit(self, run: str, kind: str, blocks: Sequence[Block]) -> str:
        """Why an event is not applied: it names more keys than a run may have. Empty where it is fine."""
        known = len(self.state.series.slots.get(run, ())) + len(self.new.slots.get(run, ()))
        limit = most("metric_keys")
        names = {
            (group, key)
            for block in blocks
            for group, keys in ((kind, block.keys), ("text", block.text), ("bool", block.flags))
            for key in keys or ()
        }
        names -= self.state.series.slots.get(run, {}).keys()
        names -= self.new.slots.get(run, {}).keys()
        if known + len(names) <= limit:
            return ""
        return f"expected at most {limit} metric keys in a run, got {known + len(names)}"

    def _heard(self, run: str, applied: Applied) -> Tally:
        ts, off = applied.envelope.ts_server, applied.position.offset
        tally = self.activity.get(run)
        if tally is None:
            tally = self.activity[run] = Tally(self.state.activity.get(run) or activity.first_heard(ts, off))
        tally.heard(ts, off)
        return tally

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
        heard = {run: tally.row() for run, tally in self.activity.items()}
        self._put_activity(changes, heard)
        return MetricsFolded(changes, self.rejected, self.new, slots, statistics, texts, heard)

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
            fresh = fresh.append_column("key_number", pa.array([name_number(key) for _, _, key in names], pa.int64()))
            changes.append["series"] = [fresh]  # type: ignore[index]

    def _put_activity(self, changes: Changes, heard: Mapping[str, Activity]) -> None:
        known = {run: row for run, row in heard.items() if run in self.state.activity}
        fresh = {run: row for run, row in heard.items() if run not in self.state.activity}
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
