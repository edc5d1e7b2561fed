"""Copies a log into another one, of whatever kind and with however many partitions, and compares the two.

A copy may be cut off anywhere and begun again. What it has done is read from the target itself: since the point
that `Progress` notes (or since the target's beginning, where there is no note) each record of the target is looked
up in the source, so nothing is written twice, nothing is left out, and a target that holds anything else is refused
before a byte is written to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from icecore.codec import encode_envelope
from icecore.errors import BadRequest, Conflict
from icecore.log import EventLog, Record, StoredRecord
from icecore.position import LEDGER, METRICS, Place, Token

ORDER: Final = (METRICS, LEDGER)
"""Metrics first: whatever a copied metric says of a run, the ledger that is copied after it has begun that run."""

_CHUNK_BYTES: Final = 4 << 20
"""One append: well below what one batch of Kafka holds, and large enough for one fsync to be worth it."""
_CHUNK_RECORDS: Final = 4_000
_AHEAD_BYTES: Final = 8 << 20
_NOTE_EVERY_S: Final = 1.0
_LENGTHS: Final = struct.Struct("<IIQ")
_DIGEST: Final = 1 << 128

Report = Callable[[Mapping[str, Any]], None]
"""Told {"stage", "done", "total", "rate"}: records."""


# ---------------------------------------------------------------------------------------------------- in order


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one stream in the order in which they are copied, and the token that covers all up to the last."""

    records: Sequence[StoredRecord]
    token: Token


async def in_order(log: EventLog, stream: str, start: Token, until: Token) -> AsyncIterator[Chunk]:
    """The records of a stream from `start` to before `until`, in chunks of some megabytes.

    Partitions are merged by `ts_server`; the order within a partition, and so within a key, is kept.
    """
    places = [Place(stream, number) for number in range(log.partitions[stream])]
    lanes = [lane async for lane in _lanes(log, places, start, until)]
    heads = [(lane.head.envelope.ts_server, number) for number, lane in enumerate(lanes)]
    heapq.heapify(heads)
    chunk, size = list[StoredRecord](), 0
    while heads:
        _, number = heads[0]
        lane = lanes[number]
        record = lane.head
        chunk.append(record)
        size += size_of(record)
        lane.at += 1
        if lane.at < len(lane.batch) or await lane.fetch():
            heapq.heapreplace(heads, (lane.head.envelope.ts_server, number))
        else:
            heapq.heappop(heads)
        if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_RECORDS or not heads:
            yield Chunk(chunk, start.merge(Token({lane.place: lane.reached for lane in lanes})))
            chunk, size = [], 0


def size_of(record: StoredRecord) -> int:
    """About how many bytes a record takes."""
    return len(record.payload) + 2 * len(record.key) + 256


@dataclass(slots=True)
class _Lane:
    """One partition that is read from front to back."""

    log: EventLog
    place: Place
    next_offset: int
    until: int
    size: int
    batch: Sequence[StoredRecord] = ()
    at: int = 0

    @property
    def head(self) -> StoredRecord:
        """The next record; there is one."""
        return self.batch[self.at]

    @property
    def reached(self) -> int:
        """The offset after the last record that was taken."""
        return self.next_offset - len(self.batch) + self.at

    async def fetch(self) -> bool:
        """Read on, with everything read before taken; False where there is nothing before `until`."""
        left = self.until - self.next_offset
        if left <= 0:
            return False
        found = await self.log.read(self.place, self.next_offset, records=min(left, _CHUNK_RECORDS), size=self.size)
        if not found.records:
            raise Conflict(
                f"expected {self.place.stream}:{self.place.partition} to reach offset {self.until}, "
                f"got nothing from {self.next_offset} on",
                hint="icecore fsck says what is wrong with the log",
            )
        self.batch, self.at, self.next_offset = found.records, 0, found.next_offset
        return True


