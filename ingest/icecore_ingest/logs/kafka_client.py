"""Asks the brokers: who leads what, where partitions begin and end, and for the bytes of records.

Reads are by offset, from anywhere, again and again: what a log is asked for. aiokafka's consumer keeps one position
and reads ahead of it, so this stands on aiokafka's client and its requests instead. Everything here belongs to the
one event loop it was made in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiokafka import errors as kafka
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from icecore.errors import LogDenied, LogError
from icecore.position import Place
from icecore_ingest.logs import kafka_failures as failures
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_ingest.logs.kafka_wire import LeaderFetchRequest, TopicsRequest

logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # what it says of each try, our errors say better

EARLIEST: Final = -2
LATEST: Final = -1
_BACKOFF_S: Final = 0.1
_ANSWER_S: Final = 2.0
_NOT_THERE: Final = 3
"""The error code of an unknown topic."""
_AGAIN: Final = (
    *failures.AWAY,
    kafka.UnknownTopicOrPartitionError,  # also what a broker says that has not heard of a new topic yet
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PartitionState:
    """Who holds a partition."""

    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Topics:
    """The log's topics, as the cluster has them now.

    Args:
        cluster_id: the cluster's own id.
        ids: the id of each topic that is there, by name.
        partitions: its partitions' state, by name and number.
    """

    cluster_id: str
    ids: Mapping[str, bytes]
    partitions: Mapping[str, Mapping[int, PartitionState]]

    def log_id(self) -> str:
        """The same for everyone who uses these topics, and another for topics made anew.

        A hash of the cluster's id and the topics' ids, all of which Kafka gives once and never again. Nothing has to
        be written for it, so offsets begin at 0, and nobody can copy or forget it.
        """
        parts = [self.cluster_id.encode(), *(name.encode() + b"=" + self.ids[name] for name in sorted(self.ids))]
        return hashlib.sha256(b"icecore log\n" + b"\n".join(parts)).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a broker sent of one partition: whole batches of records (the last may be cut), and where its end is."""

    data: bytes
    end: int
    start: int


