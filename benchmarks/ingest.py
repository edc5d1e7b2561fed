"""Durable ingest over HTTP, folded while it arrives; the load generator runs on the same cores."""

from __future__ import annotations

import multiprocessing
import random
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from benchmarks.results import Result
from benchmarks.server import Served, serving
from icecore.codec import frame
from icecore.events import Envelope, uuid7

KEYS = 10
CONNECTIONS = 32
SPREAD = 500
"""Distinct bodies a connection sends in turn, so that compression and caches see real variety."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one generator did."""

    requests: int
    seconds: float
    latencies_ms: list[float]


def payload(run: str, first_step: int, rows: int) -> bytes:
    """A `metrics.logged` payload of `rows` rows of 10 random doubles."""
    columns = {f"metric_{k}": [random.random() for _ in range(rows)] for k in range(KEYS)}
    start = 1_760_000_000_000 + first_step * 100
    block = {
        "step": list(range(first_step, first_step + rows)),
        "ts": list(range(start, start + rows * 100, 100)),
        "cols": columns,
    }
    return orjson.dumps({"run": run, "blocks": [block]})


def generate(port: int, key: str, rows: int, requests: int, sent: multiprocessing.Queue[Load]) -> None:
    """Send requests of `rows` rows over keep-alive connections, each as soon as the one before is answered."""
    loads: list[Load] = []
    plans = [_Connection(port, key, rows, requests // CONNECTIONS, f"bench/load/c{i}") for i in range(CONNECTIONS)]
    threads = [threading.Thread(target=lambda plan=plan: loads.append(plan.send())) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies = [value for load in loads for value in load.latencies_ms]
    sent.put(Load(sum(load.requests for load in loads), max(load.seconds for load in loads), latencies))


class _Connection:
    """One keep-alive connection with its requests made beforehand: the generator must not be what is measured."""

    def __init__(self, port: int, key: str, rows: int, requests: int, run: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        producer = str(uuid.uuid4())
        payloads = [payload(run, index * rows, rows) for index in range(min(requests, SPREAD))]
        head = f"POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Length: "
        self._requests = []
        for seq in range(requests):
            envelope = Envelope(
                id=uuid7(), type="metrics.logged", v=1, producer=producer, seq=seq, ts_client=1_760_000_000_000
            )
            self._requests.append((head.encode(), frame(envelope, b""), payloads[seq % len(payloads)]))

    def send(self) -> Load:
        """Send every request and read every answer."""
        latencies = []
        began = time.perf_counter()
        for head, envelope, body in self._requests:
            wire = envelope[:-1] + body + b"\n"
            at = time.perf_counter()
            self._socket.sendall(head + str(len(wire)).encode() + b"\r\n\r\n" + wire)
            answer = self._read()
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"expected 200, got {answer[:300]!r}")
            latencies.append((time.perf_counter() - at) * 1000)
        return Load(len(self._requests), time.perf_counter() - began, latencies)

    def _read(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        length = next(int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
        while len(rest) < length:
            rest += self._receive()
        return head + b"\r\n\r\n" + rest

    def _receive(self) -> bytes:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise ConnectionError("expected an answer, got the end of the connection")
        return chunk


def measure(served: Served, points_a_request: int, points: int) -> Sequence[Result]:
    """Points a second accepted, the store's lag at the end, and the time until it is gone."""
    rows = points_a_request // KEYS
    requests = max(points // points_a_request, CONNECTIONS) // CONNECTIONS * CONNECTIONS
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[Load] = context.Queue()
    generator = context.Process(target=generate, args=(served.port, served.key, rows, requests, answers))
    cpu_before = served.cpu_seconds()
    generator.start()
    load = answers.get(timeout=1200)
    lag = served.lag()
    behind = served.wait_folded()
    generator.join()
    cpu = sum(served.cpu_seconds().values()) - sum(cpu_before.values())
    total = load.requests * points_a_request
    latencies = sorted(load.latencies_ms)
    name = f"durable ingest over HTTP, {points_a_request} points a request"
    floor = {200: 1.0, 1000: 2.0}[points_a_request]
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    return [
        Result(
            name,
            total / load.seconds / 1e6,
            "M points/s accepted",
            floor,
            "at least",
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; lag at the end {lag} records, gone after {behind:.1f} s; "
            f"server {cpu / (load.seconds + behind):.2f} cores",
        ),
        Result(f"{name}, folded", total / (load.seconds + behind) / 1e6, "M points/s", None, "report", "store process"),
    ]


def run(scale: float) -> list[Result]:
    """Both sizes of request, each on a new server."""
    results: list[Result] = []
    for points_a_request in (200, 1000):
        with serving() as served:
            results += measure(served, points_a_request, int(20_000_000 * scale))
    return results
