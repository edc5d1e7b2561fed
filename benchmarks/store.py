"""A large history: folded from the log, measured at rest, and read over HTTP.

900 runs of 10 keys x 10,000 steps and 10 runs of 10 keys x 100,000 steps at full size: 100 M points, the runs
interleaved as they would arrive, 1,000 points an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import orjson
import urllib3

from benchmarks.results import Result
from benchmarks.server import Served, serving
from icecore.codec import encode_event
from icecore.events import Envelope, RunStarted, uuid7
from icecore.log import Record
from icecore.position import LEDGER, METRICS
from icecore_ingest.logs.sqlite import SQLiteLog

KEYS = 10
ROWS = 100
SHORT_STEPS, SHORT_RUNS = 10_000, 900
LONG_STEPS, LONG_RUNS = 100_000, 10
START_MS = 1_760_000_000_000
GENERATOR = np.random.default_rng(7)
Kind = Literal["doubles", "floats"]


def run_names(scale: float) -> tuple[list[str], list[str]]:
    """The paths of the short and the long runs."""
    short = [f"bench/history/s{i}" for i in range(max(int(SHORT_RUNS * scale), 2))]
    return short, [f"bench/history/l{i}" for i in range(max(int(LONG_RUNS * scale), 1))]


async def write_log(folder: Path, scale: float, kind: Kind = "doubles", rows: int = ROWS) -> int:
    """Append the whole history to a new log, `rows` steps an event. Returns the number of points."""
    log = SQLiteLog.open(folder)
    try:
        await log.append(LEDGER, [started(path) for paths in run_names(scale) for path in paths])
        producers: dict[str, tuple[str, int]] = {}
        points = 0
        batch: list[Record] = []
        for path, first in interleaved(scale, rows):
            producer, seq = producers.get(path, (str(uuid.uuid4()), 0))
            producers[path] = (producer, seq + 1)
            batch.append(record(path, producer, seq, first, kind, rows))
            points += rows * KEYS
            if len(batch) == 1000:
                await log.append(METRICS, batch)
                batch = []
        if batch:
            await log.append(METRICS, batch)
        return points
    finally:
        await log.close()


def interleaved(scale: float, rows: int = ROWS) -> Iterator[tuple[str, int]]:
    """(run, first step) of each event, in an order in which all runs move on together."""
    short, long = run_names(scale)
    per_short, per_long = SHORT_STEPS // rows, LONG_STEPS // rows
    for turn in range(per_short):
        for path in short:
            yield path, turn * rows
        for path in long:
            for part in range(per_long // per_short):
                yield path, (turn * (per_long // per_short) + part) * rows


def started(path: str) -> Record:
    """The event that makes a run."""
    event = RunStarted(run=path, started_ts=START_MS)
    envelope = Envelope(
        id=uuid7(),
        type=event.TYPE,
        v=event.VERSION,
        producer=str(uuid.uuid4()),
        seq=0,
        ts_client=START_MS,
        ts_server=START_MS,
        actor="owner",
    )
    return Record(path, envelope, encode_event(event))


def record(path: str, producer: str, seq: int, first: int, kind: Kind, rows: int = ROWS) -> Record:
    """One event of `rows` steps."""
    draw = GENERATOR.random((KEYS, rows))
    if kind == "floats":
        draw = draw.astype(np.float32).astype(np.float64)
    steps = np.arange(first, first + rows)
    block = {
        "step": steps,
        "ts": START_MS + steps * 100 + random.randrange(50),
        "cols": {f"metric_{k}": draw[k] for k in range(KEYS)},
    }
    payload = orjson.dumps({"run": path, "blocks": [block]}, option=orjson.OPT_SERIALIZE_NUMPY)
    envelope = Envelope(
        id=uuid7(), type="metrics.logged", v=1, producer=producer, seq=seq, ts_client=START_MS, ts_server=START_MS + seq
    )
    return Record(path, envelope, payload)


@contextlib.contextmanager
def folder_for_log() -> Iterator[Path]:
    """A data folder, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="icecore-bench-store-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(scale: float) -> list[Result]:
    """Fold, weigh, read."""
    results = []
    with folder_for_log() as folder:
        points = asyncio.run(write_log(folder / "data" / "log", scale))
        began = time.monotonic()
        with serving(folder) as served:
            served.wait_folded(within=1800)
            rate = points / (time.monotonic() - began - served.ready_s)
            results.append(
                Result("fold from offset 0 (rebuild)", rate / 1e6, "M points/s", 2, "at least", "store process")
            )
            results += charts(served, scale)
            results += export(served, scale)
        at_rest, log_bytes = size(folder / "data" / "store"), size(folder / "data" / "log")
        results += [
            Result(
                "bytes a point at rest, random doubles, log excluded", at_rest / points, "B", 9, "at most", "entropy"
            ),
            Result("bytes a point at rest, log included", (at_rest + log_bytes) / points, "B"),
        ]
    with folder_for_log() as folder:
        points = asyncio.run(write_log(folder / "data" / "log", scale / 10, "floats"))
        with serving(folder) as served:
            served.wait_folded(within=600)
        each = size(folder / "data" / "store") / points
        results.append(Result("bytes a point at rest, float32-like values", each, "B", 5, "at most", "entropy"))
    return results


def timed(served: Served, body: object, rounds: int = 15) -> float:
    """Median milliseconds of a series request over HTTP, after one to warm up."""
    pool = urllib3.HTTPConnectionPool("127.0.0.1", served.port)
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        answer = pool.request("POST", "/api/v1/series", body=json.dumps(body), headers=headers)
        taken.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise RuntimeError(answer.data[:500])
    return statistics.median(taken[1:])


def charts(served: Served, scale: float) -> list[Result]:
    """The two charts of the issue, over HTTP."""
    short, long = run_names(scale)
    one = {"runs": [long[0]], "keys": ["metric_3"], "buckets": 1000}
    many = {"runs": short[:100], "keys": ["metric_3"], "buckets": 150}
    return [
        Result(
            "one series of 100k points over HTTP", timed(served, one), "ms", 20, "at most", "scan of the cold pieces"
        ),
        Result("100 runs x 10k points over HTTP", timed(served, many), "ms", 40, "at most", "JSON of 15,000 buckets"),
    ]


def export(served: Served, scale: float) -> list[Result]:
    """The full history of a project as Arrow over HTTP, thrown away on arrival."""
    pool = urllib3.HTTPConnectionPool("127.0.0.1", served.port)
    headers = {"Authorization": f"Bearer {served.key}"}
    points = sum(1 for _ in interleaved(scale)) * ROWS * KEYS
    began = time.perf_counter()
    answer = pool.request(
        "GET", "/api/v1/projects/bench/history/history?format=arrow", headers=headers, preload_content=False
    )
    total = sum(len(chunk) for chunk in answer.stream(1 << 20))
    seconds = time.perf_counter() - began
    if answer.status != 200 or total == 0:
        raise RuntimeError(f"expected an export, got {answer.status}")
    note = f"{total / points:.1f} B a point, {total / seconds / 1e6:.0f} MB/s through the gateway"
    return [Result("full history export, Arrow over HTTP", points / seconds / 1e6, "M points/s", 5, "at least", note)]
