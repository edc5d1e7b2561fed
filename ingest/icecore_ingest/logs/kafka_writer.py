"""Writes one stream: each partition's calls in batches, one batch on its way at a time.

Kafka takes a batch whole or not at all, so a call's records of one partition always travel in one batch, and while
a batch is on its way the calls that come meanwhile gather for the next: many small appends cost one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from icecore.errors import LogAway, LogError, LogTruncated
from icecore.position import Place
from icecore_ingest.logs import kafka_failures as failures
from icecore_ingest.logs.kafka_settings import BATCH_BYTES, KafkaSettings
from icecore_ingest.logs.kafka_thread import Mail

HEADER: Final = "icecore-envelope"
"""The name of the header that holds a record's envelope."""
RECORD_ROOM: Final = 96
"""More bytes than Kafka's framing and the header's name take of one record."""
_BATCH_ROOM: Final = 128
_GROUP_BYTES: Final = 1 << 20
"""Calls are grouped up to this size; one call alone may be as large as a batch can be."""
_STOP_S: Final = 5.0
_BACKOFF_S: Final = 0.2
_SWEEP_S: Final = 0.25
_STALLED_S: Final = 10.0
"""A batch that is on its way for so long, with a known cause, makes further appends be refused at once."""

_log = logging.getLogger(__name__)


class Raw(NamedTuple):
    """A record in bytes: what Kafka keeps of it."""

    key: bytes
    envelope: bytes
    payload: bytes
    ts: int


@dataclass(slots=True, eq=False)
class Append:
    """One call of `append`.

    Args:
        parts: its records by partition.
        answer: of the caller's loop; gets the offset of the first record of each partition.
    """

    parts: Mapping[int, list[Raw]]
    answer: asyncio.Future[dict[int, int]]
    calls: dict[int, _Call] = field(default_factory=dict)
    firsts: dict[int, int] = field(default_factory=dict)
    deadline: float = 0.0
    over: bool = False


@dataclass(slots=True, eq=False)
class _Call:
    """One append's records for one partition."""

    of: Append
    records: list[Raw]
    count: int
    size: int
    sent: bool = False


@dataclass(slots=True)
class _Lane:
    """One partition: what waits, and what is on its way."""

    place: Place
    waiting: deque[_Call] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    sent_at: float = 0.0
    """When the batch on its way was sent; 0 where none is."""
    end: int = 0
    """The offset after the last batch acknowledged here."""


