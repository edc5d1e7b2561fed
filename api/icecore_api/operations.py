"""The long operations of a running server: rebuild, fsck, replay, digest. Each works in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icecore_api.checks import check_folder
from icecore_api.context import Report
from icecore_api.folding import Folding
from icecore_ingest.logs.opening import open_log
from icecore_projections.digest import digest
from icecore_projections.rebuild import Rebuilt, rebuild


class LiveOperations:
    """Operations beside a folding that goes on."""

    def __init__(self, data: Path, log: str | Path, folding: Folding) -> None:
        self._data = data
        self._log = log
        self._folding = folding

    async def rebuild(self, report: Report, *, verify: bool) -> Mapping[str, Any]:
        """Fold the log into a new store; compare digests; switch unless only verifying. Returns the outcome."""

        async def work() -> Rebuilt:
            log = await open_log(self._log, readonly=True)
            try:
                return await rebuild(
                    log,
                    self._data / "store",
                    serving=self._folding.store,
                    verify=verify,
                    progress=lambda progress: report(progress.as_json()),
                )
            finally:
                await log.close()

        result = await asyncio.to_thread(asyncio.run, work())
        if result.switched:
            await self._folding.reopen()
        return result.as_json()

    async def fsck(self, report: Report) -> Mapping[str, Any]:
        """Check log, store and spools. Returns the findings."""

        def work() -> Mapping[str, Any]:
            return asyncio.run(check_folder(self._data, self._log, report, serving=self._folding.store)).as_json()

        return await asyncio.to_thread(work)

    async def replay(self) -> Mapping[str, Any]:
        """Try the dead letters again. Returns how many were tried, and how many folded now."""
        return await self._folding.replay()

    async def digest(self) -> str:
        """The digest of the store's tables, as they are now."""

        def work() -> str:
            with contextlib.closing(self._folding.store.cursor()) as cursor:
                return digest(cursor).hex

        return await asyncio.to_thread(work)
