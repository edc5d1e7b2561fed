"""Names resolved and aliases moved over HTTP, by clients that cost little themselves."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import orjson

from benchmarks.results import Result
from benchmarks.server import Served
from icecore.artifact_events import AliasMoved, ArtifactCommitted
from icecore.events import now_ms
from icecore_api.context import Principal
from icecore_api.folding import Folding
from icecore_api.submit import Commands, Rejected
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_ingest.metric_defs import Metrics

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
        Result(
            f"alias moves with expectation, {CLIENTS} clients",
            apart[0] / apart[2],
            "/s",
            limit_by="HTTP: two processes",
        ),
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
        follow = all(before == after for (_, after), (before, _) in itertools.pairwise(chain))
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


def embedded(moves: int) -> list[Result]:
    """The same by 50 tasks of the store's process: the log, the fold and the store, without HTTP."""
    return [asyncio.run(_embedded(moves))]


async def _embedded(moves: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="icecore-bench-") as name:
        log = SQLiteLog.open(Path(name) / "log")
        folding = Folding(Path(name), Path(name) / "log", say=lambda _: None, metrics=Metrics("store"))
        await folding.start()
        try:
            context: Any = SimpleNamespace(
                log=log, store=folding.store, producer=str(uuid.uuid4()), clock_ms=now_ms, wait_within_s=120.0
            )
            commands, who = Commands(context), cast("Principal", SimpleNamespace(user="ada", credential="key"))
            for digest in ("a" * 64, "b" * 64):
                made_it = ArtifactCommitted(artifact="e/p/m", type="model", digest=digest, files=1, size=1)
                await commands.submit(who, [made_it])
            began, cpu = time.perf_counter(), time.process_time()
            made = await asyncio.gather(*(_embedded_mover(commands, who, moves // CLIENTS) for _ in range(CLIENTS)))
            rate, cpu = moves / (time.perf_counter() - began), time.process_time() - cpu
            query = "SELECT version_before, version FROM alias_moves WHERE alias = 'ours' ORDER BY off"
            chain = folding.store.cursor().execute(query).fetchall()
        finally:
            folding.stop()
            await log.close()
    if len(chain) != sum(made) or any(a[1] != b[0] for a, b in itertools.pairwise(chain)):
        raise RuntimeError(f"expected {sum(made)} moves, each from where the last one led, got {len(chain)}")
    note = f"{cpu / moves * 1000:.2f} ms of CPU each, of which {sum(made)} moved it; fsync and commit"
    name = f"the same within the store's process, all {CLIENTS} with one alias: decided"
    return Result(name, rate, "/s", 500, "at least", note)


async def _embedded_mover(commands: Commands, who: Principal, attempts: int) -> int:
    expected, made = None, 0
    for _ in range(attempts):
        wanted = 1 if expected == 0 else 0
        move = AliasMoved(artifact="e/p/m", alias="ours", version=wanted, expected=expected, conditional=True)
        try:
            await commands.submit(who, [move])
        except Rejected as refused:
            found = refused.message.rpartition("found ")[2]
            expected = None if found == "no version" else int(found.removeprefix("v"))
        else:
            made, expected = made + 1, wanted
    return made
