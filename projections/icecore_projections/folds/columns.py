"""Columnar blocks of many events, laid out as few flat arrays: the one place where a batch is walked in Python.

A *segment* is one column of one block. All that follows (statistics, tables) is vectorised over segments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


class Block(NamedTuple):
    """One block of an event, checked, its numbers as arrays."""

    steps: Ints
    ts: Ints
    keys: tuple[str, ...]
    """of the numeric columns"""
    values: Floats
    """One column after another: NaN and infinities as they were logged."""
    last_step: int
    """The highest; 0 where there is no row."""
    text: Mapping[str, Sequence[Any]] | None
    flags: Mapping[str, Sequence[Any]] | None


_INT64_END: Final = 1 << 63
_NUMBERS: Final = frozenset({float, int, type(None)})
_NO_INTS: Final = np.zeros(0, np.int64)
_NO_ROWS: Final = Block(_NO_INTS, _NO_INTS, (), np.zeros(0), 0, None, None)


def pack(block: Mapping[str, Any], *, clock_only: bool) -> Block:
    """A block as arrays. Done while its lists are still in the processor's cache, it costs a third.

    With `clock_only` (system metrics) the times stand in for steps that are not given.

    Raises:
        Invalid: the block breaks a rule.
    """
    ts = block.get("ts")
    steps = block.get("step", ts if clock_only else None)
    if type(steps) is not list or type(ts) is not list or len(steps) != len(ts):
        raise Invalid("expected `step` and `ts` of one length in every block")
    if not steps:
        return _NO_ROWS
    columns = block.get("cols") or {}
    return Block(
        _whole(steps),
        _whole(ts),
        tuple(columns),
        _values(columns, len(steps), block.get("inf")),
        max(steps),
        block.get("text"),
        block.get("bool"),
    )


def _whole(column: Sequence[int]) -> Ints:
    if set(map(type, column)) != {int}:
        raise Invalid("expected whole numbers in `step` and `ts`")
    try:
        return np.array(column, np.int64)
    except OverflowError as error:
        raise Invalid("expected `step` and `ts` within 64 bits") from error


def _values(columns: Mapping[str, Sequence[Any]], rows: int, infinite: Mapping[str, Any] | None) -> Floats:
    whole: list[Any] = []
    for key, column in columns.items():
        if len(column) != rows:
            raise Invalid(f"expected {rows} values of {key!r}, one a step, got {len(column)}")
        whole += column
    kinds = set(map(type, whole))
    if not kinds <= _NUMBERS:
        raise Invalid(f"expected numbers or null in `cols`, got {sorted(kind.__name__ for kind in kinds)}")
    # `fromiter` is the faster one, but knows no null
    values = np.array(whole, np.float64) if type(None) in kinds else np.fromiter(whole, np.float64, len(whole))
    if infinite:
        for at, key in enumerate(columns):
            if key in infinite:
                _put_infinities(values[at * rows : (at + 1) * rows], key, infinite[key])
    return values


def _put_infinities(column: Floats, key: str, signs: Mapping[str, Sequence[int]]) -> None:
    rows = len(column)
    for sign, value in (("+", np.inf), ("-", -np.inf)):
        for row in signs.get(sign, ()):
            if type(row) is not int or not 0 <= row < rows:
                raise Invalid(f"expected row numbers below {rows} in `inf` of {key!r}, got {row!r}")
            column[row] = value


class Columns:
    """Gathers blocks; `segments` gives the arrays."""

    def __init__(self) -> None:
        self._packed: list[Block] = []
        self._offs: list[int] = []
        self._slots: list[int] = []
        self.shapes: dict[Shape, list[int]] = {}
        """The slots of the shapes seen."""

    def add(self, block: Block, off: int, shape: Shape, slot_of: SlotOf) -> None:
        """Add the numeric columns of one block."""
        if not block.keys:
            return
        slots = self.shapes.get(shape)
        if slots is None:
            slots = self.shapes[shape] = [slot_of(key) for key in block.keys]
        self._slots += slots
        self._packed.append(block)
        self._offs.append(off)

    def segments(self) -> Segments | None:
        """The arrays, or None where there is no point."""
        packed = self._packed
        if not packed:
            return None
        rows = np.array([len(block.steps) for block in packed], np.int64)
        return Segments(
            np.concatenate([block.steps for block in packed]),
            np.concatenate([block.ts for block in packed]),
            np.concatenate([block.values for block in packed]),
            np.cumsum(rows) - rows,
            rows,
            np.array([len(block.keys) for block in packed], np.int64),
            np.array(self._offs, np.int64),
            np.array(self._slots, np.int64),
        )


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
