"""A log in memory: the same semantics as one on disk, gone with the process."""

from __future__ import annotations

import asyncio
import threading
import uuid
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from icecore.bell import Bell
from icecore.errors import LogError
from icecore.log import Batch, Record, StoredRecord
from icecore.position import LEDGER, METRICS, Place, Position, Token


class MemoryLog:
    """An `EventLog` in memory, safe for many tasks, event loops and threads.

    Args:
        partitions: how many partitions each stream has; one each if not said.
    """

    def __init__(self, partitions: Mapping[str, int] | None = None) -> None:
        self._partitions = MappingProxyType(dict(partitions or {LEDGER: 1, METRICS: 1}))
        self._log_id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._bell = Bell()
        self._closed = False
        self._records: dict[Place, list[StoredRecord]] = {
            Place(stream, n): [] for stream, count in self._partitions.items() for n in range(count)
        }

    @property
    def partitions(self) -> Mapping[str, int]:
        """How many partitions each stream has."""
        return self._partitions

    @property
    def log_id(self) -> str:
        """A random id made with the log."""
        return self._log_id

    @property
    def trouble(self) -> str:
        """Nothing is ever wrong with memory."""
        return ""

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Append all records at once; the partition is chosen by a hash of the key that never changes.

        Raises:
            LogError: the log is closed, or there is no such stream.
        """
        self._check(stream)
        count = self._partitions[stream]
        chosen = [zlib.crc32(record.key.encode()) % count for record in records]
        positions: list[Position] = []
        with self._lock:
            for record, partition in zip(records, chosen, strict=True):
                lane = self._records[Place(stream, partition)]
                position = Position(stream, partition, len(lane))
                lane.append(StoredRecord(position, record.key, record.envelope, record.payload))
                positions.append(position)
        if positions:
            self._bell.ring()
        return positions

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """At most `records` from offset `start` on, about `size` bytes of payload; at least one if there is one.

        Raises:
            LogError: the log is closed, or there is no such partition.
        """
        self._check(place.stream)
        lane = self._records.get(place)
        if lane is None:
            raise LogError(f"expected one of {len(self._records)} partitions, got {place.stream}:{place.partition}")
        chosen: list[StoredRecord] = []
        for record in lane[start : start + records]:
            chosen.append(record)
            size -= len(record.payload)
            if size <= 0:
                break
        return Batch(place, chosen, start + len(chosen))

    async def end(self) -> Token:
        """The next offset of every partition."""
        with self._lock:
            return Token({place: len(lane) for place, lane in self._records.items()})

    async def start(self) -> Token:
        """The first offset of every partition: nothing is ever deleted here."""
        return Token()

    async def wait(self, token: Token, within: float) -> bool:
        """Wait until the end is beyond `token` in some partition; False after `within` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while True:
            heard = self._bell.listen()
            try:
                if not token.covers(await self.end()):
                    return True
                left = deadline - loop.time()
                if left <= 0:
                    return False
                await asyncio.wait((heard,), timeout=left)
            finally:
                self._bell.forget(heard)

    async def close(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def _check(self, stream: str) -> None:
        if self._closed:
            raise LogError("expected an open log, got a closed one")
        if stream not in self._partitions:
            raise LogError(f"expected a stream of {sorted(self._partitions)}, got {stream!r}")
