"""Names resolved and aliases moved over HTTP, by clients that cost little themselves."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any, Final

import orjson

from benchmarks.results import Result
from benchmarks.server import Served

CLIENTS: Final = 50


class Connection:
    """One kept connection that speaks as much HTTP as the measurement needs."""

    def __init__(self, served: Served, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._head = f"HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nAuthorization: Bearer {served.key}\r\n"
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, served: Served) -> Connection:
        """Connect."""
        return cls(served, *await asyncio.open_connection("127.0.0.1", served.port))

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        data = b"" if body is None else orjson.dumps(body)
        head = f"{method} /api/v1/{path} {self._head}Content-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(answer[9:12]), orjson.loads(await self._reader.readexactly(length))

    def close(self) -> None:
        """Close it."""
        self._writer.close()


def resolving(served: Served, name: str, rounds: int) -> list[Result]:
    """How long `name:latest` takes, one after another."""
    address = f"artifacts/bench/bench/{name}/latest"

    async def work() -> list[float]:
        connection = await Connection.to(served)
        taken = []
        for _ in range(rounds + 20):
            began = time.perf_counter()
            status, _ = await connection.ask("GET", address)
            taken.append((time.perf_counter() - began) * 1000)
            if status != 200:
                raise RuntimeError(f"expected a version, got {status}")
        connection.close()
        return sorted(taken[20:])

    taken = asyncio.run(work())
    return [
        Result("resolve name:alias over HTTP, p50", statistics.median(taken), "ms", 5, "at most", "gateway and store"),
        Result("… p99", taken[int(len(taken) * 0.99)], "ms"),
    ]


def moving(served: Served, name: str, moves: int) -> list[Result]:
    """Moves with an expectation by 50 clients: each with an alias of its own, then all with one."""
    apart = asyncio.run(_moved(served, name, moves, [f"mine-{number}" for number in range(CLIENTS)]))
    together = asyncio.run(_moved(served, name, moves, ["ours"] * CLIENTS))
    refused = together[1] / (together[0] + together[1])
    return [
        Result(f"alias moves with expectation, {CLIENTS} clients", apart[0] / apart[2], "/s", 500, "at least", "HTTP"),
        Result(
            f"the same, all {CLIENTS} with one alias: decided, none lost",
            (together[0] + together[1]) / together[2],
            "/s",
            limit_by=f"{refused:.0%} were told what they had missed, and asked again",
        ),
    ]


async def _moved(served: Served, name: str, moves: int, aliases: list[str]) -> tuple[int, int, float]:
    """Moves made, moves refused, seconds."""
    connections = [await Connection.to(served) for _ in aliases]
    began = time.perf_counter()
    clients = (_mover(each, name, alias, moves // CLIENTS) for each, alias in zip(connections, aliases, strict=True))
    told = await asyncio.gather(*clients)
    seconds = time.perf_counter() - began
    for alias in set(aliases):
        _, answer = await connections[0].ask("GET", f"artifacts/bench/bench/{name}/aliases/{alias}")
        chain = [(move["before"], move["version"]) for move in reversed(answer["history"])]
        follow = all(before == after for (_, after), (before, _) in zip(chain, chain[1:], strict=False))
        made = sum(count for (count, _), mine in zip(told, aliases, strict=True) if mine == alias)
        if not follow or len(chain) != made:
            raise RuntimeError(f"expected {made} moves, each from where the last one led, got {len(chain)}: {follow}")
    for each in connections:
        each.close()
    return sum(made for made, _ in told), sum(refused for _, refused in told), seconds


async def _mover(connection: Connection, name: str, alias: str, attempts: int) -> tuple[int, int]:
    """Move an alias to and fro, from wherever it is; how often it did, and how often another was first."""
    address, expected, made, refused = f"artifacts/bench/bench/{name}/aliases/{alias}", None, 0, 0
    for _ in range(attempts):
        wanted = "v1" if expected == "v0" else "v0"
        status, answer = await connection.ask("PUT", address, {"version": wanted, "expected": expected})
        if status == 200:
            made, expected = made + 1, wanted
        elif status == 409:
            found = answer["error"]["message"].rpartition("found ")[2]
            refused, expected = refused + 1, None if found == "no version" else found
        else:
            raise RuntimeError(f"expected 200 or 409, got {status}: {answer}")
    return made, refused
