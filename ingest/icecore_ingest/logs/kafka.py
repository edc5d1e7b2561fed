"""The log of a cluster: Apache Kafka, appended to and read by any number of processes.

A record is acknowledged when every replica in sync has it (`acks=all`, at least two of three). Its key is Kafka's
key, its payload Kafka's value, untouched, and its envelope the header `icecore-envelope`; the partition follows from
the key as in Kafka's own producers, and the position is Kafka's partition and offset. So any Kafka program can read
the log by docs/events.md alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Final

from aiokafka.partitioner import murmur2

from icecore.bell import Bell
from icecore.codec import encode_envelope
from icecore.errors import LogCorrupt, LogError, LogReadOnly
from icecore.events import now_ms
from icecore.log import Batch, Record, StoredRecord
from icecore.position import LEDGER, NEVER, STREAMS, Place, Position, Token
from icecore_ingest.logs import kafka_failures as failures
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka_client import EARLIEST, LATEST, KafkaClient
from icecore_ingest.logs.kafka_health import Health
from icecore_ingest.logs.kafka_reader import FETCH_BYTES, FETCH_LEAST, FETCH_RECORD, Chunk, Chunks, decode
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_ingest.logs.kafka_thread import LoopThread
from icecore_ingest.logs.kafka_watch import Watch
from icecore_ingest.logs.kafka_writer import RECORD_ROOM, Append, Raw, Writer

# Each retry of a broker that is away is a warning of aiokafka's; what is wrong is in `trouble`. Heard where logging is
# configured.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

_BEHIND_TRIES: Final = 20
_BEHIND_S: Final = 0.1


class KafkaLog:
    """An `EventLog` on Kafka. Make one with `KafkaLog.open`.

    Safe for many tasks, event loops and threads; not across a fork. Its clients live in a thread of its own
    (`kafka_thread`).
    """

    def __init__(self, settings: KafkaSettings, thread: LoopThread, *, readonly: bool) -> None:
        self._settings = settings
        self._thread = thread
        self._readonly = readonly
        self._closed = False
        self._opened = AsyncExitStack()
        """What the thread holds open, to be closed in it."""
        self._log_id = ""
        self._partitions: Mapping[str, int] = {}
        self._writers: dict[str, Writer] = {}
        self._ends: dict[Place, int] = {}
        """The next offset of each partition as far as it is known here; never goes back."""
        self._bells: dict[Place, Bell] = {}
        self._chunks = Chunks()
        self._watches: dict[frozenset[Place], Watch] = {}

    @classmethod
    async def open(cls, settings: KafkaSettings, *, readonly: bool = False) -> KafkaLog:
        """Open the log on topics that are there already (`kafka_topics.create` makes them).

        Args:
            settings: where it is.
            readonly: never write; appending raises `LogReadOnly`.

        Raises:
            LogAway, LogDenied: no broker answers, or none lets us in.
            LogTopicMissing: a topic is not there.
            LogDrift: a topic's settings could lose records.
            LogTruncated: records were deleted already.
        """
        log = cls(settings, LoopThread("log-kafka"), readonly=readonly)
        try:
            await log._thread.run(log._open)
        except BaseException:
            await log.close()
            raise
        return log

    @property
    def partitions(self) -> Mapping[str, int]:
        """How many partitions each stream has."""
        return self._partitions

    @property
    def log_id(self) -> str:
        """An id made of those that Kafka gave to the cluster and the topics; see `Topics.log_id`."""
        return self._log_id

    @property
    def settings(self) -> KafkaSettings:
        """Where the log is; its `str` is the URL."""
        return self._settings

    @property
    def trouble(self) -> str:
        """What is wrong with the log now, as `code: message`; empty where nothing is. Costs nothing to ask."""
        trouble = self._health.trouble
        return f"{trouble.code}: {trouble.message}" if trouble else ""

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Append, and return when every replica in sync has the records; see `EventLog.append`.

        A call's records of one partition travel in one batch, which Kafka takes whole or not at all.

        Raises:
            LogTooLarge, LogBusy: nothing was taken.
            LogAway, LogNotReplicated, LogTopicMissing, LogDenied: nothing of the call is acknowledged.
            LogUnsure: there was no answer in time; the records may be written or not.
            LogTruncated, LogForeign: the log is not what it was; nothing is taken until it is opened again.
        """
        self._check(stream)
        if self._readonly:
            raise LogReadOnly("expected a log opened for writing, got one opened to read", hint="open it to write")
        if not records:
            return []
        count = self._partitions[stream]
        parts: dict[int, list[Raw]] = {}
        at: list[tuple[int, int]] = []
        for record in records:
            number = partition_of(record.key, count)
            part = parts.setdefault(number, [])
            at.append((number, len(part)))
            envelope = record.envelope
            ts = envelope.ts_server or envelope.ts_client or now_ms()
            part.append(Raw(record.key.encode(), encode_envelope(envelope), record.payload, ts))
        writer, append = self._writers[stream], Append(parts, asyncio.get_running_loop().create_future())
        writer.submit(append)
        try:
            firsts = await append.answer
        except asyncio.CancelledError:
            self._thread.post(partial(writer.forget, append))
            raise
        return [Position(stream, number, firsts[number] + index) for number, index in at]

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """Read from offset `start` on; see `EventLog.read`. At least one record if there is one.

        Where a record is damaged the batch ends before it, and the read that starts at it raises.

        Raises:
            LogTruncated: the record at `start` was deleted.
            LogCorrupt: the record at `start` fails its checksum or is missing; the facts say where.
            LogAway, LogTopicMissing, LogDenied: nobody gives it.
        """
        self._check_place(place)
        found: list[StoredRecord] = []
        chunk = self._chunks.take(place, start)
        try:
            while len(found) < records and size > 0:
                wanted = min(size + RECORD_ROOM, (records - len(found)) * FETCH_RECORD)
                chunk = chunk or await self._fetch(place, start + len(found), wanted)
                if chunk is None:
                    break
                chunk, size = decode(place, chunk, found, records - len(found), size)
        except LogCorrupt:
            if not found:
                raise
        if chunk is not None:
            self._chunks.keep(place, chunk)
        return Batch(place, found, start + len(found))

    async def end(self) -> Token:
        """The next offset of every partition, as their leaders say now.

        Raises:
            LogTruncated: a partition ends before what was acknowledged here: records were lost.
            LogAway, LogTopicMissing, LogDenied: a leader does not say.
        """
        self._check_open()
        await self._thread.run(partial(self._look, list(self._bells)))
        return Token({place: self._ends[place] for place in self._bells})

    async def start(self) -> Token:
        """The first offset of every partition that is still there: 0, or records were deleted.

        Raises:
            LogAway, LogTopicMissing, LogDenied: a leader does not say.
        """
        self._check_open()
        return Token(await self._thread.run(partial(self._client.offsets, list(self._bells), EARLIEST)))

    async def wait(self, token: Token, within: float) -> bool:
        """Wait until the end is beyond `token` in some partition; False after `within` seconds.

        The brokers wake it. A partition whose offset in `token` is `NEVER` costs nothing.

        Raises:
            LogAway, LogTopicMissing, LogDenied: the time is over, and it cannot be said whether there is more.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        places = [place for place in self._bells if token.next_offset(place) < NEVER]
        while True:
            heard = [(place, self._bells[place].listen()) for place in places]
            try:
                if any(self._ends.get(place, 0) > token.next_offset(place) for place in places):
                    return True
                left = deadline - loop.time()
                if left <= 0 or not heard:
                    break
                self._thread.post(partial(self._want, frozenset(places), left))
                futures = [future for _, future in heard]
                await asyncio.wait(futures, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                self._check_open()
            finally:
                for place, future in heard:
                    self._bells[place].forget(future)
        await asyncio.sleep(max(0.0, deadline - loop.time()))
        await self._thread.run(partial(self._look, places))
        return any(self._ends[place] > token.next_offset(place) for place in places)

    async def close(self) -> None:
        """Write what is queued and disconnect."""
        if not self._closed:
            self._closed = True
            try:
                await self._thread.run(self._close)
            finally:
                await self._thread.stop()
                for bell in self._bells.values():
                    bell.ring()

    # ------------------------------------------------------------------------------------------------- in callers

    def _check_open(self) -> None:
        if self._closed:
            raise LogError("expected an open log, got a closed one")

    def _check(self, stream: str) -> None:
        self._check_open()
        if stream not in self._partitions:
            raise LogError(f"expected a stream of {list(STREAMS)}, got {stream!r}")

    def _check_place(self, place: Place) -> None:
        self._check_open()
        if place not in self._bells:
            known = [f"{p.stream}:{p.partition}" for p in self._bells]
            raise LogError(f"expected one of the partitions {known}, got {place.stream}:{place.partition}")

    async def _fetch(self, place: Place, offset: int, size: int) -> Chunk | None:
        """A chunk that begins at `offset`, or None where there is nothing yet."""
        size = min(max(size, FETCH_LEAST), FETCH_BYTES)
        while True:
            fetched = await self._thread.run(partial(self._client.fetch, place, offset, size))
            self._moved(place, fetched.end)
            if fetched.data and offset < fetched.end:
                return Chunk(fetched.data, 0, offset)
            if fetched.end >= self._ends[place]:
                return None
            # a leader of yesterday that has not heard of today's: find that one, or that records were lost
            await self._thread.run(partial(self._look, [place]))

    def _moved(self, place: Place, end: int) -> None:
        """Note how far a partition is known to go, and wake who waits for that."""
        if end > self._ends.get(place, 0):
            self._ends[place] = end
            self._bells[place].ring()

    # ----------------------------------------------------------------------------------------------- in the thread

    async def _open(self) -> None:
        settings = self._settings
        self._client = await KafkaClient.open(settings)
        self._opened.push_async_callback(self._client.close)
        topics = await kafka_topics.known(self._client, settings)
        found = await kafka_topics.drift(settings, topics)
        if found:
            raise kafka_topics.refuse(found)
        self._log_id = topics.log_id()
        counts = {stream: len(topics.partitions[topic]) for stream, topic in settings.topics.items()}
        self._partitions = MappingProxyType(counts)
        self._bells = {Place(stream, number): Bell() for stream in counts for number in range(counts[stream])}
        kafka_topics.check_starts(await self._client.offsets(self._bells, EARLIEST))
        self._ends = await self._client.offsets(self._bells, LATEST)
        self._health = Health(self._client, settings, counts, self._log_id, self._writers.values())
        self._opened.push_async_callback(self._health.end)
        for stream, topic in settings.topics.items() if not self._readonly else ():
            self._writers[stream] = Writer(
                settings,
                stream,
                topic,
                counts[stream],
                linger_s=0.0 if stream == LEDGER else settings.linger_ms / 1000,
                moved=self._moved,
                trouble=lambda: self._health.trouble,
                post=self._thread.post,
            )
            self._opened.push_async_callback(self._writers[stream].close)
            await self._writers[stream].open()
        self._health.begin()

    async def _close(self) -> None:
        for watch in list(self._watches.values()):
            await watch.close()
        await self._opened.aclose()

    async def _look(self, places: Sequence[Place]) -> None:
        """Ask for the ends. One that went back has a new leader that will know soon, or has lost records."""
        known = {place: self._ends[place] for place in places}
        left = _BEHIND_TRIES
        while True:
            found = await self._client.offsets(places, LATEST)
            for place, end in found.items():
                self._moved(place, end)
            behind = [place for place in places if found[place] < known[place]]
            if not behind:
                return
            left -= 1
            if not left:
                raise self._health.lost(failures.lost_tail(behind[0], known[behind[0]], found[behind[0]]))
            await asyncio.sleep(_BEHIND_S)
            await self._client.refresh()

    def _want(self, places: frozenset[Place], within: float) -> None:
        watch = self._watches.get(places)
        if watch is None:
            watch = self._watches[places] = Watch(
                self._settings,
                places,
                ends=self._ends.__getitem__,
                moved=self._moved,
                ended=self._unwatch,
            )
        watch.want(within)

    def _unwatch(self, watch: Watch) -> None:
        if self._watches.get(watch.places) is watch:
            del self._watches[watch.places]


@lru_cache(maxsize=8_192)
def partition_of(key: str, count: int) -> int:
    """The partition of a key, as Kafka's own producers and aiokafka choose it: murmur2, positive, modulo."""
    return 0 if count == 1 else int((murmur2(key.encode()) & 0x7FFFFFFF) % count)
