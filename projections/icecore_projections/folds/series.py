"""Series: their numbers, and running statistics that do not depend on how records were batched.

A series is a (run, kind, key). Its number is `ordinal * 256 + partition`, the ordinal by first appearance in that
partition of the log, so that every rebuild gives the same. A *slot* is a series' place in the arrays in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from icecore_projections.folds.columns import Ints, PerSegment

STATISTICS: Final = np.dtype(
    [
        ("n", "i8"),
        ("nans", "i8"),
        ("least", "f8"),
        ("most", "f8"),
        ("total", "f8"),
        ("first_step", "i8"),
        ("first", "f8"),
        ("last_step", "i8"),
        ("last", "f8"),
        ("last_ts", "i8"),
        ("off", "i8"),
    ]
)
Statistics = npt.NDArray[np.void]

PARTITIONS_MOST: Final = 256
_BLANK: Final = np.array((0, 0, np.nan, np.nan, 0.0, 0, np.nan, 0, np.nan, 0, 0), STATISTICS)

Key = tuple[str, str]
"""(kind, key)"""


@dataclass(slots=True)
class SeriesState:
    """The series of the runs in memory. A fold reads it; `advance` is called with what was committed."""

    slots: dict[str, dict[Key, int]] = field(default_factory=dict)
    """run path -> (kind, key) -> slot; a run that is here is here with all of its series"""
    numbers: list[int] = field(default_factory=list)
    """slot -> series number"""
    last_text: dict[int, str] = field(default_factory=dict)
    """slot of a text or bool series -> its last text"""
    ordinals: dict[int, int] = field(default_factory=dict)
    """partition -> the next ordinal"""
    statistics: Statistics = field(default_factory=lambda: np.zeros(0, STATISTICS))

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, run: str, key: Key, number: int, row: tuple[float | None, ...], last_text: str | None) -> None:
        """Take in a series that the store has; call `grown` before using the statistics."""
        slot = len(self.numbers)
        self.slots.setdefault(run, {})[key] = slot
        self.numbers.append(number)
        self._room(slot + 1)
        self.statistics[slot] = tuple(
            blank if value is None else value for value, blank in zip(row, _BLANK.item(), strict=True)
        )
        if last_text is not None:
            self.last_text[slot] = last_text

    def of(self, slots: Ints) -> Statistics:
        """A copy of the statistics of `slots`; new ones (beyond the state) are blank."""
        found = np.full(len(slots), _BLANK, STATISTICS)
        known = slots < len(self)
        found[known] = self.statistics[slots[known]]
        return found

    def advance(self, new: NewSeries, slots: Ints, statistics: Statistics, texts: Mapping[int, str]) -> None:
        """Make a fold's result the state."""
        for run, keys in new.slots.items():
            self.slots.setdefault(run, {}).update(keys)
        self.numbers.extend(new.numbers)
        self.ordinals[new.partition] = new.ordinal
        self._room(len(self.numbers))
        self.statistics[slots] = statistics
        self.last_text.update(texts)

    def _room(self, n: int) -> None:
        if n > len(self.statistics):
            grown = np.full(max(n, 2 * len(self.statistics), 1024), _BLANK, STATISTICS)
            grown[: len(self.statistics)] = self.statistics
            self.statistics = grown


class NewSeries:
    """The series that a batch is the first to name, beside a state that stays as it is."""

    def __init__(self, state: SeriesState, partition: int) -> None:
        self.state = state
        self.partition = partition
        self.ordinal = state.ordinals.get(partition, 0)
        self.slots: dict[str, dict[Key, int]] = {}
        self.numbers: list[int] = []
        self.names: list[tuple[str, str, str]] = []
        """(run, kind, key) of each new series, in order"""
        self._base = len(state)

    def slot(self, run: str, kind: str, key: str) -> int:
        """The slot of a series, known or new."""
        name = (kind, key)
        known = self.state.slots.get(run)
        if known is not None and (slot := known.get(name)) is not None:
            return slot
        mine = self.slots.setdefault(run, {})
        found = mine.get(name)
        if found is None:
            found = mine[name] = self._base + len(self.numbers)
            self.numbers.append(self.ordinal * PARTITIONS_MOST + self.partition)
            self.names.append((run, kind, key))
            self.ordinal += 1
        return found

    def number(self, slots: Iterable[int]) -> list[int]:
        """The series numbers of slots, known or new."""
        base, known, new = self._base, self.state.numbers, self.numbers
        return [known[slot] if slot < base else new[slot - base] for slot in slots]


def accumulate(state: SeriesState, segments: PerSegment) -> tuple[Ints, Statistics]:
    """The slots that segments touch, and their statistics after them.

    Sums are added segment by segment in log order, so any batching of the same records gives the same bits.
    """
    slots, group = np.unique(segments.slot, return_inverse=True)
    after = state.of(slots)
    with np.errstate(invalid="ignore"):
        np.add.at(after["total"], group, segments.total)
    np.add.at(after["n"], group, segments.rows)
    np.add.at(after["nans"], group, segments.nans)
    np.fmin.at(after["least"], group, segments.least)
    np.fmax.at(after["most"], group, segments.most)
    np.maximum.at(after["off"], group, segments.off)
    _move_ends(after, group, segments, seen=state.of(slots)["n"] > 0)
    return slots, after


def _move_ends(after: Statistics, group: Ints, segments: PerSegment, seen: npt.NDArray[np.bool_]) -> None:
    """Set first (lowest step, of equals the earlier) and last (highest step, of equals the later)."""
    order = np.arange(len(group))
    by_first = np.lexsort((order, segments.first_step, group))
    by_last = np.lexsort((order, segments.last_step, group))
    sizes = np.bincount(group, minlength=len(after))
    ends = np.cumsum(sizes)
    first, last = by_first[ends - sizes], by_last[ends - 1]
    earlier = ~seen | (segments.first_step[first] < after["first_step"])
    later = ~seen | (segments.last_step[last] >= after["last_step"])
    for name, source in (("first_step", segments.first_step), ("first", segments.first)):
        after[name][earlier] = source[first][earlier]
    for name, column in (("last_step", segments.last_step), ("last", segments.last), ("last_ts", segments.last_ts)):
        after[name][later] = column[last][later]
