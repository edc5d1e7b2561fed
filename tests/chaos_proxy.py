"""A TCP proxy that does what bad networks do, chosen anew for every connection."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["none", "lose_answer", "reset_mid_body", "trickle", "duplicate"]


@dataclass
class ChaosProxy:
    """Forwards to `upstream`; `faults` are drawn from for each request (one request a connection)."""

    upstream: tuple[str, int]
    faults: Sequence[Fault]
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0), backlog=256))

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Accept until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._guarded, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Stop accepting."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _guarded(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            client.settimeout(30)
            self._request(client, self.chance.choice(self.faults))

    def _request(self, client: socket.socket, fault: Fault) -> None:
        request = _read_message(client, stop_after=200 if fault == "reset_mid_body" else None)
        self.done[fault] += 1
        if fault == "reset_mid_body":
            with socket.create_connection(self.upstream, timeout=30) as server:
                server.sendall(request)
                _reset(server)
            _reset(client)
            return
        for _ in range(2 if fault == "duplicate" else 1):
            with socket.create_connection(self.upstream, timeout=30) as server:
                server.sendall(_closing(request))
                answer = _read_message(server)
        if fault == "lose_answer":
            _reset(client)
        elif fault == "trickle":
            for i in range(len(answer)):
                client.sendall(answer[i : i + 1])
                if i % 50 == 0:
                    threading.Event().wait(0.02)
        else:
            client.sendall(answer)


def _closing(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


def _read_message(sock: socket.socket, stop_after: int | None = None) -> bytes:
    """A whole HTTP message with a Content-Length; with `stop_after` only so many bytes of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    want = lengths[0] if lengths else 0
    if stop_after is not None:
        return data[: len(head) + 4 + min(stop_after, max(want - 1, 0))]
    while len(body) < want:
        body += _receive(sock)
    return head + b"\r\n\r\n" + body


def _receive(sock: socket.socket) -> bytes:
    chunk = sock.recv(65536)
    if not chunk:
        raise ConnectionError("the other side is gone")
    return chunk


def _reset(sock: socket.socket) -> None:
    """End with RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def chaos(upstream_port: int, faults: Sequence[Fault], chance: random.Random) -> Iterator[ChaosProxy]:
    """A running proxy in front of a loopback port."""
    proxy = ChaosProxy(("127.0.0.1", upstream_port), faults, chance)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(5)