class KafkaClient:
    """A connection to each broker, for reading. Make one with `open`."""

    def __init__(self, settings: KafkaSettings, client: AIOKafkaClient) -> None:
        self._settings = settings
        self._client = client
        self._topic_of = settings.topics

    @classmethod
    async def open(cls, settings: KafkaSettings) -> KafkaClient:
        """Connect.

        Raises:
            LogAway, LogDenied: no broker answers, or none lets us in.
        """
        client = AIOKafkaClient(**settings.client_options())
        opened = cls(settings, client)
        try:
            await client.bootstrap()
            await client.force_metadata_update()
        except (TimeoutError, kafka.KafkaError, OSError) as error:
            await client.close()
            raise await _why_not(settings, error) from error
        except BaseException:
            await client.close()
            raise
        return opened

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()

    # -------------------------------------------------------------------------------------------------- questions

    async def topics(self) -> Topics:
        """What the cluster says of the log's topics; one that is not there is left out.

        Raises:
            LogAway, LogDenied: nobody answers, or we may not know.
        """
        names = list(self._topic_of.values())
        answer = await self._again(lambda: self._send_any(TopicsRequest(names)), "the cluster")
        ids: dict[str, bytes] = {}
        partitions: dict[str, Mapping[int, PartitionState]] = {}
        for code, name, topic_id, _, found, _, _ in answer.topics:
            if code == _NOT_THERE:
                continue
            if code and code != kafka.LeaderNotAvailableError.errno:
                raise failures.translate(kafka.for_code(code)(), name)
            ids[name] = topic_id
            partitions[name] = {
                number: PartitionState(leader, tuple(replicas), tuple(isr))
                for _, number, leader, _, replicas, isr, _, _ in found
            }
        return Topics(answer.cluster_id or "", ids, partitions)

    async def offsets(self, places: Iterable[Place], which: int) -> dict[Place, int]:
        """The first (`EARLIEST`) or next (`LATEST`) offset of some partitions.

        Raises:
            LogAway, LogTopicMissing, LogDenied: a partition's leader does not say.
        """
        wanted = list(places)
        found: dict[Place, int] = {}

        async def ask() -> None:
            missing = [place for place in wanted if place not in found]
            answers = await asyncio.gather(*(self._offsets_of(node, mine, which) for node, mine in self.led(missing)))
            for answer in answers:
                found.update(answer)

        await self._again(ask, self._names(wanted))
        return found

    async def fetch(self, place: Place, offset: int, size: int) -> Fetched:
        """Records from `offset` on, about `size` bytes of them: nothing where there is nothing yet.

        Raises:
            LogTruncated: that offset is gone.
            LogAway, LogTopicMissing, LogDenied: the partition's leader does not give it.
        """

        async def ask() -> Fetched:
            ((node, _),) = self.led([place])
            return (await self.fetch_from(node, {place: offset}, size, 0))[place]

        try:
            return await self._again(ask, self._names([place]))
        except kafka.OffsetOutOfRangeError:
            start = (await self.offsets([place], EARLIEST))[place]
            if offset < start:
                raise failures.truncated(place, offset, start) from None
            end = (await self.offsets([place], LATEST))[place]
            return Fetched(b"", end, start)

    async def fetch_from(
        self, node: int, offsets: Mapping[Place, int], size: int, wait_ms: int
    ) -> dict[Place, Fetched]:
        """One request to one broker, held there for up to `wait_ms` until there is something. Raises aiokafka's."""
        asked: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for place, offset in offsets.items():
            asked[self._topic_of[place.stream]].append((place.partition, offset, size))
        answer = await self._client.send(node, LeaderFetchRequest(wait_ms, 1, size, 0, list(asked.items())))
        stream_of = {topic: stream for stream, topic in self._topic_of.items()}
        found: dict[Place, Fetched] = {}
        for topic, partitions in answer.topics:
            for partition, code, end, _, start, *_, data in partitions:
                if code:
                    raise kafka.for_code(code)
                found[Place(stream_of[topic], partition)] = Fetched(data or b"", end, start)
        return found

    async def answering(self, nodes: Iterable[int]) -> set[int]:
        """Those of some brokers that answer within two seconds: metadata may be old where the controllers are away."""
        asked = sorted(set(nodes))

        async def ask(node: int) -> bool:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await self._client.send(node, TopicsRequest([]))
            except (kafka.KafkaError, OSError, TimeoutError):
                return False
            return True

        found = await asyncio.gather(*map(ask, asked))
        return {node for node, answers in zip(asked, found, strict=True) if answers}

    def led(self, places: Iterable[Place]) -> list[tuple[int, list[Place]]]:
        """Some partitions by the broker that leads them.

        Raises:
            aiokafka.errors.KafkaError: one has no leader, or is not there.
        """
        nodes: dict[int, list[Place]] = defaultdict(list)
        for place in places:
            node = self._client.cluster.leader_for_partition(self._partition(place))
            if node is None:
                raise kafka.UnknownTopicOrPartitionError
            if node < 0:
                raise kafka.LeaderNotAvailableError
            nodes[node].append(place)
        return list(nodes.items())

    async def refresh(self) -> None:
        """Ask anew who leads what, after a short pause."""
        await asyncio.sleep(_BACKOFF_S)
        await self._client.force_metadata_update()

    # ---------------------------------------------------------------------------------------------------- inside

    async def _offsets_of(self, node: int, places: list[Place], which: int) -> dict[Place, int]:
        asked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for place in places:
            asked[self._topic_of[place.stream]].append((place.partition, which))
        answer = await self._client.send(node, OffsetRequest(-1, 0, list(asked.items())))
        stream_of = {topic: stream for stream, topic in self._topic_of.items()}
        found: dict[Place, int] = {}
        for topic, partitions in answer.topics:
            for partition, code, _, offset in partitions:
                if code:
                    raise kafka.for_code(code)
                found[Place(stream_of[topic], partition)] = offset
        return found

    async def _send_any(self, request: Any) -> Any:
        """Ask whichever broker answers."""
        nodes = [broker.nodeId for broker in self._client.cluster.brokers()]
        for node in random.sample(nodes, len(nodes)):
            with contextlib.suppress(kafka.NodeNotReadyError, kafka.RequestTimedOutError, TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    return await self._client.send(node, request)
        raise kafka.NoBrokersAvailable

    async def _again(self, ask: Callable[[], Awaitable[T]], where: str) -> T:
        """Ask until there is an answer or the request's time is over; what waiting cannot help is raised at once."""
        deadline = time.monotonic() + self._settings.request_timeout_s
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await ask()
            except kafka.OffsetOutOfRangeError:
                raise
            except _AGAIN as error:
                left = deadline - time.monotonic()
                if left <= _BACKOFF_S:
                    raise failures.translate(error, where) from error
            except kafka.KafkaError as error:
                raise failures.translate(error, where) from error
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.refresh(), left)

    def _partition(self, place: Place) -> TopicPartition:
        return TopicPartition(self._topic_of[place.stream], place.partition)

    def _names(self, places: Iterable[Place]) -> str:
        return ", ".join(sorted({self._topic_of[place.stream] for place in places}))


async def _why_not(settings: KafkaSettings, error: BaseException) -> LogError:
    """Why no broker lets us in: aiokafka only says that none did."""
    options = settings.client_options()
    servers = options.pop("bootstrap_servers")
    for name in ("retry_backoff_ms", "metadata_max_age_ms"):
        del options[name]
    found: BaseException = error
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            connection = await create_conn(host.strip("[]"), int(port), **options)
        except (TimeoutError, kafka.KafkaError, OSError) as cause:
            found = cause
            if isinstance(failures.translate(cause, server), LogDenied):
                break
        else:
            connection.close()
    return failures.translate(found, ", ".join(servers))
