"""TLS and SASL against a real broker with its own authority: who may come in does, who may not is told so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers import USERS, SecureKafka
from icecore.errors import LogDenied
from icecore.position import LEDGER, METRICS, Place
from icecore.testing.appender import make_record
from icecore_ingest.logs.kafka import KafkaLog
from icecore_ingest.logs.kafka_settings import KafkaSettings
from kafka_logs import opened, prefix_of, run


def settings_for(door: str, prefix: str, **given: object) -> KafkaSettings:
    """Settings from an environment that has `given` only."""
    environment = {f"ICECORE_KAFKA_{name}": str(value) for name, value in given.items()}
    return KafkaSettings.parse(f"kafka://{door}?prefix={prefix}&partitions=2&single_replica=1", environment)


async def write_and_read(settings: KafkaSettings) -> None:
    """A record each way, and a waiting reader."""
    async with opened(settings) as log, opened(settings, make=False, readonly=True) as reader:
        for stream in (LEDGER, METRICS):
            waiting = asyncio.ensure_future(reader.wait(await reader.end(), 30))
            [position] = await log.append(stream, [make_record("run", 7, b"secret payload")])
            assert await waiting
            [record] = (await reader.read(Place(stream, position.partition), position.offset)).records
            assert record.payload == b"secret payload"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_and_a_password(secure_broker: SecureKafka, topics: Callable[[str], str], mechanism: str) -> None:
    """A user comes in over TLS by each mechanism, and writes, reads and waits."""
    settings = settings_for(
        secure_broker.sasl,
        prefix_of(topics),
        USERNAME="alice",
        PASSWORD=USERS["alice"],
        CA_FILE=secure_broker.ca,
        MECHANISM=mechanism,
    )

    run(lambda: write_and_read(settings))


def test_a_certificate(secure_broker: SecureKafka, topics: Callable[[str], str]) -> None:
    """A client that shows its certificate comes in (mTLS)."""
    settings = settings_for(
        secure_broker.mtls,
        prefix_of(topics),
        CA_FILE=secure_broker.ca,
        CERT_FILE=secure_broker.client_cert,
        KEY_FILE=secure_broker.client_key,
    )

    run(lambda: write_and_read(settings))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password(secure_broker: SecureKafka, mechanism: str) -> None:
    """A wrong password is told as that, at once, and is not shown."""
    settings = settings_for(
        secure_broker.sasl, "x", USERNAME="alice", PASSWORD="wr0ng-one", CA_FILE=secure_broker.ca, MECHANISM=mechanism
    )

    with pytest.raises(LogDenied, match="ICECORE_KAFKA") as caught:
        asyncio.run(KafkaLog.open(settings))

    assert "wr0ng-one" not in str(caught.value)


def test_an_authority_that_is_not_trusted(secure_broker: SecureKafka) -> None:
    """A broker whose certificate nobody we trust has signed is not spoken to."""
    settings = settings_for(secure_broker.sasl, "x", USERNAME="alice", PASSWORD=USERS["alice"])

    with pytest.raises(LogDenied, match="certificate"):
        asyncio.run(KafkaLog.open(settings))


def test_no_certificate(secure_broker: SecureKafka) -> None:
    """Without a certificate nobody comes in where one is asked for."""
    settings = settings_for(secure_broker.mtls, "x", CA_FILE=secure_broker.ca)

    with pytest.raises(LogDenied):
        asyncio.run(KafkaLog.open(settings))


def test_a_password_from_a_file(secure_broker: SecureKafka, topics: Callable[[str], str], tmp_path: Path) -> None:
    """The password may lie in a file, as container platforms give it."""
    file = tmp_path / "password"
    file.write_text(USERS["bob"] + "\n")
    settings = settings_for(
        secure_broker.sasl, prefix_of(topics), USERNAME="bob", PASSWORD_FILE=file, CA_FILE=secure_broker.ca
    )

    run(lambda: write_and_read(settings))
