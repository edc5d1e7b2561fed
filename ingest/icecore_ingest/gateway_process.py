"""The gateway as a process: its socket, its signals, its end."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from icecore import journal, tracing
from icecore.errors import IcecoreError
from icecore.journal import say
from icecore.lifeline import end_with_parent
from icecore_ingest.gateway import Gateway, GatewaySettings, create_app
from icecore_ingest.identities import Identities
from icecore_ingest.logs.opening import open_log
from icecore_ingest.serving import BACKLOG, DRAIN_S, Server, collect_seldom, listen, quiet_uvicorn

HEAD_BYTES: Final = 64 * 1024
"""The longest request line and headers together."""
KEEP_ALIVE_S: Final = 75
EXIT_POISONED: Final = 75
_LARGE_BYTES: Final = 64 * 1024
_SWEEP_S: Final = 5.0


class Joining:
    """A transport that sends the pieces of one turn of the event loop together.

    An answer's head and body are written apart; a system call for each is a sixth of what a small request costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Hold small pieces until the loop's turn ends; send large ones at once."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        if len(data) >= _LARGE_BYTES:
            self._flush()

    def close(self) -> None:
        """Close after what is held is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            if not self._transport.is_closing():
                self._transport.writelines(held)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's."""
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """The protocol of uvicorn, with a bound on what comes around a request's body: its parser has none."""

    _head_open = False
    _head_bytes = 0
    _got_on = False
    _beside_bytes = 0
    """Bytes in a row that were no part of a body: extensions of chunks, trailers. The parser keeps them."""
    head_since = 0.0
    """When a head was begun that has not come in full; 0 between heads."""
    data_last = 0.0
    """When the client last sent anything."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected: the time for its first head runs."""
        super().connection_made(transport)
        self.transport = Joining(transport, self.loop)  # type: ignore[assignment]
        self.head_since = self.loop.time()

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        super().on_message_begin()
        self._head_open, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """The last byte of a head."""
        self._head_open, self.head_since = False, 0.0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        self._got_on = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.data_last = self.loop.time()
        self._got_on = False
        super().data_received(data)
        self._beside_bytes = 0 if self._got_on or self._head_open else self._beside_bytes + len(data)
        if self._beside_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.close()
        if self._head_open:
            self._head_bytes += len(data)
            self.head_since = self.head_since or self.loop.time()
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"expected a request head of at most {HEAD_BYTES} bytes")

    def stalled(self, now: float, pause_s: float) -> bool:
        """Whether the client has begun a head or body and stopped sending it; not while we are the slow side."""
        if self.head_since:
            return now - self.head_since > pause_s
        reading = self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete
        return reading and not self.flow.read_paused and now - self.data_last > pause_s


class GatewayServer(Server):
    """The server, which also gives up clients that never finish what they began."""

    async def sweep(self, gateway: Gateway, pause_s: float) -> None:
        """Close connections that stalled, and count the others, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            gateway.metrics.put("icecore_connections", len(self.server_state.connections))
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection) and connection.stalled(loop.time(), pause_s):
                    connection.transport.close()
            await asyncio.sleep(min(_SWEEP_S, pause_s / 2))


@dataclass(frozen=True, slots=True)
class Places:
    """Where a gateway works: its folder, its log, its store."""

    data: Path
    """For the snapshot of identities; with an embedded log also that, and the store's socket."""
    log: str = ""
    """A folder or kafka://…; without it DATA/log."""
    store: str = ""
    """The store's address, http://HOST:PORT; without it the socket in DATA/run."""


async def serve(places: Places, listener: socket.socket, settings: GatewaySettings) -> int:
    """Serve until SIGTERM; answers the exit code.

    One line of JSON goes to stdout when ready: `{"ready": true, "port": N, "pid": N}`.

    Raises:
        LogError: the log cannot be opened.
    """
    data = places.data
    log = await open_log(places.log or data / "log")
    tasks: list[asyncio.Task[Any]] = []
    exits: list[int] = []
    server: GatewayServer | None = None

    def poisoned() -> None:
        say("the log failed and must be reopened: ending, to be started again", "error")
        exits.append(EXIT_POISONED)
        if server is not None:
            server.config.timeout_graceful_shutdown = 1
            server.stop()

    try:
        identities = await Identities.open(log, data / "run" / "identities.json")
        app, gateway, proxy = create_app(
            log,
            identities,
            store=places.store or data / "run" / "store.sock",
            settings=settings,
            poisoned=poisoned,
        )
        server = _server(app)
        tasks = [asyncio.create_task(identities.follow()), asyncio.create_task(server.sweep(gateway, settings.pause_s))]
        await server.serve(sockets=[listener])
        await proxy.close()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not exits:
            await log.close()
    return exits[0] if exits else 0


def _server(app: Any) -> GatewayServer:
    quiet_uvicorn()
    return GatewayServer(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            backlog=BACKLOG,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see `icecore_ingest.gateway`. Answers the exit code: 0 after SIGTERM, 2 for bad settings."""
    parser = argparse.ArgumentParser(prog="python -m icecore_ingest.gateway", description="icecore's gateway")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--log", default="", help="the log: a folder or kafka://…; by default DATA/log")
    parser.add_argument("--store", default="", help="the store's address; by default the socket in DATA/run")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=0, help="the port; 0 picks a free one")
    parser.add_argument("--fd", type=int, help="a listening socket to use; the process ends when its stdin does")
    parser.add_argument("--public-host", action="append", default=[], help="a name this server may be called by")
    default = GatewaySettings()
    parser.add_argument("--in-flight-bytes", type=int, default=default.in_flight_bytes)
    parser.add_argument("--in-flight-bytes-per-key", type=int, default=default.in_flight_bytes_per_key)
    parser.add_argument("--pause-s", type=float, default=default.pause_s)
    given = parser.parse_args(arguments)
    settings = GatewaySettings(
        public_hosts=frozenset(name.lower() for name in given.public_host),
        in_flight_bytes=given.in_flight_bytes,
        in_flight_bytes_per_key=given.in_flight_bytes_per_key,
        pause_s=given.pause_s,
    )
    try:
        journal.begin("gateway")
        if why := tracing.begin("gateway"):
            say("no traces", "warning", why=why)
        if given.fd is None:
            listener = listen(given.host, given.port)
        else:
            listener = socket.socket(fileno=given.fd)
            end_with_parent()
        listener.setblocking(False)  # noqa: FBT003 - the library's signature
        (given.data / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        collect_seldom()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(serve(Places(given.data, given.log, given.store), listener, settings))
    except IcecoreError as error:
        say("cannot start", "error", **error.body()["error"])
        return 2
    if code:
        os._exit(code)  # nothing of a poisoned log is worth waiting for
    return code
