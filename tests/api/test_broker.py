"""A real Kafka on this machine: it starts, keeps what it took, ends with its starter, and guards its doors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from brokers import Kafka


async def make_topic(topic: str, copies: int = 1, **reach: object) -> None:
    admin = AIOKafkaAdminClient(**reach)
    try:
        await admin.start()
        await admin.create_topics([NewTopic(topic, 1, copies)])
    finally:
        await admin.close()


async def produce(topic: str, *values: bytes, **reach: object) -> list[int]:
    async with AIOKafkaProducer(acks="all", enable_idempotence=True, **reach) as producer:
        return [(await producer.send_and_wait(topic, value)).offset for value in values]


async def consume(topic: str, count: int, **reach: object) -> list[bytes]:
    async with AIOKafkaConsumer(topic, auto_offset_reset="earliest", **reach) as consumer:
        return [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in range(count)]


def test_a_broker_keeps_records(broker: Kafka, topics: Callable[[str], str]) -> None:
    """A real broker gives back, in order, what it took."""
    topic, reach = topics("ledger"), {"bootstrap_servers": broker.bootstrap}
    asyncio.run(make_topic(topic, **reach))
    offsets = asyncio.run(produce(topic, b"one", b"two", **reach))

    assert offsets == [0, 1]
    assert asyncio.run(consume(topic, 2, **reach)) == [b"one", b"two"]
