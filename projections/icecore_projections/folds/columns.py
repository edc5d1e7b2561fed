"""Columnar blocks of many events, laid out as few flat arrays: the one place where a batch is walked in Python.

A *segment* is one column of one block. All that follows (statistics, tables) is vectorised over segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from icecore.errors import Invalid

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SlotOf = Callable[[str], int]
"""From a key to the slot of its series, making one where it is new."""

Shape = tuple[str, ...]
"""A run, a kind and the keys of a block: writers log the same keys again and again."""


class Segments(NamedTuple):
    """Numeric columns of a batch. Arrays per block (b), per segment (s), per step of a block (t), per point (p)."""

    steps: Ints
    """t"""
    ts: Ints
    """t: milliseconds since 1970 UTC"""
    values: Floats
    """p: NaN and infinities as they were logged"""
    block_start: Ints
    """b: where the block's steps begin in `steps`"""
    block_rows: Ints
    """b"""
    block_columns: Ints
    """b: how many segments it has"""
    block_off: Ints
    """b: the offset of its record"""
    slots: Ints
    """s: the series"""


class Columns:
    """Gathers blocks; `segments` gives the arrays."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._ts: list[int] = []
        self._values: list[Any] = []
        self._slots: list[int] = []
        self._blocks: list[tuple[int, int, int, int]] = []
        self._infinities: list[tuple[int, float]] = []
        self.shapes: dict[Shape, list[int]] = {}
        """The slots of the shapes seen."""

    def add(self, block: Mapping[str, Any], steps: Sequence[int], off: int, shape: Shape, slot_of: SlotOf) -> None:
        """Add the numeric columns of one block whose rows are checked (`checked_rows`).

        Raises:
            Invalid: a column's length is not the block's, or an infinity lies outside it.
        """
        columns = block.get("cols")
        rows = len(steps)
        if not columns or not rows:
            return
        if set(map(len, columns.values())) != {rows}:
            key = next(key for key, column in columns.items() if len(column) != rows)
            raise Invalid(f"expected {rows} values of {key!r}, one a step, got {len(columns[key])}")
        slots = self.shapes.get(shape)
        if slots is None:
            slots = self.shapes[shape] = [slot_of(key) for key in columns]
        if infinite := block.get("inf"):
            for at, key in enumerate(columns):
                if key in infinite:
                    self._add_infinities(key, infinite[key], rows, len(self._values) + at * rows)
        self._values.extend(chain.from_iterable(columns.values()))
        self._slots += slots
        self._blocks.append((len(self._steps), rows, len(columns), off))
        self._steps += steps
        self._ts += block["ts"]

    def _add_infinities(self, key: str, signs: Mapping[str, Sequence[int]], rows: int, start: int) -> None:
        for sign, value in (("+", np.inf), ("-", -np.inf)):
            for row in signs.get(sign, ()):
                if type(row) is not int or not 0 <= row < rows:
                    raise Invalid(f"expected row numbers below {rows} in `inf` of {key!r}, got {row!r}")
                self._infinities.append((start + row, value))

    def segments(self) -> Segments | None:
        """The arrays, or None where there is no point.

        Raises:
            Invalid: a value is no number, or a step or time no whole number of 64 bits.
        """
        if not self._blocks:
            return None
        check_whole(self._steps, self._ts)
        kinds = set(map(type, self._values))
        if not kinds <= {float, int, type(None)}:
            raise Invalid(f"expected numbers or null in `cols`, got {sorted(kind.__name__ for kind in kinds)}")
        values = np.array(self._values, np.float64)
        for at, value in self._infinities:
            values[at] = value
        start, rows, columns, off = np.array(self._blocks, np.int64).T.copy()
        return Segments(
            np.array(self._steps, np.int64),
            np.array(self._ts, np.int64),
            values,
            start,
            rows,
            columns,
            off,
            np.array(self._slots, np.int64),
        )


_INT64_END: Final = 1 << 63


def checked_rows(block: Mapping[str, Any], *, clock_only: bool) -> Sequence[int]:
    """The steps of a block whose `step` and `ts` are lists of one length.

    With `clock_only` (system metrics) the times stand in for steps that are not given.

    Raises:
        Invalid: they are not.
    """
    ts = block.get("ts")
    steps = block.get("step", ts if clock_only else None)
    if type(steps) is not list or type(ts) is not list or len(steps) != len(ts):
        raise Invalid("expected `step` and `ts` of one length in every block")
    return steps


def check_whole(steps: Sequence[int], ts: Sequence[int]) -> None:
    """Check what `checked_rows` leaves, once for many blocks.

    Raises:
        Invalid: a step or a time is no whole number of 64 bits.
    """
    for column in (steps, ts):
        if column and set(map(type, column)) != {int}:
            raise Invalid("expected whole numbers in `step` and `ts`")
        if column and (min(column) < -_INT64_END or max(column) >= _INT64_END):
            raise Invalid("expected `step` and `ts` within 64 bits")


class Flat(NamedTuple):
    """Every point of the segments, in log order."""

    series: npt.NDArray[np.int32]
    step: Ints
    ts: Ints
    value: Floats
    off: Ints


class PerSegment(NamedTuple):
    """What the statistics need of each segment: independent of which other segments are in the batch."""

    slot: Ints
    rows: Ints
    off: Ints
    nans: Ints
    least: Floats
    most: Floats
    total: Floats
    first_step: Ints
    first: Floats
    last_step: Ints
    last: Floats
    last_ts: Ints


def flatten(s: Segments, series: npt.NDArray[np.int32]) -> tuple[Flat, PerSegment]:
    """Points and per-segment statistics, without a Python loop; `series` is each segment's number."""
    block = np.repeat(np.arange(len(s.block_rows)), s.block_columns)
    rows = s.block_rows[block]
    at = np.cumsum(rows) - rows
    where = np.arange(len(s.values)) + np.repeat(s.block_start[block] - at, rows)
    off = np.repeat(s.block_off[block], rows)
    flat = Flat(np.repeat(series, rows), s.steps[where], s.ts[where], s.values, off)
    first, last = _ends(s)
    first_at, last_at = at + first[block], at + last[block]
    missing = np.isnan(s.values)
    clean = s.values + 0.0  # -0.0 becomes 0.0: which of the two is the least must not depend on the batch
    with np.errstate(invalid="ignore"):
        total = np.add.reduceat(np.where(missing, 0.0, clean), at)
    return flat, PerSegment(
        slot=s.slots,
        rows=rows,
        off=s.block_off[block],
        nans=np.add.reduceat(missing.astype(np.int64), at),
        least=np.fmin.reduceat(clean, at),
        most=np.fmax.reduceat(clean, at),
        total=total,
        first_step=flat.step[first_at],
        first=s.values[first_at],
        last_step=flat.step[last_at],
        last=s.values[last_at],
        last_ts=flat.ts[last_at],
    )


def _ends(s: Segments) -> tuple[Ints, Ints]:
    """For each block the row of its lowest step (of equals the earliest) and of its highest (of equals the latest)."""
    rows_before = np.repeat(s.block_start, s.block_rows)
    row = np.arange(len(s.steps)) - rows_before
    lowest = np.repeat(np.minimum.reduceat(s.steps, s.block_start), s.block_rows)
    highest = np.repeat(np.maximum.reduceat(s.steps, s.block_start), s.block_rows)
    first = np.minimum.reduceat(np.where(s.steps == lowest, row, len(s.steps)), s.block_start)
    last = np.maximum.reduceat(np.where(s.steps == highest, row, -1), s.block_start)
    return first, last
