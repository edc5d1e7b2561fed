"""The store process's folding thread: a runner with an event loop of its own, beside the API's."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from icecore.errors import StoreDamaged
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections import generations
from icecore_projections.runner import Runner
from icecore_projections.store import Store

T = TypeVar("T")
NICE: Final = 10


class Folding:
    """Opens the store and keeps folding the log into it until stopped.

    Args:
        data: the data folder.
        say: told a sentence whenever a person may want to know.
    """

    def __init__(self, data: Path, *, say: Callable[[str], None]) -> None:
        self.log = SQLiteLog.open(data / "log", readonly=True)
        self._say = say
        self._folder = data / "store"
        self.store: Store = generations.open_current(self._folder, log_id=self.log.log_id, say=say)
        self.runner = Runner(self.log, self.store)
        self._loop = asyncio.new_event_loop()
        self._rest = asyncio.Event()
        self._stopping = False
        self._waiting: queue.SimpleQueue[Callable[[], Awaitable[None]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="folding", daemon=True)

    async def start(self) -> None:
        """Begin to fold.

        Raises:
            StoreAhead: the store has folded records that the log does not have.
        """
        await self.store.check_log(self.log)
        self._thread.start()

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

    async def _open_current(self) -> None:
        before = self.store
        self.store = generations.open_current(self._folder, log_id=self.log.log_id, say=self._say)
        self.runner = Runner(self.log, self.store)
        before.close()

    def _run(self) -> None:
        # what is accepted must not wait for what is folded: the gateway goes first where cores are short
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._fold())

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
        await self.log.close()
