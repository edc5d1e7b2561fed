"""Charts, compared with plain Python over the same points."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.errors import Invalid, NotFound, TooLarge
from icecore_api.queries.as_of import look_back
from icecore_api.queries.buckets import Buckets, Curve, bucket_of, bucket_starts, reduce, reduce_all
from icecore_api.queries.chunks import ChunkMemory
from icecore_api.queries.groups import bands
from icecore_api.queries.points import AsOf, SeriesNumbers, find_runs, snapshot
from icecore_api.queries.series import Line, Question, lines
from points_tables import STARTED, Point, Tables, random_points, random_tables

PATHS = ["e/p/r0", "e/p/r1", "e/p/r2"]
KEYS = ["k0", "k1", "k2"]


def ask(tables: Tables, question: Question, paths: list[str] = PATHS) -> dict[tuple[str, str], Line]:
    runs = find_runs(tables.con, paths, question.upto)
    return {(line.run, line.key): line for line in lines(tables.con, runs, question, SeriesNumbers())}


def x_of(point: Point, x: str) -> float:
    if x == "_step":
        return point.step
    return point.ts / 1000 if x == "_timestamp" else (point.ts - STARTED) / 1000


def expected(tables: Tables, run: str, key: str, x: str, kind: str = "metric") -> list[tuple[float, float]]:
    """(x, value) by x; of equal x by step, then by arrival."""
    return sorted(((x_of(p, x), p.value) for p in tables.of(run, key, kind)), key=lambda pair: pair[0])


def same(left: Any, right: Any) -> None:
    np.testing.assert_array_equal(np.asarray(left, float), np.asarray(right, float))


def check_exact(buckets: Buckets, points: list[tuple[float, float]]) -> None:
    """Every bucket says exactly what the points at its place say."""
    assert int(buckets.n.sum()) == len(points)
    ends = np.cumsum(buckets.n)
    for i, (begin, end) in enumerate(zip(ends - buckets.n, ends, strict=True)):
        mine = points[begin:end]
        numbers = np.array([value for _, value in mine if not math.isnan(value)])
        assert (buckets.x[i], buckets.x_last[i]) == (mine[0][0], mine[-1][0])
        assert buckets.nans[i] == len(mine) - len(numbers)
        same(buckets.last[i], mine[-1][1])
        if len(numbers):
            assert buckets.min[i] == numbers.min()
            assert buckets.max[i] == numbers.max()
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(buckets.mean[i], numbers.mean(), rtol=1e-12, atol=1e-12)
        else:
            same([buckets.min[i], buckets.max[i], buckets.mean[i]], [math.nan] * 3)


@pytest.mark.parametrize("x", ["_step", "_timestamp", "_runtime"])
@pytest.mark.parametrize("kind", ["metric", "system"])
def test_every_point_is_given_in_order(x: str, kind: str) -> None:
    """Without buckets every point comes back bit for bit, by x, of equal x in order of arrival."""
    tables = random_tables(1)

    found = ask(tables, Question(KEYS, kind, x, None))

    assert len(found) == 9
    for (run, key), line in found.items():
        points = expected(tables, run, key, x, kind)
        same(line.buckets.x, [x for x, _ in points])
        assert line.buckets.last.tobytes() == np.array([value for _, value in points]).tobytes()
        assert not line.reduced


@pytest.mark.parametrize("x", ["_step", "_timestamp", "_runtime"])
@pytest.mark.parametrize("count", [1, 2, 7, 50, 99, 1000])
def test_buckets_are_exact(x: str, count: int) -> None:
    """A bucket's minimum, maximum, mean, last and counts are those of its points, and widths are equal."""
    tables = random_tables(2)

    found = ask(tables, Question(KEYS, "metric", x, count))

    for (run, key), line in found.items():
        points = expected(tables, run, key, x)
        check_exact(line.buckets, points)
        assert line.reduced == (len(points) > count)
        assert len(line.buckets.x) <= max(count, 1) or not line.reduced
        width = (points[-1][0] - points[0][0]) / count
        if line.reduced:
            assert (line.buckets.x_last - line.buckets.x <= width * (1 + 1e-9)).all()
            assert (line.buckets.x[1:] > line.buckets.x_last[:-1]).all()


