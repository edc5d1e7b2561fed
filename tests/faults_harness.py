"""Write while things break, remember what was acknowledged, and check afterwards.

The checks are the contract: what was acknowledged is there, nothing is there twice, a producer's events are in order,
and a rebuild from the log gives the same digest.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import urllib3

from icecore.codec import encode_event, frame
from icecore.events import Envelope, Event, MetricsLogged, RunStarted, now_ms, uuid7
from servers import Server

ROUNDS = int(os.environ.get("ICECORE_SOAK_ROUNDS", "25"))


def seeded(name: str) -> random.Random:
    """A random generator whose seed is printed, and may be given by ICECORE_TEST_SEED."""
    seed = int(os.environ.get("ICECORE_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))
    print(f"{name}: ICECORE_TEST_SEED={seed}")
    return random.Random(seed)


@dataclass
class Writer:
    """One producer that logs rows to its own run, sends an event until it is acknowledged, and counts."""

    server: Server
    run: str
    rows: int = 10
    producer: str = field(default_factory=lambda: str(uuid.uuid4()))
    url: str = ""
    acknowledged: list[int] = field(default_factory=list)
    """First steps of the events that got a 200."""
    refusals: Counter[int] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failure: BaseException | None = None

    def start(self) -> Writer:
        """Write in a thread until `finish`."""
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._thread.start()
        return self

    def finish(self) -> None:
        """Stop after the event in hand is acknowledged."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(90)
        assert not self._thread.is_alive(), "expected the last event to be acknowledged within 90 s"
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
        while not self._stop.is_set():
            step = seq * self.rows
            steps = list(range(step, step + self.rows))
            block = {"step": steps, "ts": [now_ms()] * self.rows, "cols": {"x": [float(s) for s in steps]}}
            self._send(pool, MetricsLogged(run=self.run, blocks=[block]), seq)
            self.acknowledged.append(step)
            seq += 1

    def _send(self, pool: urllib3.PoolManager, event: Event, seq: int) -> None:
        envelope = Envelope(
            id=uuid7(), type=event.TYPE, v=event.VERSION, producer=self.producer, seq=seq, ts_client=now_ms()
        )
        body = frame(envelope, encode_event(event))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                answer = pool.request(
                    "POST",
                    f"{self.url or self.server.url}/api/v1/events",
                    body=body,
                    headers={"Authorization": f"Bearer {self.server.api_key}"},
                )
            except (urllib3.exceptions.HTTPError, OSError):
                time.sleep(0.01)
                continue
            if answer.status == 200:
                return
            assert answer.status in {429, 502, 503}, answer.data
            self.refusals[answer.status] += 1
            time.sleep(0.02)
        raise AssertionError("expected an acknowledgement within 60 s")


def status(server: Server) -> dict[str, Any]:
    """What `icecore status --json` says."""
    return dict(json.loads(server.cli("status", "--json").stdout))


def get(server: Server, path: str) -> urllib3.BaseHTTPResponse:
    """One GET of the API."""
    return urllib3.request(
        "GET",
        f"{server.url}/api/v1/{path}",
        headers={"Authorization": f"Bearer {server.api_key}"},
        retries=False,
        timeout=30,
    )


def until(true: Callable[[], bool], what: str, within: float = 30.0) -> None:
    """Wait for a condition.

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
        time.sleep(0.02)
    raise AssertionError(f"expected {what} within {within:.0f} s")


def wait_folded(server: Server, within: float = 60.0) -> None:
    """Wait until everything accepted is folded."""

    def folded() -> bool:
        answer = get(server, "status")
        return answer.status == 200 and answer.json()["lag"] == 0

    until(folded, "the store to have folded everything", within)


def logged_steps(server: Server, run: str, key: str = "x") -> Counter[int]:
    """How often each step of a run is in its history."""
    answer = get(server, f"runs/{run}/history?keys={key}&format=json")
    assert answer.status == 200, answer.data[:500]
    rows = answer.json()
    rows = rows["rows"] if isinstance(rows, dict) else rows
    return Counter(int(row["_step"]) for row in rows)


def check(server: Server, writers: list[Writer]) -> None:
    """Acknowledged = present, nothing twice, and fsck finds nothing wrong."""
    wait_folded(server)
    for writer in writers:
        expected = {first + i for first in writer.acknowledged for i in range(writer.rows)}
        found = logged_steps(server, writer.run)
        assert expected - found.keys() == set(), "acknowledged but not there"
        assert {step: n for step, n in found.items() if n != 1} == {}, "there more than once"
    report = server.cli("fsck", "--json", check=False)
    assert report.returncode == 0, report.stdout + report.stderr
