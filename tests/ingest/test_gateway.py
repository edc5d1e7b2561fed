"""The gateway as a process: real requests over a real port, into a real log."""

from __future__ import annotations

import base64
import contextlib
import gzip
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import zstandard

from gateways import RUN, GatewayProcess, Producer, on_log, read_answer, running_gateway
from icecore.events import KeyRevoked
from icecore.position import LEDGER, METRICS
from icecore_ingest.identities import Identities, system_records
from servers import wait_until

MB = 1 << 20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for the tests that do not hurt it."""
    with running_gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of this test's own."""
    with running_gateway(tmp_path) as running:
        yield running


# ------------------------------------------------------------------------------------------------------ accepting


def test_events_are_answered_with_their_positions(own_gateway: GatewayProcess) -> None:
    """The answer names each event's position in the order sent, and the records are in the log with sender and time."""
    p = Producer()
    ledger_before = len(own_gateway.records(LEDGER))
    answer = own_gateway.post(p.metrics() + p.started() + p.metrics())

    assert answer.status == 200
    assert answer.json["positions"] == [[METRICS, 0, 0], [LEDGER, 0, ledger_before], [METRICS, 0, 1]]
    assert answer.headers["icecore-position"] == answer.json["token"] == f"ledger:0:{ledger_before + 1},metrics:0:2"
    stored = own_gateway.records(METRICS)
    assert [record.key for record in stored] == [RUN, RUN]
    assert stored[0].envelope.actor == "owner"
    assert stored[0].envelope.credential.startswith("key_")
    assert abs(stored[0].envelope.ts_server - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("zstd", lambda body: zstandard.ZstdCompressor().compress(body)),
        ("zstd", lambda body: zstandard.ZstdCompressor(write_content_size=False).compress(body)),
        ("GZIP", gzip.compress),
        ("identity", bytes),
    ],
)
def test_bodies_may_be_compressed(gateway: GatewayProcess, encoding: str, encode: object) -> None:
    """A gzip or zstd body is taken, and the log holds the plain payload."""
    body = Producer().metrics(rows=500)
    assert gateway.post(encode(body), Content_Encoding=encoding).status == 200

    assert gateway.records(METRICS)[-1].payload == body.split(b"\n")[1]


def test_a_chunked_body_is_taken(gateway: GatewayProcess) -> None:
    """A body without Content-Length, in chunks of any size, is one request."""
    body = Producer().metrics()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    head = gateway.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

    assert gateway.raw(head + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_the_same_request_again_is_accepted_again(gateway: GatewayProcess) -> None:
    """A repeated (producer, seq) gets 200 and a new position: the fold, not the gateway, drops it."""
    body = Producer().metrics()
    first, second = gateway.post(body), gateway.post(body)

    assert (first.status, second.status) == (200, 200)
    assert first.json["positions"] != second.json["positions"]


def test_requests_may_be_pipelined_and_split_anywhere(gateway: GatewayProcess) -> None:
    """Two requests in one write, or one request byte by byte, are answered like any other."""
    body = Producer().metrics()
    request = gateway.head(len(body)) + body
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(request + request)
        got = b""
        while got.count(b"HTTP/1.1 200") < 2:
            chunk = connection.recv(65536)
            assert chunk, got
            got += chunk
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(request)):
            connection.sendall(request[i : i + 1])
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


# ------------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("status", "code", "body"),
    [
        (400, "bad_request", b""),
        (400, "bad_request", b"not json\n{}\n"),
        (400, "bad_request", Producer().event("run.heartbeat", b'{"run":"a/b/c","x":1e999}')),
        (400, "bad_request", Producer().event("run.heartbeat", b'{"run":"a/b/c","x":' + b"7" * 5000 + b"}")),
        (400, "bad_request", Producer().event("run.heartbeat", b'{"run":"a/b/c","x":"\\ud800"}')),
        (422, "invalid", Producer().event("run.heartbeat", b'{"run":"a/b/c","x":' + b"[" * 900 + b"]" * 900 + b"}")),
        (422, "invalid", Producer().metrics(cols={"loss": ["a", "b", "c"]})),
        (422, "invalid", Producer().event("user.created", {"user": "eve", "role": "owner"})),
        (413, "too_large", Producer().event("run.heartbeat", {"run": RUN, "x": "a" * MB})),
        (422, "invalid", b"".join(Producer().event("run.heartbeat", {"run": RUN}) for _ in range(1001))),
        (413, "too_large", b"a" * (8 * MB + 1)),
    ],
)
def test_a_wrong_event_refuses_the_whole_request(gateway: GatewayProcess, status: int, code: str, body: bytes) -> None:
    """Each error has its status and code, and nothing of the request is appended: not the good event before it."""
    before = gateway.counts()
    good = Producer().metrics() if len(body) < 8 * MB and body else b""
    answer = gateway.post(good + body)

    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["message"].startswith("expected ")
    assert gateway.counts() == before


