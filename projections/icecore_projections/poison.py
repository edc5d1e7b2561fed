"""Poison: records that no try can fold; found by bisection and set aside, unless so many that it must be a bug."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from icecore.log import StoredRecord
from icecore_projections.folds import Applied

ATTEMPTS: Final = 3
"""Tries of a record on its own before it is set aside."""

WINDOW: Final = 1_000
"""Records looked back on."""

DEAD_MOST: Final = 20
"""Of the window. More is not poison but a fault in the program, and folding halts."""


Mark = tuple[bool, ...]
"""Which of the last records died."""


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that could not be folded, and why."""

    record: StoredRecord
    reason: str
    attempts: int = ATTEMPTS


class PoisonDominatesError(Exception):
    """So many of the last records could not be folded that going on would lose more than it saves."""


class Guard:
    """Counts the dead among the last records.

    Args:
        most: how many of them are poison; more are a fault in the program.
    """

    def __init__(self, most: int = DEAD_MOST) -> None:
        self._most = most
        self._window: deque[bool] = deque(maxlen=WINDOW)

    def check(self, outcomes: Sequence[bool], last_reason: str) -> None:
        """Take in whether each record of a batch died.

        Raises:
            PoisonDominatesError: too many did; nothing was taken in.
        """
        window = deque(self._window, maxlen=WINDOW)
        dead = sum(window)
        for died in outcomes:
            if len(window) == WINDOW:
                dead -= window[0]
            window.append(died)
            dead += died
            if dead > self._most:
                raise PoisonDominatesError(
                    f"expected at most {self._most} of {WINDOW} records that cannot be folded, got {dead}; "
                    f"the last one: {last_reason}"
                )
        self._window = window

    def mark(self) -> Mark:
        """What it has counted, for `rewind`."""
        return tuple(self._window)

    def rewind(self, mark: Mark) -> None:
        """Count on from a mark: the batches checked since were not committed, and come again."""
        self._window = deque(mark, maxlen=WINDOW)

    def forgive(self) -> None:
        """Start counting anew."""
        self._window.clear()


T = TypeVar("T")


def sift(fold: Callable[[Sequence[Applied]], T], events: list[Applied]) -> tuple[T, dict[int, str]]:
    """Fold `events` without those that cannot be folded.

    Returns:
        The result, and the reason of each event left out, by offset.
    """
    bad: dict[int, str] = {}
    while True:
        good = [event for event in events if event.position.offset not in bad]
        try:
            return fold(good), bad
        except Exception as error:  # noqa: BLE001 - any failure of one event must not stop the others
            found = _alone(fold, good)
            if not found:
                at, reason = _first_failing_prefix(fold, good, error)
                found = {good[at].position.offset: reason}
            bad |= found


def _alone(fold: Callable[[Sequence[Applied]], T], events: Sequence[Applied]) -> dict[int, str]:
    """Events that fail without any other, found by halving."""
    bad: dict[int, str] = {}
    stack = [events]
    while stack:
        part = stack.pop()
        reason = _tried(fold, part, 1 if len(part) > 1 else ATTEMPTS)
        if not reason:
            continue
        if len(part) == 1:
            bad[part[0].position.offset] = reason
        else:
            half = len(part) // 2
            stack += [part[half:], part[:half]]
    return bad


def _first_failing_prefix(
    fold: Callable[[Sequence[Applied]], T], events: Sequence[Applied], error: Exception
) -> tuple[int, str]:
    """The first event that fails after those before it."""
    works, fails, reason = 0, len(events), said(error)
    while fails - works > 1:
        middle = (works + fails) // 2
        failed = _tried(fold, events[:middle], 1)
        if failed:
            fails, reason = middle, failed
        else:
            works = middle
    return fails - 1, _tried(fold, events[:fails], ATTEMPTS - 1) or reason


def _tried(fold: Callable[[Sequence[Applied]], T], events: Sequence[Applied], times: int) -> str:
    """Why every one of `times` tries failed; empty as soon as one did not."""
    reason = ""
    for _ in range(times):
        try:
            fold(events)
        except Exception as error:  # noqa: BLE001 - see sift
            reason = said(error)
        else:
            return ""
    return reason


def said(error: Exception) -> str:
    """An error as a reason to be read later."""
    return f"{type(error).__name__}: {error}"[:2000]
