"""`make bench`: every measurement at a chosen size, as one table."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import orjson
from rich.console import Console

from benchmarks.results import Result, as_json, machine, table

MODULES = ("start", "client", "ingest", "kafka", "queries", "runs", "store", "artifacts", "chunking", "lineage")


def measure(names: list[str], scale: float, console: Console) -> list[Result]:
    """Run the modules one after another."""
    results: list[Result] = []
    for name in names:
        console.print(f"measuring {name} …")
        results += importlib.import_module(f"benchmarks.{name}").run(scale)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 1 where a target is missed at full size."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 is the published size; 0.001 takes a minute")
    parser.add_argument("--only", nargs="*", choices=MODULES, default=list(MODULES))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    results = measure(args.only, args.scale, Console(stderr=True))
    if args.json:
        sys.stdout.buffer.write(orjson.dumps(as_json(results), option=orjson.OPT_INDENT_2) + b"\n")
    else:
        Console().print(table(results, f"icecore, scale {args.scale:g}, on {machine()}"))
    return int(args.scale >= 1 and any(result.reached is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
