"""The gateway: it owns the port, takes events into the log, and passes everything else to the store.

    python -m icecore_ingest.gateway --data DIR [--log LOG] [--store URL] [--host H] [--port N | --fd N] …

The event path is short on purpose: authenticate, hold the request's bytes, read, decompress, `admit`, append, answer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from icecore import tracing
from icecore.errors import BadRequest, IcecoreError, LogAway, LogError, LogFull, LogPoisoned, NotFound, TooLarge
from icecore.events import now_ms
from icecore.limits import most
from icecore.log import EventLog, Record
from icecore.position import LEDGER, METRICS, Position, Token
from icecore_ingest.admit import Admitted, Sender, admit
from icecore_ingest.answers import (
    TEXT,
    App,
    Headers,
    Receive,
    Scope,
    Send,
    answer,
    answer_error,
    content_length,
)
from icecore_ingest.decompress import decompress
from icecore_ingest.flow import MB, Flow, Hold
from icecore_ingest.identities import PLACE, Identities
from icecore_ingest.metric_defs import LOG_TROUBLES, Metrics
from icecore_ingest.proxy import ClientGone, Proxy
from icecore_ingest.requests import Requests, Watched
from icecore_ingest.security import Security, SecurityPolicy

EVENTS_PATH: Final = "/api/v1/events"
KEYS_PATH: Final = "/api/v1/keys"
_KNOWN_WITHIN_S: Final = 5.0
"""How long an answer about keys waits for this process to know of them."""
_LOG_TROUBLE_S: Final = 10.0
"""How long a failed append makes the gateway not ready, unless another succeeds."""
_DRAIN_S: Final = 2.0
_RETRY_AFTER_S: Final[dict[type[LogError], int]] = {LogFull: 10}


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What can be chosen when a gateway is started."""

    public_hosts: frozenset[str] = field(default_factory=frozenset)
    """Names besides the loopback ones under which it may be called; `*` takes every name."""
    in_flight_bytes: int = 64 * MB
    in_flight_bytes_per_key: int = 32 * MB
    body_total_s: float = 600.0
    """A body that has not come in full after so long is given up."""
    pause_s: float = 30.0
    """A client that has begun a request and sends nothing for so long loses its connection."""
    ready_within_s: float = 1.0
    """How long /readyz waits for the store."""
    metrics_within_s: float = 3.0
    """How long /metrics waits for the store's: it may wait a second for the log itself."""


