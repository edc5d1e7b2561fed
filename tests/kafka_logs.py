"""Logs on a real Kafka for tests: topics of their own, clients that are closed, and settings to be spoilt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka import KafkaLog
from icecore_ingest.logs.kafka_settings import KafkaSettings

WITHIN_S = 60.0
T = TypeVar("T")


def settings_of(bootstrap: str, prefix: str, **options: object) -> KafkaSettings:
    """A log of this prefix, with no secrets of the user's."""
    query = "".join(f"&{name}={value}" for name, value in options.items())
    return KafkaSettings.parse(f"kafka://{bootstrap}?prefix={prefix}{query}", {})


def prefix_of(topics: Callable[[str], str]) -> str:
    """The part of the fixture's names before the topic."""
    return topics("").rstrip(".")


@asynccontextmanager
async def opened(settings: KafkaSettings, *, make: bool = True, readonly: bool = False) -> AsyncIterator[KafkaLog]:
    """An open log, its topics made if need be."""
    if make:
        await kafka_topics.create(settings)
    log = await KafkaLog.open(settings, readonly=readonly)
    try:
        yield log
    finally:
        await log.close()


@asynccontextmanager
async def administering(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Kafka's own tool for administrators."""
    admin = AIOKafkaAdminClient(**settings.client_options())
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def configure(settings: KafkaSettings, topic: str, **changes: str) -> None:
    """Give a topic other settings than it had; `_` in a name stands for a dot."""
    async with administering(settings) as admin:
        named = {**kafka_topics.required(settings), **{k.replace("_", "."): v for k, v in changes.items()}}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, named)])


async def eventually(ask: Callable[[], Awaitable[T] | T], what: str, within_s: float = WITHIN_S) -> T:
    """Ask until the answer is true, and fail after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while True:
        found = ask()
        answer = await found if isinstance(found, Awaitable) else found
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come to be within {within_s:g} s"
        await asyncio.sleep(0.05)


def run(test: Callable[[], Awaitable[None]], within_s: float = 240.0) -> None:
    """Run one test in an event loop of its own, and fail rather than hang."""

    async def bounded() -> None:
        await asyncio.wait_for(asyncio.ensure_future(test()), within_s)

    asyncio.run(bounded())
