"""A proxy before an S3 server that fails as object stores do: by status, slowly, without an answer, or not there."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["none", "500", "503", "slow", "lose_answer", "lose_request"]
Rule = Callable[[str, str], Fault]
"""Given method and path."""


@dataclass
class FaultyS3:
    """Passes requests on, each as `rule` says."""

    upstream: int
    rule: Rule = lambda _method, _path: "none"
    slow_s: float = 0.3
    done: Counter[str] = field(default_factory=Counter)
    """How often each fault was played."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0
    _server: _Server | None = None

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> FaultyS3:
        """Listen, on the same port as before."""
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Be away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_all()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end in the middle here: that is the point."""

    def drop_all(self) -> None:
        """End what is still open."""
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _handler(proxy: FaultyS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.rule(self.command, self.path)
            proxy.done[fault] += 1
            proxy.asked.append((self.command, self.path))
            if fault in ("500", "503"):
                self._answer(int(fault), {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if fault == "lose_request":
                self._reset()
                return
            if fault == "slow":
                time.sleep(proxy.slow_s)
            status, headers, content = self._upstream(body)
            if fault == "lose_answer":
                self._reset()
            else:
                self._answer(status, headers, content)

        def _upstream(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            there = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=30)
            try:
                there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    there.putheader(name, value)
                there.endheaders(body)
                answer = there.getresponse()
                content = answer.read()
                kept = {n: v for n, v in answer.getheaders() if n.lower() not in {"connection", "transfer-encoding"}}
                return answer.status, kept, content
            finally:
                there.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            length = (
                {} if any(name.lower() == "content-length" for name in headers) else {"Content-Length": len(content)}
            )
            for name, value in {**headers, **length}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            """Say nothing."""

    return Handler


@contextlib.contextmanager
def faulty(upstream: int, rule: Rule = lambda _method, _path: "none") -> Iterator[FaultyS3]:
    """A running proxy."""
    proxy = FaultyS3(upstream, rule).start()
    try:
        yield proxy
    finally:
        proxy.stop()
