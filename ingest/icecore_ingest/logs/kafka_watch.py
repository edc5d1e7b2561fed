"""Watches where partitions end: one request waits at each broker, and answers when there is something new.

Nobody polls: an idle log costs a request a second to each broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from aiokafka import errors as kafka

from icecore.errors import LogError
from icecore.position import Place
from icecore_ingest.logs.kafka_client import KafkaClient
from icecore_ingest.logs.kafka_settings import KafkaSettings

_HELD_MS: Final = 1_000
_IDLE_S: Final = 30.0
_RETRY_S: Final = 0.5


class Watch:
    """Watches some partitions while somebody waits for them. Belongs to the one event loop it was made in.

    It has a connection of its own to each broker: one that waits there would hold up every other request behind it.

    Args:
        settings: the cluster.
        places: which partitions.
        ends: the next offset of a partition as far as it is known.
        moved: told a partition and its next offset.
        ended: called when nobody has waited for a while.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        places: Iterable[Place],
        *,
        ends: Callable[[Place], int],
        moved: Callable[[Place, int], None],
        ended: Callable[[Watch], None],
    ) -> None:
        self.places = frozenset(places)
        self._settings = settings
        self._ends = ends
        self._moved = moved
        self._ended = ended
        self._wanted_until = 0.0
        self._kicked = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def want(self, within: float) -> None:
        """Somebody waits for up to `within` seconds from now."""
        self._wanted_until = max(self._wanted_until, time.monotonic() + within)
        self._kicked.set()

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        client: KafkaClient | None = None
        try:
            while await self._is_wanted():
                try:
                    if client is None:
                        client = await KafkaClient.open(self._settings)
                    await self._watch(client)
                except (TimeoutError, kafka.KafkaError, LogError, OSError):
                    await asyncio.sleep(_RETRY_S)
                    if client is not None:
                        await client.refresh()
        finally:
            self._ended(self)
            if client is not None:
                await client.close()

    async def _is_wanted(self) -> bool:
        """Wait until somebody waits; False where nobody has for long."""
        while time.monotonic() >= self._wanted_until:
            self._kicked.clear()
            try:
                await asyncio.wait_for(self._kicked.wait(), _IDLE_S)
            except TimeoutError:
                return False
        return True

    async def _watch(self, client: KafkaClient) -> None:
        """Keep one request at each broker until nobody waits."""
        waiting: dict[int, asyncio.Task[None]] = {}
        try:
            while time.monotonic() < self._wanted_until:
                for node, places in client.led(self.places):
                    if node not in waiting:
                        waiting[node] = asyncio.ensure_future(self._ask(client, node, places))
                done, _ = await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
                waiting = {node: task for node, task in waiting.items() if task not in done}
                for task in done:
                    task.result()
        finally:
            await _cancelled(waiting.values())

    async def _ask(self, client: KafkaClient, node: int, places: list[Place]) -> None:
        found = await client.fetch_from(node, {place: self._ends(place) for place in places}, 1, _HELD_MS)
        for place, fetched in found.items():
            self._moved(place, fetched.end)


async def _cancelled(tasks: Iterable[Awaitable[Any]]) -> None:
    left = [asyncio.ensure_future(task) for task in tasks]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
