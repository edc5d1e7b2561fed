"""How a log on Kafka is named, and that no secret is ever shown."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from icecore.errors import SettingsError
from icecore.position import LEDGER, METRICS
from icecore_ingest.logs.kafka import partition_of
from icecore_ingest.logs.kafka_settings import BATCH_BYTES, VARIABLES, KafkaSettings, Security
from icecore_ingest.logs.opening import folder_of, open_log
from icecore_ingest.logs.sqlite import SQLiteLog


def test_the_plain_url() -> None:
    """Hosts are enough; everything else has the values of production."""
    settings = KafkaSettings.parse("kafka://a.example,b.example:9093,[::1]:9094", {})

    assert settings.servers == ("a.example:9092", "b.example:9093", "[::1]:9094")
    assert settings.topics == {LEDGER: "icecore.ledger", METRICS: "icecore.metrics"}
    assert (settings.replicas, settings.replicas_in_sync, settings.partitions) == (3, 2, 16)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://a:9092",
        "kafka://a:9092,b:9092?prefix=x.y&partitions=4&replicas=5&linger_ms=0.0&compression=lz4",
        "kafka://a:9092?replicas=1&single_replica=1&delivery_timeout_s=2.5",
    ],
)
def test_a_url_comes_back(url: str) -> None:
    """What was parsed is written as a URL that parses to the same."""
    settings = KafkaSettings.parse(url, {})

    assert str(settings) == url
    assert KafkaSettings.parse(str(settings), {}) == settings


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://", "expected kafka://HOST"),
        ("kafka://a:0", "HOST:PORT"),
        ("kafka://a:x", "HOST:PORT"),
        ("kafka://a/path", "expected kafka://HOST"),
        ("kafka://user@a", "expected kafka://HOST"),
        ("kafka://a?acks=1", "'acks'"),
        ("kafka://a?partitions=0", "partitions=1 to 10000"),
        ("kafka://a?prefix=a/b", "prefix="),
        ("kafka://a?compression=snappy", "compression=none"),
        ("kafka://a?buffer_bytes=1", f"at least {BATCH_BYTES}"),
        ("kafka://a?single_replica=maybe", "1 or 0"),
        ("http://a", "expected kafka://HOST"),
    ],
)
def test_what_makes_no_sense_is_refused(url: str, says: str) -> None:
    """A wrong URL is refused with what was expected."""
    with pytest.raises(SettingsError) as caught:
        KafkaSettings.parse(url, {})

    assert says in str(caught.value)


@pytest.mark.parametrize(
    "url", ["kafka://u:s3cret@a:9092", "kafka://a?password=s3cret", "kafka://a?sasl_password=s3cret"]
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    """A URL with a password is refused, and the refusal does not show it."""
    with pytest.raises(SettingsError) as caught:
        KafkaSettings.parse(url, {})

    assert "s3cret" not in str(caught.value)
    assert "ICECORE_KAFKA_PASSWORD" in caught.value.hint


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """Neither the text nor the repr of settings holds a password, however it was given."""
    file = tmp_path / "password"
    file.write_text("s3cret\n")
    given = {"ICECORE_KAFKA_USERNAME": "u", "ICECORE_KAFKA_KEY_PASSWORD": "s3cret"}
    for more in ({"ICECORE_KAFKA_PASSWORD": "s3cret"}, {"ICECORE_KAFKA_PASSWORD_FILE": str(file)}):
        settings = KafkaSettings.parse("kafka://a", given | more)

        assert settings.security.password == "s3cret"
        assert "s3cret" not in f"{settings} {settings!r} {settings.security!r}"


@pytest.mark.parametrize(
    ("given", "protocol"),
    [
        ({}, "PLAINTEXT"),
        ({"USERNAME": "u", "PASSWORD": "p"}, "SASL_SSL"),
        ({"CA_FILE": "ca.pem"}, "SSL"),
        ({"CERT_FILE": "me.pem"}, "SSL"),
        ({"USERNAME": "u", "PASSWORD": "p", "SECURITY_PROTOCOL": "sasl_plaintext"}, "SASL_PLAINTEXT"),
    ],
)
def test_the_protocol_follows_from_what_is_given(given: dict[str, str], protocol: str) -> None:
    """A password goes over TLS unless somebody says otherwise."""
    security = Security.from_environment({f"ICECORE_KAFKA_{name}": value for name, value in given.items()})

    assert security.protocol == protocol


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SECURITY_PROTOCOL": "TLS"}, "SASL_SSL"),
        ({"MECHANISM": "GSSAPI"}, "SCRAM-SHA-512"),
        ({"USERNAME": "u"}, "no password"),
        ({"SECURITY_PROTOCOL": "SASL_SSL"}, "a user and a password"),
        ({"PASSWORD_FILE": "/does/not/exist"}, "ICECORE_KAFKA_PASSWORD_FILE"),
    ],
)
def test_wrong_secrets_are_refused(given: dict[str, str], says: str) -> None:
    """A setting that cannot work is refused before anything connects."""
    with pytest.raises(SettingsError, match=says):
        Security.from_environment({f"ICECORE_KAFKA_{name}": value for name, value in given.items()})


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    """A missing certificate is named."""
    settings = KafkaSettings.parse("kafka://a", {"ICECORE_KAFKA_CA_FILE": str(tmp_path / "none.pem")})

    with pytest.raises(SettingsError, match=r"none\.pem"):
        settings.client_options()


def test_every_variable_says_what_it_is_for() -> None:
    """Every environment variable has a meaning, and sets something."""
    assert all(name.startswith("ICECORE_KAFKA_") and meaning for name, (_, meaning) in VARIABLES.items())


def test_keys_go_where_kafka_sends_them() -> None:
    """The partition is that of Kafka's own producers: murmur2 as in Java, by the vectors of Kafka's own tests."""
    vectors = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "": 275646681}
    for key, murmur in vectors.items():
        assert partition_of(key, 7) == (murmur & 0x7FFFFFFF) % 7


@pytest.mark.parametrize("name", ["log", "sqlite://log"])
def test_a_folder_is_a_log_of_this_machine(tmp_path: Path, name: str) -> None:
    """A folder, or sqlite:// and its path, opens the log in it."""

    async def test() -> None:
        where = name.replace("log", str(tmp_path / "log"))
        log = await open_log(where)
        assert isinstance(log, SQLiteLog)
        await log.close()
        assert folder_of(where) == folder_of(tmp_path / "log")

    asyncio.run(test())


@pytest.mark.parametrize("name", ["", "mysql://a/b", "sqlite://relative", "sqlite:///a?b=c"])
def test_a_name_of_no_log(name: str) -> None:
    """Anything else is refused."""
    with pytest.raises(SettingsError):
        asyncio.run(open_log(name))
