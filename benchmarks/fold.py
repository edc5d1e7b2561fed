"""Folding alone: a log of points folded from offset 0 in one process, its CPU seconds, peak memory and size at rest.

`python -m benchmarks.fold --points 10 --rounds 3` prints the best and the median of each kind of log. Every round is
a process of its own, so memory is that of one fold; compaction and checkpoint are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Result, machine
from benchmarks.store import Kind, size, write_log
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections.runner import Runner
from icecore_projections.store import Store


@dataclass(frozen=True, slots=True)
class Folding:
    """One fold of a whole log."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    store_bytes: int


def fold(log: Path, into: Path) -> Folding:
    """Fold the log of a folder into a new store at `into`, in this process."""
    began, cpu_began = time.perf_counter(), time.process_time()
    asyncio.run(_fold(log, into))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Folding(seconds, cpu, peak, size(into.parent))


async def _fold(folder: Path, into: Path) -> None:
    log = SQLiteLog.open(folder)
    try:
        with contextlib.closing(Store.open(into, log_id=log.log_id)) as store:
            await Runner(log, store).catch_up()
            store.compact()
            store.checkpoint()
    finally:
        await log.close()


def rounds(log: Path, times: int) -> list[Folding]:
    """Fold the same log again and again, each time in a new process."""
    found = []
    for _ in range(times):
        folder = Path(tempfile.mkdtemp(prefix="icecore-bench-fold-"))
        try:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(fold, (log, folder / "s.duckdb")))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def results(name: str, points: int, found: Sequence[Folding]) -> list[Result]:
    """What the rounds say: the best of each figure, its median in the note."""
    million = points / 1e6
    cpu = [one.cpu_s / million for one in found]
    rate = [million / one.seconds for one in found]
    return [
        Result(f"fold {name}", max(rate), "M points/s", 2, "at least", f"median {statistics.median(rate):.2f}"),
        Result(f"fold {name}, CPU", min(cpu), "s a M points", limit_by=f"median {statistics.median(cpu):.2f}"),
        Result(f"fold {name}, peak memory", max(one.peak_bytes for one in found) / 1e9, "GB", 2, "at most"),
        Result(f"fold {name}, at rest", min(one.store_bytes for one in found) / points, "B a point"),
    ]


CASES: dict[str, tuple[Kind, int, float]] = {
    "doubles, 1,000 a record": ("doubles", 100, 1.0),
    "doubles, 200 a record": ("doubles", 20, 0.4),
    "float32 values, 1,000 a record": ("floats", 100, 1.0),
}
"""Kind of values, rows of 10 points a record, and the share of the points."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the logs that are not there yet, fold them, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=float, default=10.0, help="millions of points of the largest log")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--logs", type=Path, help="keep the logs here, and use those that are here already")
    parser.add_argument("--only", nargs="*", type=int, choices=range(len(CASES)), default=list(range(len(CASES))))
    args = parser.parse_args(arguments)
    print(machine())
    with contextlib.ExitStack() as stack:
        logs = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="icecore-bench-logs-")))
        for name, (kind, rows, share) in [list(CASES.items())[n] for n in args.only]:
            scale = args.points * share / 100
            log = logs / f"{kind}-{rows}-{scale:g}"
            points = log.with_name(f"{log.name}.points")
            if not points.exists():
                points.parent.mkdir(parents=True, exist_ok=True)
                points.write_text(str(asyncio.run(write_log(log, scale, kind, rows))))
            for result in results(name, int(points.read_text()), rounds(log, args.rounds)):
                print(f"{result.name:45} {result.value:8.3f} {result.unit:14} {result.limit_by}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
