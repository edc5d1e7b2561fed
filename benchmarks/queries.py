"""Charts and exports at the store: 1,000 runs x 10 keys in 20 pieces, and half a piece of hot points, no HTTP."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from benchmarks.results import Result
from icecore_api.queries.export import Export, runs_of_project
from icecore_api.queries.formats import encode
from icecore_api.queries.points import SeriesNumbers, find_runs, snapshot
from icecore_api.queries.series import Question, lines
from icecore_projections import compaction
from icecore_projections.schema import INDEXES, definitions, run_number

SHORT_RUNS, LONG_RUNS, KEYS, PIECES = 900, 10, 10, 20
SHORT_POINTS, LONG_POINTS = 10_000, 100_000
STARTED = 1_700_000_000_000


def run(scale: float) -> list[Result]:
    """Build the tables and measure. `scale` 1 is 100 million points; it scales the points of every series."""
    with tempfile.TemporaryDirectory(prefix="icecore-bench-") as folder:
        con = duckdb.connect(str(Path(folder) / "bench.duckdb"))
        try:
            paths = build(con, scale)
            return [*charts(con, paths, scale), export(con, scale)]
        finally:
            con.close()


def build(con: duckdb.DuckDBPyConnection, scale: float) -> list[str]:
    """Fill the tables as the folds would; the paths of the runs, long ones last."""
    for statement in definitions():
        con.execute(statement)
    paths = [f"bench/charts/run-{i}" for i in range(SHORT_RUNS + LONG_RUNS)]
    numbers = np.array([run_number(path) for path in paths], np.int64)
    points = np.repeat([SHORT_POINTS, LONG_POINTS], [SHORT_RUNS * KEYS, LONG_RUNS * KEYS])
    points = np.maximum(PIECES, (points * scale).astype(np.int64))
    ids: dict[str, Any] = {"run": numbers, "id": [path.rpartition("/")[2] for path in paths]}
    fixed = f"0 AS off, 0 AS off_first, 'bench' AS entity, 'charts' AS project, {STARTED} AS started_ts"
    _insert(con, "current_runs BY NAME", ids, f"*, {fixed}, FALSE AS deleted")
    keys = [f"metric_{i % KEYS}" for i in range(len(points))]
    series = np.arange(len(points), dtype=np.int32) * 256
    named: dict[str, Any] = {"series": series, "run": np.repeat(numbers, KEYS), "key": keys, "n": points}
    _insert(con, "series BY NAME", named, "*, 'metric' AS kind")
    for name, columns in INDEXES.items():
        con.execute(f"CREATE INDEX {name} ON {columns}")
    rng = np.random.default_rng(0)
    for piece in range(PIECES):
        filled = _points(series, (points * piece // PIECES, points * (piece + 1) // PIECES), piece, rng)
        compaction.put(con, "points", filled)
    for cycle in range(25):  # runs take turns: each flush has a few points of every series
        begin, end = (points + points * part // (PIECES * 50) for part in (cycle, cycle + 1))
        _insert(con, "points_hot", _points(series, (begin, end), PIECES + cycle, rng))
    con.execute("CHECKPOINT")
    return paths


def _insert(con: duckdb.DuckDBPyConnection, target: str, rows: Any, select: str = "*") -> None:
    con.register("given_rows", rows if isinstance(rows, pa.Table) else pa.table(rows))
    con.execute(f"INSERT INTO {target} SELECT {select} FROM given_rows")
    con.unregister("given_rows")


def _points(series: Any, span: tuple[Any, Any], off: int, rng: np.random.Generator) -> dict[str, Any]:
    begin, end = span
    n = end - begin
    before = np.cumsum(n) - n
    step = np.arange(int(n.sum())) - np.repeat(before - begin, n)
    return {
        "series": np.repeat(series, n),
        "step": step,
        "ts": STARTED + step * 100,
        "value": rng.standard_normal(len(step)),
        "off": np.full(len(step), off, np.int64),
    }


def charts(con: duckdb.DuckDBPyConnection, paths: list[str], scale: float) -> list[Result]:
    """The two charts of docs/performance.md, with hot points and without."""
    numbers = SeriesNumbers()

    def chart(chosen: list[str]) -> int:
        cursor = con.cursor()
        with snapshot(cursor):
            question = Question(["metric_3"], rollup_from=max(1, round(500_000 * min(1.0, scale))))
            return sum(len(line.buckets.x) for line in lines(cursor, find_runs(cursor, chosen), question, numbers))

    one, hundred = paths[-1:], paths[:100]
    began = time.perf_counter()
    chart(hundred)
    first = (time.perf_counter() - began) * 1000
    growing = [
        Result("one series of 100k points, half a piece hot", timed(lambda: chart(one)), "ms", limit_by="hot scan"),
        Result("100 runs x 10k points, never seen, half a piece hot", first, "ms", limit_by="scan of the rollup"),
        Result("100 runs x 10k points, half a piece hot", timed(lambda: chart(hundred)), "ms", limit_by="hot scan"),
    ]
    with con.cursor() as cursor:
        cursor.begin()
        compaction.compact(cursor, "points")
        cursor.commit()
    return [
        Result("one series of 100k points at the store", timed(lambda: chart(one)), "ms", 10, "at most", "cold scan"),
        Result("100 runs x 10k points at the store", timed(lambda: chart(hundred)), "ms", 15, "at most", "one core"),
        *growing,
    ]


def timed(work: Callable[[], object], rounds: int = 9) -> float:
    """Median milliseconds, after one to warm up."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def export(con: duckdb.DuckDBPyConnection, scale: float) -> Result:
    """The project as an Arrow stream, thrown away; at most 30 million points."""
    cursor = con.cursor()
    with snapshot(cursor):
        began = time.perf_counter()
        found = Export(cursor, *runs_of_project(cursor, "bench", "charts"))
        rows = 0

        def counted() -> Any:
            nonlocal rows
            for batch in found.batches():
                yield batch
                rows += batch.num_rows
                if rows >= 30_000_000 * max(scale, 0.001):
                    return

        size = sum(len(piece) for piece in encode("arrow", found.schema, counted()))
        seconds = time.perf_counter() - began
    note = f"{size / rows:.1f} B a point"
    return Result("full history export, Arrow, at the store", rows / seconds / 1e6, "M points/s", 5, "at least", note)
