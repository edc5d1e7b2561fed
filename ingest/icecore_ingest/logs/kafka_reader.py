"""Bytes that a broker sent, as records: read where they are wanted, in the caller's thread."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from icecore.codec import decode_envelope
from icecore.errors import BadRequest
from icecore.events import Envelope
from icecore.log import StoredRecord
from icecore.position import Place, Position
from icecore_ingest.logs import kafka_failures as failures
from icecore_ingest.logs.kafka_writer import HEADER

FOREIGN: Final = "foreign.record"
"""The type of a record that no icecore wrote: kept, counted and skipped, as every type that is not known."""
FETCH_BYTES: Final = 8 << 20
FETCH_LEAST: Final = 64 << 10
FETCH_RECORD: Final = 32 << 10
"""Bytes asked for each record wanted: who wants one does not get megabytes."""
_KEPT_CHUNKS: Final = 4
_HEAD = struct.Struct(">qi")
_MAGIC_AT: Final = 16
_MAGIC: Final = 2


class Chunk(NamedTuple):
    """Some bytes of a partition, and where in them the batch is that holds `offset`."""

    data: bytes
    at: int
    offset: int


class Chunks:
    """What was fetched and not yet asked for: the last few partitions' remainders."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Place, Chunk] = OrderedDict()

    def take(self, place: Place, offset: int) -> Chunk | None:
        """What is kept of a partition, if it goes on at `offset`."""
        chunk = self._kept.pop(place, None)
        return chunk if chunk is not None and chunk.offset == offset else None

    def keep(self, place: Place, chunk: Chunk) -> None:
        """Keep what is left of a chunk."""
        self._kept[place] = chunk
        while len(self._kept) > _KEPT_CHUNKS:
            self._kept.popitem(last=False)


def decode(place: Place, chunk: Chunk, found: list[StoredRecord], records: int, size: int) -> tuple[Chunk | None, int]:
    """Put a chunk's records into `found`, at most `records` and about `size` bytes of them.

    Returns:
        What is left of the chunk, or None where it has no whole batch any more; and what is left of `size`.

    Raises:
        LogCorrupt: the record at `chunk.offset` is damaged or missing, and is the first asked for.
    """
    data, at, offset = chunk
    view = memoryview(data)
    room = records
    while (end := _batch_end(data, at)) <= len(data):
        for position, stored in _records(place, view[at:end], offset):
            if position != offset:
                raise failures.corrupt(place, offset, f"a hole up to {position}")
            if room == 0 or size <= 0:
                return Chunk(data, at, offset), size
            found.append(stored)
            offset += 1
            room -= 1
            size -= len(stored.payload)
        at = end
    return None, size


def _batch_end(data: bytes, at: int) -> int:
    """Where the batch at `at` ends; beyond the data where it is cut."""
    if at + _HEAD.size > len(data):
        return len(data) + 1
    _, length = _HEAD.unpack_from(data, at)
    return at + _HEAD.size + int(length)


def _records(place: Place, data: memoryview, start: int) -> Iterator[tuple[int, StoredRecord]]:
    """A whole batch's records from offset `start` on, its checksum checked."""
    if len(data) <= _MAGIC_AT or data[_MAGIC_AT] != _MAGIC:
        raise failures.corrupt(place, start, "a batch of an older format")
    batch = DefaultRecordBatch(data)
    if not batch.validate_crc():
        raise failures.corrupt(place, start, "a batch that fails its checksum")
    if batch.is_control_batch:  # the markers of somebody's transaction take offsets too
        for offset in range(max(batch.base_offset, start), batch.next_offset):
            position = Position(*place, offset)
            yield offset, StoredRecord(position, "", _foreign(position, batch.first_timestamp), b"")
        return
    try:
        for record in batch:
            if record.offset >= start:
                yield record.offset, _stored(place, record)
    except CorruptRecordException as error:
        raise failures.corrupt(place, start, f"a batch that cannot be read: {error}") from error


def _stored(place: Place, record: Any) -> StoredRecord:
    position = Position(*place, record.offset)
    key = (record.key or b"").decode("utf-8", "replace")
    payload = bytes(record.value or b"")
    for name, value in record.headers:
        if name == HEADER and value:
            try:
                return StoredRecord(position, key, decode_envelope(value), payload)
            except BadRequest:
                break
    return StoredRecord(position, key, _foreign(position, record.timestamp), payload)


def _foreign(position: Position, timestamp: int) -> Envelope:
    """An envelope for a record that came without one: somebody else wrote into the topic.

    Such a record must not stop the log for ever, for nobody can take it out again.
    """
    name = f"foreign-{position.stream}-{position.partition}-{position.offset}"
    return Envelope(id=name, type=FOREIGN, v=1, producer=name, seq=0, ts_client=timestamp, ts_server=timestamp)
