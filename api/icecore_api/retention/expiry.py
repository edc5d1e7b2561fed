"""The server's clockwork: versions whose time is over expire. It proposes; the fold decides."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import duckdb
from starlette.concurrency import run_in_threadpool

from icecore.errors import Conflict, IcecoreError
from icecore.journal import say
from icecore.retention_events import ArtifactExpired
from icecore_api.context import Context
from icecore_api.deps import reading_now
from icecore_api.queries.artifacts import Artifacts
from icecore_api.queries.retention import Due, Retention
from icecore_api.retention.clock import RetentionClock
from icecore_api.submit import Commands
from icecore_projections.schema import artifact_number

EVERY_S: Final = 5.0
"""How long it rests between two looks; or twenty times as long as the last look took, if that is more."""
_TOGETHER: Final = 200


@dataclass(frozen=True, slots=True)
class System:
    """The server itself, as who did something."""

    user: str = "system"
    credential: str = ""


class Expiry:
    """Looks again and again for versions whose time is over."""

    def __init__(self, context: Context, commands: Commands, clock: RetentionClock) -> None:
        self._context = context
        self._commands = commands
        self.clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = time.monotonic()
            try:
                await self.look()
            except IcecoreError as error:
                say("versions did not expire", "warning", why=str(error))
            await asyncio.sleep(max(EVERY_S, 20 * (time.monotonic() - began)))

    async def look(self) -> int:
        """Let every version expire whose time is over and that nothing keeps. Answers how many there were."""
        now = self.clock.now_ms()
        if now is None:
            return 0
        async with reading_now(self._context) as reading:
            due = await run_in_threadpool(_due, reading.cursor, now)
        for first in range(0, len(due), _TOGETHER):
            events = [
                ArtifactExpired(artifact=key.artifact, version=key.version, born_ts=born, seconds=seconds)
                for key, born, seconds in due[first : first + _TOGETHER]
            ]
            try:
                await self._commands.submit(System(), events)
            except Conflict:  # the fold decided otherwise of some: a hold came first, or somebody deleted them
                continue
        return len(due)


def last_ms(context: Context) -> int | None:
    """The time of the last records that were folded, in milliseconds since 1970 UTC; None where there are none."""
    cursor = context.store.cursor()
    try:
        found = cursor.execute("SELECT max(ts_server) FROM offsets").fetchall()
    finally:
        cursor.close()
    return int(found[0][0]) if found and found[0][0] else None


def _due(cursor: duckdb.DuckDBPyConnection, now: int) -> list[Due]:
    """Those whose time is over, less those that something keeps: the fold would only decline them again and again."""
    retention, artifacts = Retention(cursor), Artifacts(cursor)
    due = retention.due(now)
    found = artifacts.by_number([(artifact_number(one.key.artifact), one.key.version) for one in due])
    standing = retention.of(list(found.values()))
    return [one for one in due if one.key in standing and not standing[one.key].kept]
