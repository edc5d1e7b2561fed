"""The store process's folding thread: a runner with an event loop of its own, beside the API's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections import generations
from icecore_projections.runner import Runner
from icecore_projections.store import Store


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
        self._stopping = asyncio.Event()
        self._reopening = False
        self._reopened = threading.Event()
        self._thread = threading.Thread(target=self._run, name="folding", daemon=True)

    def start(self) -> None:
        """Begin to fold.

        Raises:
            StoreAhead: the store has folded records that the log does not have.
        """
        self.store.check(self._loop.run_until_complete(self.log.end()))
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch in hand and close store and log."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        self._loop.close()
        self.store.close()

    def reopen(self) -> None:
        """Go on with the store that is current now: a rebuild has switched it. Requests under way keep the old one."""
        self._reopening = True
        self._reopened.clear()
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._reopened.wait()

    async def replay(self) -> Mapping[str, Any]:
        """Try the dead letters again, on the folding thread."""
        work = asyncio.run_coroutine_threadsafe(self.runner.replay_dead_letters(), self._loop)
        return await asyncio.wrap_future(work)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            self._loop.run_until_complete(self.runner.run(self._stopping))
            if not self._reopening:
                break
            before = self.store
            self.store = generations.open_current(self._folder, log_id=self.log.log_id, say=self._say)
            self.runner = Runner(self.log, self.store)
            before.close()
            self._stopping.clear()
            self._reopening = False
            self._reopened.set()
        self._loop.run_until_complete(self.log.close())
