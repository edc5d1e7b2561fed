"""Overload and a failing log: refused at once and honestly, in bounded memory, with nothing acknowledged lost."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gateways import GatewayProcess, Producer, read_answer, running_gateway
from icecore.position import METRICS

MB = 1 << 20


class Sender(threading.Thread):
    """Sends requests over one connection, each as soon as the one before is answered, for some seconds."""

    def __init__(self, gateway: GatewayProcess, seconds: float, rows: int) -> None:
        super().__init__(daemon=True)
        self.gateway = gateway
        self.seconds = seconds
        self.rows = rows
        self.accepted: list[str] = []
        self.statuses: dict[str, int] = {}
        self.without_retry_after = 0

    def run(self) -> None:
        producer = Producer()
        until = time.monotonic() + self.seconds
        with socket.create_connection(("127.0.0.1", self.gateway.port), timeout=60) as connection:
            while time.monotonic() < until:
                envelope = producer.envelope()
                body = producer.metrics(rows=self.rows)
                connection.sendall(self.gateway.head(len(body)) + body)
                answer = read_answer(connection)
                status = answer[9:12].decode()
                self.statuses[status] = self.statuses.get(status, 0) + 1
                if status == "200":
                    self.accepted.append(f"{envelope.producer}:{producer.seq - 1}")
                else:
                    self.without_retry_after += b"retry-after: " not in answer.lower()
                    time.sleep(0.1)  # a tenth of what Retry-After asks for: an impatient client


def load(gateway: GatewayProcess, senders: int, seconds: float, rows: int) -> list[Sender]:
    threads = [Sender(gateway, seconds, rows) for _ in range(senders)]
    for thread in threads:
        thread.start()
    return threads


def test_five_times_the_load_is_refused_in_part_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Over the bound: 429/503 with Retry-After, health within 1 s, memory bounded, goodput kept, nothing lost."""
    bound = 400_000  # four requests of this size at once
    with running_gateway(tmp_path, "--in-flight-bytes", str(bound), "--in-flight-bytes-per-key", str(bound)) as gateway:
        rows, seconds = 2_500, 3.0
        quiet = load(gateway, 4, seconds, rows)
        [thread.join(60) for thread in quiet]
        before = gateway.rss
        crowd = load(gateway, 20, seconds, rows)
        slowest, peak = 0.0, before
        while any(thread.is_alive() for thread in crowd):
            began = time.monotonic()
            assert gateway.request("GET", "/healthz").status == 200
            slowest = max(slowest, time.monotonic() - began)
            peak = max(peak, gateway.rss)
            time.sleep(0.05)
        statuses: dict[str, int] = {}
        for thread in crowd:
            for status, count in thread.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
        stored = {f"{r.envelope.producer}:{r.envelope.seq}" for r in gateway.records(METRICS)}

    assert set(statuses) <= {"200", "429", "503"}
    assert statuses.get("429", 0) + statuses.get("503", 0) > 0
    assert sum(thread.without_retry_after for thread in crowd) == 0
    assert slowest < 5  # the benchmark holds the figure of 1 s
    assert peak - before < 64 * MB
    goodput = sum(len(thread.accepted) for thread in crowd) / sum(len(thread.accepted) for thread in quiet)
    assert goodput > 0.3  # two cores shared with the load itself; the benchmark holds the figure of 80 %
    assert {one for thread in (*quiet, *crowd) for one in thread.accepted} <= stored


def test_slow_bodies_do_not_keep_others_out(tmp_path: Path) -> None:
    """Two hundred clients that stop half-way through a small body leave the path open for the others."""
    with running_gateway(tmp_path) as gateway:
        body = Producer().metrics()
        held = []
        for _ in range(200):
            connection = socket.create_connection(("127.0.0.1", gateway.port))
            connection.sendall(gateway.head(len(body)) + body[:10])
            held.append(connection)
        began = time.monotonic()
        assert gateway.post(Producer().metrics()).status == 200
        assert time.monotonic() - began < 10
        for connection in held:
            connection.close()


def test_clients_that_stop_sending_are_let_go(tmp_path: Path) -> None:
    """A request line, a head or a body that stops half-way loses its connection; idle and slow clients keep theirs."""
    with running_gateway(tmp_path, "--pause-s", "1") as gateway:
        body = Producer().metrics()
        stopping = [b"", b"POST /api", b"POST /x HTTP/1.1\r\nHost: loc", gateway.head(len(body)) + body[:20]]
        held = [socket.create_connection(("127.0.0.1", gateway.port), timeout=20) for _ in stopping]
        for connection, start in zip(held, stopping, strict=True):
            connection.sendall(start)
        idle, slow = (socket.create_connection(("127.0.0.1", gateway.port), timeout=20) for _ in range(2))
        whole = gateway.head(len(body)) + body
        idle.sendall(whole)
        assert read_answer(idle).startswith(b"HTTP/1.1 200")
        slow.sendall(whole[:-8])
        for i in range(8):
            time.sleep(0.4)  # slow on purpose: longer than the pause in all, never between two bytes
            slow.sendall(whole[len(whole) - 8 + i : len(whole) - 7 + i])
        assert read_answer(slow).startswith(b"HTTP/1.1 200")
        assert [connection.recv(100) for connection in held] == [b""] * len(held)
        idle.sendall(whole)
        assert read_answer(idle).startswith(b"HTTP/1.1 200")
        for connection in (*held, idle, slow):
            connection.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace injects the failing fsync")
def test_a_failing_fsync_is_503_and_ends_the_process(tmp_path: Path) -> None:
    """When an fsync fails the request is 503, nothing more is acknowledged, and the process ends to be restarted."""
    with running_gateway(tmp_path) as gateway:
        assert gateway.process is not None
        assert gateway.post(Producer().metrics()).status == 200
        strace = subprocess.Popen(
            [
                *("strace", "-f", "-p", str(gateway.process.pid), "-o", "/dev/null"),
                *("-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        answer = gateway.post(Producer().metrics())
        code = gateway.process.wait(20)
        strace.stderr.close()
        strace.wait(10)

        assert answer.status == 503
        assert answer.error["code"] == "log_poisoned"
        assert code == 75
        gateway.start()
        assert gateway.post(Producer().metrics()).status == 200
        assert gateway.stop() == 0
