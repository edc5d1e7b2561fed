"""The server's processes, as production puts them together, over a log and a disk that outlive them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb

from icecore.errors import LogError, StoreLocked
from icecore.log import Batch, EventLog
from icecore.position import Place, Token
from icecore.testing.memory_log import MemoryLog
from icecore.testing.simulation import Process, SimLoop
from icecore_ingest.answers import App
from icecore_ingest.gateway import Gateway, GatewaySettings
from icecore_ingest.identities import Identities
from icecore_ingest.metric_defs import Metrics
from icecore_ingest.proxy import Proxy
from icecore_ingest.security import Security, SecurityPolicy
from icecore_projections.feed import Feed
from icecore_projections.folds import Changes
from icecore_projections.runner import Runner
from icecore_projections.store import Store
from simulation.faults import Faults
from simulation.light_store import Disk, LightStore

OpenLog = Callable[[], EventLog]
RETRY_S = 0.5


class GatewayNode:
    """A gateway that may be started again and again."""

    identities_class: type[Identities] = Identities

    def __init__(
        self, loop: SimLoop, name: str, log: OpenLog, clock: Callable[[], int], snapshot: Path | None = None
    ) -> None:
        self.name = name
        self.app: App = _nobody
        self.identities: Identities | None = None
        self.current: Process | None = None
        self.seen: Callable[[str], Callable[[int], None]] = lambda _key: lambda _status: None
        self._loop = loop
        self._log = log
        self._clock = clock
        self._snapshot = snapshot
        self._listening: Process | None = None

    @property
    def process(self) -> Process | None:
        """The process that listens; None while none does."""
        return self._listening if self._listening is not None and self._listening.alive else None

    def start(self) -> None:
        """Start a process, which listens as soon as it knows all identities."""
        self.current = self._loop.process(self.name)
        self.current.spawn(self._serve(self.current), "serve")

    def kill(self) -> None:
        """End the process."""
        if self.current is not None:
            self.current.kill()
        self.current = self._listening = None

    async def _serve(self, process: Process) -> None:
        log = self._log()
        identities = self.identities_class(log, self._snapshot, self._clock)
        identities.load()
        while True:
            try:
                await identities.check_ledger()
                await identities.catch_up()
                break
            except LogError:
                await asyncio.sleep(RETRY_S)
        gateway = Gateway(
            log,
            identities,
            Proxy(Path("nowhere"), Metrics()),
            Metrics(),
            GatewaySettings(),
            self._poisoned,
            self._clock,
        )
        self.app = Security(gateway, SecurityPolicy())
        self.identities = identities
        self._listening = process
        await identities.follow()

    def _poisoned(self) -> None:
        """The log takes nothing more from this process: its supervisor starts another."""
        self._loop.call_outside(0.0, self._restart)

    def _restart(self) -> None:
        if self.current is not None:
            self.kill()
            self.start()


async def _nobody(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("expected requests only to gateways that listen")


class StoreNode:
    """The store's process over its disk; a second one waits for the first to let go of the file.

    Args:
        loop: the simulation.
        log: opens a connection to the log.
        truth: the log itself, to compare with what is read.
        faults: how often what goes wrong.
        chance: decides.
        pushed: records are pushed through a `Feed`, as Faust does, instead of read.
        disk: where the tables are: a `Disk`, or the path of a DuckDB file.
    """

    feed_class: type[Feed] = Feed
    runner_class: type[Runner] = Runner
    light_class: type[LightStore] = LightStore

    def __init__(
        self,
        loop: SimLoop,
        log: OpenLog,
        truth: MemoryLog,
        faults: Faults,
        chance: random.Random,
        *,
        pushed: bool,
        disk: Disk | Path,
    ) -> None:
        self.name = "store"
        self.current: Process | None = None
        self.store: Store | None = None
        self.runner: Runner | None = None
        self.wrong: list[str] = []
        self.locked_out: Callable[[], None] = lambda: None
        self._holder: Process | None = None
        self._loop = loop
        self._log = log
        self._truth = truth
        self._faults = faults
        self._chance = chance
        self._pushed = pushed
        self._disk = disk
        self._records = chance.choice([3, 8, 8, 50])

    @property
    def serving(self) -> Process | None:
        """The process that has the store open."""
        return self._holder

    def start(self) -> None:
        """Start a process; it opens the store as soon as no other process has it."""
        self.current = self._loop.process(self.name)
        self.current.spawn(self._serve(self.current), "serve")

    def kill(self, process: Process | None = None) -> None:
        """End a process, the current one if none is given; the file is free then."""
        process = process or self.current
        if process is None:
            return
        process.kill()
        if self._holder is process:
            self._holder = None
            if self.store is not None:
                self.store.close()
            self.store = self.runner = None
        if self.current is process:
            self.current = None

    async def _serve(self, process: Process) -> None:
        while True:
            try:
                store = self._open(process)
                break
            except StoreLocked:
                self.locked_out()
                await asyncio.sleep(RETRY_S)
        log = self._log()
        while True:
            try:
                await store.check_log(log)
                break
            except LogError:
                await asyncio.sleep(RETRY_S)
        source: EventLog = log
        if self._pushed:
            feed = self.feed_class(log)
            process.spawn(deliver(feed, store.token(), self._faults, self._chance), "deliver")
            source = feed
        self.store = store
        self.runner = self.runner_class(
            CompleteLog(source, self._truth, self.wrong.append), store, records=self._records
        )
        await self.runner.run(asyncio.Event())

    def _open(self, process: Process) -> Store:
        if self._holder is not None and self._holder.alive:
            raise StoreLocked("expected to be the only process with the store, got another")
        self._holder = process
        if isinstance(self._disk, Disk):
            return _failing(self.light_class, self._disk, self._faults, self._chance)
        store = _FailingStore.open(self._disk, log_id=self._truth.log_id, threads=1)
        store.faults, store.chance = self._faults, self._chance
        return store


class _FailingStore(Store):
    """A store whose disk is full at times, or fails after it wrote."""

    faults = Faults()
    chance = random.Random(0)

    def _transact(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        _fail(self.faults.commit_refused, self.chance, "No space left on device")
        super()._transact(changes, offsets)
        _fail(self.faults.commit_unknown, self.chance, "Input/output error")


def _failing(base: type[LightStore], disk: Disk, faults: Faults, chance: random.Random) -> LightStore:
    """A light store that fails in the same way."""

    class Failing(base):  # type: ignore[misc, valid-type]
        def _transact(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
            _fail(faults.commit_refused, chance, "No space left on device")
            super()._transact(changes, offsets)
            _fail(faults.commit_unknown, chance, "Input/output error")

    return Failing(disk)


def _fail(probability: float, chance: random.Random, words: str) -> None:
    if probability > 0 and chance.random() < probability:
        raise duckdb.IOException(words)


class CompleteLog:
    """A log of which every read is compared with the truth: nothing left out, nothing twice, in order.

    What is wrong is told and not raised: whoever reads tries again after an error, and may get it right then.
    """

    def __init__(self, log: EventLog, truth: MemoryLog, tell: Callable[[str], None]) -> None:
        self._log = log
        self._truth = truth
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        batch = await self._log.read(place, start, records=records, size=size)
        whole = await self._truth.read(place, start, records=len(batch.records), size=1 << 60)
        found = [record.position.offset for record in batch.records]
        if list(batch.records) != list(whole.records) or batch.next_offset != start + len(found):
            self._tell(f"a read of {place} from {start} gives {found}, to be gone on with at {batch.next_offset}")
        return batch


async def deliver(feed: Feed, folded: Token, faults: Faults, chance: random.Random) -> None:
    """Push a log's records, as a Faust worker does: from what is folded, each partition in order.

    It may repeat, leave out and forget at random, though what came last is pushed in the end.
    """
    log = feed.log
    places = [Place(stream, n) for stream, count in log.partitions.items() for n in range(count)]
    at = {place: folded.next_offset(place) for place in places}
    while True:
        try:
            end = await log.end()
            behind = [place for place in places if at[place] < end.next_offset(place)]
            if not behind:
                await log.wait(Token(at), 10.0)
                continue
            place = chance.choice(behind)
            batch = await log.read(place, at[place], records=chance.randint(1, 5))
        except LogError:
            await asyncio.sleep(RETRY_S)
            continue
        wild = chance.random() < faults.deliverer_wild
        records = list(batch.records)
        if wild and len(records) > 1 and chance.random() < 0.5:
            del records[chance.randrange(len(records) - 1)]
        await feed.deliver(records)
        at[place] = batch.next_offset
        if wild and chance.random() < 0.5:
            at[place] = chance.randint(0, at[place])
        if wild and chance.random() < 0.5:
            feed.forget(chance.sample(places, chance.randint(1, len(places))))
