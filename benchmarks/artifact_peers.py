"""A folder of small files logged and downloaded by icecore, trackio, MLflow and DVC, in turns: seconds, and ratios.

icecore works against a server of its own on this machine, and answers once everything is on disk (fsync); the others
work in the same folder without a server, and sync nothing. DVC is `dvc add` and `dvc push` to a folder, then `dvc
pull` without its cache; MLflow is `log_artifacts` to a local store; trackio is an artifact logged locally, of which
`download` makes copies. MLflow's server is `mlflow server --serve-artifacts` on this machine, to which files go one by
one: it gets a fiftieth of them, and its times are told fifty times as long.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.artifacts import SETTLED_S, Client, folder, small_files
from benchmarks.peers import HOME, Peer
from benchmarks.results import Result, Sense
from benchmarks.server import serving

FILES: Final = 100_000
ROUNDS: Final = 2
SHARES: Final = {"mlflow-server": 50}
"""Whose work grows with the files alone, and takes too long: it gets one file of so many."""
TARGETS: Final = {
    ("dvc", "log"): 5.0,
    ("mlflow", "log"): 10.0,
    ("mlflow-server", "log"): 10.0,
    ("trackio", "log"): 1.0,
    ("dvc", "download"): 5.0,
}

_TIMED: Final = """
import json, os, shutil, subprocess, sys, time
source, work = sys.argv[1:3]
server = None
def cpu():
    total = sum(os.times()[:4])
    for pid in os.listdir("/proc") if server else ():
        try:
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            continue
        if fields[3] == str(server.pid):
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
def timed(do):
    began, before = time.perf_counter(), cpu()
    do()
    return [time.perf_counter() - began, cpu() - before]
"""
_MLFLOW: Final = """
mlflow.set_experiment("bench")
with mlflow.start_run() as run:
    log = timed(lambda: mlflow.log_artifacts(source, "data"))
with mlflow.start_run():
    again = timed(lambda: mlflow.log_artifacts(source, "data"))
uri = f"runs:/{run.info.run_id}/data"
os.mkdir("down")
down = timed(lambda: mlflow.artifacts.download_artifacts(uri, dst_path="down"))
print(json.dumps({"log": log, "again": again, "download": down}))
"""
_SCRIPTS: Final = {
    "dvc": (
        "dvc==3.67.1",
        """
from dvc.cli import main
os.chdir(work)
shutil.copytree(source, "data")
def dvc(*words):
    if main([*words, "--quiet"]):
        raise SystemExit(f"dvc {words}")
dvc("init", "--no-scm")
dvc("remote", "add", "-d", "store", os.path.join(work, "remote"))
log = timed(lambda: (dvc("add", "data"), dvc("push")))
again = timed(lambda: (dvc("add", "data"), dvc("push")))
shutil.rmtree("data")
shutil.rmtree(".dvc/cache")
down = timed(lambda: dvc("pull"))
print(json.dumps({"log": log, "again": again, "download": down}))
""",
    ),
    "mlflow": (
        "mlflow==3.17.2",
        """
os.chdir(work)
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
"""
        + _MLFLOW,
    ),
    "mlflow-server": (
        "mlflow==3.17.2",
        """
import socket, urllib.request
os.chdir(work)
with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
server = subprocess.Popen(
    [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
     "--serve-artifacts", "--backend-store-uri", f"sqlite:///{work}/mlflow.db",
     "--artifacts-destination", f"{work}/artifacts"],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
)
import atexit, signal
atexit.register(lambda: os.killpg(server.pid, signal.SIGTERM))
deadline = time.monotonic() + 300
while True:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
import mlflow
mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
"""
        + _MLFLOW,
    ),
    "trackio": (
        "trackio==0.43.0",
        """
os.environ["TRACKIO_DIR"] = work
import trackio
trackio.init(project="bench")
def log_it():
    artifact = trackio.Artifact("data", type="dataset")
    artifact.add_dir(source)
    trackio.log_artifact(artifact)
log = timed(log_it)
again = timed(log_it)
down = timed(lambda: trackio.use_artifact("data").download(os.path.join(work, "down")))
trackio.finish()
print(json.dumps({"log": log, "again": again, "download": down}))
""",
    ),
}


class Took(NamedTuple):
    """One step."""

    wall: float
    cpu: float
    """CPU seconds of all processes that took part."""


@dataclass(frozen=True, slots=True)
class Times:
    """One round."""

    log: Took
    again: Took
    download: Took

    def times(self, factor: int) -> Times:
        """As if there had been so many times as many files."""
        return Times(*(Took(*(value * factor for value in took)) for took in (self.log, self.again, self.download)))


_SAID: Final = {"log": "log", "again": "log again, unchanged", "download": "download, cold"}


def run(scale: float, names: Sequence[str] = ("icecore", *_SCRIPTS), rounds: int = ROUNDS) -> list[Result]:
    """Rounds in turns; the shortest time of each counts."""
    count = max(200, round(FILES * scale))
    done: dict[str, list[Times]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, times in done.items():
            with folder() as home:
                small_files(home / "files", max(1, count // SHARES.get(name, 1)))
                time.sleep(SETTLED_S)
                round_took = _ours(home) if name == "icecore" else _theirs(name, home)
                times.append(round_took.times(SHARES.get(name, 1)))
    best = {
        (name, step): Took(*(min(values) for values in zip(*(getattr(each, step) for each in times), strict=True)))
        for name, times in done.items()
        for step in _SAID
    }
    results = [
        Result(f"{name}: {_SAID[step]}, {count:,} files of 1 KB", took.wall, "s", limit_by=f"{took.cpu:.1f} s of CPU")
        for (name, step), took in best.items()
    ]
    for (name, step), took in best.items():
        if name != "icecore" and (ours := best.get(("icecore", step))):
            target = TARGETS.get((name, step)) if scale >= 1 else None
            note = f"{took.cpu / ours.cpu:.1f} times by CPU"
            sense: Sense = "at least" if target else "report"
            results.append(
                Result(f"{_SAID[step]}: icecore beside {name}", took.wall / ours.wall, "times", target, sense, note)
            )
    return results


def _ours(home: Path) -> Times:
    with serving(home / "server") as served:
        client = Client(served, home / "client")
        done = [client.do("log", home / "files", "data") for _ in range(2)]
        done.append(client.do("get", "data", home / "down"))
        return Times(*(Took(float(each["wall"]), float(each["cpu"]) + float(each["server_cpu"])) for each in done))


def _theirs(name: str, home: Path) -> Times:
    requirement, script = _SCRIPTS[name]
    python = Peer(requirement.partition("==")[0], requirement, 1.0, "").python().absolute()
    work = home / "work"
    work.mkdir()
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "HOME": str(home)}
    done = subprocess.run(
        [python, "-c", _TIMED + script, str(home / "files"), str(work)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} in {HOME / name}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    answer = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    return Times(**{step: Took(*took) for step, took in json.loads(answer).items()})
