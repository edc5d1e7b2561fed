"""Durable ingest over HTTP, folded while it arrives; the load generator runs on the same cores."""

from __future__ import annotations

import multiprocessing
import random
import re
import selectors
import socket
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
CONNECTIONS = 64
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
SPREAD = 500
"""Distinct bodies a connection sends in turn, so that compression and caches see real variety."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one generator did."""

    requests: int
    seconds: float
    latencies_ms: list[float]
    cpu_seconds: float


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
    plans = [_Connection(port, key, rows, requests // CONNECTIONS, f"bench/load/c{i}") for i in range(CONNECTIONS)]
    cpu = time.process_time()
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for plan in plans:
            selector.register(plan.socket, selectors.EVENT_READ, plan)
            plan.send()
        while selector.get_map():
            for ready, _ in selector.select():
                plan = ready.data
                if plan.receive() and not plan.send():
                    selector.unregister(plan.socket)
    seconds = time.perf_counter() - began
    latencies = [value for plan in plans for value in plan.latencies_ms]
    sent.put(Load(len(latencies), seconds, latencies, time.process_time() - cpu))


class _Connection:
    """One keep-alive connection with its requests made beforehand: the generator must not be what is measured."""

    def __init__(self, port: int, key: str, rows: int, requests: int, run: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.latencies_ms: list[float] = []
        self._answer = b""
        self._sent_at = 0.0
        producer = str(uuid.uuid4())
        payloads = [payload(run, index * rows, rows) for index in range(min(requests, SPREAD))]
        head = f"POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Length: "
        self._requests = iter(
            [_wire(head.encode(), producer, seq, payloads[seq % len(payloads)]) for seq in range(requests)]
        )

    def send(self) -> bool:
        """Send the next request; False when there is none left."""
        pieces = next(self._requests, None)
        if pieces is None:
            return False
        self._sent_at = time.perf_counter()
        left = sum(map(len, pieces)) - self.socket.sendmsg(pieces)
        if left:
            self.socket.sendall(b"".join(pieces)[-left:])
        return True

    def receive(self) -> bool:
        """Read what has come of the answer; True when it is whole."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("expected an answer, got the end of the connection")
        self._answer += chunk
        head, gap, rest = self._answer.partition(b"\r\n\r\n")
        if not gap or len(rest) < int(_LENGTH.findall(head)[0]):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"expected 200, got {self._answer[:300]!r}")
        self._answer = b""
        self.latencies_ms.append((time.perf_counter() - self._sent_at) * 1000)
        return True


def _wire(head: bytes, producer: str, seq: int, body: bytes) -> tuple[bytes, bytes, bytes]:
    """A request in pieces, the payload shared by many."""
    envelope = Envelope(id=uuid7(), type="metrics.logged", v=1, producer=producer, seq=seq, ts_client=1_760_000_000_000)
    line = frame(envelope, b"")[:-1]
    return head + b"%d\r\n\r\n" % (len(line) + len(body) + 1) + line, body, b"\n"


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
            f"server {cpu / (load.seconds + behind):.2f} cores, generator {load.cpu_seconds / load.seconds:.2f}",
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
