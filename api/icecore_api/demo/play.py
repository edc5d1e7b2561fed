"""`icecore demo`: start a server, train, kill, resume, sync, and show what came of it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import Progress

from icecore.api import Api, Run
from icecore.errors import IcecoreError, Unavailable
from icecore.settings import URL_DEFAULT, load_credentials

PARALLEL: Final = 4
STEPS: Final = 250
RATES: Final = (0.3, 0.1, 0.03)
BATCHES: Final = (16, 64)
HIDDEN: Final = ("32", "64x32")
KILLED_AT: Final = STEPS // 2


@dataclass(frozen=True, slots=True)
class Job:
    """One training process to start."""

    lr: float
    batch_size: int
    hidden: str
    extra: tuple[str, ...] = ()

    def command(self, project: str) -> list[str]:
        """Its command line."""
        return [
            *(sys.executable, "-m", "icecore_api.demo.train", "--project", project, "--steps", str(STEPS)),
            *("--lr", str(self.lr), "--batch-size", str(self.batch_size), "--hidden", self.hidden, *self.extra),
        ]


@dataclass(slots=True)
class Demo:
    """The demo's processes and what a person is told about them."""

    data: Path
    project: str
    console: Console
    env: dict[str, str] = field(default_factory=dict)
    spool: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="icecore-demo-")))

    def start_server(self, host: str, port: int) -> tuple[subprocess.Popen[bytes], Mapping[str, Any]]:
        """Start `icecore up` and wait for its first line."""
        command = [sys.executable, "-m", "icecore", "up", "--data", str(self.data), "--host", host, "--port", str(port)]
        server = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, start_new_session=True)
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise Unavailable("expected the server to start, got its end", hint="its own words are above")
        words = json.loads(line)
        self.env = {
            **os.environ,
            "ICECORE_URL": words["url"],
            "ICECORE_API_KEY": self.key(words),
            "ICECORE_DIR": str(self.spool),
            "ICECORE_SILENT": "true",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.env.pop("ICECORE_PROJECT", None)
        return server, words

    def key(self, words: Mapping[str, Any]) -> str:
        """The key of the server's owner: shown on a first start, and saved for this user."""
        saved = load_credentials(words["url"]).get("api_key", "")
        return str(words["api_key"] or saved)

    def log_data(self) -> None:
        """Make the data a version, as a run of its own: what the trainings take as their input."""
        script = [sys.executable, "-m", "icecore_api.demo.data", "--project", self.project]
        done = subprocess.run(script, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"expected the data to be logged, got: {done.stderr[-500:]}")

    def spawn(self, job: Job) -> subprocess.Popen[bytes]:
        """Start one training."""
        output = (self.spool / "train.log").open("ab")
        with output:
            return subprocess.Popen(job.command(self.project), env=self.env, stdout=output, stderr=output)

    def train(self, jobs: list[Job]) -> None:
        """Run all jobs, at most `PARALLEL` at once, with a progress bar."""
        waiting, running = list(jobs), list[subprocess.Popen[bytes]]()
        with Progress(console=self.console, transient=True) as progress:
            bar = progress.add_task(f"training {len(jobs)} models, {PARALLEL} at a time", total=len(jobs))
            while waiting or running:
                while waiting and len(running) < PARALLEL:
                    running.append(self.spawn(waiting.pop(0)))
                for process in [p for p in running if p.poll() is not None]:
                    running.remove(process)
                    progress.advance(bar)
                    self.expect_success(process)
                    if not self.console.is_terminal:  # no bar there: a line now and then instead of silence
                        self.console.print(f"  trained {len(jobs) - len(waiting) - len(running)} of {len(jobs)} models")
                time.sleep(0.02)

    def expect_success(self, process: subprocess.Popen[bytes]) -> None:
        """A training that fails ends the demo, and its words are shown."""
        if process.wait() != 0:
            words = (self.spool / "train.log").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise Unavailable(f"expected every training to end well, got exit code {process.returncode}:\n{words}")

    def kill_and_resume(self, api: Api, entity: str) -> Run:
        """Start a run, kill -9 it half-way, resume it, and return it."""
        path = f"{entity}/{self.project}/killed"
        checkpoint = str(self.spool / "model.joblib")
        job = Job(0.05, 32, "64", ("--id", "killed", "--resume", "allow", "--checkpoint", checkpoint))
        victim = self.spawn(job)
        while _last_step(api, path) < KILLED_AT and victim.poll() is None:
            time.sleep(0.05)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self.console.print(f"  killed -9 run [bold]killed[/] at about step {_last_step(api, path)}; resuming it …")
        self.expect_success(self.spawn(job))
        return api.run(path)

    def offline_and_sync(self) -> str:
        """Train one model with no server, then send it."""
        job = Job(0.2, 32, "48", ("--id", "offline", "--mode", "offline"))
        self.expect_success(self.spawn(job))
        self.console.print("  trained one run [bold]offline[/]; sending it with `icecore sync` …")
        sync = subprocess.run(
            [sys.executable, "-m", "icecore", "sync", "--json"],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if sync.returncode != 0:
            raise Unavailable(f"expected `icecore sync` to send the offline run, got: {sync.stderr[-500:]}")
        return sync.stdout


def grid() -> list[Job]:
    """Learning rate x batch size x architecture."""
    return [Job(lr, batch, hidden) for lr, batch, hidden in product(RATES, BATCHES, HIDDEN)]


def _last_step(api: Api, path: str) -> int:
    try:
        return int(api.run(path).lastHistoryStep or 0)
    except IcecoreError:
        return 0


def play(data: Path, host: str, port: int, *, stay: bool) -> None:
    """Run the whole demo.

    Args:
        data: the server's folder.
        host: the address to serve on.
        port: the port, or 0.
        stay: go on serving until Ctrl-C.

    Raises:
        IcecoreError: a part did not do what it should.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then, too
    console = Console(highlight=False)
    demo = Demo(data=data, project=f"digits-{time.strftime('%H%M%S')}", console=console)
    server, words = demo.start_server(host, port)
    try:
        console.print(f"icecore serves [bold]{data}[/] at [bold]{words['url']}[/]")
        api = Api(api_key=demo.env["ICECORE_API_KEY"], overrides={"base_url": words["url"]})
        entity = api.viewer
        demo.log_data()
        demo.train(grid())
        resumed = demo.kill_and_resume(api, entity)
        demo.offline_and_sync()
        missing = list(steps_missing(resumed)) + list(steps_missing(api.run(f"{entity}/{demo.project}/offline")))
        if missing:
            raise Unavailable(f"expected every step of the killed and the offline run, {len(missing)} are missing")
        console.print(f"  killed, resumed and offline runs: all {STEPS} steps are there, each once\n")
        show(demo, api, f"{entity}/{demo.project}")
        show_artifacts(demo, api, f"{entity}/{demo.project}")
        console.print(f"\n{len(grid()) + 3} runs in {time.monotonic() - began:.0f} s. What to try next:")
        again = [] if stay else serve_again(words, data)
        for line in (*again, *next_steps(words, f"{entity}/{demo.project}", stay)):
            console.print(f"  {line}", soft_wrap=True)
        if stay:
            console.print("\nserving until Ctrl-C …")
            server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(demo.spool, ignore_errors=True)


def show(demo: Demo, api: Api, path: str) -> None:
    """The runs, the best five, and the best one's curve, each by the command that a person would type."""
    order = "-summary_metrics.val/accuracy"
    best = api.runs(path, order=order)[0]
    for arguments in (
        ["runs", path],
        ["runs", path, "--order", order, "--limit", "5"],
        ["history", best.path, "--keys", "val/accuracy,val/loss"],
    ):
        command(demo, arguments)


def show_artifacts(demo: Demo, api: Api, path: str) -> None:
    """The best model gets an alias; its versions, what it came of, and what all of them weigh."""
    best = max(api.artifacts("model", f"{path}/net"), key=lambda version: float(version.metadata["accuracy"]))
    reason = f"validation accuracy {best.metadata['accuracy']}"
    for arguments in (
        ["alias", "move", f"{path}/net:production", best.version, "--reason", reason],
        ["artifact", "versions", f"{path}/net", "--limit", "5"],
        ["artifact", "lineage", f"{path}/net:production", "--up"],
        ["storage"],
    ):
        command(demo, arguments)


def command(demo: Demo, arguments: list[str]) -> None:
    """Show a command and what it prints."""
    demo.console.print(f"[bold]$ icecore {shlex.join(arguments)}[/]", soft_wrap=True)
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "icecore", *arguments], env=demo.env, check=True)
    demo.console.print()


