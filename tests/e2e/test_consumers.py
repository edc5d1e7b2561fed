"""Other people's programs: the consumers of docs/events.md read a real broker's topics, and summaries outlive kills."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokers import Kafka
from servers import Server, running_server

ROOT = Path(__file__).parents[2]
WITHIN_S = 90.0
SCRIPT = """
import sys, icecore
for name in sys.argv[1:]:
    with icecore.init(project="p", id=name, config={"lr": 0.1}) as run:
        for step in range(10):
            run.log({"loss": 1 / (step + 1)})
"""


@pytest.fixture
def prefix(broker: Kafka, topics: Callable[[str], str]) -> str:
    """Topics of this test's own, made by the command."""
    name = topics("x").removesuffix(".x")
    where = f"kafka://{broker.bootstrap}?prefix={name}&partitions=3"
    command = [sys.executable, "-m", "icecore", "topics", "create", "--log", where, "--allow-single-replica"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"created {name}.run-summaries" in done.stdout
    return name


def _address(broker: Kafka, prefix: str) -> str:
    return f"kafka://{broker.bootstrap}?prefix={prefix}&partitions=3&single_replica=1"


class Consumer:
    """A program of docs/events.md, reading."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news: queue.Queue[str] = queue.Queue()
        assert process.stdout is not None
        self._stdout = process.stdout
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._stdout:
            for line in self._stdout:
                self._news.put(line.rstrip("\n"))
        self._news.put("")

    def end(self) -> None:
        """It is gone after this."""
        self.process.kill()
        self.process.wait(10)
        self._thread.join(10)

    def until(self, enough: Callable[[list[str]], bool], what: str) -> list[str]:
        """Read until it is enough."""
        deadline = time.monotonic() + WITHIN_S
        while not enough(self.lines):
            try:
                line = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"expected {what}, got {self.lines}") from None
            assert line, f"the example ended, it had read {self.lines}"
            self.lines.append(line)
        return self.lines


@contextlib.contextmanager
def example(number: int, *words: str) -> Iterator[Consumer]:
    """One of the two programs of docs/events.md, as it stands there."""
    page = (ROOT / "docs/events.md").read_text(encoding="utf-8")
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(programs) == 2
    process = subprocess.Popen(
        [sys.executable, "-c", programs[number], *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    consumer = Consumer(process)
    try:
        yield consumer
    finally:
        consumer.end()


def _summaries(lines: list[str]) -> dict[str, tuple[str, dict[str, float]]]:
    """The last state and summary of each run."""
    parts = [line.split(" ", 2) for line in lines]
    return {run.rpartition("/")[2]: (state, json.loads(summary)) for run, state, summary in parts}


def _pids(server: Server) -> dict[str, int]:
    found = json.loads(server.cli("status", "--json").stdout)
    return {name: found[name] for name in ("gateway", "store")}


@pytest.mark.slow
def test_the_pages_consumers_read_real_topics(broker: Kafka, prefix: str, tmp_path: Path) -> None:
    """Every event of a run comes by the page's first program, its final summary by the second; deleting it too."""
    with running_server(tmp_path, "--log", _address(broker, prefix)) as server:
        server.run("python", "-c", SCRIPT, "r1", "r2")
        with (
            example(0, broker.bootstrap, f"{prefix}.metrics") as metrics,
            example(0, broker.bootstrap, f"{prefix}.ledger") as ledger,
            example(1, broker.bootstrap, f"{prefix}.run-summaries") as latest,
        ):
            logged = metrics.until(lambda ls: sum("metrics.logged" in line for line in ls) >= 2, "metrics of two runs")
            assert {line.split()[4].rpartition("/")[2] for line in logged} == {"r1", "r2"}
            told = ledger.until(lambda ls: sum("run.finished" in line for line in ls) == 2, "two runs that end")
            assert [line.split()[:2] for line in told] == [["0", str(n)] for n in range(len(told))]

            ended = {"r1", "r2"}
            latest.until(
                lambda ls: {run for run, (state, _) in _summaries(ls).items() if state == "finished"} == ended,
                "two finished runs",
            )
            state, summary = _summaries(latest.lines)["r1"]
            assert (state, summary["loss"], summary["_step"]) == ("finished", 0.1, 9)

            path = latest.lines[-1].split(" ")[0].rpartition("/")[0] + "/r1"
            _delete(server, path)
            latest.until(lambda ls: _summaries(ls)["r1"] == ("deleted", {}), "the tombstone")


def _delete(server: Server, path: str) -> None:
    import urllib.request

    headers = {"Authorization": f"Bearer {server.api_key}"}
    request = urllib.request.Request(f"{server.url}/api/v1/runs/{path}", headers=headers, method="DELETE")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


@pytest.mark.slow
def test_summaries_outlive_kills(broker: Kafka, prefix: str, tmp_path: Path) -> None:
    """However often the store is killed while runs end, each run's last summary is in the topic in the end."""
    names = [f"r{n}" for n in range(12)]
    with running_server(tmp_path, "--log", _address(broker, prefix)) as server:
        writing = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *names],
            env=server.env(ICECORE_SILENT="1"),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
        with example(1, broker.bootstrap, f"{prefix}.run-summaries") as latest:
            try:
                for kills in range(1, 4):
                    latest.until(lambda ls, n=kills: len(_summaries(ls)) >= 2 * n, "more runs")
                    os.kill(_pids(server)["store"], signal.SIGKILL)
                assert writing.wait(WITHIN_S) == 0
            finally:
                writing.kill()
                writing.wait(10)
            latest.until(
                lambda ls: sum(state == "finished" for state, _ in _summaries(ls).values()) == len(names),
                "all runs finished",
            )
            for state, summary in _summaries(latest.lines).values():
                assert (state, summary["loss"], summary["_step"]) == ("finished", 0.1, 9)
