"""`run_activity`: what the metrics stream alone says about a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import pyarrow as pa

from icecore_projections import arrow
from icecore_projections.schema import run_number


class Activity(NamedTuple):
    """One row: times by the server's clock, in ms; `last_step` is None until a history row came."""

    first_ts: int
    heard_ts: int
    last_step: int | None
    points: int
    rows_seen: int
    console_lines: int
    off: int


class Tally:
    """An `Activity` while a batch is walked: changed in place, record by record."""

    __slots__ = tuple(Activity._fields)

    def __init__(self, row: Activity) -> None:
        self.first_ts, self.heard_ts, self.last_step, self.points, self.rows_seen, self.console_lines, self.off = row

    def heard(self, ts: int, off: int) -> None:
        """A record was accepted at `ts`."""
        self.first_ts = min(self.first_ts, ts)
        self.heard_ts = max(self.heard_ts, ts)
        self.off = off

    def logged(self, last_step: int, rows: int, points: int) -> None:
        """History rows came, the highest step of which is `last_step`."""
        if self.last_step is None or last_step > self.last_step:
            self.last_step = last_step
        self.rows_seen += rows
        self.points += points

    def printed(self, lines: int) -> None:
        """Console lines came."""
        self.console_lines += lines

    def row(self) -> Activity:
        """As it is now."""
        return Activity(*(getattr(self, name) for name in Activity._fields))


def first_heard(ts: int, off: int) -> Activity:
    """The row of a run that was not heard before."""
    return Activity(ts, ts, None, 0, 0, 0, off)


_KINDS: Final[arrow.Columns] = {
    "run": pa.int64(),
    "path": pa.string(),
    **{name: pa.int64() for name in Activity._fields},
}


def table(activities: Mapping[str, Activity]) -> pa.Table:
    """Rows of `run_activity` by run path."""
    columns = zip(*activities.values(), strict=True)
    return arrow.table(_KINDS, [[run_number(path) for path in activities], list(activities), *columns])
