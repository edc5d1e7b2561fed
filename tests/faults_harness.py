"""Write while things break, remember what was acknowledged, and check afterwards.

The checks are the contract: what was acknowledged is there, where it was said to be; nothing is there twice; a
producer's events are in order; reads after a token never go back; and a rebuild from the log gives the same digest.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import urllib3

from icecore.codec import encode_event, frame
from icecore.events import Envelope, Event, MetricsLogged, RunStarted, now_ms, uuid7
from icecore.log import StoredRecord
from icecore.position import METRICS, Place, Position, Token

_SOAK = os.environ.get("ICECORE_SOAK_ROUNDS", "")
ROUNDS = int(_SOAK or "25")
CLUSTER_ROUNDS = int(_SOAK or "20")
"""Of each fault of a cluster, whose processes take their time to come back."""
_SEED = os.environ.get("ICECORE_TEST_SEED", "")
ACKNOWLEDGED_S = 180.0
"""An event that is not acknowledged by then never will be."""
AGAIN_S = 0.05
"""A writer's pause before it sends again what was not acknowledged."""


class Served(Protocol):
    """A server, or a cluster, as its clients see it."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    @property
    def api_key(self) -> str:
        """A key that may do anything."""
        ...

    def env(self, **extra: str) -> dict[str, str]:
        """The environment of a client of it."""
        ...

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `icecore ARGUMENTS` against it."""
        ...


