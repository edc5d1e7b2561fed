"""Finding runs: the best of 100,000 by a summary value, with three config filters."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast
from urllib.parse import urlencode

import duckdb
import numpy as np
import pyarrow as pa
import urllib3

from benchmarks.results import Result
from benchmarks.server import serving
from icecore.position import Place, Token
from icecore_api.context import Store
from icecore_api.deps import Deadline, Reading
from icecore_api.queries.run_answers import run_answers
from icecore_api.queries.runs import Question, find
from icecore_projections import compaction
from icecore_projections.folds.run_row import RunRow
from icecore_projections.schema import definitions, name_number

RUNS, CONFIG, SUMMARY, ROUNDS = 100_000, 58, 41, 15
NOW = 1_800_000_000_000
FILTERS = {"config.lr": {"$gt": 0.001}, "config.optimizer": "adam", "config.batch_size": 64}


def run(scale: float) -> list[Result]:
    """Build the tables as the folds and the store's tidying leave them, and measure. `scale` 1 is 100,000 runs."""
    with tempfile.TemporaryDirectory(prefix="icecore-bench-") as folder:
        con = duckdb.connect(str(Path(folder) / "bench.duckdb"))
        try:
            runs = max(100, round(RUNS * scale))
            build(con, runs)
            return [*asyncio.run(_measure(con)), over_http(Path(folder), runs)]
        finally:
            con.close()


def build(con: duckdb.DuckDBPyConnection, runs: int) -> None:
    """Runs with 58 config values and 41 metrics each, in a store of their own."""
    for statement in definitions():
        con.execute(statement)
    fill(con, runs)
    con.execute(f"INSERT INTO offsets VALUES ('ledger', 0, {runs}, 0)")
    con.execute("CHECKPOINT")


def over_http(folder: Path, runs: int) -> Result:
    """The same question of a server whose store was filled by hand while it was stopped."""
    with serving(folder) as served:
        served.wait_folded()
        key, store = served.key, served.data / "store"
    with contextlib.closing(duckdb.connect(str(store / (store / "CURRENT").read_text().strip()))) as con:
        fill(con, runs)
        con.execute("UPDATE current_runs SET off_first = 0")
        con.execute("CHECKPOINT")
    query = {"filters": json.dumps(FILTERS), "order": "-summary_metrics.metric_3", "limit": "10"}
    with serving(folder) as served:
        pool = urllib3.HTTPConnectionPool("127.0.0.1", served.port)
        path = f"/api/v1/runs/team/sweep?{urlencode(query)}"

        def ask() -> None:
            answer = pool.request("GET", path, headers={"Authorization": f"Bearer {key}"})
            if answer.status != 200 or answer.json()["count"] == 0:
                raise RuntimeError(answer.data[:500])

        took = timed(ask)
    return Result(
        "top 10 of 100,000 runs, 3 config filters, over HTTP", took, "ms", 30, "at most", "find, then 10 runs"
    )


def fill(con: duckdb.DuckDBPyConnection, runs: int) -> None:
    """The rows, as the folds would leave them."""
    rng = np.random.default_rng(0)
    config = {
        "lr": 10 ** rng.uniform(-5, -1, runs),
        "optimizer": np.array(["adam", "sgd", "lion"])[rng.integers(0, 3, runs)],
        "batch_size": 2.0 ** rng.integers(3, 9, runs),
        **{f"p{i}": rng.integers(0, 1000, runs).astype(float) for i in range(CONFIG - 3)},
    }
    same = {
        "entity": "team",
        "project": "sweep",
        "user": "ann",
        "started_ts": NOW,
        "heard_ts": NOW,
        "state": "finished",
    }
    rows = [
        RunRow(
            path=f"team/sweep/r{i}", id=f"r{i}", off=i, off_first=i, created_ts=NOW + i,
            config={key: column[i].item() for key, column in config.items()}, **cast("Any", same),
        )
        for i in range(runs)
    ]  # fmt: skip
    numbers = np.array([row.number for row in rows], np.int64)
    columns: dict[str, Any] = {"run": numbers, "i": np.arange(runs)}
    given = pa.table({**columns, "id": [row.id for row in rows], "doc": [row.to_doc() for row in rows]})
    con.register("given", given)
    con.execute(
        "INSERT INTO current_runs BY NAME SELECT run, doc, id, i AS off_first, 'team' AS entity, 'sweep' AS project, "
        f"'finished' AS state, {NOW} + i AS created_ts, false AS deleted FROM given"
    )
    con.execute(f"INSERT INTO run_activity BY NAME SELECT run, {NOW} AS heard_ts, 999 AS last_step FROM given")
    for path in sorted(config):
        column = pa.array(config[path])
        leaves: dict[str, Any] = {"run": numbers, "value": column}
        con.register("leaf", pa.table(leaves).sort_by("run"))
        kind = "text" if pa.types.is_string(column.type) else "number"
        con.execute(
            f"INSERT INTO run_values BY NAME SELECT run, 'config.{path}' AS path, value AS {kind}, "
            f"{name_number(f'config.{path}')} AS path_number FROM leaf"
        )
    named = {"key": [f"metric_{j}" for j in range(SUMMARY)]}
    con.register("named", pa.table({**named, "key_number": [name_number(key) for key in named["key"]]}))
    con.execute(
        "INSERT INTO series BY NAME SELECT run, 'metric' AS kind, key, key_number, random() AS last, 1000 AS n "
        "FROM given, named"
    )
    for table in compaction.SORTED:
        compaction.resort(con, table)


async def _measure(con: duckdb.DuckDBPyConnection) -> list[Result]:
    position = Token({Place("ledger", 0): RUNS})
    reading = Reading(cast("Store", None), con.cursor(), position, NOW, NOW - 300_000, Deadline(con, 600))
    best = Question("team", "sweep", FILTERS, "", "-summary_metrics.metric_3", 10)
    newest = Question("team", "sweep", {}, "", "-created_at", 50)
    found = find(reading, best)
    try:
        return [
            Result(
                "top 10 of 100,000 runs, 3 config filters, at the store",
                timed(lambda: find(reading, best)), "ms", 15, "at most", "hash joins, one core",
            ),
            Result("… with their configs and summaries", timed(lambda: run_answers(reading, found.runs)), "ms"),
            Result("the newest 50 of 100,000 runs", timed(lambda: find(reading, newest)), "ms"),
        ]  # fmt: skip
    finally:
        reading.deadline.cancel()


def timed(work: Callable[[], object]) -> float:
    """The median time in ms, after a first round that fills caches."""
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times) * 1000
