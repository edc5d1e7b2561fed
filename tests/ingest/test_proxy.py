# ruff: noqa: ARG002, ASYNC110 - the store of these tests has ASGI's signatures, and waits for its test's thread
"""The proxy: everything but the event path reaches a real store on a Unix socket, streaming both ways."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateways import GatewayProcess, running_gateway, running_store
from servers import wait_until

MB = 1 << 20
HOSTILE = json.loads((Path(__file__).parents[1] / "golden" / "hostile_names.json").read_text())


class Store:
    """A small store that shows what reaches it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()
        self.part = threading.Event()
        self.go_on = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        action = scope["path"].rsplit("/", 1)[-1]
        await getattr(self, f"do_{action}", self.do_echo)(scope, receive, send)

    async def do_echo(self, scope: Any, receive: Any, send: Any) -> None:
        digest, size, more = hashlib.sha256(), 0, True
        while more:
            message = await receive()
            digest.update(message.get("body", b""))
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        seen = {
            "method": scope["method"],
            "raw_path": scope["raw_path"].decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "headers": [[k.decode("latin-1"), v.decode("latin-1")] for k, v in scope["headers"]],
            "size": size,
            "sha256": digest.hexdigest(),
        }
        body = json.dumps(seen).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"set-cookie", b"icecore_session=x; HttpOnly"),
            (b"set-cookie", b"two=y"),
            (b"connection", b"x-hop"),
            (b"x-hop", b"not for the client"),
            (b"content-security-policy", b"default-src 'none'"),
        ]
        await send({"type": "http.response.start", "status": 203, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def do_export(self, scope: Any, receive: Any, send: Any) -> None:
        size = int(scope["query_string"])
        chunk = bytes(range(256)) * (MB // 256)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(size):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def do_steps(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while not self.go_on.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"second"})

    async def do_upload(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.part.set()
        await self.do_echo(scope, receive, send)

    async def do_hang(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancelled.set()

    async def do_break(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ConnectionAbortedError

    async def do_redirect(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"location", b"http://169.254.169.254/"), (b"content-encoding", b"gzip")]
        await send({"type": "http.response.start", "status": 302, "headers": headers})
        await send({"type": "http.response.body", "body": b"not gzip at all"})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, Store]]:
    """A gateway with a store behind it."""
    folder, store = tmp_path_factory.mktemp("proxied"), Store()
    with running_store(store, folder / "run" / "store.sock"), running_gateway(folder) as gateway:
        yield gateway, store


def test_a_request_reaches_the_store_as_it_was_sent(both: tuple[GatewayProcess, Store]) -> None:
    """Method, raw path, query, headers and body arrive unchanged; what belongs to one hop does not."""
    gateway, _ = both
    answer = gateway.request(
        "PATCH",
        "/api/v1/runs/a%2Fb/%E4%B8%AD/..%2f/x;y?filters=%7B%22a%22%3A1%7D&b=%zz",
        b"body",
        Authorization="Bearer whatever",
        Cookie="icecore_session=abc",
        Icecore_Position="ledger:0:5",
        Content_Type="application/x-mine",
        Connection="keep-alive, X-Mine, Authorization",
        X_Mine="hop",
        X_Forwarded_For="6.6.6.6",
    )
    seen = answer.json
    headers = dict(seen["headers"])

    assert (answer.status, seen["method"]) == (203, "PATCH")
    assert seen["raw_path"] == "/api/v1/runs/a%2Fb/%E4%B8%AD/..%2f/x;y"
    assert seen["query"] == "filters=%7B%22a%22%3A1%7D&b=%zz"
    assert headers["authorization"] == "Bearer whatever"
    assert headers["cookie"] == "icecore_session=abc"
    assert headers["icecore-position"] == "ledger:0:5"
    assert headers["content-type"] == "application/x-mine"
    assert headers["host"] == f"127.0.0.1:{gateway.port}"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert "x-mine" not in headers
    assert (seen["size"], seen["sha256"]) == (4, hashlib.sha256(b"body").hexdigest())


def test_the_stores_answer_comes_back_as_it_was_sent(both: tuple[GatewayProcess, Store]) -> None:
    """Status, cookies and the store's own content policy come through; its hop's headers do not."""
    gateway, _ = both
    wire = gateway.raw(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").lower()

    assert wire.startswith(b"http/1.1 203")
    assert wire.count(b"set-cookie:") == 2
    assert b"x-hop" not in wire
    assert wire.count(b"content-security-policy:") == 1
    assert b"content-security-policy: default-src 'none'" in wire
    assert wire.count(b"x-content-type-options: nosniff") == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_every_method_passes(both: tuple[GatewayProcess, Store], method: str) -> None:
    """Methods are the store's business."""
    gateway, _ = both
    answer = gateway.request(method, "/y")

    assert answer.status == 203
    assert method == "HEAD" or answer.json["method"] == method


def test_redirects_and_encodings_are_the_clients_business(both: tuple[GatewayProcess, Store]) -> None:
    """A redirect is passed back, not followed, and a body is not decoded on the way."""
    gateway, _ = both
    answer = gateway.request("GET", "/redirect")

    assert (answer.status, answer.headers["location"]) == (302, "http://169.254.169.254/")
    assert answer.body == b"not gzip at all"


def test_hostile_paths_reach_the_store_literally(both: tuple[GatewayProcess, Store]) -> None:
    """Each hostile string in a path arrives with the very bytes sent: decoded once, by the store, or not at all."""
    gateway, _ = both
    from urllib.parse import quote

    for name in HOSTILE[::4]:
        path = f"/api/v1/runs/{quote(name, safe='')}"
        assert gateway.request("GET", path).json["raw_path"] == path


def test_an_answer_streams_while_it_is_made(both: tuple[GatewayProcess, Store]) -> None:
    """The first part is with the client before the store has made the second."""
    gateway, store = both
    store.go_on.clear()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(b"GET /steps HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = b""
        while b"first" not in got:
            got += connection.recv(65536)
        assert b"second" not in got
        store.go_on.set()
        while b"second" not in got:
            got += connection.recv(65536)


def test_a_body_streams_while_it_is_sent(both: tuple[GatewayProcess, Store]) -> None:
    """The store has the first part before the client has sent the second."""
    gateway, store = both
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(b"PUT /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nfirst")
        assert store.part.wait(10)
        connection.sendall(b"-then")
        assert connection.recv(65536).startswith(b"HTTP/1.1 203")


def test_a_large_export_and_a_large_upload_take_no_memory(both: tuple[GatewayProcess, Store]) -> None:
    """300 MB down and 100 MB up pass through whole, while the gateway's memory hardly moves."""
    gateway, _ = both
    before = gateway.rss
    size, peak = 0, 0
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(b"GET /export?300 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while chunk := connection.recv(MB):
            size += len(chunk)
            if size % 16 == 0:
                peak = max(peak, gateway.rss)
    assert size > 300 * MB
    answer = gateway.request("PUT", "/big", b"u" * (100 * MB))
    assert answer.json["size"] == 100 * MB
    assert max(peak, gateway.rss) - before < 48 * MB


def test_a_slow_reader_does_not_fill_the_gateway(both: tuple[GatewayProcess, Store]) -> None:
    """When a client stops reading, the store is held back rather than buffered."""
    gateway, _ = both
    before = gateway.rss
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as connection:
        connection.sendall(b"GET /export?500 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(10)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert gateway.rss - before < 48 * MB
            assert gateway.request("GET", "/healthz").status == 200


def test_a_client_that_goes_away_cancels_the_store(both: tuple[GatewayProcess, Store]) -> None:
    """The store hears of the disconnect while it is still working."""
    gateway, store = both
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert store.begun.wait(10)
    assert store.cancelled.wait(10)


def test_a_broken_answer_is_not_passed_off_as_whole(both: tuple[GatewayProcess, Store]) -> None:
    """When the store breaks off, the client's connection ends before its Content-Length."""
    gateway, _ = both
    wire = gateway.raw(b"GET /break HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert b"content-length: 1000" in wire.lower()
    assert len(wire.partition(b"\r\n\r\n")[2]) < 1000


def test_ready_when_the_store_is(both: tuple[GatewayProcess, Store]) -> None:
    """With all parts there, /readyz is 200."""
    gateway, _ = both

    assert gateway.request("GET", "/readyz").json == {
        "ready": True,
        "parts": {"log": "ok", "identities": "ok", "store": "ok"},
    }


def test_without_a_store_events_are_taken_and_the_rest_is_503(tmp_path: Path) -> None:
    """A store that is away is 503 with Retry-After in our error's shape; when it is back, so are the answers."""
    from gateways import Producer

    with running_gateway(tmp_path) as gateway:
        answer = gateway.request("GET", "/api/v1/projects")
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "unavailable", "1")
        assert gateway.post(Producer().metrics()).status == 200
        with running_store(Store(), tmp_path / "run" / "store.sock"):
            wait_until(lambda: gateway.request("GET", "/api/v1/projects").status == 203, what="the store")
        wait_until(lambda: gateway.request("GET", "/api/v1/projects").status in {502, 503}, what="no store")
