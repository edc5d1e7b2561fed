"""The log's topics: made so that Kafka keeps every record, and checked to be still so.

A log must outlive its cluster's habits: brokers delete after seven days, compact, and elect a leader that lacks
records if they are told to. So every setting that could lose a record has one value here, and a log whose topics
differ is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from aiokafka import errors as kafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from icecore.errors import LogDrift, LogError
from icecore.position import LEDGER, METRICS, Place
from icecore_ingest.logs import kafka_failures as failures
from icecore_ingest.logs.kafka_client import EARLIEST, KafkaClient, Topics
from icecore_ingest.logs.kafka_settings import BATCH_BYTES, KafkaSettings

_TRIES: Final = 20
_EVER: Final = str((1 << 63) - 1)
"""A broker refuses records whose time is further from its own clock than this: a clock must not stop the log."""
_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Drift:
    """A setting that could lose records: of which topic, what it is, and what it must be."""

    topic: str
    setting: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.topic} {self.setting} is {self.found}, must be {self.expected}"


def required(settings: KafkaSettings) -> dict[str, str]:
    """The settings that each topic is made with."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "min.insync.replicas": str(settings.replicas_in_sync),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(BATCH_BYTES),
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": _EVER,
        "message.timestamp.before.max.ms": _EVER,
    }


async def create(settings: KafkaSettings) -> list[str]:
    """Make what is missing of the log's topics; those that are there stay as they are.

    Returns:
        The names of those made.

    Raises:
        LogAway, LogDenied: no broker answers, or none lets us.
        LogError: the cluster refuses, for example more replicas than it has brokers.
    """
    counts = {LEDGER: 1, METRICS: settings.partitions}
    async with _reading(settings) as client:
        there = (await client.topics()).ids
        wanted = {stream: topic for stream, topic in settings.topics.items() if topic not in there}
        if not wanted:
            return []
        new = [
            NewTopic(topic, counts[stream], settings.replicas, topic_configs=required(settings))
            for stream, topic in wanted.items()
        ]
        async with _administering(settings) as admin:
            answer: Any = await admin.create_topics(new)
        for topic, code, *said in answer.topic_errors:
            if code and code != kafka.TopicAlreadyExistsError.errno:
                raise _not_made(topic, kafka.for_code(code), said[0] if said else "", settings)
        await _until_led(client, set(wanted.values()))
        return sorted(wanted.values())


async def create_derived(settings: KafkaSettings) -> list[str]:
    """Make the topic of run summaries, where it is missing; nothing depends on it.

    Returns:
        Its name, if it was made.

    Raises:
        LogAway, LogDenied, LogError: as `create`.
    """
    topic = settings.summaries_topic
    configs = {
        "cleanup.policy": "compact",
        "min.insync.replicas": str(settings.replicas_in_sync),
        "message.timestamp.type": "CreateTime",
    }
    async with _administering(settings) as admin:
        if topic in await admin.list_topics():
            return []
        new = NewTopic(topic, settings.partitions, settings.replicas, topic_configs=configs)
        answer: Any = await admin.create_topics([new])
    for _, code, *said in answer.topic_errors:
        if code == kafka.TopicAlreadyExistsError.errno:
            return []
        if code:
            raise _not_made(topic, kafka.for_code(code), said[0] if said else "", settings)
    return [topic]


async def known(client: KafkaClient, settings: KafkaSettings) -> Topics:
    """What the cluster says of the log's topics; a broker that has not heard of a new one yet is given two seconds."""
    topics = await client.topics()
    for _ in range(_TRIES):
        if topics.ids.keys() >= set(settings.topics.values()):
            break
        await asyncio.sleep(_PAUSE_S)
        topics = await client.topics()
    return topics


async def check(settings: KafkaSettings) -> list[Drift]:
    """What differs from what each topic must be; nothing where all is well.

    Raises:
        LogTopicMissing: a topic is not there.
        LogTruncated: records were deleted from the log's start.
        LogAway, LogDenied: no broker answers, or none lets us see.
    """
    async with _reading(settings) as client:
        topics = await client.topics()
        found = await drift(settings, topics)
        places = [
            Place(stream, number) for stream, topic in settings.topics.items() for number in topics.partitions[topic]
        ]
        check_starts(await client.offsets(places, EARLIEST))
        return found


