"""Real Kafka brokers for tests: fixtures `broker`, `cluster`, `secure_broker` and `topics`.

Where no broker can be had (no Java, no jars and no network), their tests are skipped, and the end of the run says so
in red; with ICECORE_REQUIRE_KAFKA=1, as in `.ci/run`, they fail instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import ssl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from icecore.errors import IcecoreError
from icecore_api.broker import Cluster, Listener, fetch, find_java

REQUIRED = os.environ.get("ICECORE_REQUIRE_KAFKA", "") not in {"", "0"}
NO_BROKER = "no Kafka broker could be had"
USERS = {"alice": "alice-secret", "bob": "bob-secret"}


def need_kafka() -> None:
    """Skip, or fail where a broker is required, unless one can be started here."""
    why = _why_not()
    if why and REQUIRED:
        pytest.fail(f"{NO_BROKER}: {why}", pytrace=False)
    if why:
        pytest.skip(f"{NO_BROKER}: {why}")


@functools.cache
def _why_not() -> str:
    """Why no broker can be started here, or nothing; asked once, as the answer may take the network's time-outs."""
    try:
        find_java()
        fetch()
    except IcecoreError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Kafka:
    """Where a broker is that tests share: they make topics of their own in it, and do not hurt it."""

    bootstrap: str
    cluster_id: str


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One real broker, shared by all tests of the session, also by those of other pytest-xdist workers."""
    need_kafka()
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kafka"
    folder.mkdir(exist_ok=True)
    with (folder / "starting").open("w") as starting, (folder / "users").open("w") as users:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        address = folder / "address"
        with contextlib.ExitStack() as mine:
            if not address.exists():  # whoever starts it ends it, after all others have let go
                one = Cluster(folder / "data")
                mine.callback(one.kill)
                mine.callback(_last_of, starting, users, address)
                one.start()
                address.write_text(f"{one.bootstrap} {one.cluster_id}")
            fcntl.flock(starting, fcntl.LOCK_UN)
            yield Kafka(*address.read_text().split())


def _last_of(starting: IO[str], users: IO[str], address: Path) -> None:
    """Return when nobody else uses the shared broker, and nobody can begin to."""
    fcntl.flock(starting, fcntl.LOCK_EX)
    fcntl.flock(users, fcntl.LOCK_EX)
    address.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    need_kafka()
    # A dead or paused broker is found out in 6 s instead of 9.
    quick = {"broker.session.timeout.ms": "6000", "broker.heartbeat.interval.ms": "1000"}
    brokers = Cluster(tmp_path_factory.mktemp("kafka-cluster"), nodes=3, settings=quick)
    yield brokers
    brokers.kill()


@pytest.fixture
def cluster(_three: Cluster) -> Cluster:
    """Three real brokers, all alive at the start of each test, to be hurt by it: kill, pause, start again."""
    for one in _three.brokers:
        one.resume()
    return _three.start()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Cluster]:
    """One broker of this test's own, to be hurt."""
    need_kafka()
    one = Cluster(tmp_path / "kafka")
    try:
        yield one.start()
    finally:
        one.kill()


@pytest.fixture
def topics(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Names of topics that are this test's own: `topics("ledger")`."""
    word = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:60]
    prefix = f"{word}-{uuid.uuid4().hex[:8]}"
    return lambda name: f"{prefix}.{name}"


@dataclass(frozen=True)
class SecureKafka:
    """A broker with two guarded doors, and what a client needs to come in.

    `sasl` is the address of the SASL_SSL door (users `USERS`, mechanisms PLAIN, SCRAM-SHA-256 and -512), `mtls` that
    of the door that asks for a client's certificate. `ca`, `client_cert` and `client_key` are PEM files.
    """

    sasl: str
    mtls: str
    ca: Path
    client_cert: Path
    client_key: Path

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        """TLS that trusts the broker's CA only, with the client's certificate where `client` is true."""
        context = ssl.create_default_context(cafile=self.ca)
        if client:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context


@pytest.fixture(scope="session")
def secure_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """One real broker with SASL_SSL and mTLS doors, and a CA made for this session."""
    need_kafka()
    folder = tmp_path_factory.mktemp("kafka-secure")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    cert, key = write_certificate(ca, "127.0.0.1", folder / "broker")
    whole = folder / "broker.pem"
    whole.write_bytes(key.read_bytes() + cert.read_bytes())
    client_cert, client_key = write_certificate(ca, "client@example.com", folder / "client")
    doors = {
        "SASL": Listener(certificate=whole, users=USERS),
        "MTLS": Listener(certificate=whole, client_ca=folder / "ca.pem"),
    }
    one = Cluster(folder / "data", listeners=doors)
    try:
        one.start()
        sasl, mtls = one.bootstrap_of("SASL"), one.bootstrap_of("MTLS")
        yield SecureKafka(sasl, mtls, folder / "ca.pem", client_cert, client_key)
    finally:
        one.kill()


def write_certificate(ca: trustme.CA, name: str, at: Path) -> tuple[Path, Path]:
    """Have `ca` make a certificate for `name`; returns the PEM files of it and of its key (PKCS #8, as Kafka asks)."""
    made = ca.issue_cert(name)
    cert, key = at.with_suffix(".crt"), at.with_suffix(".key")
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    private = serialization.load_pem_private_key(made.private_key_pem.bytes(), password=None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert, key


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly at the end which tests had no broker."""
    skipped = [one for one in terminalreporter.stats.get("skipped", []) if NO_BROKER in str(one.longrepr)]
    if skipped:
        why = str(skipped[0].longrepr[2]) if isinstance(skipped[0].longrepr, tuple) else str(skipped[0].longrepr)
        terminalreporter.write_sep(
            "!", f"{len(skipped)} TESTS ON A REAL KAFKA BROKER WERE SKIPPED", red=True, bold=True
        )
        terminalreporter.write_line(why, red=True)
        for one in skipped:
            terminalreporter.write_line(f"  not shown: {one.nodeid}")
