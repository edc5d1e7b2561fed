"""The broker of `icecore up --with-kafka`: started before the parts that need it, kept alive, stopped after them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

from icecore.errors import LogTopicMissing
from icecore_api.broker import Cluster, with_kafka
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka_settings import KafkaSettings

Pids = Callable[[], Sequence[int]]
LOOK_S: Final = 0.5
PARTITIONS: Final = 4
"""Enough for one machine; a cluster has 16."""


@contextlib.asynccontextmanager
async def own_kafka(data: Path, say: Callable[[str], None]) -> AsyncIterator[tuple[str, Pids]]:
    """A broker with its data in DATA/kafka, for as long as the block lasts: the log's address, and the broker's pid.

    Raises:
        SettingsError: there is no Java.
        Unavailable: Kafka could not be fetched or did not start.
    """
    cluster = await asyncio.to_thread(with_kafka, data)
    where = f"kafka://{cluster.bootstrap}?single_replica=1&partitions={PARTITIONS}"
    keeping = asyncio.create_task(_keep(cluster, say))
    try:
        await _make_topics(KafkaSettings.parse(where))
        yield where, lambda: [broker.pid for broker in cluster.brokers if broker.running]
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await asyncio.to_thread(cluster.stop)


async def _make_topics(settings: KafkaSettings) -> None:
    try:
        found = await kafka_topics.check(settings)
    except LogTopicMissing:
        await kafka_topics.create(settings)
    else:
        if found:
            raise kafka_topics.refuse(found)
    await kafka_topics.create_derived(settings)


async def _keep(cluster: Cluster, say: Callable[[str], None]) -> None:
    """Start the broker again whenever it has ended."""
    (broker,) = cluster.brokers
    while True:
        await asyncio.sleep(LOOK_S)
        if not broker.running:
            say("the Kafka broker ended; starting it again")
            try:
                await asyncio.to_thread(cluster.start)
            except Exception as error:  # noqa: BLE001 - tried on and on; everything that waits says why
                say(f"the Kafka broker does not start: {error}")
