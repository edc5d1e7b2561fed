"""Lanes: what the training thread leaves behind for the writer, row after row in one flat list.

Rows of the same keys share a lane, so that nothing is made for a row but its step and time: no dict and no tuple
that the garbage collector would have to look at, and the writer has a column by slicing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from operator import itemgetter
from typing import Any, Final

from icecore.codec import Scalar

KEYS_MOST: Final = 512
"""Wider rows are queued one by one."""
LANES_MOST: Final = 64
VALUES_HIGH: Final = 240_000
"""With more values in a lane a call of `log` gives the writer a millisecond."""
VALUES_MOST: Final = 2_400_000
"""With more, rows are dropped, and counted: the disk has been stuck for long."""

Pick = Callable[[Mapping[str, Any]], tuple[Any, ...]]


class Lane:
    """Rows of the same keys: step, *nanoseconds* since 1970, and the values, again and again."""

    __slots__ = ("flat", "keys", "pick", "stride")

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.stride = len(keys) + 2
        self.flat: list[Any] = []
        first, *more = keys
        self.pick: Pick = itemgetter(*keys) if more else _only(first)

    def take(self, rows: int) -> list[Any]:
        """Remove the oldest rows, at most so many, and return them flat."""
        end = rows * self.stride
        # nothing is called between these two, so no signal's handler and no other thread comes in between
        taken = self.flat[:end]
        del self.flat[:end]
        return taken

    def rows(self, flat: list[Any]) -> list[tuple[int, int, dict[str, Scalar]]]:
        """Flat rows one by one."""
        return [
            (flat[i], flat[i + 1], dict(zip(self.keys, flat[i + 2 : i + self.stride], strict=True)))
            for i in range(0, len(flat), self.stride)
        ]


Open = tuple[Pick, int, list[Any], Iterator[int]]
"""What the fast path of `log` needs, in one piece: how to pick, how many, where to put it, and the steps."""


def _nothing(_: Mapping[str, Any]) -> tuple[Any, ...]:
    raise KeyError


CLOSED: Final[Open] = (_nothing, 0, [], count())
"""No row may take the fast path now."""


def opened(lane: Lane | None, steps: Iterator[int]) -> Open:
    """The fast path into a lane."""
    return CLOSED if lane is None else (lane.pick, len(lane.keys), lane.flat, steps)


class Lanes(dict[tuple[str, ...], Lane]):
    """The lanes of one run in one process. They are never removed: a thread may be about to add to one."""

    def of(self, values: Mapping[str, Scalar]) -> Lane | None:
        """The lane for rows like this one; None where it is too wide, or there are too many kinds of rows."""
        keys = tuple(values)
        lane = self.get(keys)
        if lane is None and 0 < len(keys) < KEYS_MOST and len(self) < LANES_MOST:
            lane = self[keys] = Lane(keys)
        return lane


def _only(key: str) -> Pick:
    return lambda data: (data[key],)
