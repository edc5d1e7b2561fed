"""The network between clients and gateways: it loses, delays, doubles and cuts off, and never says which."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from urllib3 import HTTPHeaderDict

from icecore.testing.simulation import Process, SimLoop
from icecore_ingest.answers import App
from simulation.faults import Faults

READ_TIMEOUT_S = 30.0


@dataclass
class Response:
    """An answer, as the client's transport reads it."""

    status: int
    data: bytes
    headers: HTTPHeaderDict = field(default_factory=HTTPHeaderDict)


class Listener(Protocol):
    """A gateway that may be there or not."""

    name: str
    app: App

    @property
    def process(self) -> Process | None:
        """What listens; None while nothing does."""
        ...

    seen: Callable[[str], Callable[[int], None]]
    """Told when a request with a key begins; what it gives back is told the answer's status."""


class Network:
    """Carries requests to one of `gateways`, and answers back.

    Args:
        loop: its timers are the network's own.
        gateways: behind one address; a request goes to any of them.
        faults: how often what goes wrong.
        chance: decides.
    """

    def __init__(self, loop: SimLoop, gateways: Sequence[Listener], faults: Faults, chance: random.Random) -> None:
        self._loop = loop
        self._gateways = gateways
        self._faults = faults
        self._chance = chance
        self.cut: set[str] = set()
        """Names of clients and gateways that are cut off."""
        self.closed = False
        """Whatever is still on its way is lost."""
        self.requests = 0

    async def post(self, client: str, key: str, body: bytes) -> Response:
        """One request of a client.

        Raises:
            OSError: no answer came.
        """
        self.requests += 1
        future: asyncio.Future[Response] = self._loop.create_future()
        gateway = self._chance.choice(self._gateways)
        if client in self.cut or self._hit(self._faults.request_lost):
            self._answer(future, None, self._chance.choice([0.1, READ_TIMEOUT_S]))
        else:
            self._deliver(future, client, gateway, key, body)
            if self._hit(self._faults.doubled):
                other = self._chance.choice(self._gateways)
                later = self._chance.choice([0.0, 1.0, 40.0]) * self._chance.random()
                self._loop.call_outside(later, self._deliver, None, client, other, key, body)
        if self._hit(self._faults.bad_gateway):
            self._answer(future, Response(502, b"<html>"), self._faults.network_s)
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise ConnectionError("read timed out") from None

    def _deliver(
        self, future: asyncio.Future[Response] | None, client: str, gateway: Listener, key: str, body: bytes
    ) -> None:
        delay = self._faults.network_s * self._chance.expovariate(1.0)
        self._loop.call_outside(delay, self._arrive, future, client, gateway, key, body)

    def _arrive(
        self, future: asyncio.Future[Response] | None, client: str, gateway: Listener, key: str, body: bytes
    ) -> None:
        if gateway.process is None or gateway.name in self.cut or self.closed:
            self._answer(future, None, 0.01)
            return
        reply = lambda response: self._reply(future, {client, gateway.name}, response)  # noqa: E731
        exchange = _Exchange(gateway, key, body, self._chance, cut_short=self._hit(self._faults.cut_short))
        gateway.process.spawn(exchange.serve(reply), "request")

    def _reply(self, future: asyncio.Future[Response] | None, names: set[str], response: Response) -> None:
        if names & self.cut or self._hit(self._faults.answer_lost):
            return
        self._answer(future, response, self._faults.network_s * self._chance.expovariate(1.0))

    def _answer(self, future: asyncio.Future[Response] | None, response: Response | None, delay: float) -> None:
        if future is not None:
            self._loop.call_outside(delay, _settle, future, response)

    def _hit(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability


def _settle(future: asyncio.Future[Response], response: Response | None) -> None:
    if future.done():
        return
    if response is None:
        future.set_exception(ConnectionError("connection refused"))
    else:
        future.set_result(response)


class _Exchange:
    """One request as the gateway's application sees it."""

    def __init__(self, gateway: Listener, key: str, body: bytes, chance: random.Random, *, cut_short: bool) -> None:
        self._gateway = gateway
        self._key = key
        self._chance = chance
        zipped = chance.random() < 0.3
        wire = gzip.compress(body, 1, mtime=0) if zipped else body
        self._headers = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + key.encode())]
        if zipped:
            self._headers.append((b"content-encoding", b"gzip"))
        if chance.random() < 0.8:
            self._headers.append((b"content-length", b"%d" % len(wire)))
        else:
            self._headers.append((b"transfer-encoding", b"chunked"))
        size = len(wire) // chance.randint(1, 3) + 1
        self._chunks = [wire[at : at + size] for at in range(0, len(wire), size)]
        if cut_short:
            self._chunks.pop()
        self._cut_short = cut_short
        self._status = 0
        self._answer_headers = HTTPHeaderDict()
        self._body = b""

    async def serve(self, reply: Any) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/v1/events",
            "raw_path": b"/api/v1/events",
            "query_string": b"",
            "headers": self._headers,
        }
        answered = self._gateway.seen(self._key)
        await self._gateway.app(scope, self._receive, self._send)
        if self._status:
            answered(self._status)
            reply(Response(self._status, self._body, self._answer_headers))

    async def _receive(self) -> dict[str, Any]:
        if self._chance.random() < 0.3:
            await asyncio.sleep(0.02 * self._chance.random())
        if self._chunks:
            chunk = self._chunks.pop(0)
            more = bool(self._chunks) or self._cut_short
            return {"type": "http.request", "body": chunk, "more_body": more}
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._answer_headers = HTTPHeaderDict({name.decode(): value.decode() for name, value in message["headers"]})
        else:
            self._body += message.get("body", b"")