class Writer:
    """Appends to one stream. Only `submit` may be called outside the event loop it was made in.

    Args:
        settings: the cluster, and how much may wait.
        stream: which stream.
        topic: its topic.
        partitions: how many partitions it has.
        linger_s: how long a batch waits for company before it is sent.
        moved: told a partition and its next offset whenever that moved.
        trouble: what is known to be wrong with the log now.
        post: calls something in this loop, from any thread; False where the loop has ended.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        stream: str,
        topic: str,
        partitions: int,
        *,
        linger_s: float,
        moved: Callable[[Place, int], None],
        trouble: Callable[[], LogError | None],
        post: Callable[[Callable[[], object]], bool],
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._linger_s = linger_s
        self._moved = moved
        self._trouble = trouble
        self._lanes = [_Lane(Place(stream, number)) for number in range(partitions)]
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()
        self._broken: LogError | None = None
        self._loop = asyncio.get_running_loop()
        self._post = post
        self._mail = Mail()
        self._lock = threading.Lock()
        self._inbox: list[Append] = []
        self._rung = False
        self._open_appends: dict[int, Append] = {}
        self.waiting_bytes = 0

    async def open(self) -> None:
        """Connect.

        Raises:
            LogAway, LogDenied: no broker answers, or none lets us in.
        """
        await self._connected()

    def submit(self, append: Append) -> None:
        """Take a call from any thread; its answer comes to its future.

        The answer may be a LogTooLarge or LogBusy: nothing was taken; a LogAway, LogNotReplicated, LogTopicMissing
        or LogDenied: nothing was written, or not all of it; a LogUnsure: there was no answer in time.

        Raises:
            LogError: the log is closed.
        """
        with self._lock:
            self._inbox.append(append)
            ringing, self._rung = self._rung, True
        if not ringing and not self._post(self._accept):
            raise LogError("expected an open log, got a closed one")

    def forget(self, append: Append) -> None:
        """The caller is gone: what was not sent of a call is not sent."""
        if not append.over:
            self._end(append, asyncio.CancelledError())

    def oldest_s(self) -> float:
        """For how long the oldest batch on its way has been there, in seconds; 0 where none is."""
        sent = [lane.sent_at for lane in self._lanes if lane.sent_at]
        return time.monotonic() - min(sent) if sent else 0.0

    def refuse(self, error: LogError) -> None:
        """Take nothing any more, and give up what is on its way: it must not reach another topic of that name."""
        self._broken = error
        self.give_up(error)

    def give_up(self, error: LogError) -> None:
        """Give up what waits and what is on its way; later appends begin anew."""
        for append in list(self._open_appends.values()):
            self._end(append, _again(error))
        producer, self._producer = self._producer, None
        if producer is not None:
            self._let_go(producer, error)

    async def close(self) -> None:
        """Write what waits, and disconnect."""
        tasks = [lane.task for lane in self._lanes if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_STOP_S)
        self.refuse(LogError("expected an open log, got a closed one"))
        self._accept()
        self._mail.flush()
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=2 * _STOP_S)

    # ----------------------------------------------------------------------------------------------------- calls

    def _accept(self) -> None:
        """Put what came in where it belongs."""
        with self._lock:
            inbox, self._inbox, self._rung = self._inbox, [], False
        for append in inbox:
            try:
                self._take_in(append)
            except LogError as error:
                append.over = True
                self._mail.send(append.answer, error)

    def _take_in(self, append: Append) -> None:
        self._refuse_if_stuck(append.parts)
        calls = {number: self._call(append, number, records) for number, records in append.parts.items()}
        size = sum(call.size for call in calls.values())
        if self.waiting_bytes and self.waiting_bytes + size > self._settings.buffer_bytes:
            raise failures.busy(self.waiting_bytes + size, self._settings.buffer_bytes)
        self.waiting_bytes += size
        append.calls = calls
        append.deadline = time.monotonic() + self._settings.delivery_timeout_s
        if not self._open_appends:
            self._loop.call_later(_SWEEP_S, self._sweep)
        self._open_appends[id(append)] = append
        for number, call in calls.items():
            lane = self._lanes[number]
            lane.waiting.append(call)
            if lane.task is None:
                lane.task = self._loop.create_task(self._run(lane))

    def _call(self, append: Append, number: int, records: list[Raw]) -> _Call:
        size = sum(len(r.key) + len(r.envelope) + len(r.payload) for r in records) + RECORD_ROOM * len(records)
        if size + _BATCH_ROOM > BATCH_BYTES:
            raise failures.too_large(self._lanes[number].place, size, BATCH_BYTES - _BATCH_ROOM)
        return _Call(append, records, len(records), size)

    def _refuse_if_stuck(self, numbers: Iterable[int]) -> None:
        """Say what is wrong at once where waiting would only end with that."""
        if self._broken is not None:
            raise _again(self._broken)
        trouble = self._trouble()
        if trouble is not None:
            now = time.monotonic()
            if any(self._lanes[n].sent_at and now - self._lanes[n].sent_at > _STALLED_S for n in numbers):
                raise _again(trouble)

    def _sweep(self) -> None:
        """Answer the calls whose time is over. They come in the order of their deadlines."""
        now = time.monotonic()
        while self._open_appends and (append := next(iter(self._open_appends.values()))).deadline <= now:
            self._end(append, self._late(sent=any(call.sent for call in append.calls.values())))
        if self._open_appends:
            self._loop.call_later(_SWEEP_S, self._sweep)

    def _end(self, append: Append, answer: BaseException | dict[int, int]) -> None:
        """Answer a call; what was not sent of it is taken back."""
        append.over = True
        self._open_appends.pop(id(append), None)
        for number, call in append.calls.items():
            if not call.sent:
                call.sent = True
                self._lanes[number].waiting.remove(call)
                self._forget(call)
        self._mail.send(append.answer, answer)

    def _landed(self, call: _Call, number: int, first: int) -> None:
        self._forget(call)
        append = call.of
        append.firsts[number] = first
        if not append.over and len(append.firsts) == len(append.calls):
            self._end(append, append.firsts)

    def _fail(self, call: _Call, error: LogError) -> None:
        self._forget(call)
        call.sent = True
        if not call.of.over:
            self._end(call.of, _again(error))

    def _forget(self, call: _Call) -> None:
        self.waiting_bytes -= call.size
        call.records = []

    def _late(self, *, sent: bool) -> LogError:
        """The error for a call whose time is over."""
        trouble, seconds = self._trouble(), self._settings.delivery_timeout_s
        if sent:
            return failures.unsure(self._topic, seconds, trouble.message if trouble else "")
        if trouble is not None:
            return _again(trouble)
        return failures.away(self._topic, f"none that took earlier records within {seconds:g} s")

    # ----------------------------------------------------------------------------------------------------- lanes

    async def _run(self, lane: _Lane) -> None:
        """Send what waits, batch after batch."""
        try:
            if self._linger_s:
                await asyncio.sleep(self._linger_s)
            while lane.waiting:
                await self._send(lane)
        finally:
            lane.task = None

    async def _send(self, lane: _Lane) -> None:
        """Send one batch and tell its calls where they are."""
        calls: list[_Call] = []
        producer = None
        try:
            producer = await self._connected()
            calls = self._take(lane)
            if not calls:
                return
            lane.sent_at = time.monotonic()
            first = await self._deliver(producer, lane.place.partition, calls)
            if first < lane.end:
                raise failures.lost_tail(lane.place, lane.end, first)
        except Exception as error:  # noqa: BLE001 - whatever it was, the calls are told
            self._failed(lane, calls, producer, error)
            await asyncio.sleep(_BACKOFF_S)
        else:
            for call in calls:
                self._landed(call, lane.place.partition, first)
                first += call.count
            lane.end = first
            self._moved(lane.place, first)
        finally:
            lane.sent_at = 0.0

    def _take(self, lane: _Lane) -> list[_Call]:
        calls: list[_Call] = []
        size = 0
        while lane.waiting and (not calls or size + lane.waiting[0].size <= _GROUP_BYTES):
            call = lane.waiting.popleft()
            call.sent = True
            size += call.size
            calls.append(call)
        return calls

    async def _deliver(self, producer: AIOKafkaProducer, partition: int, calls: list[_Call]) -> int:
        """The first record's offset, once every replica in sync has the batch. aiokafka tries until it is so."""
        if producer.client.cluster.partitions_for_topic(self._topic) is None:
            raise failures.topic_missing(self._topic)  # aiokafka would let a broker make it, with any settings
        batch = producer.create_batch()
        for call in calls:
            for key, envelope, payload, ts in call.records:
                if batch.append(timestamp=ts, key=key, value=payload, headers=[(HEADER, envelope)]) is None:
                    raise LogError("expected the records to fit into their batch, got more bytes than were counted")
        batch.close()
        told = await (await producer.send_batch(batch, self._topic, partition=partition))
        if told.offset < 0:
            raise failures.unsure(self._topic, 0, "the broker had forgotten the batch when it came again")
        return int(told.offset)

    def _failed(self, lane: _Lane, calls: list[_Call], producer: AIOKafkaProducer | None, error: BaseException) -> None:
        """Fail a batch's calls; where nothing was taken, all that wait: they would meet the same."""
        told = failures.translate(error, self._topic)
        _log.warning("an append to %s:%d failed: %s", self._topic, lane.place.partition, told.message)
        if not calls:
            calls, lane.waiting = list(lane.waiting), deque()
        for call in calls:
            self._fail(call, told)
        if isinstance(told, LogTruncated):
            self.refuse(told)
        elif producer is not None and producer is self._producer:
            # its sequence numbers have a gap now, which the brokers would refuse: a new producer has a new sequence
            self._producer = None
            self._let_go(producer)

    # -------------------------------------------------------------------------------------------------- producers

    async def _connected(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._broken is not None:
                raise _again(self._broken)
            if self._producer is None:
                self._producer = await self._connect()
            return self._producer

    async def _connect(self) -> AIOKafkaProducer:
        """Begin with each server in turn: one that hangs takes all the time that a try has."""
        servers = list(self._settings.servers)
        for first in range(len(servers) - 1):
            with contextlib.suppress(LogAway):
                return await self._connect_by([*servers[first:], *servers[:first]])
        return await self._connect_by([*servers[-1:], *servers[:-1]])

    async def _connect_by(self, servers: list[str]) -> AIOKafkaProducer:
        compression = self._settings.compression
        producer = AIOKafkaProducer(
            **{**self._settings.client_options(), "bootstrap_servers": servers},
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES,
            max_request_size=BATCH_BYTES,
            compression_type=None if compression == "none" else compression,
        )
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await producer.start()
                await producer.client.force_metadata_update()
        except BaseException as error:
            self._let_go(producer, failures.away(self._topic, "no connection"))
            if isinstance(error, kafka.KafkaError | OSError | asyncio.TimeoutError):
                raise failures.translate(error, self._topic) from error
            raise
        return producer

    def _let_go(self, producer: AIOKafkaProducer, error: LogError | None = None) -> None:
        """Stop a producer in the background; with an `error`, its batches are given up at once."""
        task = asyncio.get_running_loop().create_task(_stop(producer, error))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)


async def _stop(producer: AIOKafkaProducer, error: LogError | None) -> None:
    with suppress(kafka.KafkaError, OSError, asyncio.TimeoutError, LogError):
        stopping = asyncio.ensure_future(producer.stop())
        if error is None:
            await asyncio.wait([stopping], timeout=_STOP_S)
        if not stopping.done():
            # `stop` waits for batches for ever, and an idempotent producer never gives one up
            producer._message_accumulator.fail_all(error or failures.unsure("the old producer", _STOP_S, ""))  # noqa: SLF001
        await stopping


def _again(error: LogError) -> LogError:
    """The same error for another caller, whose traceback it will carry."""
    return type(error)(error.message, hint=error.hint, **error.facts)