async def _lanes(log: EventLog, places: Sequence[Place], start: Token, until: Token) -> AsyncIterator[_Lane]:
    first = await log.start()
    for place in places:
        begin = max(start.next_offset(place), first.next_offset(place))
        lane = _Lane(log, place, begin, until.next_offset(place), max(1 << 20, _AHEAD_BYTES // len(places)))
        if await lane.fetch():
            yield lane


async def ahead(chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    """The same chunks, the next one being read while one is used."""

    async def following() -> Chunk | None:
        return await anext(chunks, None)

    reading = asyncio.create_task(following())
    try:
        while (chunk := await reading) is not None:
            reading = asyncio.create_task(following())
            yield chunk
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def of_stream(token: Token, stream: str) -> Token:
    """What a token says of one stream."""
    return Token({place: n for place, n in token.as_dict().items() if place.stream == stream})


def records_in(token: Token) -> int:
    """How many records a token covers, where logs begin at offset 0."""
    return sum(token.as_dict().values())


# ------------------------------------------------------------------------------------------------ fingerprints


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a log holds: equal for two logs with the same records, in the same order within each key.

    Where they lie, partitions and offsets, is left out.
    """

    records: int
    digest: str
    """32 hex digits: the sum of a hash of each record's stream, key, number within its key, envelope and payload."""

    def as_json(self) -> dict[str, Any]:
        """For people's programs."""
        return {"records": self.records, "digest": self.digest}


async def fingerprint(log: EventLog, until: Token, report: Report = lambda _: None, stage: str = "") -> Fingerprint:
    """Read a log up to a token and take its fingerprint.

    Raises:
        LogError: a record cannot be read, or fails its checksum.
    """
    total, count, began = records_in(until), 0, time.monotonic()
    summed = 0
    for stream in ORDER:
        for number in range(log.partitions[stream]):
            seen: Counter[str] = Counter()
            place = Place(stream, number)
            alone = Token({place: until.next_offset(place)})
            async for chunk in ahead(_of_place(log, place, alone)):
                summed += await asyncio.to_thread(_mix, stream, chunk.records, seen)
                count += len(chunk.records)
                report(_told(stage, count, total, began))
    return Fingerprint(count, f"{summed % _DIGEST:032x}")


async def _of_place(log: EventLog, place: Place, until: Token) -> AsyncIterator[Chunk]:
    async for lane in _lanes(log, [place], Token(), until):
        while True:
            yield Chunk(lane.batch, Token())
            lane.at = len(lane.batch)
            if not await lane.fetch():
                return


def _mix(stream: str, records: Sequence[StoredRecord], seen: Counter[str]) -> int:
    summed = 0
    for record in records:
        seen[record.key] += 1
        summed += _hash(stream, record, seen[record.key])
    return summed


def _hash(stream: str, record: StoredRecord | Record, number: int = 0) -> int:
    """128 bits of a record; the lengths go in too, so that no byte can change sides."""
    key, envelope = f"{stream}/{record.key}".encode(), encode_envelope(record.envelope)
    mixed = hashlib.blake2b(_LENGTHS.pack(len(key), len(envelope), number), digest_size=16)
    for part in (key, envelope, record.payload):
        mixed.update(part)
    return int.from_bytes(mixed.digest(), "little")


def _told(stage: str, done: int, total: int, began: float) -> dict[str, Any]:
    return {"stage": stage, "done": done, "total": total, "rate": round(done / max(time.monotonic() - began, 1e-9), 1)}


# ------------------------------------------------------------------------------------------------------- copying


class Note(msgspec.Struct):
    """What a note file holds: everything of `source` up to one token is in `target` up to another, and nothing else.

    It only saves time. An older one is as true as a newer one.
    """

    source_id: str
    target_id: str
    source: str
    target: str


@dataclass(slots=True)
class Copied:
    """What a copy did and found."""

    written: int = 0
    """Records written by this call."""
    already: int = 0
    """Records that earlier calls had written."""
    bytes: int = 0
    seconds: float = 0.0
    source: Fingerprint | None = None
    target: Fingerprint | None = None
    behind: int = 0
    """Records that the source got meanwhile."""
    source_token: Token = field(default_factory=Token)
    target_token: Token = field(default_factory=Token)

    @property
    def matches(self) -> bool:
        """Whether both logs were read and hold the same."""
        return self.source is not None and self.source == self.target

    def as_json(self) -> dict[str, Any]:
        """For people's programs."""
        return {
            "written": self.written,
            "already": self.already,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "records_per_second": round(self.written / self.seconds, 1) if self.seconds else 0.0,
            "matches": self.matches,
            "source": self.source.as_json() if self.source else None,
            "target": self.target.as_json() if self.target else None,
            "source_token": str(self.source_token),
            "target_token": str(self.target_token),
            "behind": self.behind,
        }


async def copy(
    source: EventLog, target: EventLog, *, note: Path | None = None, report: Report = lambda _: None
) -> Copied:
    """Bring everything that `source` holds now into `target`, then read both and compare.

    Ids, server times, actors, credentials and payloads stay as they are, and so does the order within each key. Where
    both have as many partitions and choose them alike, offsets stay too.

    Args:
        source: is only read, and may be written to meanwhile: what comes later is counted in `behind`.
        target: empty, or what an earlier call left; nobody else may write to it.
        note: a file to remember in how far the copy is; without one a cut-off copy is compared from the beginning.
        report: told how far it is.

    Raises:
        Conflict: the target is the source, or holds records that the source does not.
        LogError: one of them cannot be read or written; the same call goes on from there.
    """
    if source.log_id == target.log_id:
        raise Conflict("expected two logs, got the same one twice", hint="give another --to")
    began = time.monotonic()
    copied = Copied(source_token=await source.end())
    begin = await _begin(source, target, note)
    skips = {stream: await _left_behind(source, target, stream, begin, copied.source_token) for stream in ORDER}
    writer = _Copy(source, target, note, report, copied, begin)
    copied.already = records_in(begin[1])
    for stream in ORDER:
        await writer.stream(stream, skips[stream])
    copied.seconds = time.monotonic() - began
    return await compare(source, target, copied, report)


async def compare(
    source: EventLog, target: EventLog, copied: Copied | None = None, report: Report = lambda _: None
) -> Copied:
    """Read two logs, the source up to `copied.source_token`, and say whether they hold the same.

    Raises:
        LogError: a record of one of them cannot be read, or fails its checksum.
    """
    copied = copied or Copied(source_token=await source.end())
    copied.target_token = await target.end()
    copied.source = await fingerprint(source, copied.source_token, report, "read back the source")
    copied.target = await fingerprint(target, copied.target_token, report, "read back the target")
    copied.behind = records_in(await source.end()) - records_in(copied.source_token)
    return copied


async def _begin(source: EventLog, target: EventLog, note: Path | None) -> tuple[Token, Token]:
    """The tokens of source and target up to which the two are known to hold the same."""
    ends = await source.end(), await target.end()
    found = _read_note(note) if note is not None else None
    if found is not None and (found.source_id, found.target_id) == (source.log_id, target.log_id):
        with contextlib.suppress(BadRequest):
            begin = Token.parse(found.source), Token.parse(found.target)
            if ends[0].covers(begin[0]) and ends[1].covers(begin[1]):
                return begin
    if source.partitions == target.partitions and ends[0].covers(ends[1]) and await _same_ends(source, target, ends[1]):
        return ends[1], ends[1]
    return Token(), Token()


async def _same_ends(source: EventLog, target: EventLog, end: Token) -> bool:
    """Whether the last record of each of the target's partitions lies at the same offset in the source."""
    for place, next_offset in end.as_dict().items():
        ours = await source.read(place, next_offset - 1, records=1)
        theirs = await target.read(place, next_offset - 1, records=1)
        if list(ours.records) != list(theirs.records):
            return False
    return True


async def _left_behind(
    source: EventLog, target: EventLog, stream: str, begin: tuple[Token, Token], until: Token
) -> Counter[int]:
    """The records that a cut-off copy wrote after its last note.

    Raises:
        Conflict: one of them is not in the source.
    """
    beyond: Counter[int] = Counter()
    async for chunk in ahead(in_order(target, stream, begin[1], await target.end())):
        beyond.update(_hash(stream, record) for record in chunk.records)
    left = +beyond
    if not left:
        return beyond
    async for chunk in ahead(in_order(source, stream, begin[0], until)):
        for record in chunk.records:
            mixed = _hash(stream, record)
            if left[mixed] > 0:
                left[mixed] -= 1
    if left := +left:
        raise Conflict(
            f"expected a target with nothing but records of the source, got {left.total()} others in its {stream}",
            hint="copy into an empty log; a target that was written to by a server is a log of its own",
        )
    return beyond


class _Copy:
    """A copy under way: what is written, and how far it is noted."""

    def __init__(
        self,
        source: EventLog,
        target: EventLog,
        note: Path | None,
        report: Report,
        copied: Copied,
        begin: tuple[Token, Token],
    ) -> None:
        self._source, self._target = source, target
        self._note, self._report = note, report
        self._copied = copied
        self._from, self._to = begin
        self._began = self._noted = time.monotonic()

    async def stream(self, stream: str, skip: Counter[int]) -> None:
        """Copy one stream, but not the records counted in `skip`, which are in the target already."""
        copied = self._copied
        async for chunk in ahead(in_order(self._source, stream, self._from, copied.source_token)):
            records = [Record(r.key, r.envelope, r.payload) for r in chunk.records if not _taken(stream, r, skip)]
            copied.already += len(chunk.records) - len(records)
            if records:
                await self._target.append(stream, records)
                copied.written += len(records)
                copied.bytes += sum(len(record.payload) for record in records)
            self._from = self._from.merge(chunk.token)
            total = records_in(copied.source_token)
            self._report(_told("copy", copied.written + copied.already, total, self._began))
            if not skip:
                await self._remember(stream)
        self._noted = 0.0
        await self._remember(stream)

    async def _remember(self, stream: str) -> None:
        """Note how far the stream is, now and then: where none is skipped, all that the target has is covered."""
        if self._note is None or time.monotonic() - self._noted < _NOTE_EVERY_S:
            return
        self._noted = time.monotonic()
        self._to = self._to.merge(of_stream(await self._target.end(), stream))
        found = Note(self._source.log_id, self._target.log_id, str(self._from), str(self._to))
        self._note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._note.with_name(f"{self._note.name}.new")
        draft.write_bytes(msgspec.json.encode(found))
        draft.replace(self._note)


def _taken(stream: str, record: StoredRecord, skip: Counter[int]) -> bool:
    """Whether the target has this record already; it is counted off then, so that `skip` is empty in the end."""
    if not skip:
        return False
    mixed = _hash(stream, record)
    left = skip.pop(mixed, 0)
    if left > 1:
        skip[mixed] = left - 1
    return left > 0


def _read_note(file: Path) -> Note | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError):
        return None
