"""Everything that is not the event path, passed on to the store over its socket, streaming both ways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from icecore.errors import StoreLost, Unavailable
from icecore_ingest.answers import Headers, Receive, Scope, Send
from icecore_ingest.metric_defs import Metrics

HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade expect".split()
)
FORWARDING: Final = frozenset(b"forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip".split())
"""Only we may say where a request came from."""

CHUNK_BYTES: Final = 1 << 20
_CONNECT_S: Final = 5.0
_CONNECTIONS: Final = 256


class ClientGone(Exception):
    """The client closed its connection before it was answered."""


class Proxy:
    """Passes requests to the store. One for each process; its connections are kept and used again.

    The store is a Unix socket on one machine, and an address (http://HOST:PORT) in a cluster.

    Bodies are not looked at, kept or changed, headers of one hop are left out, redirects and cookies are the
    client's business. The client going away cancels what the store is doing for it.
    """

    def __init__(self, store: Path | str, metrics: Metrics) -> None:
        self._socket = store if isinstance(store, Path) else None
        self._origin = "http://store" if isinstance(store, Path) else store.rstrip("/")
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()

    async def reachable(self, within: float) -> str:
        """Empty where the store answers; else why not."""
        try:
            timeout = aiohttp.ClientTimeout(total=within)
            url = URL(self._origin + "/healthz")
            async with self._client().get(url, timeout=timeout, allow_redirects=False) as answer:
                return "" if answer.status < 500 else f"the store answers {answer.status}"
        except TimeoutError:
            return f"the store did not answer within {within:g} s"
        except (aiohttp.ClientError, OSError):
            return "the store cannot be reached"

    @property
    def beside(self) -> bool:
        """Whether the store is on this machine, for nobody else to ask."""
        return self._socket is not None

    async def metrics(self, within: float) -> bytes:
        """What the store shows at /metrics; nothing where it does not answer in time."""
        try:
            url = URL(self._origin + "/metrics")
            timeout = aiohttp.ClientTimeout(total=within)
            async with self._client().get(url, timeout=timeout, allow_redirects=False) as answer:
                return await answer.read() if answer.status == 200 else b""
        except (TimeoutError, aiohttp.ClientError, OSError):
            return b""

    async def forward(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Pass one request on and its answer back.

        Raises:
            Unavailable: the store cannot be reached; nothing was done.
            StoreLost: it went away before it answered.
            ClientGone: the client did.
        """
        body = _Body(receive)
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        task = asyncio.ensure_future(self._exchange(scope, body if has_body else None, send))
        gone = asyncio.ensure_future(body.client_gone(wait_for_body=has_body))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._metrics.add("icecore_proxy_errors_total", label="client_gone")
                raise ClientGone
            task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _exchange(self, scope: Scope, body: _Body | None, send: Send) -> None:
        query = scope["query_string"]
        path = (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1")
        answered = False
        try:
            async with self._client().request(
                scope["method"],
                URL(self._origin + path, encoded=True),
                headers=_request_headers(scope),
                data=None if body is None else body.chunks(),
                allow_redirects=False,
            ) as answer:
                answered = True
                self._metrics.add("icecore_proxied_total", label=f"{answer.status // 100}xx")
                await _pass_back(answer, scope["method"], send)
        except aiohttp.ClientConnectorError as error:
            self._metrics.add("icecore_proxy_errors_total", label="unreachable")
            raise Unavailable(
                "expected the store to answer, but it is starting or restarting",
                hint="try again in a moment; icecore status says more",
                retry_after=1,
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            self._metrics.add("icecore_proxy_errors_total", label="cut" if answered else "lost")
            raise StoreLost(
                "expected an answer from the store, but it went away before it gave one",
                hint="what was asked for may have been done or not: look, then try again",
            ) from error

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=CHUNK_BYTES,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                max_line_size=64 * 1024,
                max_field_size=64 * 1024,
            )
        return self._session

    def _connector(self) -> aiohttp.BaseConnector:
        if self._socket is None:
            return aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=30)
        return aiohttp.UnixConnector(path=str(self._socket), limit=_CONNECTIONS, keepalive_timeout=30)


class _Body:
    """A request's body as it comes, and after it the news that the client is gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = asyncio.Event()
        self._gone = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone.set()
                await asyncio.Event().wait()  # cancelled with the exchange
            if chunk := message.get("body", b""):
                yield chunk
            if not message.get("more_body", False):
                self._read.set()
                return

    async def client_gone(self, *, wait_for_body: bool) -> None:
        """Return once the client has closed its connection."""
        if wait_for_body:
            read, gone = (asyncio.ensure_future(event.wait()) for event in (self._read, self._gone))
            try:
                await asyncio.wait({read, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                read.cancel()
                gone.cancel()
            if self._gone.is_set():
                return
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _request_headers(scope: Scope) -> CIMultiDict[str]:
    dropped = HOP_BY_HOP | FORWARDING | _named_by_connection(scope["headers"])
    headers = CIMultiDict(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if name not in dropped
    )
    if scope.get("client"):
        headers["X-Forwarded-For"] = scope["client"][0]
    return headers


def _named_by_connection(headers: list[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Headers that the sender calls its own connection's. What decides who asks cannot be named away."""
    named = {part.strip().lower() for name, value in headers if name == b"connection" for part in value.split(b",")}
    return frozenset(named - {b"host", b"authorization", b"cookie", b"origin", b"content-length", b"content-encoding"})


async def _pass_back(answer: aiohttp.ClientResponse, method: str, send: Send) -> None:
    headers = [(name.lower(), value) for name, value in answer.raw_headers]
    dropped = HOP_BY_HOP | _named_by_connection(headers)
    kept = [(name, value) for name, value in headers if name not in dropped and name not in {b"date", b"server"}]
    await send({"type": "http.response.start", "status": answer.status, "headers": kept})
    if method != "HEAD":
        async for chunk in answer.content.iter_any():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
