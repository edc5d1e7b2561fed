"""Commands that come together: appended at once, decided one by one, and none of them lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from icecore.artifact_events import AliasMoved, ArtifactCommitted
from icecore.errors import Invalid, LogError
from icecore.events import now_ms
from icecore.log import Record
from icecore.position import LEDGER, Place, Position
from icecore_api.context import Context, Store
from icecore_api.folding import Folding
from icecore_api.submit import Commands, Rejected
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_ingest.metric_defs import Metrics

CLIENTS = 50


@dataclass
class Who:
    """Who asks."""

    user: str = "ada"
    credential: str = "key"


@dataclass
class Log:
    """A log that notes what is appended together, and refuses records of one kind."""

    real: SQLiteLog
    appended: list[int] = field(default_factory=list)
    refused: str = ""
    down: bool = False

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """As the real one."""
        if self.down:
            raise LogError("expected a disk, got none")
        if self.refused and any(self.refused.encode() in record.payload for record in records):
            raise Invalid("expected other records")
        positions = await self.real.append(stream, records)
        self.appended.append(len(records))
        return positions


@dataclass
class Parts:
    """What of a process commands need."""

    log: Log
    store: Store
    producer: str = field(default_factory=lambda: str(uuid.uuid4()))
    wait_within_s: float = 120.0

    def clock_ms(self) -> int:
        """Now."""
        return now_ms()


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Commands, Log, SQLiteLog]]:
    """Commands on a real log that a real runner folds; with one artifact of two versions."""
    real = SQLiteLog.open(folder / "log")
    folding = Folding(folder, folder / "log", say=lambda _: None, metrics=Metrics("store"))
    await folding.start()
    try:
        log = Log(real)
        commands = Commands(cast("Context", Parts(log, folding.store)))
        for digest in ("a" * 64, "b" * 64):
            await commands.submit(Who(), [committed(digest)])
        log.appended.clear()
        yield commands, log, real
    finally:
        folding.stop()
        await real.close()


def committed(digest: str) -> ArtifactCommitted:
    """A version."""
    words: dict[str, Any] = {"description": "", "metadata": {}, "aliases": [], "tags": [], "run": ""}
    return ArtifactCommitted(artifact="e/p/m", type="t", digest=digest, files=1, size=1, **words)


def moved(version: int, expected: int | None, reason: str = "", alias: str = "production") -> AliasMoved:
    """A move that expects something."""
    return AliasMoved(
        artifact="e/p/m", alias=alias, version=version, expected=expected, conditional=True, reason=reason
    )


async def sequence(log: SQLiteLog) -> list[int]:
    """The producer's numbers, as they are in the log."""
    batch = await log.read(Place(LEDGER, 0), 0)
    return [record.envelope.seq for record in batch.records]


def test_no_update_of_fifty_clients_is_lost(tmp_path: Path) -> None:
    """Each moves one alias from what it knows; those that know better win, the others are told what they missed."""

    async def mover(commands: Commands, mine: str) -> int:
        expected, made = None, 0
        for _ in range(8):
            wanted = 1 if expected == 0 else 0
            try:
                await commands.submit(Who(), [moved(wanted, expected, mine)])
            except Rejected as refused:
                found = refused.message.rpartition("found ")[2]
                expected = None if found == "no version" else int(found.removeprefix("v"))
            else:
                expected, made = wanted, made + 1
        return made

    async def work() -> tuple[int, list[tuple[int | None, int]], list[int], list[int]]:
        async with running(tmp_path) as (commands, log, real):
            made = sum(await asyncio.gather(*(mover(commands, str(number)) for number in range(CLIENTS))))
            store = cast("Any", commands)._context.store
            rows = store.cursor().execute("SELECT version_before, version FROM alias_moves WHERE alias = 'production'")
            return made, sorted(rows.fetchall(), key=str), log.appended, await sequence(real)

    made, rows, appended, numbers = asyncio.run(work())

    assert len(rows) == made
    assert made >= 8
    there, back = rows.count((0, 1)), rows.count((1, 0))
    assert rows.count((None, 0)) == 1
    assert there - back in {0, 1}
    assert there + back + 1 == made
    assert max(appended) > 1
    assert sum(appended) == CLIENTS * 8
    assert numbers == list(range(len(numbers)))


def test_one_that_is_refused_by_the_log_fails_alone(tmp_path: Path) -> None:
    """The others of its batch are appended, and no number is missing."""

    async def work() -> tuple[list[Any], list[int]]:
        async with running(tmp_path) as (commands, log, real):
            log.refused = "poison"
            events = [moved(0, None, "poison" if n == 3 else "", alias=f"a{n}") for n in range(6)]
            told = await asyncio.gather(*(commands.submit(Who(), [event]) for event in events), return_exceptions=True)
            return told, await sequence(real)

    told, numbers = asyncio.run(work())

    assert [n for n, answer in enumerate(told) if isinstance(answer, BaseException)] == [3]
    assert isinstance(told[3], Invalid)
    assert numbers == list(range(len(numbers)))


def test_when_the_log_comes_back_the_numbers_go_on(tmp_path: Path) -> None:
    """Everyone is told, and the next command takes the number that was not taken."""

    async def work() -> tuple[list[Any], list[int]]:
        async with running(tmp_path) as (commands, log, real):
            log.down = True
            events = [moved(0, None, alias=f"a{n}") for n in range(3)]
            told = await asyncio.gather(*(commands.submit(Who(), [event]) for event in events), return_exceptions=True)
            log.down = False
            await commands.submit(Who(), [moved(1, None)])
            return told, await sequence(real)

    told, numbers = asyncio.run(work())

    assert [type(answer) for answer in told] == [LogError] * 3
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_who_leaves_takes_nobody_along(tmp_path: Path, turns: int) -> None:
    """Whether his command was appended or not, the ones beside it are answered."""

    async def work() -> tuple[list[Any], list[int]]:
        async with running(tmp_path) as (commands, _, real):
            tasks = [asyncio.create_task(commands.submit(Who(), [moved(0, None, alias=f"a{n}")])) for n in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[1].cancel()
            told = await asyncio.gather(*tasks, return_exceptions=True)
            return told, await sequence(real)

    told, numbers = asyncio.run(work())

    assert [n for n, answer in enumerate(told) if isinstance(answer, BaseException)] == [1]
    assert numbers == list(range(len(numbers)))
