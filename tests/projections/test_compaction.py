"""Hot to cold, the rollup, and tables kept in order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icecore.position import Place
from icecore_projections import compaction
from icecore_projections.folds import Changes
from icecore_projections.schema import definitions
from icecore_projections.store import Store

PLACE = Place("metrics", 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as opened:
        yield opened


def points(series: list[int], step: list[int], value: list[float], off: int = 0) -> pa.Table:
    return pa.table(
        {
            "series": np.array(series, np.int32),
            "step": np.array(step, np.int64),
            "ts": np.array(step, np.int64) * 10,
            "value": np.array(value, np.float64),
            "off": np.full(len(step), off, np.int64),
        }
    )


def put(store: Store, rows: pa.Table, offset: int = 1) -> None:
    store.commit(Changes({"points_hot": [rows]}), {PLACE: (offset, 0)})


def rows(store: Store, query: str) -> list[tuple[object, ...]]:
    with store.reading() as con:
        return con.execute(query).fetchall()


def test_a_piece_holds_every_point_once_and_repeated_steps_in_their_order(store: Store) -> None:
    """Within each series steps run one way, forwards or backwards, and points of one step stay as they came."""
    put(store, points([256, 0, 0, 256, 0, 256], [2, 3, 1, 1, 3, 2], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert store.compact()
    assert rows(store, "SELECT series, step, value FROM points_cold ORDER BY rowid") == [
        (0, 1, 3.0),
        (0, 3, 2.0),
        (0, 3, 5.0),
        (256, 2, 1.0),
        (256, 2, 6.0),
        (256, 1, 4.0),
    ]
    assert rows(store, "SELECT count(*) FROM points_hot") == [(0,)]
    assert not store.compact()


def test_extreme_steps_are_sorted_too(store: Store) -> None:
    """The lowest 64-bit step has no negative; it is a step like any other."""
    low, high = -(2**63), 2**63 - 1
    rows_in = pa.table(
        {
            "series": np.array([256, 256, 256], np.int32),
            "step": np.array([low, high, 0]),
            "ts": np.array([0, 0, 0]),
            "value": np.array([1.0, 2.0, 3.0]),
            "off": np.array([0, 0, 0]),
        }
    )
    put(store, rows_in)
    store.compact()
    assert rows(store, "SELECT step FROM points_cold ORDER BY rowid") == [(high,), (0,), (low,)]


_WHOLE = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.integers(2**30 - 2, 2**30 + 2))
_TIME = st.one_of(st.integers(0, 3_000_000_000_000), st.integers(-(2**63), 2**63 - 1))
_VALUE = st.one_of(st.floats(width=32), st.floats(), st.just(-0.0))


@settings(deadline=None)
@example([(0, 0, 0, 1.7e308), (0, 1, 0, 1.7e308)])  # of which the sum is infinite
@given(st.lists(st.tuples(st.integers(0, 3), _WHOLE, _TIME, _VALUE), min_size=1, max_size=40))
def test_a_piece_gives_every_point_back_as_it_was(given_points: list[tuple[int, int, int, float]]) -> None:
    """Lines and narrow values change nothing: steps, times and values of any size come out bit for bit, in order."""
    series, step, ts, value = ([point[i] for point in given_points] for i in range(4))
    columns: dict[str, Any] = {
        "series": np.array(series, np.int32) * 256,
        "step": np.array(step, np.int64),
        "ts": np.array(ts, np.int64),
        "value": np.array(value, np.float64),
        "off": np.arange(len(step)),
    }
    with contextlib.closing(duckdb.connect()) as con:
        for statement in definitions():
            con.execute(statement)
        compaction.put(con, "points", columns)
        found = con.execute("SELECT series, step, ts, value, off FROM points_cold ORDER BY rowid").to_arrow_table()
    expected = np.lexsort((columns["off"], np.where(np.array(series) % 2, ~columns["step"], columns["step"]), series))
    for name in ("series", "step", "ts", "off"):
        assert found[name].to_pylist() == columns[name][expected].tolist()
    back, put_in = found["value"].to_numpy(), columns["value"][expected]
    assert (np.isnan(back) == np.isnan(put_in)).all()
    there = ~np.isnan(back)
    assert back[there].tobytes() == put_in[there].tobytes()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200), st.sampled_from([1.0, 0.1])), min_size=1, max_size=6))
def test_the_rollup_says_what_its_points_say(sizes: list[tuple[int, int, float]]) -> None:
    """Each bucket is 64 consecutive points of a series, the last one fewer; least, most and sum leave NaN out.

    Tenths, which float32 does not hold, are as exact as whole numbers.
    """
    series = [256 * i for i, (_, n, _) in enumerate(sizes) for _ in range(n)]
    step = [s for _, n, _ in sizes for s in range(n)]
    value = [np.nan if (s * 7 + kind) % 5 < kind else s * 3 % 11 * unit for kind, n, unit in sizes for s in range(n)]
    table = points(series, step, value)
    with contextlib.closing(duckdb.connect()) as con:
        for statement in definitions():
            con.execute(statement)
        compaction.put(con, "points", {name: table.column(name).to_numpy() for name in table.column_names})
        buckets = con.execute("SELECT * FROM points_rollup ORDER BY rowid").to_arrow_table().to_pylist()
    at = 0
    for bucket in buckets:
        n = bucket["n"]
        piece = np.array(value[at : at + n])
        there = piece[~np.isnan(piece)]
        assert set(series[at : at + n]) == {bucket["series"]}
        assert (bucket["step_first"], bucket["step_last"]) == (step[at], step[at + n - 1])
        assert (bucket["ts_first"], bucket["ts_last"]) == (step[at] * 10, step[at + n - 1] * 10)
        assert n == 64 or at + n == len(series) or series[at + n] != series[at]
        assert bucket["nans"] == n - len(there)
        assert bucket["least"] == (there.min() if len(there) else None)
        assert bucket["most"] == (there.max() if len(there) else None)
        assert bucket["total"] == pytest.approx(there.sum())
        np.testing.assert_equal(bucket["last"], piece[-1])
        at += n
    assert at == len(series)


def test_a_full_hot_table_becomes_a_piece_in_the_commit_that_fills_it(store: Store) -> None:
    """Five million rows are the mark; what was there and what came with the batch go together."""
    n = compaction.PIECE_ROWS // 4
    for turn in range(4):
        put(store, points([0] * n, list(range(turn * n, turn * n + n)), [0.0] * n), turn + 1)
    assert store.hot["points"] == 0
    assert rows(store, "SELECT count(*), min(step), max(step) FROM points_cold") == [(4 * n, 0, 4 * n - 1)]
    assert rows(store, "SELECT sum(n), count(*) FROM points_rollup") == [(4 * n, -(-4 * n // 64))]


def test_a_reader_sees_whole_commits_while_pieces_move(store: Store) -> None:
    """A snapshot from before a compaction keeps seeing the hot table; no reader sees a point twice or not at all."""
    counts: list[int] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                with store.reading() as con:
                    con.begin()
                    (cold,) = con.execute("SELECT count(*) FROM points_cold").fetchall()[0]
                    (hot,) = con.execute("SELECT count(*) FROM points_hot").fetchall()[0]
                    (end,) = con.execute("SELECT coalesce(max(next_offset), 0) FROM offsets").fetchall()[0]
                    con.commit()
                    counts.append(cold + hot - 100 * end)
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        put(store, points([0] * 100, list(range(100)), [0.0] * 100), turn + 1)
        if turn % 5 == 4:
            store.compact()
    stop.set()
    reader.join()
    assert not failed
    assert counts
    assert set(counts) == {0}


def test_a_table_is_sorted_again_with_its_index(store: Store) -> None:
    """Rows and types stay, their order is the one that queries want, and the index is there again."""
    changes = pa.table(
        {
            "series": pa.array([0, 256, 512], pa.int32()),
            "run": pa.array([9, 3, 5], pa.int64()),
            "kind": ["metric", "metric", "metric"],
            "key": ["b", "a", "a"],
        }
    )
    before = rows(store, "DESCRIBE series")
    store.commit(Changes({"series": [changes]}), {PLACE: (1, 0)})
    with store.reading() as con:
        con.begin()
        compaction.resort(con, "series")
        con.commit()
    assert rows(store, "SELECT key, run FROM series") == [("a", 3), ("a", 5), ("b", 9)]
    assert rows(store, "DESCRIBE series") == before
    assert rows(store, "SELECT index_name FROM duckdb_indexes() WHERE table_name = 'series'") == [("series_of_run",)]
