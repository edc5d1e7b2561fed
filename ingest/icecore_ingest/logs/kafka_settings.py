"""How a log on Kafka is named and reached: `kafka://HOST:PORT,…?prefix=…`, and secrets from the environment.

A password has no place in a URL: URLs are shown in status, logs and errors.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args
from urllib.parse import parse_qsl, quote, urlsplit

from icecore.errors import SettingsError
from icecore.limits import most
from icecore.position import LEDGER, METRICS

SCHEME: Final = "kafka"
EVENT_ROOM: Final = 2_048
"""Bytes for the key, the envelope and Kafka's own framing of one event; names are at most 3 x 128 characters."""
BATCH_BYTES: Final = most("request_bytes") + most("request_events") * EVENT_ROOM
"""What one append may bring to one partition: a whole request, so that Kafka takes it in one batch or not at all."""

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
Compression = Literal["none", "gzip", "lz4", "zstd"]

_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")
_TRUE: Final = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Security:
    """Who we are, and whom we trust. Shown without its secrets.

    Args:
        protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        mechanism: how a user proves itself under SASL.
        username: the SASL user.
        password: its password.
        ca_file: certificates of the authorities to trust; the system's own if empty.
        cert_file: our certificate, for brokers that ask for one (mTLS).
        key_file: its key.
        key_password: what the key is encrypted with.
    """

    protocol: Protocol = "PLAINTEXT"
    mechanism: Mechanism = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Security:
        """Read `ICECORE_KAFKA_*`; `…_PASSWORD_FILE` names a file that holds the password.

        Raises:
            SettingsError: a value is not one of those known, or a file cannot be read.
        """
        got = {name: environment.get(variable, "") for variable, (name, _) in VARIABLES.items()}
        if got.pop("password_file"):
            got["password"] = _first_line(environment["ICECORE_KAFKA_PASSWORD_FILE"])
        protocol = got.pop("protocol").upper() or _likely_protocol(got)
        mechanism = got.pop("mechanism").upper() or "SCRAM-SHA-512"
        _one_of("ICECORE_KAFKA_SECURITY_PROTOCOL", protocol, get_args(Protocol))
        _one_of("ICECORE_KAFKA_MECHANISM", mechanism, get_args(Mechanism))
        security = cls(cast("Protocol", protocol), cast("Mechanism", mechanism), **got)
        if protocol.startswith("SASL") and not (security.username and security.password):
            raise SettingsError(
                f"expected a user and a password for {protocol}, got {'no password' if security.username else 'none'}",
                hint="set ICECORE_KAFKA_USERNAME and ICECORE_KAFKA_PASSWORD (or …_PASSWORD_FILE)",
            )
        return security

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context, or None where the protocol has no TLS.

        Raises:
            SettingsError: a file cannot be read, or is not what it should be.
        """
        if "SSL" not in self.protocol:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None, self.key_password or None)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.ca_file, self.cert_file, self.key_file)))
            raise SettingsError(
                f"expected certificates and a key in {files}, got: {error}",
                hint="PEM files: ICECORE_KAFKA_CA_FILE, ICECORE_KAFKA_CERT_FILE, ICECORE_KAFKA_KEY_FILE",
            ) from error
        return context


VARIABLES: Final[Mapping[str, tuple[str, str]]] = {
    "ICECORE_KAFKA_SECURITY_PROTOCOL": (
        "protocol",
        "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; else by what the others say",
    ),
    "ICECORE_KAFKA_MECHANISM": ("mechanism", "SCRAM-SHA-512 (the default), SCRAM-SHA-256 or PLAIN"),
    "ICECORE_KAFKA_USERNAME": ("username", "the SASL user"),
    "ICECORE_KAFKA_PASSWORD": ("password", "its password"),
    "ICECORE_KAFKA_PASSWORD_FILE": ("password_file", "a file that holds the password"),
    "ICECORE_KAFKA_CA_FILE": ("ca_file", "PEM certificates of the authorities to trust; else the system's"),
    "ICECORE_KAFKA_CERT_FILE": ("cert_file", "our PEM certificate, for brokers that ask for one (mTLS)"),
    "ICECORE_KAFKA_KEY_FILE": ("key_file", "its PEM key"),
    "ICECORE_KAFKA_KEY_PASSWORD": ("key_password", "what that key is encrypted with"),
}
"""Every environment variable: the field it sets, and what it means."""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """A log on Kafka. Make one with `KafkaSettings.parse`; its `str` is the URL, which holds no secret.

    Args:
        servers: brokers to ask first, as HOST:PORT.
        prefix: the topics are PREFIX.ledger and PREFIX.metrics.
        partitions: how many partitions the metrics topic has: every client must know the same number, for it decides
            where a key goes.
        replicas: how many copies of each partition there are when the topics are made.
        single_replica: take one replica for enough: for one broker, where a lost disk is a lost log.
        linger_ms: how long the metrics' writer waits for company; the ledger's never waits.
        compression: of the batches, on the wire and in Kafka.
        delivery_timeout_s: how long an append waits for its answer before it says that it does not know.
        request_timeout_s: how long one request to a broker may take.
        session_timeout_s: how long a store may be silent before its consumer group gives the partitions to another.
        buffer_bytes: how much may wait to be written; beyond it an append is refused.
        security: who we are, and whom we trust.
    """

    servers: tuple[str, ...]
    prefix: str = "icecore"
    partitions: int = 16
    replicas: int = 3
    single_replica: bool = False
    linger_ms: float = 2.0
    compression: Compression = "none"
    delivery_timeout_s: float = 30.0
    request_timeout_s: float = 10.0
    session_timeout_s: float = 10.0
    buffer_bytes: int = 64 << 20
    security: Security = field(default_factory=Security)

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> KafkaSettings:
        """Read `kafka://HOST[:9092],HOST…[?prefix=…&partitions=…&…]`; secrets come from the environment.

        Raises:
            SettingsError: it is no such URL, it holds a password, or an option is unknown or makes no sense.
        """
        security = Security.from_environment(os.environ if environment is None else environment)
        parts = urlsplit(url)
        user, at, hosts = parts.netloc.rpartition("@")
        given = parse_qsl(parts.query, keep_blank_values=True)
        if ":" in user or any("password" in name.lower() for name, _ in given):
            raise SettingsError(
                "expected a Kafka URL without a password, got one with it",
                hint="URLs are shown in logs: set ICECORE_KAFKA_USERNAME and ICECORE_KAFKA_PASSWORD",
            )
        if at or parts.scheme != SCHEME or not hosts or parts.path.strip("/") or parts.fragment:
            raise SettingsError(
                f"expected kafka://HOST:PORT,HOST:PORT?prefix=icecore, got {url!r}",
                hint="options come after a question mark; who we are comes from ICECORE_KAFKA_*",
            )
        options: dict[str, Any] = {}
        for name, text in given:
            options[name] = _option(name, text)
        settings = cls(tuple(_server(host) for host in hosts.split(",")), security=security, **options)
        return replace(settings, replicas=1) if settings.single_replica and "replicas" not in options else settings

    @property
    def replicas_in_sync(self) -> int:
        """How many replicas must have a record before it is acknowledged (`min.insync.replicas`)."""
        return 1 if self.single_replica else 2

    @property
    def topics(self) -> dict[str, str]:
        """The topic of each stream."""
        return {stream: f"{self.prefix}.{stream}" for stream in (LEDGER, METRICS)}

    @property
    def summaries_topic(self) -> str:
        """The topic that the store publishes run summaries to; no part of the log."""
        return f"{self.prefix}.run-summaries"

    def __str__(self) -> str:
        options = [
            f"{f.name}={quote(str(_plain(getattr(self, f.name))))}"
            for f in fields(self)
            if f.name in OPTIONS and getattr(self, f.name) != f.default
        ]
        return f"{SCHEME}://{','.join(self.servers)}" + (f"?{'&'.join(options)}" if options else "")

    def client_options(self) -> dict[str, Any]:
        """What every aiokafka client is given.

        Raises:
            SettingsError: a certificate cannot be read.
        """
        security = self.security
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.servers),
            "client_id": "icecore",
            "request_timeout_ms": int(self.request_timeout_s * 1000),
            "retry_backoff_ms": 100,
            "metadata_max_age_ms": 60_000,
            "security_protocol": security.protocol,
            "ssl_context": security.tls(),
        }
        if security.protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": security.mechanism,
                "sasl_plain_username": security.username,
                "sasl_plain_password": security.password,
            }
        return options


# ------------------------------------------------------------------------------------------------------- reading


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:
        raise ValueError(text)
    return number


def _bytes(text: str) -> int:
    number = int(text)
    if number < BATCH_BYTES:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 86_400:
        raise ValueError(text)
    return number


def _milliseconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1_000:
        raise ValueError(text)
    return number


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ValueError(text)
    return text


def _truth(text: str) -> bool:
    try:
        return _TRUE[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _compression(text: str) -> str:
    if text not in get_args(Compression):
        raise ValueError(text)
    return text


class Option(NamedTuple):
    """One option of a Kafka URL: its default, the values it takes, and what it is for."""

    name: str
    default: str
    read: Callable[[str], Any]
    values: str
    meaning: str


_TABLE: Final = (
    Option("prefix", "icecore", _prefix, "letters, digits, dots, dashes, underscores; at most 200", "names the topics"),
    Option("partitions", "16", _count, "1 to 10000", "of the metrics topic; the ledger has one"),
    Option("replicas", "3", _count, "1 to 10000", "copies of each partition, when the topics are made"),
    Option("single_replica", "0", _truth, "1 or 0", "one copy is enough: a lost disk is then a lost log"),
    Option("linger_ms", "2", _milliseconds, "0 to 1000", "how long metrics wait for company; the ledger never waits"),
    Option("compression", "none", _compression, "none, gzip, lz4 or zstd", "of batches on the wire and in Kafka"),
    Option("delivery_timeout_s", "30", _seconds, "more than 0", "how long an append waits before it does not know"),
    Option("request_timeout_s", "10", _seconds, "more than 0", "how long one request to a broker may take"),
    Option("session_timeout_s", "10", _seconds, "as the brokers allow", "how long a silent store keeps its partitions"),
    Option("buffer_bytes", str(64 << 20), _bytes, f"at least {BATCH_BYTES}", "how much may wait; beyond it is 503"),
)
OPTIONS: Final[Mapping[str, Option]] = {option.name: option for option in _TABLE}
"""Every option of a Kafka URL."""


def _option(name: str, text: str) -> Any:
    if name not in OPTIONS:
        raise SettingsError(f"expected an option of {sorted(OPTIONS)} in the Kafka URL, got {name!r}")
    try:
        return OPTIONS[name].read(text)
    except ValueError as error:
        raise SettingsError(f"expected {name}={OPTIONS[name].values} in the Kafka URL, got {text!r}") from error


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _server(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "9092"
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise SettingsError(f"expected HOST:PORT in the Kafka URL, got {text!r}")
    return f"{host}:{port}"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")


def _likely_protocol(got: Mapping[str, str]) -> str:
    """What the other variables are for. A password goes over TLS unless somebody says otherwise."""
    if got["username"]:
        return "SASL_SSL"
    return "SSL" if got["ca_file"] or got["cert_file"] else "PLAINTEXT"


def _first_line(file: str) -> str:
    try:
        return Path(file).read_text("utf-8").splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"expected a password in ICECORE_KAFKA_PASSWORD_FILE, got {type(error).__name__}: {file}"
        ) from error
