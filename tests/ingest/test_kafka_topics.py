"""Topics are made so that Kafka keeps every record; a log whose topics could lose one is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from aiokafka.admin import NewPartitions, NewTopic
from click.testing import CliRunner

from brokers import Kafka
from icecore.cli.group import cli
from icecore.errors import LogAway, LogDrift, LogError, LogTopicMissing
from icecore.position import LEDGER, METRICS
from icecore_api.broker import Cluster
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka import KafkaLog
from kafka_logs import administering, configure, eventually, opened, prefix_of, run, settings_of


def test_topics_are_made_once_and_as_they_must_be(broker: Kafka, topics: Callable[[str], str]) -> None:
    """What is made passes the check; making it again changes nothing; several may make it at once."""

    async def test() -> None:
        settings = settings_of(broker.bootstrap, prefix_of(topics), single_replica=1, partitions=3)
        made = await asyncio.gather(*(kafka_topics.create(settings) for _ in range(3)))
        assert any(made)
        assert {topic for one in made for topic in one} <= set(settings.topics.values())
        assert await kafka_topics.create(settings) == []
        assert await kafka_topics.check(settings) == []
        async with opened(settings) as log:
            assert dict(log.partitions) == {LEDGER: 1, METRICS: 3}

    run(test)


@pytest.mark.parametrize(
    ("setting", "bad", "must"),
    [
        ("retention.ms", "604800000", "-1"),
        ("retention.bytes", "1073741824", "-1"),
        ("cleanup.policy", "compact", "delete"),
        ("unclean.leader.election.enable", "true", "false"),
        ("max.message.bytes", "1048588", "10436608 or more"),
        ("message.timestamp.type", "LogAppendTime", "CreateTime"),
        ("message.timestamp.after.max.ms", "3600000", "9223372036854775807"),
    ],
)
def test_drift_is_refused(broker: Kafka, topics: Callable[[str], str], setting: str, bad: str, must: str) -> None:
    """A setting that could lose records is named with what it is and what it must be, and the log is not opened."""

    async def test() -> None:
        settings = settings_of(broker.bootstrap, prefix_of(topics), single_replica=1, partitions=2)
        await kafka_topics.create(settings)
        topic = settings.topics[METRICS]
        await configure(settings, topic, **{setting.replace(".", "_"): bad})

        async def drifted() -> list[kafka_topics.Drift]:
            return await kafka_topics.check(settings)

        assert await eventually(drifted, "the drift") == [kafka_topics.Drift(topic, setting, bad, must)]
        with pytest.raises(LogDrift) as caught:
            await KafkaLog.open(settings)
        assert f"{topic} {setting} is {bad}, must be {must}" in caught.value.message
        assert caught.value.facts["drift"] == [
            {"topic": topic, "setting": setting, "found": bad, "expected": must},
        ]

    run(test)


def test_one_replica_is_refused_unless_it_is_said(broker: Kafka, topics: Callable[[str], str]) -> None:
    """Topics of one replica are refused where nobody said that one is enough."""

    async def test() -> None:
        settings = settings_of(broker.bootstrap, prefix_of(topics), single_replica=1, partitions=2)
        await kafka_topics.create(settings)
        found = await kafka_topics.check(replace(settings, single_replica=False))
        told = [(one.setting, one.found, one.expected) for one in found]
        assert told == [("min.insync.replicas", "1", "2 or more"), ("replication.factor", "1", "3 or more")] * 2

    run(test)


def test_partitions_are_as_they_were_said(broker: Kafka, topics: Callable[[str], str]) -> None:
    """Another number of partitions than was said is drift: keys would go elsewhere."""

    async def test() -> None:
        settings = settings_of(broker.bootstrap, prefix_of(topics), single_replica=1, partitions=2)
        async with opened(settings) as log:
            async with administering(settings) as admin:
                await admin.create_partitions({settings.topics[METRICS]: NewPartitions(total_count=3)})

            async def drifted() -> list[kafka_topics.Drift]:
                return await kafka_topics.check(settings)

            [one] = await eventually(drifted, "the drift")
            assert (one.setting, one.found, one.expected) == ("partitions", "3", "2")
            await eventually(lambda: log.trouble.startswith("log_drift"), "a named trouble")

    run(test)


def test_topics_that_are_not_there(broker: Kafka, topics: Callable[[str], str]) -> None:
    """A log whose topics nobody made is not opened, and opening does not make them."""

    async def test() -> None:
        settings = settings_of(broker.bootstrap, prefix_of(topics), single_replica=1)
        for ask in (KafkaLog.open, kafka_topics.check):
            with pytest.raises(LogTopicMissing, match="topics create"):
                await ask(settings)
        async with administering(settings) as admin:
            assert not set(settings.topics.values()) & set(await admin.list_topics())

    run(test)


def test_more_replicas_than_brokers(broker: Kafka, topics: Callable[[str], str]) -> None:
    """One broker cannot hold three replicas: the error says what to do."""
    settings = settings_of(broker.bootstrap, prefix_of(topics))

    with pytest.raises(LogError, match="--allow-single-replica"):
        asyncio.run(kafka_topics.create(settings))


def test_three_brokers_need_no_switch(cluster: Cluster, topics: Callable[[str], str]) -> None:
    """Over three brokers everything has its production value, without any option."""

    async def test() -> None:
        settings = settings_of(cluster.bootstrap, prefix_of(topics))
        await kafka_topics.create(settings)
        assert await kafka_topics.check(settings) == []

    run(test)


def test_a_topic_made_by_hand(broker: Kafka, topics: Callable[[str], str]) -> None:
    """A topic that somebody made with the broker's defaults is drift in each setting that is wrong."""

    async def test() -> None:
        settings = settings_of(broker.bootstrap, prefix_of(topics), single_replica=1, partitions=1)
        async with administering(settings) as admin:
            await admin.create_topics([NewTopic(topic, 1, 1) for topic in settings.topics.values()])

        async def drifted() -> set[str]:
            try:
                return {one.setting for one in await kafka_topics.check(settings)}
            except (LogTopicMissing, LogAway):
                return set()

        found = await eventually(drifted, "the topics")
        assert found >= {"retention.ms", "max.message.bytes"}

    run(test)


def test_the_command_line(broker: Kafka, topics: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`icecore topics` makes and checks; its exit code is 1 where something differs."""
    url = f"kafka://{broker.bootstrap}?prefix={prefix_of(topics)}&partitions=2"
    monkeypatch.setenv("ICECORE_LOG", url)
    runner = CliRunner()

    made = runner.invoke(cli, ["topics", "create", "--allow-single-replica", "--json"], standalone_mode=False)
    single = runner.invoke(cli, ["topics", "check", "--allow-single-replica", "--json"], standalone_mode=False)
    strict = runner.invoke(cli, ["topics", "check", "--log", url], standalone_mode=False)

    assert json.loads(made.stdout)["created"] == json.loads(made.stdout)["topics"]
    assert (single.return_value, json.loads(single.stdout)["drift"]) == (0, [])
    assert strict.return_value == 1
    assert "min.insync.replicas is 1, must be 2 or more" in strict.stdout