def ordered_tables(n: int, pieces: int) -> Tables:
    """Two runs that log in order."""
    tables = Tables()
    rng = np.random.default_rng(5)
    for run in range(2):
        tables.run(f"e/p/r{run}")
    rows = [(run, i) for i in range(n) for run in range(2)]
    values = rng.standard_normal(len(rows))
    values[rng.integers(0, len(rows), 40)] = np.nan
    values[rng.integers(0, len(rows), 10)] = np.inf
    points = [
        Point(f"e/p/r{run}", "metric", "k0", i, STARTED + 100 * i, float(value), j)
        for j, ((run, i), value) in enumerate(zip(rows, values, strict=True))
    ]
    cut = len(points) // (pieces + 1)
    for piece in range(pieces):
        tables.log(points[piece * cut : (piece + 1) * cut])
        tables.compact()
    tables.log(points[pieces * cut :])
    return tables.finish()


@pytest.mark.parametrize("x", ["_step", "_timestamp", "_runtime"])
@pytest.mark.parametrize("count", [1, 3, 20, 500])
def test_the_rollup_is_exact_for_the_points_it_names(x: str, count: int) -> None:
    """From the rollup a bucket still says exactly what the points between its x and x_last say."""
    tables = ordered_tables(2000, 3)

    found = ask(tables, Question(["k0"], "metric", x, count, rollup_from=0), PATHS[:2])

    for (run, key), line in found.items():
        check_exact(line.buckets, expected(tables, run, key, x))
        assert line.reduced
        assert len(line.buckets.x) <= count
    full = ask(tables, Question(["k0"], "metric", x, count, rollup_from=0, exact=True), PATHS[:2])
    assert len(full["e/p/r0", "k0"].buckets.x) == min(count, 2000)


@pytest.mark.parametrize("seed", range(5))
def test_the_rollup_loses_nothing_of_disordered_steps(seed: int) -> None:
    """Whatever the order of arrival, all buckets together have every point, and one bucket is the whole series."""
    tables = random_tables(seed, 3000, pieces=4)

    found = ask(tables, Question(KEYS, "metric", "_step", 7, rollup_from=0))
    whole = ask(tables, Question(KEYS, "metric", "_step", 1, rollup_from=0))

    for (run, key), line in found.items():
        points = expected(tables, run, key, "_step")
        assert int(line.buckets.n.sum()) == len(points)
        assert int(line.buckets.nans.sum()) == sum(math.isnan(value) for _, value in points)
        check_exact(whole[run, key].buckets, points)


@pytest.mark.parametrize("x", ["_step", "_timestamp", "_runtime"])
@pytest.mark.parametrize("rolled", [False, True])
def test_a_range_keeps_what_lies_in_it(x: str, rolled: bool) -> None:
    """Points outside the range are left out; a rollup entry that reaches into it is kept whole."""
    tables = ordered_tables(2000, 3)
    points = expected(tables, "e/p/r0", "k0", x)
    low, high = points[300][0], points[1500][0]

    question = Question(["k0"], "metric", x, 10, (low, high), rollup_from=0 if rolled else 10**9)
    line = ask(tables, question, PATHS[:1])["e/p/r0", "k0"]

    inside = [pair for pair in points if low <= pair[0] <= high]
    if not rolled:
        check_exact(line.buckets, inside)
    else:
        assert len(inside) <= int(line.buckets.n.sum()) <= len(inside) + 2 * 64
        assert line.buckets.x[0] <= low <= line.buckets.x_last[0]


def test_a_narrow_range_of_a_long_series_is_read_in_full() -> None:
    """Zooming in leaves the rollup as soon as what is in sight is few enough."""
    tables = ordered_tables(2000, 3)

    question = Question(["k0"], "metric", "_step", 400, (100, 399), rollup_from=1000)
    line = ask(tables, question, PATHS[:1])["e/p/r0", "k0"]

    assert line.buckets.x.tolist() == list(range(100, 400))
    assert not line.reduced


