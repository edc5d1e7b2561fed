"""`make bench-peers`: the same work by icecore, trackio, wandb (offline) and mlflow (SQLite), in one run, as ratios.

Each peer lives in an environment of its own below `.bench/peers`, made when first needed. The work: log 10 metrics a
call to durable on disk at finish. Everyone takes turns, several rounds, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.results import Result, Sense, as_json, machine, table

HOME = Path(".bench/peers")
ROUNDS = 3

_COMMON = """
import json, os, sys, time
calls = int(sys.argv[1])
rows = [{f"metric_{k}": 0.1 * k + i for k in range(10)} for i in range(1000)]
"""
_REPORT = """
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A tracker: what to install, its script, and how many calls it gets (slow ones fewer)."""

    name: str
    requirement: str
    share: float
    script: str

    def python(self) -> Path:
        """Its interpreter; the environment is made if it is not there."""
        if not self.requirement:
            return Path(sys.executable)
        python = HOME / self.name / "bin" / "python"
        if not python.exists():
            uv = Path(sys.executable).with_name("uv")
            subprocess.run([uv, "venv", "--quiet", HOME / self.name], check=True)
            subprocess.run([uv, "pip", "install", "--quiet", "--python", python, self.requirement], check=True)
        return python

    def calls_a_second(self, calls: int) -> float:
        """Do the work once, in a new folder."""
        number = max(int(calls * self.share), 20)
        with tempfile.TemporaryDirectory(prefix="icecore-peers-") as folder:
            env = {
                **os.environ,
                **dict.fromkeys(("ICECORE_DIR", "TRACKIO_DIR", "WANDB_DIR", "PEER_DIR"), folder),
                "ICECORE_SILENT": "true",
                "WANDB_MODE": "offline",
                "WANDB_SILENT": "true",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            }
            done = subprocess.run(
                [self.python().absolute(), "-c", _COMMON + self.script + _REPORT, str(number)],
                env=env,
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {done.stderr[-2000:]}")
        answer = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
        return number / float(json.loads(answer)["seconds"])


PEERS = (
    Peer(
        "icecore",
        "",
        1.0,
        """
import icecore
run = icecore.init(project="bench", mode="offline")
began = time.perf_counter()
for i in range(calls):
    run.log(rows[i % 1000])
run.finish()
""",
    ),
    Peer(
        "trackio",
        "trackio==0.43.0",
        0.25,
        """
import trackio
trackio.init(project="bench")
began = time.perf_counter()
for i in range(calls):
    trackio.log(rows[i % 1000])
trackio.finish()
""",
    ),
    Peer(
        "wandb",
        "wandb==0.31.0",
        0.25,
        """
import wandb
run = wandb.init(project="bench")
began = time.perf_counter()
for i in range(calls):
    run.log(rows[i % 1000])
run.finish()
""",
    ),
    Peer(
        "mlflow",
        "mlflow==3.17.2",
        0.01,
        """
import mlflow
mlflow.set_tracking_uri("sqlite:///" + os.environ["PEER_DIR"] + "/mlflow.db")
mlflow.set_experiment("bench")
mlflow.start_run()
began = time.perf_counter()
for i in range(calls):
    mlflow.log_metrics(rows[i % 1000], step=i)
mlflow.end_run()
""",
    ),
)

TARGETS = {"trackio": 10.0, "wandb": 50.0}


def run(scale: float, names: tuple[str, ...] = ("icecore", "trackio", "wandb", "mlflow")) -> list[Result]:
    """Rounds in turn; the ratio of icecore to each peer."""
    calls = max(int(100_000 * scale), 100)
    peers = [peer for peer in PEERS if peer.name in names]
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for _ in range(ROUNDS):
        for peer in peers:
            rates[peer.name].append(peer.calls_a_second(calls))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    results = [
        Result(f"{name}: calls of 10 metrics, to durable on disk at finish", value, "calls/s")
        for name, value in medians.items()
    ]
    for name, value in medians.items():
        if name != "icecore":
            sense: Sense = "at least" if name in TARGETS else "report"
            ratio = medians["icecore"] / value
            results.append(Result(f"icecore beside {name}", ratio, "times", TARGETS.get(name), sense))
    return results


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    from benchmarks import artifact_peers

    results = [*run(args.scale), *artifact_peers.run(args.scale)]
    if args.json:
        sys.stdout.write(json.dumps(as_json(results), indent=2) + "\n")
    else:
        Console().print(table(results, f"the same work, {ROUNDS} rounds in turn, on {machine()}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
