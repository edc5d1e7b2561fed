"""A run's summary: one value a metric, kept up to date by themselves, and whatever is set by hand."""

from __future__ import annotations

import fnmatch
import math
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from icecore.codec import Scalar
from icecore.config import plain, plain_key
from icecore.errors import UsageError

KINDS: Final = ("min", "max", "mean", "last", "first", "none")


@dataclass(slots=True)
class _Metric:
    """What one key's values have come to."""

    step: int
    last: Scalar
    first_step: int
    first: Scalar
    least: float = math.inf
    most: float = -math.inf
    total: float = 0.0
    n: int = 0

    def value(self, kind: str) -> Scalar:
        if kind == "first":
            return self.first
        if kind in {"last", "none"} or not self.n:
            return self.last
        return {"min": self.least, "max": self.most, "mean": self.total / self.n}[kind]


class Summary(MutableMapping[str, Any]):
    """The summary of a run, live.

    A metric's value is the one at its highest step, unless `define_metric` says otherwise; a value set by hand wins.
    """

    def __init__(self, changed: Callable[[dict[str, Any], list[str]], None], drain: Callable[[], None]) -> None:
        self._changed = changed
        self._drain = drain
        self._lock = threading.RLock()
        self._metrics: dict[str, _Metric] = {}
        self._set: dict[str, Any] = {}
        self._inherited: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}
        self._statistics = False

    # ---- what the writer tells

    def observe(self, blocks: Sequence[Mapping[str, Any]]) -> None:
        """Take note of rows that are being written, as columns that still hold NaN and infinities."""
        with self._lock:
            for block in blocks:
                steps = block["step"]
                # the last of the highest step, the first of the lowest
                high = len(steps) - 1 - steps[::-1].index(max(steps))
                low = steps.index(min(steps))
                for columns in (block.get("cols", {}), block.get("text", {}), block.get("bool", {})):
                    for key, column in columns.items():
                        self._observe(key, column, steps[high], column[high], steps[low], column[low])

    def _observe(
        self, key: str, column: Sequence[Scalar], step: int, last: Scalar, first_step: int, first: Scalar
    ) -> None:
        metric = self._metrics.get(key)
        if metric is None:
            metric = self._metrics[key] = _Metric(step, last, first_step, first)
        else:
            if step >= metric.step:
                metric.step, metric.last = step, last
            if first_step < metric.first_step:
                metric.first_step, metric.first = first_step, first
        if self._statistics and not isinstance(last, str):
            sound = [value for value in column if value == value and not isinstance(value, str)]  # noqa: PLR0124 - NaN
            if sound:
                metric.least = min(metric.least, *sound)
                metric.most = max(metric.most, *sound)
                metric.total += sum(sound)
                metric.n += len(sound)

    def define(self, name: str, kind: str) -> None:
        """Let the summary of the keys that match `name` be of a kind of `KINDS`."""
        with self._lock:
            self._kinds[name] = kind
            self._statistics = self._statistics or kind in {"min", "max", "mean"}

    def inherit(self, earlier: Mapping[str, Any]) -> None:
        """Show the values of the run as it was before it was resumed."""
        with self._lock:
            self._inherited.update(earlier)

    # ---- reading

    def as_dict(self) -> dict[str, Any]:
        """A copy as a plain dict, with dotted keys."""
        self._drain()
        with self._lock:
            live = {
                key: metric.value(kind) for key, metric in self._metrics.items() if (kind := self._kind(key)) != "none"
            }
            return {**self._inherited, **live, **self._set}

    def _kind(self, key: str) -> str:
        if key in self._kinds:
            return self._kinds[key]
        for name, kind in self._kinds.items():
            if "*" in name and fnmatch.fnmatchcase(key, name):
                return kind
        return "last"

    def __getitem__(self, key: str) -> Any:
        values = self.as_dict()
        if key in values:
            return values[key]
        inner = {name[len(key) + 1 :]: value for name, value in values.items() if name.startswith(f"{key}.")}
        if not inner:
            raise KeyError(key)
        return inner

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_dict())

    def __len__(self) -> int:
        return len(self.as_dict())

    def __repr__(self) -> str:
        return f"{self.as_dict()!r}"

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_"):
            raise AttributeError(key)
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"expected one of the summary's keys, got {key!r}") from None

    # ---- changing

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __setattr__(self, key: str, value: Any) -> None:
        if key.startswith("_"):
            object.__setattr__(self, key, value)
        else:
            self.update({key: value})

    def __delitem__(self, key: str) -> None:
        with self._lock:
            if key not in self._set and key not in self._inherited:
                raise KeyError(key)
            self._set.pop(key, None)
            self._inherited.pop(key, None)
        self._changed({}, [key])

    def renew_lock(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = threading.RLock()

    def update(self, *given: Any, **more: Any) -> None:
        """Set several values by hand; nested dicts become dotted keys."""
        values: dict[str, Any] = {}
        for mapping in (*given, more):
            if not isinstance(mapping, Mapping):
                raise UsageError(f"expected a dict of summary values, got {type(mapping).__qualname__}")
            _dotted(mapping, values, "")
        with self._lock:
            self._set.update(values)
        if values:
            self._changed(values, [])


def _dotted(mapping: Mapping[Any, Any], into: dict[str, Any], prefix: str) -> None:
    for key, value in mapping.items():
        path = plain_key(f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            _dotted(value, into, f"{path}.")
        else:
            into[path] = plain(value)
