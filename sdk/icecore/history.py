"""From calls of `Run.log` to rows: what a step is, what is gathered, and what is left out."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from itertools import count
from typing import Any, Final, NamedTuple

from icecore.codec import Scalar
from icecore.errors import UsageError
from icecore.limits import most
from icecore.notes import warn
from icecore.rows import Unloggable, check_key, flatten, scalar

ReadyRow = tuple[int, dict[str, Scalar]]
_NUMBERS: Final = frozenset({float, int, bool})
_INT64: Final = 1 << 63
_WIDE_VALUES_MOST: Final = 2_000_000


class Rows(NamedTuple):
    """Rows that are complete, and the counter of steps after them."""

    ready: list[ReadyRow]
    steps: count[int]


class History:
    """The state of one run's history in one process. Its caller holds a lock."""

    def __init__(self, first_step: int) -> None:
        self._keys: set[str] = set()
        self._gathered: dict[str, Scalar] | None = None
        self._gathered_step: int | None = None
        self._next = first_step
        self._wide_values = 0
        self.left_out: Counter[str] = Counter()
        """How many values could not be logged, by key."""

    @property
    def gathering(self) -> bool:
        """Whether a row waits for more values."""
        return self._gathered is not None

    @property
    def gathering_step(self) -> int | None:
        """The step of the row that waits, where one was given."""
        return self._gathered_step

    def take(self, data: Mapping[str, Any], step: int | None, *, commit: bool | None, steps: count[int]) -> Rows:
        """One call of `log`.

        A call with a step is a row of that step at once; one with `commit=False` waits for the next calls, until one
        commits or names another step. Afterwards counting goes on from the highest step named.

        Raises:
            UsageError: a key is no str, or the step no integer.
        """
        number = None if step is None else _step_of(step)
        if self._keys.issuperset(data) and _NUMBERS.issuperset(map(type, data.values())):
            values: dict[str, Scalar] = dict(data)
        else:
            values = self._scalars(flatten(data, {}))
        ready: list[ReadyRow] = []
        if number is not None and self.gathering and self._gathered_step != number:
            ready += self.flush(steps)
        if number is not None:
            steps = count(max(_peek(steps), number + 1))
            self._gathered_step = number
        if commit is False:
            self._gathered = {**(self._gathered or {}), **values}
        else:
            gathered = {**self._gathered, **values} if self._gathered else values
            if gathered or not data:
                ready.append((next(steps) if self._gathered_step is None else self._gathered_step, gathered))
            self._gathered = self._gathered_step = None
        return Rows(ready, steps)

    def flush(self, steps: count[int]) -> list[ReadyRow]:
        """The row that waits, if any."""
        if not self._gathered:
            self._gathered = self._gathered_step = None
            return []
        row = (next(steps) if self._gathered_step is None else self._gathered_step, self._gathered)
        self._gathered = self._gathered_step = None
        return [row]

    def forget(self) -> None:
        """In a forked child: the row that waits is the parent's."""
        self._gathered = self._gathered_step = None
        self.left_out.clear()

    def wide(self, values: int, queued: int) -> bool:
        """Whether rows of many keys fill the queue: it is bounded by values, not only by rows."""
        self._wide_values = values + (self._wide_values if queued > 1 else 0)
        if self._wide_values > _WIDE_VALUES_MOST:
            self._wide_values = 0
            return True
        return False

    def _scalars(self, flat: Mapping[str, Any]) -> dict[str, Scalar]:
        values: dict[str, Scalar] = {}
        for key, value in flat.items():
            try:
                if key not in self._keys:
                    self._admit(key)
                values[key] = scalar(value)
            except Unloggable as error:
                self.left_out[key] += 1
                if self.left_out[key] == 1:
                    warn(f"{key[:80]!r} is left out of the history: {error}. The training goes on")
        return values

    def _admit(self, key: str) -> None:
        check_key(key)
        if len(self._keys) >= most("metric_keys"):
            raise Unloggable(f"a run has at most {most('metric_keys')} keys (the limit `metric_keys`)")
        self._keys.add(key)


def _peek(steps: count[int]) -> int:
    """A counter's next value, which it shows in no other way."""
    return int(repr(steps)[6:-1])


def _step_of(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        if not (hasattr(step, "item") or isinstance(step, float)) or step != int(step):
            raise UsageError(f"expected step to be an integer, got {step!r} of type {type(step).__name__}") from None
        number = int(step)
    if not -_INT64 <= number < _INT64 - 1:
        raise UsageError(f"expected step to fit 64 bits, got {number}")
    return number