def seeded(name: str) -> random.Random:
    """A random generator whose seed is printed, and may be given by ICECORE_TEST_SEED."""
    seed = int(_SEED or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: ICECORE_TEST_SEED={seed}")
    return random.Random(seed)


# ------------------------------------------------------------------------------------------------------- writers


@dataclass
class Writer:
    """One producer that logs rows to its own run, sends an event until it is acknowledged, and counts.

    Args:
        server: to whom.
        run: the run's path.
        rows: of each event.
        urls: where to send to, in turns, as a client behind a load balancer would; the server's own if empty.
        pause_s: between an acknowledgement and the next event.
    """

    server: Served
    run: str
    rows: int = 10
    producer: str = field(default_factory=lambda: str(uuid.uuid4()))
    url: str = ""
    urls: Sequence[str] = ()
    pause_s: float = 0.0
    acknowledged: list[int] = field(default_factory=list)
    """First steps of the events that got a 200."""
    positions: dict[int, Position] = field(default_factory=dict)
    """Where each acknowledged event of the metrics is, by its sequence number, as the answer said."""
    token: Token = field(default_factory=Token)
    """Covers everything acknowledged."""
    refusals: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    """The longest that one event took from its first attempt to its acknowledgement."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _given_up: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failure: BaseException | None = None
    _turn: int = 0

    def start(self) -> Writer:
        """Write in a thread until `finish`."""
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Stop after the event in hand is acknowledged."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(ACKNOWLEDGED_S + 30)
        assert not self._thread.is_alive(), f"expected the last event to be acknowledged within {ACKNOWLEDGED_S} s"
        self.raise_failure()

    def abandon(self) -> None:
        """Stop, come what may."""
        self._stop.set()
        self._given_up.set()

    def raise_failure(self) -> None:
        """Tell the test's own thread what went wrong in the writer's."""
        if self._failure is not None:
            raise self._failure

    def _guarded(self) -> None:
        try:
            self._write()
        except BaseException as failure:  # handed to the test's own thread by finish()
            self._failure = failure

    def _write(self) -> None:
        pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=2, read=5))
        self._send(pool, RunStarted(run=self.run, started_ts=now_ms()), 0)
        seq = 0
        while not self._stop.wait(self.pause_s):
            step = seq * self.rows
            steps = list(range(step, step + self.rows))
            block = {"step": steps, "ts": [now_ms()] * self.rows, "cols": {"x": [float(s) for s in steps]}}
            positions = self._send(pool, MetricsLogged(run=self.run, blocks=[block]), seq)
            self.positions[seq] = positions[0]
            self.acknowledged.append(step)
            seq += 1

    def _send(self, pool: urllib3.PoolManager, event: Event, seq: int) -> list[Position]:
        envelope = Envelope(
            id=uuid7(), type=event.TYPE, v=event.VERSION, producer=self.producer, seq=seq, ts_client=now_ms()
        )
        body = frame(envelope, encode_event(event))
        began = time.monotonic()
        while time.monotonic() < began + ACKNOWLEDGED_S and not self._given_up.is_set():
            try:
                answer = pool.request(
                    "POST",
                    f"{self._address()}/api/v1/events",
                    body=body,
                    headers={"Authorization": f"Bearer {self.server.api_key}"},
                )
            except (urllib3.exceptions.HTTPError, OSError):
                self._turn += 1
                time.sleep(AGAIN_S)
                continue
            if answer.status == 200:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                told = answer.json()
                self.token = self.token.merge(Token.parse(told["token"]))
                return [Position(*position) for position in told["positions"]]
            assert answer.status in {429, 502, 503}, answer.data
            self.refusals[answer.status] += 1
            self._turn += 1
            time.sleep(AGAIN_S)
        raise AssertionError(f"expected an acknowledgement within {ACKNOWLEDGED_S:.0f} s")

    def _address(self) -> str:
        return self.urls[self._turn % len(self.urls)] if self.urls else self.url or self.server.url


class Reader:
    """Reads runs after what was acknowledged: nothing acknowledged is missing, and time never goes back.

    Args:
        writers: whose runs.
        urls: whom to ask, in turns.
    """

    def __init__(self, writers: Sequence[Writer], urls: Sequence[str]) -> None:
        self._writers = writers
        self._urls = urls
        self.answers: Counter[int] = Counter()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, daemon=True)

    def start(self) -> Reader:
        """Read in a thread until `finish`."""
        self._thread.start()
        return self

    def finish(self) -> None:
        """Stop, and tell what was wrong."""
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "expected a read to end within 60 s"
        if self._failure is not None:
            raise self._failure

    def _guarded(self) -> None:
        try:
            self._read()
        except BaseException as failure:  # handed to the test's own thread by finish()
            self._failure = failure

    def _read(self) -> None:
        pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=2, read=10))
        seen: dict[str, tuple[Token, int]] = {}
        turn = 0
        while not self._stop.wait(0.02):
            turn += 1
            writer = self._writers[turn % len(self._writers)]
            if not writer.acknowledged:
                continue
            # the count first: the token is then at least as late
            points, token = len(writer.acknowledged) * writer.rows, writer.token
            before, points_before = seen.get(writer.run, (Token(), 0))
            asked = token.merge(before)
            try:
                answer = pool.request(
                    "GET",
                    f"{self._urls[turn % len(self._urls)]}/api/v1/runs/{writer.run}",
                    headers={"Authorization": f"Bearer {writer.server.api_key}", "Icecore-Position": str(asked)},
                )
            except (urllib3.exceptions.HTTPError, OSError):
                continue
            self.answers[answer.status] += 1
            if answer.status != 200:
                assert answer.status in {502, 503}, answer.data
                continue
            found, at = int(answer.json()["points"]), Token.parse(answer.headers["Icecore-Position"])
            assert at.covers(asked), f"expected an answer at {asked} or later, got one at {at}"
            assert found >= max(points, points_before), f"expected {points} points or more, got {found}"
            seen[writer.run] = (at, found)


_CLIENT = """
import sys, threading, icecore
run = icecore.init(entity="t", project=sys.argv[1], id=sys.argv[2], settings={"finish_timeout": 120})
print("go", flush=True)
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
step = 0
while not stop.wait(0.01):
    run.log({"x": float(step)}, step=step)
    step += 1
print(step, flush=True)
run.finish()
"""


@dataclass
class Client:
    """The genuine `import icecore`, logging in a process of its own while things break."""

    server: Served
    project: str
    id: str
    folder: Path
    steps: int = 0
    _process: subprocess.Popen[str] | None = None

    @property
    def run(self) -> str:
        """The run's path."""
        return f"t/{self.project}/{self.id}"

    def start(self) -> Client:
        """Begin to log; returns when the first value may have been."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, self.project, self.id],
            env=self.server.env(),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "go\n"
        return self

    def abandon(self) -> None:
        """Stop, come what may."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def finish(self) -> None:
        """Stop logging, and wait until everything is sent, by it or by `icecore sync`."""
        assert self._process is not None
        said, _ = self._process.communicate("", timeout=ACKNOWLEDGED_S + 60)
        assert self._process.returncode == 0
        self.steps = int(said)
        self.server.cli("sync")


# -------------------------------------------------------------------------------------------------------- asking


def status(server: Served) -> dict[str, Any]:
    """What `icecore status --json` says."""
    return dict(json.loads(server.cli("status", "--json").stdout))


def get(server: Served, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
    """One GET of the API."""
    return urllib3.request(
        "GET",
        f"{server.url}/api/v1/{path}",
        headers={"Authorization": f"Bearer {server.api_key}", **headers},
        retries=False,
        timeout=30,
    )


def until(true: Callable[[], bool], what: str, within: float = 30.0, every: float = 0.02) -> None:
    """Wait for a condition, looking `every` so many seconds.

    Raises:
        AssertionError: it does not come true in time.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except (urllib3.exceptions.HTTPError, OSError):
            pass
        time.sleep(every)
    raise AssertionError(f"expected {what} within {within:.0f} s")


def wait_for(server: Served, token: Token, within: float = ACKNOWLEDGED_S) -> None:
    """Wait until a read at or after a position is answered."""
    ask = {"Icecore-Position": str(token)}
    until(lambda: get(server, "status", **ask).status == 200, f"a read at {token}", within)


def wait_folded(server: Served, within: float = 60.0) -> None:
    """Wait until everything accepted is folded."""

    def folded() -> bool:
        answer = get(server, "status")
        return answer.status == 200 and answer.json()["lag"] == 0

    until(folded, "the store to have folded everything", within)


def logged_steps(server: Served, run: str, key: str = "x") -> Counter[int]:
    """How often each step of a run is in its history."""
    answer = get(server, f"runs/{run}/history?keys={key}&format=json")
    assert answer.status == 200, answer.data[:500]
    rows = answer.json()
    rows = rows["rows"] if isinstance(rows, dict) else rows
    return Counter(int(row["_step"]) for row in rows)


# ------------------------------------------------------------------------------------------------------ checking


def check(server: Served, writers: Sequence[Writer], clients: Sequence[Client] = ()) -> None:
    """Acknowledged = present, nothing twice, and fsck finds nothing wrong."""
    wait_folded(server, ACKNOWLEDGED_S)
    for writer in writers:
        expected = {first + i for first in writer.acknowledged for i in range(writer.rows)}
        found = logged_steps(server, writer.run)
        assert expected - found.keys() == set(), "acknowledged but not there"
        assert {step: n for step, n in found.items() if n != 1} == {}, "there more than once"
    for client in clients:
        assert logged_steps(server, client.run) == Counter(range(client.steps)), f"of {client.run}"
    report = server.cli("fsck", "--json", check=False)
    assert report.returncode == 0, report.stdout + report.stderr


def check_rebuild(server: Served) -> None:
    """A store folded anew from the log has the digest of the one that was hurt."""
    report = server.cli("rebuild", "--verify", "--json", check=False)
    assert report.returncode == 0, report.stdout + report.stderr
    found = json.loads(report.stdout)
    assert found["matches"], found


def check_log(records: Sequence[StoredRecord], writers: Sequence[Writer]) -> None:
    """Every acknowledged event is where the answer said, and each producer's events are in order of their numbers.

    A retried event may be in the log more than once: whoever folds leaves out all but the first.
    """
    at = {record.position: record.envelope for record in records}
    lanes: dict[str, dict[Place, list[int]]] = {}
    for record in records:
        if record.position.stream == METRICS:
            own = lanes.setdefault(record.envelope.producer, {})
            own.setdefault(record.position.place, []).append(record.envelope.seq)
    for writer in writers:
        for seq, position in writer.positions.items():
            there = at.get(position)
            assert there is not None, f"acknowledged at {position}, and not there"
            assert (there.producer, there.seq) == (writer.producer, seq), f"another event at {position}"
        for place, seqs in lanes.get(writer.producer, {}).items():
            firsts = list(dict.fromkeys(seqs))
            assert firsts == sorted(firsts), f"out of order in {place}"
            assert firsts == list(range(len(firsts))), f"a hole in {place}"
