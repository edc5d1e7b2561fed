"""Many points into few buckets, exactly: what a chart shows of a series that has more points than pixels.

Pure functions over NumPy arrays; no store, no clock. A bucket's minimum, maximum, mean, last value and counts are
those of exactly the points whose x lies in its [x, x_last].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Chunks:
    """What is known of the points behind each entry of a `Curve`. All arrays are as long as the curve's.

    `least` and `most` are +inf and -inf where every point is NaN; `total` leaves NaN out. `arrival` numbers the
    entries in the order in which they came.
    """

    x_last: Array
    n: Array
    nans: Array
    least: Array
    most: Array
    total: Array
    arrival: Array

    def take(self, chosen: Array) -> Chunks:
        """The entries `chosen` (indices or a mask), in that order."""
        return Chunks(
            self.x_last[chosen],
            self.n[chosen],
            self.nans[chosen],
            self.least[chosen],
            self.most[chosen],
            self.total[chosen],
            self.arrival[chosen],
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """A series ordered by x. Each entry is one point, or, with `chunks`, up to 64 points of a rollup.

    `x` is int64 (steps) or float64; `value` is float64, the value of the entry's last point.
    """

    x: Array
    value: Array
    chunks: Chunks | None = None

    def take(self, chosen: Array) -> Curve:
        """The entries `chosen` (indices or a mask), in that order."""
        chunks = None if self.chunks is None else self.chunks.take(chosen)
        return Curve(self.x[chosen], self.value[chosen], chunks)

    def ordered(self) -> Curve:
        """The same, ordered by x; entries of one x keep their order."""
        if len(self.x) < 2 or bool((self.x[1:] >= self.x[:-1]).all()):
            return self
        return self.take(np.argsort(self.x, kind="stable"))

    @property
    def points(self) -> int:
        """How many points there are."""
        return len(self.x) if self.chunks is None else int(self.chunks.n.sum())


@dataclass(frozen=True, slots=True)
class Buckets:
    """A reduced curve: arrays of one length, one entry a bucket that has points.

    NaN is left out of `min`, `max` and `mean` (NaN where nothing else is there) and counted in `nans`; infinities
    take part. `last` is the value of the bucket's last point, whatever it is.
    """

    x: Array
    x_last: Array
    n: Array
    nans: Array
    min: Array
    max: Array
    mean: Array
    last: Array

    @property
    def reduced(self) -> bool:
        """Whether a bucket holds more than one point."""
        return bool((self.n > 1).any())

    def part(self, first: int, last: int) -> Buckets:
        """The buckets from `first` up to `last`, which is left out."""
        return Buckets(*[getattr(self, name)[first:last] for name in Buckets.__slots__])


def bucket_of(x: Array, span: Span, buckets: int) -> Array:
    """The bucket number, 0 to buckets - 1, of each x: `span` in equal widths. Never decreases where x does not."""
    low, high = span
    if not high > low:
        return np.zeros(len(x), np.int64)
    if x.dtype.kind == "i":
        # steps may be beyond 2^53: the difference is taken in integers, where it is exact
        base, top = int(low), int(high)
        offset = (x.astype(np.uint64) - np.uint64(base % 2**64)).astype(np.float64)
        width = float(top - base)
    else:
        # halves, so that a span of more than the largest double does not overflow
        offset = x * 0.5 - low * 0.5
        width = high * 0.5 - low * 0.5
    place = np.floor(offset * (buckets / width) if width >= 1 else offset / width * buckets)
    return np.clip(place, 0, buckets - 1).astype(np.int64)


def span_of(curve: Curve) -> Span | None:
    """The first and last x of an ordered curve, None for an empty one."""
    return (curve.x[0].item(), curve.x[-1].item()) if len(curve.x) else None


def bucket_starts(x: Array, span: Span, buckets: int) -> Array:
    """Where each bucket that has entries begins in an ordered `x`, which is not empty: `span` in equal widths.

    A search for each edge rather than a bucket number for each point: a chart has far fewer buckets than points.
    """
    low, high = span
    if not high > low:
        return np.zeros(1, np.int64)
    inner = np.arange(1, buckets)
    edges: Array
    if x.dtype.kind == "i" and (int(high) - int(low)) * buckets < _EDGES_EXACT:
        edges = int(low) - (-inner * (int(high) - int(low)) // buckets)
    elif x.dtype.kind == "f" and np.isfinite(high - low):
        edges = low + (high - low) * (inner / buckets)
    else:
        return np.flatnonzero(np.diff(bucket_of(x, span, buckets), prepend=-1))
    found = np.empty(buckets + 1, np.int64)
    found[0], found[1:-1], found[-1] = 0, x.searchsorted(edges), len(x)
    return found[:-1][found[1:] > found[:-1]]


_EDGES_EXACT: Final = 1 << 62
"""Steps times buckets below this are cut in integers."""


def reduce(curve: Curve, buckets: int | None, span: Span | None = None) -> Buckets:
    """The curve in at most `buckets` buckets of equal width over `span` (else over its own x).

    Args:
        curve: ordered by x.
        buckets: how many; None for every entry. A curve with no more entries than that keeps them all.
        span: the x of the first bucket's begin and the last one's end.
    """
    if buckets is None or len(curve.x) <= buckets:
        return _every_entry(curve)
    return gather(curve, bucket_starts(curve.x, span or span_of(curve) or (0, 0), buckets))


def reduce_all(curves: Sequence[Curve], buckets: int | None) -> list[Buckets]:
    """Each curve in at most `buckets` buckets over its own x, as by `reduce`.

    Many short curves are gathered as one: what NumPy takes for a call is more than it takes for 100 numbers.
    """
    done: dict[int, Buckets] = {}
    alike: dict[tuple[str, bool], list[int]] = {}
    for index, curve in enumerate(curves):
        if buckets is None or not _SINGLE > len(curve.x) > buckets:
            done[index] = reduce(curve, buckets)
        else:
            alike.setdefault((curve.x.dtype.str, curve.chunks is None), []).append(index)
    for indices in alike.values():
        members = [curves[index] for index in indices]
        begins = np.cumsum([0, *(len(one.x) for one in members)])
        starts = [bucket_starts(one.x, span_of(one) or (0, 0), buckets or 1) for one in members]
        cuts = np.cumsum([0, *map(len, starts)]).tolist()
        shifted = [at + begin for at, begin in zip(starts, begins.tolist(), strict=False)]
        together = gather(joined(members), np.concatenate(shifted))
        for index, first, last in zip(indices, cuts, cuts[1:], strict=False):
            done[index] = together.part(first, last)
    return [done[index] for index in range(len(curves))]


_SINGLE: Final = 20_000
"""Curves of so many entries are reduced one by one: to join them would take longer than the calls do."""


def joined(curves: Sequence[Curve]) -> Curve:
    """Curves of one kind, one after another; the whole is not ordered."""
    x, value = (np.concatenate([getattr(curve, name) for curve in curves]) for name in ("x", "value"))
    kept = [curve.chunks for curve in curves if curve.chunks is not None]
    if not kept:
        return Curve(x, value)
    columns = [np.concatenate([getattr(one, name) for one in kept]) for name in Chunks.__slots__]
    return Curve(x, value, Chunks(*columns))


def gather(curve: Curve, starts: Array) -> Buckets:
    """The curve cut at `starts` (indices, the first 0): one bucket a part."""
    if not len(starts):
        return _every_entry(curve)
    ends = np.append(starts[1:], len(curve.x)) - 1
    if curve.chunks is None:
        n = ends - starts + 1
        missing = np.isnan(curve.value)
        if missing.any():
            nans = np.add.reduceat(missing.astype(np.int64), starts)
            least = np.minimum.reduceat(np.where(missing, np.inf, curve.value), starts)
            most = np.maximum.reduceat(np.where(missing, -np.inf, curve.value), starts)
            total = _sums(np.where(missing, 0.0, curve.value), starts)
        else:
            nans = np.zeros(len(starts), np.int64)
            least = np.minimum.reduceat(curve.value, starts)
            most = np.maximum.reduceat(curve.value, starts)
            total = _sums(curve.value, starts)
        x_last, last = curve.x[ends], curve.value[ends]
    else:
        chunks = curve.chunks
        n, nans = np.add.reduceat(chunks.n, starts), np.add.reduceat(chunks.nans, starts)
        least, most = np.minimum.reduceat(chunks.least, starts), np.maximum.reduceat(chunks.most, starts)
        total = _sums(chunks.total, starts)
        final = _final_entries(chunks, starts, ends)
        x_last, last = chunks.x_last[final], curve.value[final]
    return _finish(curve.x[starts], x_last, n, nans, least, most, total, last)


def _final_entries(chunks: Chunks, starts: Array, ends: Array) -> Array:
    """The entry of each part that ends last, of equals the one that came later: steps out of order overlap chunks."""
    falls = chunks.x_last[1:] <= chunks.x_last[:-1]
    falls[starts[1:] - 1] = False  # from one part to the next
    if not falls.any():
        return ends
    part = np.repeat(np.arange(len(starts)), ends - starts + 1)
    return np.lexsort((chunks.arrival, chunks.x_last, part))[ends]


def _every_entry(curve: Curve) -> Buckets:
    if curve.chunks is not None:
        c = curve.chunks
        return _finish(curve.x, c.x_last, c.n, c.nans, c.least, c.most, c.total, curve.value)
    ones = np.ones(len(curve.x), np.int64)
    nans = np.isnan(curve.value).astype(np.int64)
    return Buckets(curve.x, curve.x, ones, nans, curve.value, curve.value, curve.value, curve.value)


def _finish(
    x: Array, x_last: Array, n: Array, nans: Array, least: Array, most: Array, total: Array, last: Array
) -> Buckets:
    counted = n - nans
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / counted
    if nans.any():
        empty = counted == 0
        least, most = np.where(empty, np.nan, least), np.where(empty, np.nan, most)
        mean = np.where(empty, np.nan, mean)
    return Buckets(x, x_last, n, nans, least, most, mean, last)


def _sums(values: Array, starts: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN: that is its mean
        return np.add.reduceat(values, starts)
