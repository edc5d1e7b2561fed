"""The lines between the processes of a topology, each of which can be cut, slowed and healed.

Every port of a topology is reached through a `Line`, a TCP proxy that looks up which process opened each connection.
So the line between any two processes can be cut while all others stay, on one machine and without being root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import uvloop

Cut = Literal["silent", "deaf", "mute", "reset"]
"""How a line is cut: nothing passes at all; only requests get lost; only answers do; or every connection is reset."""
CUTS: tuple[Cut, ...] = ("silent", "deaf", "mute", "reset")
ELSE = "client"
"""The name of whoever is no process of the topology: writers and clients."""
PIECE = 1 << 16
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
"""Of one connection."""


@dataclass
class Weather:
    """What the network does to what goes from one process to another's port."""

    cut: Cut | None = None
    delay_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def stalls(self, *, answer: bool) -> bool:
        """Whether bytes of this direction are held back: as on a real network, they come again when it heals."""
        return self.cut == "silent" or self.cut == ("mute" if answer else "deaf")


@dataclass
class Line:
    """The way to one port of one process; `port` is what the others are told."""

    to: str
    port: int
    upstream: int = 0


class Lines:
    """All lines of a topology, served by one thread.

    Args:
        owners: the pids of the topology's processes by name, as they are now.
    """

    def __init__(self, owners: Callable[[], Mapping[str, int]]) -> None:
        self._owners = owners
        self._weather: dict[tuple[str, str], Weather] = {}
        self.seen: Counter[tuple[str, str]] = Counter()
        """How many connections each process has opened to each other one."""
        self._open: dict[asyncio.StreamWriter, tuple[str, str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = uvloop.new_event_loop()  # all that a topology says to itself passes here
        self._thread = threading.Thread(target=self._loop.run_forever, name="lines", daemon=True)
        self._thread.start()

    def to(self, name: str) -> Line:
        """A new line to the process `name`; its `upstream` may be set later."""
        line = Line(to=name, port=0)
        line.port = self._ask(self._listen(line))
        return line

    def cut(self, one: str, other: str, how: Cut) -> None:
        """Cut the line between two processes, whichever of them opened it."""
        self._change(one, other, cut=how)

    def slow(self, one: str, other: str, delay_s: float) -> None:
        """Let everything between two processes take `delay_s` longer in each direction."""
        self._change(one, other, delay_s=delay_s)

    def heal(self) -> None:
        """All lines are as they should be; what was held back arrives now."""

        async def heal() -> None:
            for weather in self._weather.values():
                weather.cut, weather.delay_s = None, 0.0
                weather.changed.set()

        self._ask(heal())

    def close(self) -> None:
        """End every connection and the thread."""

        async def end() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._ask(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --------------------------------------------------------------------------------------------- in the thread

    def _ask(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _change(self, one: str, other: str, **how: Any) -> None:
        async def change() -> None:
            for way in ((one, other), (other, one)):
                weather = self._between(*way)
                for name, value in how.items():
                    setattr(weather, name, value)
                weather.changed.set()
                if weather.cut == "reset":
                    for writer in [w for w, ends in self._open.items() if ends == way]:
                        writer.transport.abort()

        self._ask(change())

    def _between(self, source: str, to: str) -> Weather:
        return self._weather.setdefault((source, to), Weather())

    async def _listen(self, line: Line) -> int:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            try:
                await self._carry(line, reader, writer)
            except (OSError, asyncio.CancelledError):
                pass
            finally:
                self._open.pop(writer, None)
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=PIECE, backlog=256)
        task = asyncio.create_task(_until_cancelled(server))
        self._tasks.add(task)
        return int(server.sockets[0].getsockname()[1])

    async def _carry(self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # the other end first: clients of a dead process try again and again, and who they are takes a look at /proc
        there, back = await asyncio.open_connection("127.0.0.1", line.upstream, limit=PIECE)
        try:
            await self._join(line, (reader, writer), (there, back))
        finally:
            back.transport.abort()

    async def _join(self, line: Line, one: Ends, other: Ends) -> None:
        """Carry between two connections what the weather between their processes lets through."""
        (reader, writer), (there, back) = one, other
        port = writer.get_extra_info("peername")[1]
        source = await asyncio.to_thread(whose, port, self._owners())
        weather = self._between(source, line.to)
        self.seen[source, line.to] += 1
        self._open[writer] = (source, line.to)
        if weather.cut == "reset":
            return
        pumps = [
            asyncio.create_task(_pump(reader, back, weather, answer=False)),
            asyncio.create_task(_pump(there, writer, weather, answer=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, weather: Weather, *, answer: bool) -> None:
    """Carry bytes one way until an end is gone."""
    while piece := await reader.read(PIECE):
        if weather.delay_s:
            await asyncio.sleep(weather.delay_s)
        while weather.stalls(answer=answer):
            weather.changed.clear()
            await weather.changed.wait()
        writer.write(piece)
        await writer.drain()


async def _until_cancelled(server: asyncio.Server) -> None:
    try:
        await server.serve_forever()
    finally:
        with contextlib.suppress(Exception):
            server.close()


def whose(port: int, owners: Mapping[str, int]) -> str:
    """The name of the process that has this local port, or `ELSE`."""
    if not _TABLES[0].exists():
        return _whose_elsewhere(port, owners)
    end = f":{port:04X}"
    lines = (line for table in _TABLES for line in table.read_text("ascii").splitlines())
    rows = [line.split() for line in lines if end in line]  # the few with that number anywhere
    links = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(end)}
    for name, pid in owners.items():
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(descriptor.path) in links:  # noqa: PTH115 - thousands a second
                        return name
    return ELSE


_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""Linux's connections (Java's are in the second one): asking psutil is five times the work, for each connection."""


def _whose_elsewhere(port: int, owners: Mapping[str, int]) -> str:
    for name, pid in owners.items():
        with contextlib.suppress(psutil.Error):
            if any(c.laddr and c.laddr.port == port for c in psutil.Process(pid).net_connections("tcp")):
                return name
    return ELSE