class Gateway:
    """The application behind `create_app`'s checks. Used from one event loop."""

    def __init__(
        self,
        log: EventLog,
        identities: Identities,
        proxy: Proxy,
        metrics: Metrics,
        settings: GatewaySettings,
        poisoned: Callable[[], None],
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self._clock = clock
        self.flow = Flow(settings.in_flight_bytes, settings.in_flight_bytes_per_key)
        self.metrics = metrics
        self._log = log
        self._identities = identities
        self._proxy = proxy
        self._settings = settings
        self._poisoned = poisoned
        self._log_trouble = ("", 0.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What goes wrong becomes an error body; `Requests`, around this, has the last word."""
        state = _Exchange(send)
        try:
            headers: Headers = dict(scope["headers"])
            match scope["path"]:
                case "/api/v1/events":
                    await self._events(scope, headers, receive, state.send)
                case "/healthz":
                    await answer(state.send, 200, b'{"ok":true}')
                case "/readyz":
                    await self._ready(state.send)
                case "/metrics":
                    await self._metrics(state.send)
                case path if path.startswith(KEYS_PATH):
                    await self._proxy.forward(scope, headers, receive, self._known_here(state.send))
                case _:
                    await self._proxy.forward(scope, headers, receive, state.send)
        except ClientGone:
            return
        except IcecoreError as error:
            if not state.started:  # else only cutting the connection can tell the client
                await answer_error(send, error)

    # --------------------------------------------------------------------------------------------- the event path

    async def _events(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                raise _MethodNotAllowed(f"expected POST {EVENTS_PATH}, got {scope['method']}")
            body, token = await self._take(headers, receive)
        except IcecoreError as error:
            self.metrics.add("icecore_requests_total", label=error.code)
            if _unread_is_large(headers):
                await _answer_and_drain(send, receive, error)
            else:
                await answer_error(send, error, _ALLOW_POST if isinstance(error, _MethodNotAllowed) else ())
            if isinstance(error, LogPoisoned):
                self._poisoned()
            return
        self.metrics.add("icecore_requests_total", label="accepted")
        await answer(send, 200, body, ((b"icecore-position", token),))

    async def _take(self, headers: Headers, receive: Receive) -> tuple[bytes, bytes]:
        """From a request to its answer's body and token: only once its records are durable."""
        caller = self._identities.authenticate(headers.get(b"authorization"), headers.get(b"cookie"))
        declared = content_length(headers)
        if declared is not None and declared > most("request_bytes"):
            raise _too_large(declared)
        with self.flow.hold(caller.credential, declared or 0) as hold:
            wire = await self._read_body(receive, declared, hold)
            encoding = headers.get(b"content-encoding")
            plain = wire if encoding is None else decompress(wire, encoding.decode("latin-1"))
            sender = Sender(caller.user, caller.credential, tracing.sampled())
            with tracing.maybe_span("icecore.admit"):
                admitted = admit(plain, sender, self._clock())
            positions = await self._append(admitted)
            self.metrics.add("icecore_received_bytes_total", len(wire))
            self.metrics.add("icecore_accepted_bytes_total", len(plain))
        token = str(Token.after(positions))
        body = orjson.dumps({"token": token, "positions": [tuple(position) for position in positions]})
        return body, token.encode()

    async def _read_body(self, receive: Receive, declared: int | None, hold: Hold) -> bytes:
        """The body as sent. What was not declared is held as it comes."""
        parts: list[bytes] = []
        size = 0
        deadline = time.monotonic() + self._settings.body_total_s
        while True:
            message = await receive()  # the server closes connections whose body stops coming
            if message["type"] == "http.disconnect":
                raise ClientGone
            if time.monotonic() > deadline:
                raise BadRequest(
                    f"expected the whole body within {self._settings.body_total_s:.0f} s, got {size} bytes",
                    hint="send smaller requests",
                )
            if part := message.get("body", b""):
                size += len(part)
                if size > most("request_bytes"):
                    raise _too_large(size)
                if declared is None:
                    hold.grow(len(part))
                parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _append(self, admitted: Sequence[Admitted]) -> list[Position]:
        """Append to each stream at once; positions are in the order of `admitted`.

        Where only one stream takes its part the request has failed. The client sends all of it again, and what is
        there already is dropped by (producer, seq).
        """
        streams = {one.stream for one in admitted}
        if len(streams) == 1:
            return await self._append_to(admitted[0].stream, [one.record for one in admitted])
        found = {}
        for stream in (LEDGER, METRICS):
            positions = await self._append_to(stream, [one.record for one in admitted if one.stream == stream])
            found[stream] = iter(positions)
        return [next(found[one.stream]) for one in admitted]

    async def _append_to(self, stream: str, records: list[Record]) -> list[Position]:
        began = time.perf_counter()
        try:
            with tracing.maybe_span("icecore.append", stream=stream, records=len(records)):
                positions = await self._log.append(stream, records)
        except LogError as error:
            self._log_trouble = (f"{error.code}: {error.message}", time.monotonic())
            if error.status == 503:
                error.facts.setdefault("retry_after", _RETRY_AFTER_S.get(type(error), 1))
            raise
        self.metrics.observe("icecore_append_seconds", time.perf_counter() - began, stream)
        self.metrics.add("icecore_events_total", len(records), stream)
        if self._log_trouble[0]:
            self._log_trouble = ("", 0.0)
        return positions

    def _known_here(self, send: Send) -> Send:
        """Let an answer about keys go only when this process takes or refuses them as it says."""

        async def pass_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                token = dict(message["headers"]).get(b"icecore-position", b"").decode("latin-1")
                if token:
                    await self._identities.wait_for(Token.parse(token).next_offset(PLACE), _KNOWN_WITHIN_S)
            await send(message)

        return pass_on

    # ------------------------------------------------------------------------------------------------ operations

    async def _ready(self, send: Send) -> None:
        behind, silent = await self._ledger_behind()
        parts = {"log": self._log_state() or silent, "identities": self._identities.trouble or behind}
        parts["store"] = await self._proxy.reachable(self._settings.ready_within_s)
        body = {"ready": not any(parts.values()), "parts": {name: why or "ok" for name, why in parts.items()}}
        headers = () if body["ready"] else ((b"retry-after", b"1"),)
        await answer(send, 200 if body["ready"] else 503, orjson.dumps(body), headers)

    def _log_state(self) -> str:
        if trouble := self._log.trouble:
            return trouble
        why, when = self._log_trouble
        return why if why and time.monotonic() - when < _LOG_TROUBLE_S else ""

    async def _ledger_behind(self) -> tuple[str, str]:
        """What is wrong with how far the identities are, and with the log where it does not say how far it goes."""
        try:
            async with asyncio.timeout(self._settings.ready_within_s):
                behind = (await self._log.end()).next_offset(PLACE) - self._identities.next_offset
        except LogError as error:
            return "", f"{error.code}: {error.message}"
        except TimeoutError:
            return "", f"{LogAway.code}: the log does not say how far it goes"
        return (f"{behind} ledger records behind" if behind > 1_000 else ""), ""

    async def _metrics(self, send: Send) -> None:
        self.metrics.put("icecore_in_flight_bytes", self.flow.bytes)
        self.metrics.put("icecore_in_flight_requests", self.flow.requests)
        self.metrics.put("icecore_refused_total", self.flow.refused_key, "key")
        self.metrics.put("icecore_refused_total", self.flow.refused_all, "all")
        self.metrics.put("icecore_identities_offset", self._identities.next_offset)
        trouble = self._log.trouble.partition(":")[0]
        for state in LOG_TROUBLES:
            self.metrics.put("icecore_log_trouble", float(state == trouble), state)
        of_store = await self._proxy.metrics(self._settings.metrics_within_s)
        self.metrics.put("icecore_store_up", float(bool(of_store)))
        shown = of_store if self._proxy.beside else b""  # in a cluster it is scraped itself
        await answer(send, 200, self.metrics.render() + shown, content_type=TEXT)


class _Exchange:
    """Remembers whether an answer was begun: after that there is no other."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, message: Any) -> None:
        self.started = True
        try:
            await self._send(message)
        except RuntimeError as error:
            if "closed" in str(error):  # what uvloop says when the connection went between two writes
                raise ClientGone from error
            raise


class _MethodNotAllowed(NotFound):
    status = 405
    code = "method_not_allowed"


_ALLOW_POST: Final = ((b"allow", b"POST"),)


def _too_large(size: int) -> TooLarge:
    return TooLarge(
        f"expected a request of at most {most('request_bytes')} bytes, got {size}",
        hint="the limit is `request_bytes` in docs/limits.md; send it as several requests",
        limit="request_bytes",
        most=most("request_bytes"),
        value=size,
    )


def _unread_is_large(headers: Headers) -> bool:
    declared = content_length(headers)
    return declared is None or declared > most("request_bytes")


async def _answer_and_drain(send: Send, receive: Receive, error: IcecoreError) -> None:
    """Answer before the body has come, then close: but read on a little, or the reset would overtake the answer."""
    await answer_error(send, error, ((b"connection", b"close"),), more_body=True)
    drained = 0
    try:
        async with asyncio.timeout(_DRAIN_S):
            while drained < most("request_bytes"):
                message = await receive()
                drained += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def create_app(
    log: EventLog,
    identities: Identities,
    *,
    store: Path | str,
    settings: GatewaySettings | None = None,
    poisoned: Callable[[], None] = lambda: None,
) -> tuple[App, Gateway, Proxy]:
    """The gateway as an ASGI application.

    Args:
        log: where events go.
        identities: who may send them; the caller runs `identities.follow()`.
        store: where the store listens: a Unix socket, or http://HOST:PORT.
        settings: what can be chosen.
        poisoned: called after a request was answered because the log can take no more until reopened.

    Returns:
        The application with its checks, the gateway within, and the proxy, which the caller closes.
    """
    settings = settings or GatewaySettings()
    metrics = Metrics("gateway")
    proxy = Proxy(store, metrics)
    gateway = Gateway(log, identities, proxy, metrics, settings, poisoned)
    watched = Watched.of(os.environ, lambda: metrics.add("icecore_internal_errors_total"))
    return Requests(Security(gateway, SecurityPolicy(settings.public_hosts)), watched), gateway, proxy


if __name__ == "__main__":
    from icecore_ingest.gateway_process import main

    raise SystemExit(main())
