"""The runner: reads the log, folds it, commits it, and tells who waits. It alone moves the store on.

A step takes one batch from each partition that has news and commits them together. Nothing here remembers a
position: it is read from the store, so whatever fails, the next step starts where the last commit ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import pyarrow as pa

from icecore.codec import decode_event
from icecore.errors import LogError, StoreDamaged, StoreError, StoreFull
from icecore.log import Batch, EventLog, StoredRecord
from icecore.position import Place
from icecore_projections.dedupe import Dedupe
from icecore_projections.folds import Applied, Changes, Rows
from icecore_projections.poison import Dead, Guard, PoisonDominatesError, said, sift
from icecore_projections.store import Store
from icecore_projections.streams import MetricsFold, RunsFold, StreamFold

log = logging.getLogger(__name__)

RECORDS: Final = 5_000
BYTES: Final = 32 << 20
"""A batch: so many records or bytes of payload of one partition."""

IDLE_S: Final = 3.0
"""Nothing came for so long: time to compact."""

BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between tries after an unexpected failure; the last one goes on."""

State = Literal["running", "halted", "waiting"]
Skipped: TypeAlias = "Counter[tuple[Place, str, int]]"


@dataclass(slots=True)
class Status:
    """What the runner is doing, for `icecore status`."""

    state: State = "running"
    """`waiting` is for something to get better (a full disk, a log that cannot be read); `halted` for a person."""
    reason: str = ""
    records: int = 0
    """Read since the start."""
    duplicates: int = 0
    """Dropped since the start."""
    dead: int = 0
    """Set aside since the start."""


@dataclass(slots=True)
class Decoded:
    """A batch of one partition, decoded."""

    place: Place
    next_offset: int
    ts_server: int
    records: Sequence[StoredRecord]
    events: list[Applied] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Counter)


class Runner:
    """Folds `log` into `store`.

    Args:
        log: where records come from.
        store: where rows go; its token says where to read on.
        folds: one for each stream, or the ones of this release.
        sleep: how to wait between tries.
    """

    def __init__(
        self,
        log: EventLog,
        store: Store,
        folds: Iterable[StreamFold] | None = None,
        *,
        sleep: Callable[[float], Any] = asyncio.sleep,
        records: int = RECORDS,
        size: int = BYTES,
    ) -> None:
        self.log = log
        self.store = store
        self.status = Status()
        self._folds = {fold.stream: fold for fold in (folds or (RunsFold(), MetricsFold()))}
        self._dedupe = Dedupe()
        self._guard = Guard()
        self._sleep = sleep
        self._records = records
        self._size = size
        self._places = [Place(stream, n) for stream, count in sorted(log.partitions.items()) for n in range(count)]

    @property
    def state(self) -> State:
        """Running, waiting for something to get better, or halted for a person to look."""
        return self.status.state

    async def step(self) -> bool:
        """Fold one batch of each partition that has news; False where nothing has.

        Raises:
            PoisonDominatesError: too many records cannot be folded; nothing of the batch is committed.
            LogError, StoreError: nothing of the batch is committed; call `recover` before the next step.
        """
        batches = await self._read()
        if not batches:
            return False
        await asyncio.to_thread(self._fold, batches)
        return True

    async def _read(self) -> list[Batch]:
        token = self.store.token()
        end = await self.log.end()
        batches = [
            await self.log.read(place, token.next_offset(place), records=self._records, size=self._size)
            for place in self._places
            if end.next_offset(place) > token.next_offset(place)
        ]
        return [batch for batch in batches if batch.records]

    def _fold(self, batches: Sequence[Batch]) -> None:
        parts: list[Changes] = []
        offsets: dict[Place, tuple[int, int]] = {}
        for batch in batches:
            decoded = decode(batch)
            parts.append(self._fold_place(decoded))
            offsets[batch.place] = (decoded.next_offset, decoded.ts_server)
            self.status.records += len(batch.records)
        self.store.commit(Changes.merged(parts), offsets)

    def _fold_place(self, decoded: Decoded) -> Changes:
        place, fold = decoded.place, self._folds[decoded.place.stream]
        with self.store.reading() as con:
            kept, producers = self._dedupe.fresh(con, place, decoded.records)
            fresh = {record.position.offset for record in kept}
            events = [e for e in decoded.events if e.position.offset in fresh and e.event.TYPE in fold.types]
            fold.load(con, events)
        folded, bad = sift(lambda part: fold.fold(place, part), events)
        dead = [letter for letter in decoded.dead if letter.record.position.offset in fresh]
        by_offset = {record.position.offset: record for record in kept}
        dead += [Dead(by_offset[offset], reason) for offset, reason in bad.items()]
        died = {letter.record.position.offset for letter in dead}
        self._guard.check([record.position.offset in died for record in kept], dead[-1].reason if dead else "")
        fold.advance(folded)
        self.status.duplicates += len(decoded.records) - len(kept)
        self.status.dead += len(dead)
        own = Changes(
            append={"dead_letters": [_dead_rows(dead)]} if dead else {},
            replace={"producers": [Rows(("stream", "part", "producer"), producers)]},
        )
        return Changes.merged([folded.changes, own, _rejected(folded.rejected)])


def decode(batch: Batch) -> Decoded:
    """Decode the records of a batch; what cannot be decoded is dead, and what is not known here is skipped."""
    decoded = Decoded(batch.place, batch.next_offset, 0, batch.records)
    for record in batch.records:
        envelope = record.envelope
        decoded.ts_server = max(decoded.ts_server, envelope.ts_server)
        try:
            event = decode_event(envelope, record.payload)
        except Exception as error:  # noqa: BLE001 - an upcaster may fail in any way; the others must go on
            decoded.dead.append(Dead(record, said(error)))
            continue
        if event is None:
            decoded.skipped[batch.place, envelope.type, envelope.v] += 1
        else:
            decoded.events.append(Applied(record.position, envelope, record.key, event))
    return decoded


def _dead_rows(dead: Sequence[Dead]) -> pa.Table:
    records = [letter.record for letter in dead]
    return (
        _letters(records)
        .append_column("attempts", pa.array([d.attempts for d in dead], pa.int32()))
        .append_column("ts_server", pa.array([record.envelope.ts_server for record in records], pa.int64()))
        .append_column("reason", pa.array([d.reason for d in dead], pa.string()))
    )


def _rejected(rejected: Sequence[tuple[Applied, str]]) -> Changes:
    if not rejected:
        return Changes()
    rows = _letters([applied for applied, _ in rejected])
    return Changes({"rejections": [rows.append_column("reason", pa.array([why for _, why in rejected], pa.string()))]})


def _letters(records: Sequence[StoredRecord | Applied]) -> pa.Table:
    """The columns that dead letters and rejections share."""
    return pa.table(
        {
            "stream": pa.array([record.position.stream for record in records], pa.string()),
            "part": pa.array([record.position.partition for record in records], pa.int32()),
            "off": pa.array([record.position.offset for record in records], pa.int64()),
            "id": pa.array([record.envelope.id for record in records], pa.string()),
            "type": pa.array([record.envelope.type for record in records], pa.string()),
            "key": pa.array([record.key for record in records], pa.string()),
        }
    )