async def drift(settings: KafkaSettings, topics: Topics) -> list[Drift]:
    """What differs from what each topic must be.

    Raises:
        LogTopicMissing: a topic is not there.
        LogAway, LogDenied: no broker answers, or none lets us see.
    """
    for topic in settings.topics.values():
        if topic not in topics.ids:
            raise failures.topic_missing(topic)
    async with _administering(settings) as admin:
        configs = await _configs(admin, list(settings.topics.values()))
    found: list[Drift] = []
    for stream, topic in settings.topics.items():
        found += _differing(topic, configs[topic], settings)
        held = topics.partitions[topic]
        count = 1 if stream == LEDGER else settings.partitions
        if len(held) != count:
            found.append(Drift(topic, "partitions", str(len(held)), str(count)))
        fewest = min(len(state.replicas) for state in held.values())
        least = 1 if settings.single_replica else 3
        if fewest < least:
            found.append(Drift(topic, "replication.factor", str(fewest), f"{least} or more"))
    return found


def refuse(found: list[Drift]) -> LogDrift:
    """The error for a log whose topics are not as they must be."""
    hint = "set them right with kafka-configs (replicas: kafka-reassign-partitions)"
    if any(one.setting in {"replication.factor", "min.insync.replicas"} for one in found):
        hint += "; for one broker alone say single_replica=1 in the URL"
    return LogDrift(
        f"expected topics that keep every record, got {len(found)} settings that may not: {'; '.join(map(str, found))}",
        hint=hint,
        drift=[asdict(one) for one in found],
    )


def check_starts(starts: Mapping[Place, int]) -> None:
    """A log begins at 0.

    Raises:
        LogTruncated: it does not: history was deleted.
    """
    for place, start in starts.items():
        if start > 0:
            raise failures.truncated(place, 0, start)


# ------------------------------------------------------------------------------------------------------- judging


def _at_least(least: int) -> Callable[[str], bool]:
    return lambda found: int(found) >= least


def _differing(topic: str, config: Mapping[str, str], settings: KafkaSettings) -> list[Drift]:
    """Where a larger value is as good, it is let be."""
    found: list[Drift] = []
    for setting, expected in required(settings).items():
        got = config.get(setting, "unknown")
        if setting in {"min.insync.replicas", "max.message.bytes"}:
            if not got.isdigit() or int(got) < int(expected):
                found.append(Drift(topic, setting, got, f"{expected} or more"))
        elif got != expected:
            found.append(Drift(topic, setting, got, expected))
    return found


def _not_made(topic: str, error: type[kafka.KafkaError], said: str, settings: KafkaSettings) -> LogError:
    if issubclass(error, kafka.InvalidReplicationFactorError):
        return LogError(
            f"expected to make {topic} with {settings.replicas} replicas, got: {said or error.__name__}",
            hint="start more brokers; for one broker say --allow-single-replica (single_replica=1 in the URL)",
        )
    return failures.translate(error(said), topic)


# ------------------------------------------------------------------------------------------------------- asking


@asynccontextmanager
async def _reading(settings: KafkaSettings) -> AsyncIterator[KafkaClient]:
    client = await KafkaClient.open(settings)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _administering(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**settings.client_options())
    try:
        await admin.start()
        yield admin
    except (TimeoutError, kafka.KafkaError, OSError) as error:
        raise failures.translate(error, ", ".join(settings.topics.values())) from error
    finally:
        await admin.close()


async def _configs(admin: AIOKafkaAdminClient, topics: list[str]) -> dict[str, dict[str, str]]:
    """Every setting of some topics. aiokafka asks a broker at random, also one that is down: then another is asked."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    answers: list[Any] = []
    for left in reversed(range(_TRIES)):
        try:
            answers = await admin.describe_configs(resources)
            break
        except kafka.NodeNotReadyError:
            if not left:
                raise
            await asyncio.sleep(_PAUSE_S)
    found: dict[str, dict[str, str]] = {}
    for code, _, _, topic, entries in (one for answer in answers for one in answer.resources):
        if code:
            raise kafka.for_code(code)
        found[topic] = {entry[0]: entry[1] for entry in entries}
    return found


async def _until_led(client: KafkaClient, topics: set[str]) -> None:
    """Wait until every partition of new topics has its leader."""
    for _ in range(_TRIES * 5):
        found = (await client.topics()).partitions
        if all(topic in found and all(state.leader >= 0 for state in found[topic].values()) for topic in topics):
            return
        await asyncio.sleep(_PAUSE_S)
    raise failures.away(", ".join(sorted(topics)), "no leader for a new topic")
