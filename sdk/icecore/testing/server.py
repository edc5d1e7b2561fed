"""A small server that speaks the wire's contract and remembers everything: for tests of clients.

Faults are given as a list, one a request: "ok", a status, "lost" (take the events, then close without an answer),
"reset" (close in the middle of the body), "slow" (answer one byte at a time), or (429, {"Retry-After": "1"}).
"""

from __future__ import annotations

import gzip
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import orjson

from icecore.codec import block_rows, decode_envelope, decode_event, frames
from icecore.errors import IcecoreError
from icecore.events import Envelope, Event, MetricsLogged, RunFinished, RunStarted

Fault = str | int | tuple[int, dict[str, str]]

_LINGER_OFF: Final = struct.pack("ii", 1, 0)


class RecordingServer:
    """Takes events as the gateway does, and shows what it took.

    Use as a context manager; `url` and `key` are what a client needs.
    """

    def __init__(self, port: int = 0, key: str = "k" * 40) -> None:
        self.key = key
        self.faults: list[Fault] = []
        self.refused_types: set[str] = set()
        """Events of these types are answered with 422."""
        self.taken: dict[tuple[str, str, int], tuple[Envelope, Event]] = {}
        """By (producer, stream, seq): what the folds would apply."""
        self.conflicts: list[tuple[str, str, int]] = []
        """(producer, stream, seq) that came again as another event."""
        self.requests: list[tuple[float, int, int]] = []
        """Time, status (0: no answer) and decompressed bytes of each post."""
        self.encodings: set[str] = set()
        self._lock = threading.Lock()
        self._http = _Listener(("127.0.0.1", port), _Handler)
        self._http.recording = self
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    # ---- what it took

    def events(self, kind: type[Event] | None = None, run: str | None = None) -> list[Event]:
        """The events taken, once each, in the order of their producer's numbers."""
        with self._lock:
            kept = [self.taken[place][1] for place in sorted(self.taken)]
        return [
            e for e in kept if (kind is None or isinstance(e, kind)) and (run is None or getattr(e, "run", None) == run)
        ]

    def rows(self, run: str | None = None) -> list[tuple[int, dict[str, Any]]]:
        """Every history row taken, as (step, values), by step."""
        found = [
            (row.step, dict(row.values))
            for event in self.events(MetricsLogged, run)
            if isinstance(event, MetricsLogged)
            for block in event.blocks
            for row in block_rows(block)
        ]
        return sorted(found, key=lambda row: row[0])

    def gaps(self) -> dict[tuple[str, str], int]:
        """How many numbers are missing before the highest, by (producer, stream)."""
        with self._lock:
            highest: dict[tuple[str, str], int] = {}
            count = Counter((producer, stream) for producer, stream, _ in self.taken)
            for producer, stream, seq in self.taken:
                highest[producer, stream] = max(highest.get((producer, stream), -1), seq)
        return {place: top + 1 - count[place] for place, top in highest.items() if top + 1 != count[place]}

    # ---- taking

    def take(self, body: bytes) -> dict[str, Any]:
        """Take a request's events, all or none.

        Raises:
            IcecoreError: one of them is not an event, or of a type this server refuses.
        """
        from icecore.errors import Invalid

        fresh: list[tuple[Envelope, Event]] = []
        for line, payload in frames(body):
            envelope = decode_envelope(line)
            event = decode_event(envelope, payload)
            if event is None or envelope.type in self.refused_types:
                raise Invalid(f"expected events that this server takes, got {envelope.type}")
            fresh.append((envelope, event))
        with self._lock:
            for envelope, event in fresh:
                place = (envelope.producer, event.STREAM, envelope.seq)
                if place in self.taken and self.taken[place][0].id != envelope.id:
                    self.conflicts.append(place)
                self.taken.setdefault(place, (envelope, event))
            return {"token": f"ledger:0:{len(self.taken)}", "positions": []}

    def run(self, path: str) -> dict[str, Any] | None:
        """What `GET runs/PATH` answers."""
        started = [e for e in self.events(RunStarted, path) if isinstance(e, RunStarted)]
        if not started:
            return None
        config: dict[str, Any] = {}
        for event in started:
            config.update(event.config)
        rows = self.rows(path)
        return {
            "path": path,
            "name": next((e.name for e in started if e.name), ""),
            "state": self._state(path),
            "config": config,
            "summary": {key: value for _, values in rows for key, value in values.items()},
            "last_step": max((step for step, _ in rows), default=None),
        }

    def _state(self, path: str) -> str:
        """By the starts and ends taken: here no process is ever silent."""
        ends = [e for e in self.events(RunFinished, path) if isinstance(e, RunFinished)]
        return "running" if len(ends) < len(self.events(RunStarted, path)) else ends[-1].state


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    recording: RecordingServer


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def _recording(self) -> RecordingServer:
        listener: Any = self.server
        recording: RecordingServer = listener.recording
        return recording

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def do_POST(self) -> None:
        fault = self._recording.faults.pop(0) if self._recording.faults else "ok"
        size = int(self.headers["Content-Length"])
        if fault == "reset":
            self.rfile.read(size // 2)
            self._recording.requests.append((time.monotonic(), 0, 0))
            self._hang_up()
            return
        body = self.rfile.read(size)
        self._recording.encodings.add(self.headers.get("Content-Encoding", ""))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if fault == "lost":
            self._recording.take(body)
            self._recording.requests.append((time.monotonic(), 0, len(body)))
            self._hang_up()
            return
        self._answer_post(fault, body)

    def _answer_post(self, fault: Fault, body: bytes) -> None:
        status, headers = fault if isinstance(fault, tuple) else (fault, {})
        answer: dict[str, Any]
        if self.headers.get("Authorization") != f"Bearer {self._recording.key}":
            status, answer = 401, {"error": {"code": "unauthenticated", "message": "expected a known key"}}
        elif isinstance(status, int):
            answer = {"error": {"code": "unavailable", "message": f"status {status}, as the test asked"}}
        else:
            try:
                status, answer = 200, self._recording.take(body)
            except IcecoreError as error:
                status, answer = error.status, error.body()
        self._recording.requests.append((time.monotonic(), status, len(body)))
        self._answer(status, answer, headers, slowly=fault == "slow")

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")]
        if parts[3:] == ["viewer"]:
            self._answer(200, {"user": "ada"}, {})
            return
        if parts[3:] == ["status"]:
            self._answer(200, {"log": {"ledger:0": len(self._recording.taken), "metrics:0": 0}}, {})
            return
        found = self._recording.run("/".join(parts[4:])) if parts[3:4] == ["runs"] else None
        if found is None:
            self._answer(404, {"error": {"code": "not_found", "message": "no such thing"}}, {})
        else:
            self._answer(200, found, {})

    def _answer(self, status: int, answer: Any, headers: dict[str, str], *, slowly: bool = False) -> None:
        data = orjson.dumps(answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        pieces: Sequence[bytes] = [data[i : i + 1] for i in range(len(data))] if slowly else [data]
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            if slowly:
                time.sleep(0.01)

    def _hang_up(self) -> None:
        import socket

        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        self.connection.close()
