"""A log that is read ahead by whoever delivers its records, so that the runner need not ask for them.

Faust pushes and the runner pulls; a `Feed` stands between. It changes nothing about what is read: a record that was
not delivered in its turn (a rebalance, a failed commit that wants its batch again) is read from the log itself, so
the order and completeness of what the runner sees never depend on the deliverer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from icecore.log import Batch, EventLog, Record, StoredRecord
from icecore.position import Place, Position, Token

HELD_BYTES: Final = 128 << 20
"""Payload delivered and not yet taken; beyond it the deliverer waits."""


class Feed:
    """An `EventLog` over `log` whose reads are answered from what was delivered. Belongs to one event loop."""

    def __init__(self, log: EventLog, *, held_bytes: int = HELD_BYTES) -> None:
        self.log = log
        self._most = held_bytes
        self._lanes: dict[Place, deque[StoredRecord]] = {}
        self._ends: dict[Place, int] = {}
        self._held = 0
        self._news = asyncio.Condition()
        self._room = asyncio.Event()
        self._room.set()

    # ------------------------------------------------------------------------------------ the deliverer's side

    async def deliver(self, records: Iterable[StoredRecord]) -> None:
        """Take records, each partition's in order; returns when there is room for more."""
        for record in records:
            self._add(record)
        async with self._news:
            self._news.notify_all()
        await self._room.wait()

    def announce(self, place: Place, end: int) -> None:
        """Say how far a partition goes without delivering what is there: it is read from the log itself."""
        self.forget([place])
        self._ends[place] = max(self._ends.get(place, 0), end)

    def forget(self, places: Iterable[Place]) -> None:
        """Drop what was delivered of some partitions: they will be delivered again, or by another."""
        for place in places:
            self._hold(-sum(len(record.payload) for record in self._lanes.pop(place, ())))

    def holds(self, place: Place) -> bool:
        """Whether something that was delivered of a partition has not been taken."""
        return bool(self._lanes.get(place))

    def _add(self, record: StoredRecord) -> None:
        place, offset = record.position.place, record.position.offset
        lane = self._lanes.setdefault(place, deque())
        if lane and offset != lane[-1].position.next_offset:
            if offset < lane[-1].position.next_offset:
                return  # delivered before
            self.forget([place])  # a gap: the log itself will fill it
            lane = self._lanes.setdefault(place, deque())
        lane.append(record)
        self._hold(len(record.payload))
        self._ends[place] = max(self._ends.get(place, 0), record.position.next_offset)

    def _hold(self, size: int) -> None:
        """Count bytes that came, or went by whatever way; the deliverer goes on as soon as there is room."""
        self._held += size
        if self._held < self._most:
            self._room.set()
        else:
            self._room.clear()

    # ---------------------------------------------------------------------------------------- the runner's side

    @property
    def partitions(self) -> Mapping[str, int]:
        """How many partitions each stream has."""
        return self.log.partitions

    @property
    def log_id(self) -> str:
        """The id of the log."""
        return self.log.log_id

    @property
    def trouble(self) -> str:
        """What is wrong with the log."""
        return self.log.trouble

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Append to the log itself."""
        return await self.log.append(stream, records)

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """What was delivered from `start` on, else what the log itself holds up to there."""
        lane = self._lanes.get(place, deque())
        while lane and lane[0].position.offset < start:
            self._hold(-len(lane.popleft().payload))
        if not lane or lane[0].position.offset > start:
            until = lane[0].position.offset if lane else self._ends.get(place, 0)
            if until > start:
                return await self.log.read(place, start, records=min(records, until - start), size=size)
            return Batch(place, [], start)
        taken: list[StoredRecord] = []
        left = size
        while lane and len(taken) < records and left > 0:
            record = lane.popleft()
            left -= len(record.payload)
            taken.append(record)
        self._hold(left - size)
        return Batch(place, taken, taken[-1].position.next_offset)

    async def end(self) -> Token:
        """The next offset of every partition, as far as it was delivered."""
        return Token(self._ends)

    async def start(self) -> Token:
        """The first offset of every partition of the log."""
        return await self.log.start()

    async def wait(self, token: Token, within: float) -> bool:
        """Wait until something beyond `token` was delivered; False after `within` seconds."""
        try:
            async with asyncio.timeout(within), self._news:
                await self._news.wait_for(
                    lambda: any(end > token.next_offset(place) for place, end in self._ends.items())
                )
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close the log."""
        await self.log.close()