@pytest.mark.parametrize("count", [None, 5, 1000])
def test_x_may_be_another_metric(count: int | None) -> None:
    """Values are joined by step, of equal steps by their order; where x is no finite number there is no point."""
    tables = random_tables(7)

    found = ask(tables, Question(["k0", "k1"], "metric", "k2", count))

    for run in PATHS:
        for key in ("k0", "k1"):
            sides: dict[int, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
            for side, name in enumerate(("k2", key)):
                for point in tables.of(run, name):
                    sides[point.step][side].append(point.value)
            pairs = [pair for step in sorted(sides) for pair in zip(*sides[step], strict=False)]
            pairs = sorted((pair for pair in pairs if math.isfinite(pair[0])), key=lambda pair: pair[0])
            check_exact(found[run, key].buckets, pairs)


@pytest.mark.parametrize("x", ["_step", "_runtime", "k1"])
@pytest.mark.parametrize("cut", [0, 20, 60, 10**6])
def test_an_earlier_position_answers_as_it_did_then(x: str, cut: int) -> None:
    """With a position, only records before it count: the answer is that of a store that has no others."""
    tables = random_tables(11)
    then = Tables()
    for path in PATHS:
        then.run(path)
    then.log([point for point in tables.points if point.off < cut])
    then.finish()

    question = Question(["k0"], "metric", x, 9, rollup_from=0)
    now = ask(tables, replace(question, upto=AsOf(None, {0: cut})))
    before = ask(then, replace(question, exact=True))

    assert now.keys() == before.keys()
    for name in now:
        for field in ("x", "x_last", "n", "nans", "min", "max", "mean", "last"):
            same(getattr(now[name].buckets, field), getattr(before[name].buckets, field))


def test_unknown_and_deleted_runs_are_named() -> None:
    """Nothing is answered where one of the runs is not there."""
    tables = random_tables(1)
    tables.run("e/p/gone", off=10)
    tables.run("e/p/gone", off=20, deleted=True)

    with pytest.raises(NotFound) as caught:
        find_runs(tables.con, ["e/p/r0", "e/p/never", "e/p/gone"])

    assert caught.value.facts["missing"] == ["e/p/never", "e/p/gone"]
    assert [run.path for run in find_runs(tables.con, ["e/p/gone"], AsOf(15, None))] == ["e/p/gone"]
    with pytest.raises(NotFound):
        find_runs(tables.con, ["e/p/gone"], AsOf(5, None))


def test_a_request_for_too_much_names_the_limit() -> None:
    """Too many series, no bucket and a range backwards are refused."""
    tables = random_tables(1, 50)

    with pytest.raises(Invalid) as caught:
        ask(tables, Question([f"k{i}" for i in range(10_000)]))
    assert caught.value.facts == {"limit": "series_per_request", "value": 30_000}
    with pytest.raises(Invalid, match="at least 1 bucket"):
        ask(tables, Question(["k0"], buckets=0))
    with pytest.raises(Invalid, match="range"):
        ask(tables, Question(["k0"], span=(2, 1)))
    with pytest.raises(Invalid, match="range"):
        ask(tables, Question(["k0"], span=(math.nan, 1)))


def test_too_many_points_in_full_are_refused() -> None:
    """An answer of every point has a limit, which the error names."""
    tables = Tables()
    tables.run("e/p/r0")
    tables.log([Point("e/p/r0", "metric", "k", 0, STARTED, 0.0, 0)])
    tables.con.execute(f"INSERT INTO points_sorted SELECT 0, i, {STARTED}, 0, 0, 1, NULL, 1 FROM range(5000001) t(i)")
    tables.finish()

    with pytest.raises(TooLarge) as caught:
        ask(tables, Question(["k"], buckets=None), PATHS[:1])

    assert caught.value.facts["limit"] == "series_points"


# -------------------------------------------------------------------------------------------------------- groups


def group_tables() -> Tables:
    tables = random_tables(3, 2000, runs=6)
    fields: list[dict[str, Any]] = [
        {"config": {"lr": 0.1, "a.b": True}, "group": "one", "tags": ["x", "y"], "summary": {"best": "t"}},
        {"config": {"lr": 0.1, "a.b": False}, "group": "one", "tags": ["x"]},
        {"config": {"lr": 0.01}, "group": "two", "job_type": "train"},
        {"config": {"lr": "auto"}, "group": "two"},
        {"config": {"lr": 1}, "group": "one", "tags": ["y"]},
        {},
    ]
    for index, each in enumerate(fields):
        tables.run(f"e/p/r{index}", off=100 + index, **each)
    return tables


GROUPS: dict[str, list[list[Any]]] = {
    "config.lr": [[0.1], [0.1], [0.01], ["auto"], [1.0], [None]],
    "config.a.b": [[True], [False], [None], [None], [None], [None]],
    "group": [["one"], ["one"], ["two"], ["two"], ["one"], [None]],
    "tags": [["x", "y"], ["x"], [None], [None], ["y"], [None]],
    "job_type": [[None], [None], ["train"], [None], [None], [None]],
}


@pytest.mark.parametrize("group_by", list(GROUPS))
@pytest.mark.parametrize("count", [None, 1, 8])
@pytest.mark.parametrize("upto", [AsOf(), AsOf(10**6, {0: 10**6})])
def test_a_band_is_over_the_means_of_runs(group_by: str, count: int | None, upto: AsOf) -> None:
    """Each run counts once in a bucket: mean, least, most and deviation are over run means, points are counted."""
    tables = group_tables()
    paths = [f"e/p/r{i}" for i in range(6)]
    runs = find_runs(tables.con, paths)

    found = bands(tables.con, runs, Question(["k0"], "metric", "_step", count, upto=upto), group_by, SeriesNumbers())

    points = {path: expected(tables, path, "k0", "_step") for path in paths}
    steps = np.array(sorted({x for each in points.values() for x, _ in each}), np.int64)
    span = int(steps[0]), int(steps[-1])
    places = dict(zip(steps.tolist(), (bucket_of(steps, span, count) if count else steps).tolist(), strict=True))
    cells: dict[Any, dict[int, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path, groups in zip(paths, GROUPS[group_by], strict=True):
        for group in groups:
            for x, value in points[path]:
                cells[group][places[x]][path].append(value)
    assert {(type(band.group), band.group) for band in found} == {(type(group), group) for group in cells}
    for band in found:
        rows = [cells[band.group][place] for place in sorted(cells[band.group])]
        assert band.n.tolist() == [sum(map(len, row.values())) for row in rows]
        for i, row in enumerate(rows):
            numbers = [[v for v in values if not math.isnan(v)] for values in row.values()]
            with np.errstate(invalid="ignore"):
                means = [float(np.mean(values)) for values in numbers if values]
            assert band.runs[i] == len(means)
            if means and all(map(math.isfinite, means)):
                np.testing.assert_allclose(band.mean[i], statistics.fmean(means), rtol=1e-9)
                np.testing.assert_allclose([band.min[i], band.max[i]], [min(means), max(means)], rtol=1e-9)
                if max(map(abs, means)) < 1e100:
                    np.testing.assert_allclose(band.std[i], np.std(means), rtol=1e-9, atol=1e-12)


def test_a_summary_groups_by_what_was_set_else_by_what_was_logged() -> None:
    """Grouping by a summary takes the value set by hand, else the last one logged, now and at an earlier position."""
    tables = Tables()
    for index, step in enumerate((5, 5, 7)):
        tables.run(f"e/p/r{index}", off=index, **({"summary": {"k": "set"}} if index == 0 else {}))
        tables.log(
            [Point(f"e/p/r{index}", "metric", "k", i, STARTED + i, float(i), index * 10 + i) for i in range(step)]
        )
    tables.finish()
    runs = find_runs(tables.con, PATHS)

    now = bands(tables.con, runs, Question(["k"]), "summary.k", SeriesNumbers())
    with snapshot(tables.con):
        look_back(tables.con, AsOf(10, {0: 23}), "true", {}, STARTED)
        then = bands(tables.con, runs, Question(["k"], upto=AsOf(10, {0: 23})), "summary.k", SeriesNumbers())

    assert [band.group for band in now] == [4.0, 6.0, "set"]
    assert [band.group for band in then] == [2.0, 4.0, "set"]


def test_an_unknown_grouping_is_refused() -> None:
    """The error says what may be grouped by."""
    tables = random_tables(1, 50)

    with pytest.raises(Invalid, match=r"config\.NAME"):
        bands(tables.con, find_runs(tables.con, PATHS), Question(["k0"]), "colour", SeriesNumbers())


def test_an_earlier_position_bounds_every_partition() -> None:
    """Offsets of two partitions are compared with their own bounds, and a partition that is not named has nothing."""
    tables = Tables()
    for index in range(2):
        tables.run(f"e/p/r{index}")
        tables.series[f"e/p/r{index}", "metric", "k0"] = 256 + index  # the low byte is the partition
    tables.log([Point(f"e/p/r{i % 2}", "metric", "k0", i // 2, STARTED, float(i), i // 2) for i in range(20)])
    tables.finish()

    def counts(bounds: dict[int, int]) -> dict[str, int]:
        found = ask(tables, Question(["k0"], upto=AsOf(None, bounds)), PATHS[:2])
        return {run: int(line.buckets.n.sum()) for (run, _), line in found.items()}

    assert counts({0: 3, 1: 7}) == {"e/p/r0": 3, "e/p/r1": 7}
    assert counts({1: 2}) == {"e/p/r1": 2}
    assert counts({}) == {}


# ------------------------------------------------------------------------------------------------------- buckets

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=1, max_size=60), st.integers(1, 20))
def test_bucket_numbers_follow_x(xs: list[float], count: int) -> None:
    """Bucket numbers never decrease, start at 0 and stay below the count, whatever finite numbers x are."""
    x = np.sort(np.array(xs))

    places = bucket_of(x, (float(x[0]), float(x[-1])), count)

    assert (np.diff(places) >= 0).all()
    assert places[0] == 0
    assert places[-1] in ({count - 1} if x[-1] > x[0] else {0})


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60), st.integers(1, 20))
def test_bucket_numbers_follow_steps_of_any_size(xs: list[int], count: int) -> None:
    """Steps beyond 2^53 keep their order and their buckets."""
    x = np.sort(np.array(xs, np.int64))

    places = bucket_of(x, (int(x[0]), int(x[-1])), count)

    exact = [min(count - 1, (int(v) - int(x[0])) * count // max(1, int(x[-1]) - int(x[0]))) for v in x]
    assert (np.diff(places) >= 0).all()
    assert np.abs(places - np.array(exact)).max() <= 1
    assert places[-1] == exact[-1]


def test_nothing_reduces_to_nothing() -> None:
    """A curve without points has no buckets."""
    empty = reduce(Curve(np.zeros(0, np.int64), np.zeros(0)), 10)

    assert len(empty.x) == 0
    assert not empty.reduced


def test_random_points_repeat_steps() -> None:
    """The data of these tests has what is hard: repeated and disordered steps."""
    steps = [p.step for p in random_points(random.Random(0), 500)]

    assert len(set(steps)) < len(steps)
    assert steps != sorted(steps)


# -------------------------------------------------------------------------------------------------------- memory


def test_what_is_remembered_never_shows() -> None:
    """A chart looked at again while points arrive and pieces are made is that of a store seen for the first time."""
    tables = random_tables(13, 600)
    remembered = SeriesNumbers()
    rng = random.Random(13)
    question = Question(["k0", "k2"], "metric", "_step", 9, rollup_from=0)
    runs = find_runs(tables.con, PATHS)

    for round_ in range(6):
        asked = runs[: 1 + round_ % 3]
        found = list(lines(tables.con, asked, question, remembered))
        fresh = list(lines(tables.con, asked, question, SeriesNumbers()))
        assert [(line.run, line.key) for line in found] == [(line.run, line.key) for line in fresh]
        for one, other in zip(found, fresh, strict=True):
            for field in ("x", "x_last", "n", "nans", "min", "max", "mean", "last"):
                same(getattr(one.buckets, field), getattr(other.buckets, field))
            assert int(one.buckets.n.sum()) == len(tables.of(one.run, one.key))
        tables.log(random_points(rng, 200, first_off=1000 * (round_ + 1)))
        if round_ % 2:
            tables.compact()
        tables.finish()


def test_memory_is_bounded() -> None:
    """Beyond its size what was remembered is let go, and read again."""
    tables = ordered_tables(2000, 3)
    memory = ChunkMemory(most=50)

    first = memory.read(tables.con, "points_rollup", [0, 256])
    again = memory.read(tables.con, "points_rollup", [0])

    assert len(first[0]) == len(again[0]) > 20
    assert sum(map(len, memory._kept.values())) <= 50


@given(
    xs=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-50, 50), min_size=1, max_size=60),
    count=st.integers(1, 40),
    floats=st.booleans(),
)
def test_a_search_for_edges_cuts_evenly_and_in_order(xs: list[int], count: int, floats: bool) -> None:
    """Every part is within one bucket's width, the parts are in order, and equal x are never cut apart."""
    x = np.array(sorted(xs), float if floats else np.int64)

    starts = bucket_starts(x, (x[0].item(), x[-1].item()), count)

    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert len(starts) <= count
    assert all(x[at] > x[at - 1] for at in starts[1:].tolist())
    ends = np.append(starts[1:], len(x)) - 1
    width = (int(x[-1]) - int(x[0])) / count
    assert all(int(x[e]) - int(x[b]) <= width * (1 + 1e-9) + 1e-6 * width for b, e in zip(starts, ends, strict=True))


def test_curves_reduced_together_are_as_each_alone() -> None:
    """Reducing many curves at once gives the buckets that each has by itself."""
    rng = np.random.default_rng(3)
    curves = []
    for n in (0, 1, 5, 10, 11, 300, 25_000):
        values = np.where(rng.random(n) < 0.1, np.nan, rng.standard_normal(n))
        curves += [Curve(np.arange(n), values), Curve(np.sort(rng.random(n)), values)]

    together = reduce_all(curves, 10)

    for curve, found in zip(curves, together, strict=True):
        alone = reduce(curve, 10)
        for field in ("x", "x_last", "n", "nans", "min", "max", "last"):
            same(getattr(found, field), getattr(alone, field))
        np.testing.assert_allclose(found.mean, alone.mean, rtol=1e-12)
