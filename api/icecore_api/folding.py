"""The store process's folding thread: a runner with an event loop of its own, beside the API's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from icecore.errors import StoreDamaged
from icecore.log import EventLog
from icecore.position import Token
from icecore_api.metrics import FoldMetrics
from icecore_api.queries.published import published
from icecore_ingest.logs.opening import is_kafka, open_log
from icecore_ingest.metric_defs import Metrics
from icecore_projections import generations
from icecore_projections.runner import Prepared, Runner
from icecore_projections.store import Store

if TYPE_CHECKING:
    from icecore_projections.summaries import Summaries

T = TypeVar("T")
NICE: Final = 10


class Folding:
    """Opens the store and keeps folding the log into it until stopped.

    Args:
        data: the data folder.
        where: its log: a folder, or kafka://…, which Faust reads.
        say: told a sentence whenever a person may want to know.
        metrics: counted in.
    """

    store: Store
    runner: Runner

    def __init__(self, data: Path, where: str | Path, *, say: Callable[[str], None], metrics: Metrics) -> None:
        self._data = data
        self._where = where
        self._say = say
        self._metrics = FoldMetrics(metrics)
        self._summaries: Summaries | None = None
        self._folder = data / "store"
        self._loop = asyncio.new_event_loop()
        self._rest = asyncio.Event()
        self._stopping = False
        self._waiting: queue.SimpleQueue[Callable[[], Awaitable[None]]] = queue.SimpleQueue()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="folding", daemon=True)

    async def start(self) -> None:
        """Open log and store, and begin to fold.

        Raises:
            LogError, StoreError: one of them cannot be opened.
            StoreAhead: the store has folded records that the log does not have.
        """
        self._thread.start()
        await asyncio.wrap_future(self._opened)

    def stop(self) -> None:
        """Finish the batch in hand and close store and log."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._rest.set)
        self._thread.join(30)
        self._loop.close()
        self.store.close()

    def report(self) -> Mapping[str, Any]:
        """How the folding is, for `icecore status`: running, waiting for something, or halted, and why."""
        status = self.runner.status
        return {"state": status.state, "reason": status.reason, "duplicates": status.duplicates}

    async def reopen(self) -> None:
        """Go on with the store that is current now: a rebuild has switched it. Requests under way keep the old one."""
        await self._between(self._open_current)

    async def replay(self) -> Mapping[str, Any]:
        """Try the dead letters again, and go on where poison had halted the folding."""

        async def work() -> Mapping[str, Any]:
            folded, left = await self.runner.replay_dead_letters()
            return {"tried": folded + left, "folded": folded}

        found = await self._between(work)
        self._loop.call_soon_threadsafe(self.runner.resume)
        return found

    async def _between(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the folding thread, between two batches: the runner rests meanwhile."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        async def told() -> None:
            try:
                done.set_result(await work())
            except BaseException as error:  # noqa: BLE001 - handed to whoever asked
                done.set_exception(error)

        self._waiting.put(told)
        self._loop.call_soon_threadsafe(self._rest.set)
        return await asyncio.wrap_future(done)

    # ----------------------------------------------------------------------------------- the folding thread

    def _run(self) -> None:
        # what is accepted must not wait for what is folded: the gateway goes first where cores are short
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._live())
        left = asyncio.all_tasks(self._loop)  # what a library began and did not end
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    async def _live(self) -> None:
        async with contextlib.AsyncExitStack() as opened:
            try:
                log = await open_log(self._where, readonly=True)
                opened.push_async_callback(log.close)
                self.store = generations.open_current(self._folder, log_id=log.log_id, say=self._say)
                await self.store.check_log(log)
                source = await opened.enter_async_context(self._source(log))
                self.runner = Runner(source, self.store, told=self._committed)
            except BaseException as error:  # noqa: BLE001 - handed to whoever started us
                self._opened.set_exception(error)
                return
            self._opened.set_result(None)
            await self._fold()

    @contextlib.asynccontextmanager
    async def _source(self, log: EventLog) -> AsyncIterator[EventLog]:
        """What the runner reads: the log itself, or what Faust delivers of it."""
        if not is_kafka(self._where):
            yield log
            return
        from icecore_ingest.logs.kafka_settings import KafkaSettings
        from icecore_projections.faust_app import feeding, group_of
        from icecore_projections.summaries import Summaries, topics_of

        brokers = KafkaSettings.parse(str(self._where))
        self._summaries = summaries = Summaries(
            brokers.summaries_topic,
            lambda: topics_of(brokers),
            self._data / "run",
            lambda: self.store,
            published,
            self._say,
            self._metrics.published,
        )
        group = group_of(brokers, self._data)
        async with feeding(brokers, group, log, self._folded, self._say, summaries.join) as feed:
            yield feed

    def _folded(self) -> Token:
        return self.store.token()  # of the store that serves at that moment: a rebuild may switch it

    def _committed(self, batch: Prepared) -> None:
        self._metrics.committed(batch)
        if self._summaries is not None:
            self._summaries.changed(batch)

    async def _fold(self) -> None:
        while not self._stopping:
            try:
                await self.runner.run(self._rest)
            except StoreDamaged as error:
                aside = generations.set_aside(self._folder, self.store.path)
                self._say(f"{error.message}. It was set aside in {aside}, and is rebuilt from the log")
                await self._open_current()
            self._rest.clear()
            with contextlib.suppress(queue.Empty):
                while True:
                    await self._waiting.get_nowait()()

    async def _open_current(self) -> None:
        before = self.store
        self.store = generations.open_current(self._folder, log_id=before.log_id, say=self._say)
        self.runner = Runner(self.runner.log, self.store, told=self._committed)
        if self._summaries is not None:
            self._summaries.anew()
        before.close()