def test_errors_over_a_limit_name_it(gateway: GatewayProcess) -> None:
    """413 and 422 carry the limit's name, its most and the value found, and which event it was."""
    p = Producer()
    error = gateway.post(p.metrics() + p.metrics(cols={"k" * 300: [1, 2, 3]})).error

    assert (error["limit"], error["most"], error["value"], error["event"]) == ("key_chars", 256, 300, 1)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"0" * (300 * MB), 1)),
        ("gzip", gzip.compress(b"\n" * (7 * MB))),
        ("zstd", zstandard.ZstdCompressor().compress(b"0" * (300 * MB))),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(b"0" * (300 * MB))),
        ("zstd", b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x01\x00\x00"),
    ],
    ids=["gzip", "gzip-lines", "zstd", "zstd-unsized", "zstd-liar"],
)
def test_a_decompression_bomb_is_refused_in_bounded_memory(gateway: GatewayProcess, encoding: str, body: bytes) -> None:
    """A small body that would be hundreds of MB is a 4xx within a second, and memory stays where it was."""
    before, began = gateway.rss, time.monotonic()
    answers = [gateway.post(body, Content_Encoding=encoding) for _ in range(5)]

    assert {answer.status for answer in answers} <= {400, 413, 422}
    assert time.monotonic() - began < 5
    assert gateway.rss - before < 64 * MB


@pytest.mark.parametrize(
    ("encoding", "spoil"),
    [
        ("gzip", lambda body: gzip.compress(body)[:-9]),
        ("gzip", lambda body: gzip.compress(body) + b"x"),
        ("gzip", lambda body: gzip.compress(body)[:20] + b"\xff\xff" + gzip.compress(body)[22:]),
        ("gzip", zlib.compress),
        ("gzip", bytes),
        ("zstd", lambda body: zstandard.compress(body)[:-3]),
        ("zstd", lambda body: zstandard.compress(body) + b"x"),
        ("zstd", lambda body: zstandard.ZstdCompressor(write_content_size=False).compress(body)[:-3]),
        ("zstd", bytes),
        ("zstd", gzip.compress),
        ("br", bytes),
        ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    ],
)
def test_a_body_that_is_not_what_it_says_is_a_bad_request(
    gateway: GatewayProcess, encoding: str, spoil: object
) -> None:
    """Truncated, damaged, doubly or otherwise encoded bodies are 400."""
    answer = gateway.post(spoil(Producer().metrics(rows=300)), Content_Encoding=encoding)

    assert (answer.status, answer.error["code"]) == (400, "bad_request")


def test_a_declared_giant_is_refused_before_it_is_read(gateway: GatewayProcess) -> None:
    """A Content-Length of a terabyte is answered at once, with the connection closed after it."""
    began = time.monotonic()
    answer = gateway.raw(gateway.head(1 << 40) + b"x" * 1000)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - began < 5


