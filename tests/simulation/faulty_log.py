"""A process's connection to the log: late, failing, and sometimes not saying what became of a request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from icecore.errors import LogError, LogFull, LogPoisoned
from icecore.log import Batch, Record
from icecore.position import Place, Position, Token
from icecore.testing.memory_log import MemoryLog
from icecore.testing.simulation import SimLoop
from simulation.faults import Faults

T = TypeVar("T")


class FaultyLog:
    """An `EventLog` that reaches `log` as over a network: what was asked for happens although who asked is gone.

    Args:
        loop: its timers are the log's own, not the caller's.
        log: what is appended to and read.
        faults: how often what goes wrong.
        chance: decides.
    """

    def __init__(self, loop: SimLoop, log: MemoryLog, faults: Faults, chance: random.Random) -> None:
        self.log = log
        self._loop = loop
        self._faults = faults
        self._chance = chance
        self._poisoned = False

    @property
    def partitions(self) -> Mapping[str, int]:
        return self.log.partitions

    @property
    def log_id(self) -> str:
        return self.log.log_id

    @property
    def trouble(self) -> str:
        return ""

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        if self._poisoned:
            raise LogPoisoned("expected a log that can be written, got one that failed before")
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        self._outside(self._faults.append_s, lambda: self._append(future, stream, records))
        return await future

    def _append(self, future: asyncio.Future[list[Position]], stream: str, records: Sequence[Record]) -> None:
        """What happens at the log, at some moment after it was asked for."""
        if self._hit(self._faults.append_refused):
            self._outside(self._faults.append_s, lambda: _fail(future, LogFull("expected space, got a full disk")))
            return
        if self._hit(self._faults.append_unknown):
            if self._hit(0.5):
                self._now(self.log.append(stream, records))
            self._poisoned = self._hit(self._faults.poisoned)
            error = LogPoisoned if self._poisoned else LogError
            self._outside(
                self._faults.append_s, lambda: _fail(future, error("expected an answer of the disk, got none"))
            )
            return
        positions = self._now(self.log.append(stream, records))
        self._outside(self._faults.append_s, lambda: future.cancelled() or future.set_result(positions))

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        await self._late()
        if self._hit(self._faults.read_failed):
            raise LogError("expected to read the log, got an error of the disk")
        if self._hit(0.3):
            records = min(records, self._chance.randint(1, 4))
        return await self.log.read(place, start, records=records, size=size)

    async def end(self) -> Token:
        end = await self.log.end()
        await self._late()
        return end

    async def start(self) -> Token:
        return await self.log.start()

    async def wait(self, token: Token, within: float) -> bool:
        found = await self.log.wait(token, within)
        if self._faults.wait_late_s:
            await asyncio.sleep(self._chance.random() * self._faults.wait_late_s)
        return found

    async def close(self) -> None:
        """The log itself stays open for the others."""

    async def _late(self) -> None:
        if self._hit(0.3):
            await asyncio.sleep(self._faults.append_s * self._chance.random())

    def _hit(self, probability: float) -> bool:
        return probability > 0 and self._chance.random() < probability

    def _outside(self, mean_s: float, work: Callable[[], object]) -> None:
        """Do something after a while, whatever becomes of the process that asked for it."""
        self._loop.call_outside(mean_s * self._chance.expovariate(1.0), work)

    @staticmethod
    def _now(work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that waits for nothing."""
        try:
            work.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("expected a log in memory to answer at once")


def _fail(future: asyncio.Future[Any], error: LogError) -> None:
    if not future.cancelled():
        future.set_exception(error)
