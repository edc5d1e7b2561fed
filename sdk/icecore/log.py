"""The log's interface: what every room knows of it.

`SQLiteLog` (one machine), `KafkaLog` (a cluster) and `MemoryLog` (tests, simulations) implement it, and all pass
`icecore.testing.log_contract`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from icecore.events import Envelope
from icecore.position import Place, Position, Token


@dataclass(frozen=True, slots=True)
class Record:
    """What is appended: a key (the partition is chosen by it), an envelope, and the payload's bytes untouched."""

    key: str
    envelope: Envelope
    payload: bytes


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record and where it is."""

    position: Position
    key: str
    envelope: Envelope
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records of one partition, and the offset to read from next."""

    place: Place
    records: Sequence[StoredRecord]
    next_offset: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a check of the log found wrong: in which file, and where it can be said, at which record."""

    file: str
    place: Place | None
    offset: int | None
    problem: str


class EventLog(Protocol):
    """An append-only log of streams, each of one or more partitions.

    Every method may raise a `LogError`. All are safe to call from many tasks at once, and several processes may
    append to the same log.
    """

    @property
    def partitions(self) -> Mapping[str, int]:
        """How many partitions each stream has."""
        ...

    @property
    def log_id(self) -> str:
        """A random id made with the log: a store folded from one log refuses another."""
        ...

    @property
    def trouble(self) -> str:
        """What is wrong with the log just now, as `code: message`, as far as it is known without asking; or empty."""
        ...

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Append all records or none within each partition, and return only when they are durable.

        Positions are in the order of `records`. The records of one partition lie together, in order.

        Raises:
            LogFull, LogReadOnly, LogLocked, LogPoisoned: nothing of this call will be acknowledged.
        """
        ...

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """Read from offset `start` on: at most `records`, and about `size` bytes of payload, at once.

        Empty where there is nothing yet. Never shows a hole, nor a record that is not durable.

        Raises:
            LogCorrupt: a record fails its checksum; the facts say which.
        """
        ...

    async def end(self) -> Token:
        """The next offset of every partition: what a reader that has read everything has reached."""
        ...

    async def start(self) -> Token:
        """The first offset of every partition that is still there: 0, unless history was deleted."""
        ...

    async def wait(self, token: Token, within: float) -> bool:
        """Wait until the log's end is *beyond* `token` in some partition; False after `within` seconds."""
        ...

    async def close(self) -> None:
        """Let go of files and connections. What was acknowledged is safe without it."""
        ...
