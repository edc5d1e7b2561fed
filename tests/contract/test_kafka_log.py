"""The log on Kafka passes the one contract, over one real broker and over three."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from brokers import Kafka
from icecore.log import EventLog
from icecore.testing.log_contract import LogContract, Logs
from icecore_api.broker import Cluster
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka import KafkaLog
from icecore_ingest.logs.kafka_settings import KafkaSettings


class KafkaLogs(Logs):
    """Clients of topics that are this test's own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opened: list[KafkaLog] = []
        asyncio.run(kafka_topics.create(KafkaSettings.parse(url, {})))

    async def open(self) -> EventLog:
        self._opened.append(await KafkaLog.open(KafkaSettings.parse(self._url, {})))
        return self._opened[-1]

    def source(self) -> str:
        return (
            "from icecore_ingest.logs.opening import open_log as open_named\n"
            "async def open_log():\n"
            f"    return await open_named({self._url!r})\n"
        )

    def close(self) -> None:
        async def close() -> None:
            for log in self._opened:
                await log.close()

        asyncio.run(close())


class TestKafkaLogOfOneBroker(LogContract):
    @pytest.fixture
    def logs(self, broker: Kafka, topics: Callable[[str], str]) -> Iterator[Logs]:
        prefix = topics("").rstrip(".")
        logs = KafkaLogs(f"kafka://{broker.bootstrap}?prefix={prefix}&partitions=4&single_replica=1")
        yield logs
        logs.close()


class TestKafkaLogOfThreeBrokers(LogContract):
    @pytest.fixture
    def logs(self, cluster: Cluster, topics: Callable[[str], str]) -> Iterator[Logs]:
        prefix = topics("").rstrip(".")
        logs = KafkaLogs(f"kafka://{cluster.bootstrap}?prefix={prefix}&partitions=3")
        yield logs
        logs.close()