def test_an_endless_chunked_body_is_cut_off(gateway: GatewayProcess) -> None:
    """A chunked body is refused once it passes the limit, and memory does not grow with it."""
    before = gateway.rss
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(gateway.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            for _ in range(40):
                connection.sendall(b"100000\r\n" + b"a" * MB + b"\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            answer = read_answer(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert gateway.rss - before < 64 * MB
    assert gateway.metric("icecore_requests_total", '{code="too_large"}') >= 1


@pytest.mark.parametrize(("begun", "more"), [(b"0\r\n", b"X: y\r\n"), (b"0\r\nX: ", b"y"), (b"5;", b"y")])
def test_what_comes_around_a_body_is_bounded(gateway: GatewayProcess, begun: bytes, more: bytes) -> None:
    """Trailers and extensions of chunks, which the parser keeps, do not grow memory without end."""
    before = gateway.rss
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(gateway.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + begun)
        with pytest.raises(ConnectionError):
            connection.sendall(more * (40 * MB // len(more)))
    assert gateway.rss - before < 32 * MB


def test_half_a_request_appends_nothing(gateway: GatewayProcess) -> None:
    """A client that goes away within its body leaves no record and no bytes in flight."""
    before = gateway.counts()
    body = Producer().metrics()
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(gateway.head(len(body)) + body[:-5])
        wait_until(lambda: gateway.metric("icecore_in_flight_requests") == 1, what="the request in flight")

    wait_until(lambda: gateway.metric("icecore_in_flight_bytes") == 0, what="no bytes in flight")
    assert gateway.counts() == before


@pytest.mark.parametrize(
    "wire",
    [
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/events HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n",
        b"POST /api/v1/events HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000,
        b"GET /" + b"a" * 100_000,
    ],
)
def test_what_is_no_request_is_a_4xx(gateway: GatewayProcess, wire: bytes) -> None:
    """Bytes that are not HTTP, ambiguous lengths and endless heads are refused; the gateway lives on."""
    answer = gateway.raw(wire)

    assert answer[9:12] in {b"400", b"403", b"401"}
    assert gateway.request("GET", "/healthz").status == 200


def test_only_post_is_taken(gateway: GatewayProcess) -> None:
    """Other methods on the event path are 405 and say which is right."""
    answer = gateway.request("GET", "/api/v1/events", Authorization=f"Bearer {gateway.key}")

    assert (answer.status, answer.headers["allow"]) == (405, "POST")


# ----------------------------------------------------------------------------------------------------- who and where


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer icecore-" + "A" * 43,
        "Bearer KEY ",
        "bearer null",
        "Basic",
        "Basic %%%",
        "Basic " + base64.b64encode(b"api:").decode(),
        "Basic " + base64.b64encode(b"KEY").decode(),
        "Digest KEY",
        "KEY",
        "Bearer " + "x" * 10_000,
    ],
)
def test_without_a_valid_key_nothing_is_taken(gateway: GatewayProcess, authorization: str) -> None:
    """No key, a wrong one, or a right one in a wrong place is 401, and the body is not read as events."""
    before = gateway.counts()
    given = authorization.replace("KEY", gateway.key + ("x" if authorization == "Bearer KEY " else ""))
    answer = gateway.post(Producer().metrics(), Authorization=given)

    assert (answer.status, answer.error["code"]) == (401, "unauthenticated")
    assert gateway.key not in answer.body.decode()
    assert gateway.counts() == before


def test_a_key_works_as_bearer_and_as_basic_password(gateway: GatewayProcess) -> None:
    """`Bearer KEY` and `Basic anything:KEY` are the same caller."""
    basic = base64.b64encode(f"api:{gateway.key}".encode()).decode()

    assert gateway.post(Producer().metrics(), Authorization=f"Basic {basic}").status == 200
    assert gateway.post(Producer().metrics(), Authorization=f"bearer {gateway.key}").status == 200


def test_a_revoked_key_stops_working(own_gateway: GatewayProcess) -> None:
    """Once `key.revoked` is in the ledger, appended by another process, the key is refused."""
    assert own_gateway.post(Producer().metrics()).status == 200

    async def revoke(log: object) -> None:
        state = (await Identities.open(log)).state
        (key,) = state.keys.values()
        await log.append(LEDGER, system_records([KeyRevoked(user=key.user, key_id=key.key_id)]))

    on_log(own_gateway.data, revoke)
    wait_until(lambda: own_gateway.post(Producer().metrics()).status == 401, within=5, what="401")


def test_identities_survive_a_restart_and_their_snapshot_holds_no_secret(own_gateway: GatewayProcess) -> None:
    """The snapshot is readable by its owner only, has no key in it, and a damaged one is simply made again."""
    snapshot = own_gateway.data / "run" / "identities.json"
    assert snapshot.stat().st_mode & 0o777 == 0o600
    assert own_gateway.key not in snapshot.read_text()

    assert own_gateway.stop() == 0
    snapshot.write_text('{"format":1,"log_id":"another","next_offset":99,"state":{}}')
    own_gateway.start()
    assert own_gateway.post(Producer().metrics()).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:99", 200),
        ("127.9.9.9", 200),
        ("[::1]:8700", 200),
        ("app.localhost", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("127.evil.example", 403),
        ("0.0.0.0", 403),
        ("169.254.169.254", 403),
        ("localhost/x", 403),
        ("user@localhost", 403),
        ("localhost:1:2", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/healthz", "/api/v1/events", "/metrics"])
def test_a_foreign_host_is_refused(gateway: GatewayProcess, host: str, status: int, path: str) -> None:
    """Only the loopback names are answered, whatever the path: a rebound DNS name gets 403."""
    method, body = ("POST", Producer().metrics()) if path == "/api/v1/events" else ("GET", None)
    answer = gateway.request(method, path, body, Host=host, Authorization=f"Bearer {gateway.key}")

    assert answer.status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "file://"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_site_cannot_send_events(gateway: GatewayProcess, headers: dict[str, str]) -> None:
    """A request that a page of another origin caused is 403, even with a valid key."""
    assert gateway.post(Producer().metrics(), **headers).status == 403
    assert gateway.request("GET", "/api/v1/runs/a/b", **headers).status == 403


def test_our_own_pages_may(gateway: GatewayProcess) -> None:
    """The server's own origin is let through."""
    origin = f"http://127.0.0.1:{gateway.port}"

    assert gateway.post(Producer().metrics(), Origin=origin, Sec_Fetch_Site="same-origin").status == 200


def test_a_public_host_is_answered(tmp_path: Path) -> None:
    """A name given at the start is one the server goes by."""
    with running_gateway(tmp_path, "--public-host", "Ice.Example") as running:
        assert running.request("GET", "/healthz", Host="ice.example:443").status == 200
        assert running.request("GET", "/healthz", Host="other.example").status == 403


def test_answers_carry_security_headers(gateway: GatewayProcess) -> None:
    """Every answer forbids sniffing, framing and referrers."""
    for path in ("/healthz", "/nowhere"):
        headers = gateway.request("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"


# ----------------------------------------------------------------------------------------------------- operations


def test_ready_says_what_is_missing(gateway: GatewayProcess) -> None:
    """Without a store /readyz is 503 and names the part; log and identities are fine."""
    answer = gateway.request("GET", "/readyz")

    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json["parts"] == {"log": "ok", "identities": "ok", "store": "the store cannot be reached"}


def test_metrics_count_what_happened(own_gateway: GatewayProcess) -> None:
    """/metrics needs no key, counts requests by code, events and bytes, and names no user, run or key."""
    body = Producer().metrics()
    own_gateway.post(body)
    own_gateway.post(b"nonsense")
    text = own_gateway.request("GET", "/metrics").body.decode()

    assert 'icecore_requests_total{code="accepted"} 1' in text
    assert 'icecore_requests_total{code="bad_request"} 1' in text
    assert 'icecore_events_total{stream="metrics"} 1' in text
    assert f"icecore_accepted_bytes_total {len(body)}" in text
    assert 'icecore_append_seconds_count{stream="metrics"} 1' in text
    assert "owner" not in text
    assert RUN not in text


def test_sigterm_answers_what_is_in_flight_and_exits_0(own_gateway: GatewayProcess) -> None:
    """A request half sent when SIGTERM comes is still taken; new connections are not; the exit code is 0."""
    body = Producer().metrics()
    with socket.create_connection(("127.0.0.1", own_gateway.port), timeout=20) as connection:
        connection.sendall(own_gateway.head(len(body)) + body[:-5])
        wait_until(lambda: own_gateway.metric("icecore_in_flight_requests") == 1, what="the request in flight")
        assert own_gateway.process is not None
        own_gateway.process.terminate()

        def refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", own_gateway.port), timeout=1).close()
            except OSError:
                return True
            return False

        wait_until(refused, what="a closed port")
        connection.sendall(body[-5:])
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
    assert own_gateway.process.wait(20) == 0
    assert len(own_gateway.records(METRICS)) == 1


def test_a_taken_port_is_said(gateway: GatewayProcess, tmp_path: Path) -> None:
    """Starting on a port in use ends with code 2 and one JSON line that says so."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "icecore_ingest.gateway", "--data", str(tmp_path), "--port", str(gateway.port)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL)

    assert done.returncode == 2
    assert "expected to listen" in orjson.loads(done.stderr)["message"]
    assert done.stdout == b""


def test_the_process_is_small() -> None:
    """The gateway imports none of the heavy libraries of the store."""
    import subprocess
    import sys

    code = "import sys, icecore_ingest.gateway_process; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert not {"duckdb", "pyarrow", "numpy", "fastapi", "starlette", "pandas"} & set(done.stdout.split())


def test_no_internal_error_happened(gateway: GatewayProcess) -> None:
    """After all the hostile requests above, not one ended in the last resort."""
    assert gateway.metric("icecore_internal_errors_total") == 0
    assert not [line for line in gateway.stderr if "Traceback" in line]
