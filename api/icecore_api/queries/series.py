"""Charts: many runs x many keys as curves over step, time or another metric, reduced to buckets or in full.

Points are read as they are up to about half a million of them. Beyond that the cold ones come from the rollup, whose
entries stand for up to 64 neighbours: a bucket is then made of whole entries, each counted where it begins, so its
minimum, maximum, mean, last and count are still those of exactly its points, and [x, x_last] says where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from icecore.errors import Invalid, TooLarge
from icecore.limits import most
from icecore_api.queries.buckets import Array, Buckets, Curve, Span, reduce_all
from icecore_api.queries.points import (
    NOW,
    AsOf,
    Axis,
    Kind,
    Run,
    Series,
    SeriesNumbers,
    read_chunks,
    read_points,
)

STEP: Final = "_step"
TIMESTAMP: Final = "_timestamp"
RUNTIME: Final = "_runtime"

ROLLUP_FROM: Final = 500_000
"""From this many points in a request the rollup answers for the cold ones."""
_REDUCED_AT_ONCE: Final = 200_000
"""Entries, points or rollup's, that are gathered before they are reduced."""
_TOGETHER: Final = 2_000_000
"""Points read at once: what bounds the memory of a request."""
_INT64: Final = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Question:
    """What a chart asks.

    Args:
        keys: the metrics.
        kind: `metric`, or `system` for the machine's.
        x: `_step`, `_timestamp` (seconds since 1970 UTC), `_runtime` (seconds since the run's start) or a metric's key.
        buckets: at most this many a series; None for every point.
        span: only points with first <= x <= last, in the unit of x.
        exact: never use the rollup.
        upto: the position to answer at.
        rollup_from: from this many points on, the rollup answers for the cold ones.
    """

    keys: Sequence[str]
    kind: Kind = "metric"
    x: str = STEP
    buckets: int | None = 1000
    span: Span | None = None
    exact: bool = False
    upto: AsOf = NOW
    rollup_from: int = ROLLUP_FROM

    def check(self, runs: int) -> None:
        """Refuse what makes no sense or asks for too much.

        Raises:
            Invalid: too many series, a bucket count below 1, or a range that is none.
        """
        series = runs * len(self.keys)
        if series > most("series_per_request"):
            raise Invalid(
                f"expected at most {most('series_per_request')} series, got {series} (runs times keys)",
                hint="ask for fewer runs or keys at once",
                limit="series_per_request",
                value=series,
            )
        if self.buckets is not None and self.buckets < 1:
            raise Invalid(f"expected at least 1 bucket, got {self.buckets}")
        if self.span is not None and not self.span[0] <= self.span[1]:
            raise Invalid(f"expected a range [first, last] of two numbers in order, got {list(self.span)}")


@dataclass(frozen=True, slots=True)
class Line:
    """One series of an answer."""

    run: str
    key: str
    buckets: Buckets

    @property
    def reduced(self) -> bool:
        """Whether this is less than all of the points."""
        return self.buckets.reduced


@dataclass(slots=True)
class _Budget:
    """Counts the points of an answer that was asked for in full."""

    left: int = field(default_factory=lambda: most("series_points"))

    def take(self, points: int) -> None:
        self.left -= points
        if self.left < 0:
            limit = most("series_points")
            raise TooLarge(
                f"expected at most {limit} points in one answer, got more than {limit - self.left - 1}",
                hint="ask for buckets, a range or fewer series, or export the history as Arrow",
                limit="series_points",
                value=limit - self.left,
            )


def lines(cursor: object, runs: Sequence[Run], question: Question, numbers: SeriesNumbers) -> Iterator[Line]:
    """The series that have points, run by run within each group that is read at once.

    Each is cut into buckets of equal width over its own x; one with no more points than buckets keeps them all.

    Raises:
        Invalid: see `Question.check`.
        TooLarge: every point was asked for, and there are too many.
    """
    question.check(len(runs))
    budget = _Budget()
    waiting: list[tuple[Run, str, Curve]] = []
    entries = 0
    for one in curves(cursor, runs, question, numbers):
        if question.buckets is None:
            budget.take(len(one[2].x))
        waiting.append(one)
        entries += len(one[2].x)
        if entries >= _REDUCED_AT_ONCE:
            yield from _reduced(waiting, question.buckets, budget)
            waiting, entries = [], 0
    yield from _reduced(waiting, question.buckets, budget)


def _reduced(found: Sequence[tuple[Run, str, Curve]], buckets: int | None, budget: _Budget) -> Iterator[Line]:
    for (run, key, _), one in zip(found, reduce_all([curve for *_, curve in found], buckets), strict=True):
        if buckets is not None:
            budget.take(len(one.x))
        yield Line(run.path, key, one)


