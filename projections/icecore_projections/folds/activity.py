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

    def heard(self, ts: int, off: int) -> Activity:
        """After a record accepted at `ts`."""
        return self._replace(first_ts=min(self.first_ts, ts), heard_ts=max(self.heard_ts, ts), off=off)

    def logged(self, last_step: int | None, rows: int, points: int) -> Activity:
        """After history rows."""
        steps = [step for step in (self.last_step, last_step) if step is not None]
        return self._replace(
            last_step=max(steps, default=None), rows_seen=self.rows_seen + rows, points=self.points + points
        )

    def printed(self, lines: int) -> Activity:
        """After console lines."""
        return self._replace(console_lines=self.console_lines + lines)


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
