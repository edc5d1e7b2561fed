"""A real gateway process for tests, on its own folder and port, and requests to it that no client library mends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import uvicorn

from icecore.codec import frame
from icecore.events import Envelope, now_ms, uuid7
from icecore.log import StoredRecord
from icecore.position import STREAMS, Place
from icecore_ingest.identities import found_owner
from icecore_ingest.logs.sqlite import SQLiteLog

RUN = "team/project/run1"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


@dataclass
class GatewayProcess:
    """`python -m icecore_ingest.gateway` and how to reach it."""

    data: Path
    arguments: tuple[str, ...] = ()
    key: str = ""
    port: int = 0
    process: subprocess.Popen[str] | None = None
    stderr: list[str] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list, repr=False)

    def start(self) -> GatewayProcess:
        self.key = on_log(self.data, found_owner) or self.key
        self.process = subprocess.Popen(
            [sys.executable, "-m", "icecore_ingest.gateway", "--data", str(self.data), *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        for stream, take in ((self.process.stdout, lines.put), (self.process.stderr, self.stderr.append)):
            assert stream is not None
            self._readers.append(threading.Thread(target=_drain, args=(stream, take), daemon=True))
            self._readers[-1].start()
        ready = json.loads(lines.get(timeout=30))
        assert ready["ready"] is True
        assert ready["pid"] == self.process.pid
        self.port = ready["port"]
        return self

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def end(self) -> None:
        """Whatever state it is in: it is gone after this."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(10)
            for reader in self._readers:
                reader.join(10)

    # -------------------------------------------------------------------------------------------- requests

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; `X_Y` in the arguments is the header X-Y."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def post(self, body: bytes, **headers: str) -> Answer:
        """Events, with the owner's key unless another Authorization is given."""
        return self.request("POST", "/api/v1/events", body, **{"Authorization": f"Bearer {self.key}", **headers})

    def raw(self, wire: bytes, *, within: float = 20.0) -> bytes:
        """Send these bytes and read until the server closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=within) as connection:
            connection.sendall(wire)
            return read_answer(connection)

    def head(self, length: int | str, *lines: str) -> bytes:
        """The head of an event request."""
        more = "".join(f"{line}\r\n" for line in lines)
        return (
            f"POST /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Length: {length}\r\n{more}\r\n"
        ).encode()

    def metric(self, name: str, labels: str = "") -> float:
        """A value of /metrics."""
        for line in self.request("GET", "/metrics").body.decode().splitlines():
            if line.startswith(f"{name}{labels} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def records(self, stream: str) -> list[StoredRecord]:
        """What the log holds."""
        return on_log(self.data, lambda log: read_all(log, stream), readonly=True)

    def counts(self) -> dict[str, int]:
        """How many records each stream holds."""
        return {stream: len(self.records(stream)) for stream in STREAMS}


def _drain(stream: IO[str], take: Callable[[str], None]) -> None:
    with stream:
        for line in stream:
            take(line)


def on_log(data: Path, act: Callable[[SQLiteLog], Awaitable[Any]], *, readonly: bool = False) -> Any:
    """Do something with the log of a data folder."""

    async def run() -> Any:
        log = SQLiteLog.open(data / "log", readonly=readonly)
        try:
            return await act(log)
        finally:
            await log.close()

    return asyncio.run(run())


async def read_all(log: Any, stream: str) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    start = 0
    while True:
        batch = await log.read(Place(stream, 0), start)
        if not batch.records:
            return found
        found += batch.records
        start = batch.next_offset


def read_answer(connection: socket.socket) -> bytes:
    """One answer with a Content-Length, or what came before the connection ended."""
    data = b""
    while True:
        head, found, rest = data.partition(b"\r\n\r\n")
        if found:
            lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if lengths and len(rest) >= int(lengths[0]):
                return data
        try:
            chunk = connection.recv(65536)
        except ConnectionResetError:
            return data
        if not chunk:
            return data
        data += chunk


@contextlib.contextmanager
def running_gateway(folder: Path, *arguments: str) -> Iterator[GatewayProcess]:
    """A gateway with its data in `folder`, ended when the block is left."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    gateway = GatewayProcess(folder, arguments)
    try:
        yield gateway.start()
    finally:
        gateway.end()


# --------------------------------------------------------------------------------------------------- bodies


class Producer:
    """Makes the lines of a producer's events."""

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self.seq = 0

    def envelope(self, kind: str = "metrics.logged", **changed: Any) -> Envelope:
        fields: dict[str, Any] = {
            "id": uuid7(),
            "type": kind,
            "v": 1,
            "producer": self.id,
            "seq": self.seq,
            "ts_client": now_ms(),
        }
        self.seq += 1
        return Envelope(**{**fields, **changed})

    def event(self, kind: str, payload: bytes | dict[str, Any], **changed: Any) -> bytes:
        return frame(self.envelope(kind, **changed), payload if isinstance(payload, bytes) else orjson.dumps(payload))

    def metrics(self, rows: int = 3, run: str = RUN, **block: Any) -> bytes:
        fields = {
            "step": list(range(rows)),
            "ts": [1_700_000_000_000 + row for row in range(rows)],
            "cols": {"loss": [0.5] * rows},
            **block,
        }
        return self.event("metrics.logged", {"run": run, "blocks": [fields]})

    def started(self, run: str = RUN, **fields: Any) -> bytes:
        return self.event("run.started", {"run": run, "started_ts": 1_700_000_000_000, **fields})


# ---------------------------------------------------------------------------------------------------- a store


@contextlib.contextmanager
def running_store(app: Any, path: Path) -> Iterator[None]:
    """A real ASGI application on a Unix socket, in a thread of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    server = uvicorn.Server(
        uvicorn.Config(app, uds=str(path), lifespan="off", log_config=None, access_log=False, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "expected the store of the test to start"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
