"""How the cost grows: the same work in stores of 1, 10 and 100 million points, and 1,000, 10,000 and 100,000 runs.

    python -m benchmarks.growth --points 1 10 100 --runs 1000 10000 100000

Not part of `make bench`: the largest sizes take minutes and tens of gigabytes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import ingest, runs, store
from benchmarks.results import Result, figure, machine
from benchmarks.server import serving

ADDED = 2_000_000
"""Points sent to a store that holds the others already."""


def points(millions: float) -> Iterator[Result]:
    """Fold a log of so many points, look at charts of it, and go on logging to it.

    Args:
        millions: how many points; runs and their lengths grow together.
    """
    scale = millions / 100
    with store.folder_for_log() as folder:
        count = asyncio.run(store.write_log(folder / "data" / "log", scale))
        began = time.monotonic()
        with serving(folder) as served:
            served.wait_folded(within=7200)
            yield Result("fold from offset 0", count / (time.monotonic() - began - served.ready_s) / 1e6, "M points/s")
            yield from store.charts(served, scale)
            added = int(ADDED * min(1.0, millions))
            for result in ingest.measure(served, 1000, added):
                yield Result(result.name.replace("durable ingest over HTTP", "then ingest"), result.value, result.unit)
        yield Result("bytes a point at rest", store.size(folder / "data" / "store") / (count + added), "B")


def found_runs(count: int) -> list[Result]:
    """Find the best of so many runs, at the store and over HTTP."""
    results = [result for result in runs.run(count / runs.RUNS) if "top 10" in result.name]
    return [Result(result.name.replace(" of 100,000 runs", ""), result.value, result.unit) for result in results]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each size and print a table of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="*", type=float, default=[1, 10, 100], help="millions")
    parser.add_argument("--runs", nargs="*", type=int, default=[1_000, 10_000, 100_000])
    args = parser.parse_args(arguments)
    console = Console(width=160)
    console.print(machine())
    show(console, "M points", {f"{size:g}": list(points(size)) for size in args.points})
    show(console, "runs", {f"{size:,}": found_runs(size) for size in args.runs})
    return 0


def show(console: Console, what: str, found: dict[str, list[Result]]) -> None:
    """A column for each size."""
    drawn = Table("work", "unit", *(f"{size} {what}" for size in found))
    for row in zip(*found.values(), strict=True):
        drawn.add_row(row[0].name, row[0].unit, *(figure(result.value) for result in row))
    if found:
        console.print(drawn)


if __name__ == "__main__":
    sys.exit(main())