def serve_again(words: Mapping[str, Any], data: Path) -> Iterator[str]:
    """How to have the server back that ends with the demo: where it was, so that the saved key is the one for it."""
    where = urlsplit(words["url"])
    host = "" if where.hostname == "127.0.0.1" else f" --host {where.hostname}"
    yield f"icecore up --data {shlex.quote(str(data))}{host} --port {where.port}   (the server ended with the demo)"


def next_steps(words: Mapping[str, Any], path: str, serving: bool) -> Iterator[str]:
    """What a person may try next; the link to log in is of no use where nothing is `serving`."""
    if words["url"] != URL_DEFAULT:
        yield f"export ICECORE_URL={words['url']}"
    if serving:
        yield f"open   {words['login_url']}"
    yield f'icecore runs {path} --filter \'{{"config.lr": {{"$gte": 0.1}}}}\''
    yield f"icecore run {path}/killed"
    yield f"icecore history {path}/killed --out killed.parquet"
    yield f"icecore artifact lineage {path}/net:production --format svg --out lineage.svg"
    yield "icecore log tail        the events themselves"
    yield "icecore rebuild         fold everything again from the first event, and compare"
    yield "icecore fsck            check every record, offset and table"


def steps_missing(run: Run) -> Iterator[int]:
    """The steps of a demo run that its history does not have."""
    seen = {int(row["_step"]) for row in run.scan_history(keys=["train/loss"])}
    return (step for step in range(STEPS) if step not in seen)