def curves(
    cursor: object, runs: Sequence[Run], question: Question, numbers: SeriesNumbers
) -> Iterator[tuple[Run, str, Curve]]:
    """The curves of an answer before they are reduced: not empty, ordered by x, within the range."""
    by_number = {run.number: run for run in runs}
    if question.x not in (STEP, TIMESTAMP, RUNTIME):
        yield from _over_key(cursor, by_number, question, numbers)
        return
    wanted = numbers.find(cursor, list(by_number), [question.kind], list(dict.fromkeys(question.keys)))
    axis: Axis = "step" if question.x == STEP else "ts"
    for part, rolled in _plan(cursor, wanted, question, axis, numbers):
        chosen = [series.number for series in part]
        bounds = _stored_span(question)
        if rolled:
            found = read_chunks(cursor, question.kind, chosen, axis, numbers.chunks)
        else:
            found = read_points(cursor, question.kind, chosen, axis, question.upto, bounds)
        for series in part:
            if series.number in found:
                run = by_number[series.run]
                curve = _clip(_in_unit(found[series.number], run, question.x), question)
                if len(curve.x):
                    yield run, series.key, curve


def _plan(
    cursor: object, wanted: Sequence[Series], question: Question, axis: Axis, numbers: SeriesNumbers
) -> Iterator[tuple[Sequence[Series], bool]]:
    """Series to be read together, and whether from the rollup."""
    total = sum(series.n for series in wanted)
    # the rollup knows only whole entries, so an earlier position is answered from the points
    rolled = (
        total > question.rollup_from
        and question.buckets is not None
        and not question.exact
        and question.upto.metrics is None
    )
    if rolled and question.span is not None and question.x != RUNTIME:
        inside = read_chunks(cursor, question.kind, [s.number for s in wanted], axis, numbers.chunks)
        in_sight = sum(_clip(_in_unit(curve, None, question.x), question).points for curve in inside.values())
        rolled = in_sight > question.rollup_from
    limit = _TOGETHER * 16 if rolled else _TOGETHER
    part: list[Series] = []
    points = 0
    for series in wanted:
        if part and points + series.n > limit:
            yield part, rolled
            part, points = [], 0
        part.append(series)
        points += series.n
    if part:
        yield part, rolled


def _stored_span(question: Question) -> Span | None:
    """The range in the unit of the tables, where it is the same for every run."""
    if question.span is None or question.x not in (STEP, TIMESTAMP):
        return None
    # one ms more on each side: seconds are not exact in binary, and `_clip` decides
    scale, slack = (1, 0) if question.x == STEP else (1000, 1)
    low, high = (max(min(bound * scale, 2.0**63), -(2.0**63)) for bound in question.span)
    least, greatest = _INT64
    return max(math.ceil(low) - slack, least), min(math.floor(high) + slack, greatest)


def _in_unit(curve: Curve, run: Run | None, x: str) -> Curve:
    """The curve with x as it was asked for."""
    if x == STEP:
        return curve
    start = (run.started_ts or 0) if run is not None and x == RUNTIME else 0
    chunks = curve.chunks and replace(curve.chunks, x_last=(curve.chunks.x_last - start) / 1000)
    return Curve((curve.x - start) / 1000, curve.value, chunks)


def _clip(curve: Curve, question: Question) -> Curve:
    """Only what lies in the range; an entry of the rollup that overlaps it is kept whole."""
    if question.span is None:
        return curve
    first, last = question.span
    x_last = curve.x if curve.chunks is None else curve.chunks.x_last
    inside = (x_last >= first) & (curve.x <= last)
    return curve if bool(inside.all()) else curve.take(inside)


# ------------------------------------------------------------------------------------------- over another metric


def _over_key(
    cursor: object, runs: dict[int, Run], question: Question, numbers: SeriesNumbers
) -> Iterator[tuple[Run, str, Curve]]:
    """Curves whose x is another metric: values of one step belong together, of equal steps by their order.

    Where x is NaN or infinite the point has no place on the axis and is left out.
    """
    keys = list(dict.fromkeys([*question.keys, question.x]))
    wanted = numbers.find(cursor, list(runs), [question.kind], keys)
    for number, run in runs.items():
        mine = {series.key: series.number for series in wanted if series.run == number}
        if question.x not in mine:
            continue
        found = read_points(cursor, question.kind, list(mine.values()), "step", question.upto)
        axis = found.get(mine[question.x])
        for key in dict.fromkeys(question.keys):
            curve = found.get(mine.get(key, -1))
            if axis is not None and curve is not None:
                joined = _clip(join(axis, curve), question)
                if len(joined.x):
                    yield run, key, joined


def join(axis: Curve, curve: Curve) -> Curve:
    """The values of `curve` over those of `axis`, joined on (step, how many of this step came before)."""
    x_at, y_at = match_rows(axis.x, curve.x)
    x, y = axis.value[x_at], curve.value[y_at]
    placed = np.isfinite(x)
    return Curve(x[placed], y[placed]).ordered()


def match_rows(left: Array, right: Array) -> tuple[Array, Array]:
    """Indices of the rows that two ordered step columns share: the k-th row of a step with the k-th of the same."""
    steps, rank = np.unique(np.concatenate([left, right]), return_inverse=True)
    nth = np.concatenate([occurrence(left), occurrence(right)])
    row = rank * (int(nth.max(initial=0)) + 1) + nth
    del steps
    _, left_at, right_at = np.intersect1d(row[: len(left)], row[len(left) :], assume_unique=True, return_indices=True)
    return left_at, right_at


def occurrence(ordered: Array) -> Array:
    """For each entry of an ordered array, how many equal ones come before it."""
    if not len(ordered):
        return np.zeros(0, np.int64)
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(new)
    return np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
