"""One broker, or three, on this machine: made in a folder, started again from it, hurt on purpose in tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from icecore.errors import SettingsError, Unavailable
from icecore_api.broker.jars import KAFKA_VERSION, cache_folder, fetch
from icecore_api.broker.java import find_java
from icecore_api.broker.listeners import Listener
from icecore_api.broker.process import STOP_S, Broker

READY_S: Final = 120.0
LOCK_S: Final = 10.0
_ASK_MS: Final = 5000
# Below the range from which systems give ports to outgoing connections: a client that keeps trying a dead broker's
# port from that range would one day be given the very port, connect to itself, and the broker could not come back.
_PORTS: Final = range(20_000, 32_000)
_reserving: Final = threading.Lock()
_reserved: Final[set[int]] = set()
_open: Final[list[int]] = []
_T = TypeVar("_T")
_OWN: Final = ("INTERNAL", "CONTROLLER")


class Cluster:
    """Brokers on loopback, each also a controller, that end with the process that started them.

    Args:
        folder: holds everything: settings, data, logs, the cluster's id and ports. Given again, it is the same
            cluster, with what its brokers had stored.
        nodes: how many brokers; with three, topics have three replicas, and two must be in sync.
        listeners: the doors for clients, by name; one plain door if not given. Brokers talk to each other through
            a plain one of their own.
        durable: flush each record to disk before it is acknowledged, as one broker alone must, where a power cut
            would else take what it had in memory.
        settings: more of Kafka's broker settings; they win over those made here.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 1,
        *,
        listeners: Mapping[str, Listener] | None = None,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        if nodes not in (1, 3):
            raise SettingsError(f"expected 1 or 3 brokers, got {nodes}")
        self.folder = folder.resolve()
        self.listeners = dict(listeners or {"CLIENT": Listener()})
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        java, classpath = find_java(), os.pathsep.join(map(str, fetch()))
        self._lock = _take(self.folder / "lock")
        names = [*self.listeners, *_OWN]
        self.cluster_id, ports = _remembered(self.folder / "cluster.json", nodes, names)
        common = {**_settings(self.listeners, ports, durable), **(settings or {})}
        self.brokers = [
            Broker(
                number=number,
                folder=self.folder / f"broker-{number}",
                ports=of_broker,
                settings=common,
                java=java,
                classpath=classpath,
            )
            for number, of_broker in enumerate(ports, start=1)
        ]

    @property
    def bootstrap(self) -> str:
        """What clients of the first listener are given: `127.0.0.1:PORT`, with commas between several."""
        return self.bootstrap_of(next(iter(self.listeners)))

    def bootstrap_of(self, listener: str) -> str:
        """What clients of that listener are given; `INTERNAL` is the brokers' own, plain one."""
        return ",".join(f"127.0.0.1:{broker.ports[listener]}" for broker in self.brokers)

    def start(self) -> Self:
        """Start all brokers that do not run, and return when all serve.

        Raises:
            Unavailable: they did not; those that were started here have been killed again.
        """
        if self._lock < 0:
            self._lock = _take(self.folder / "lock")
        new = [broker for broker in self.brokers if not broker.running]
        scram = [secret for listener in self.listeners.values() for secret in listener.scram()]
        try:
            with ThreadPoolExecutor(len(self.brokers)) as pool:
                list(pool.map(lambda broker: broker.format(self.cluster_id, scram), new))
            for broker in new:
                broker.start(self._lock)
            self.wait_ready()
        except BaseException:
            for broker in new:
                broker.kill()
            if len(new) == len(self.brokers):
                self._let_go()
            raise
        return self

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Return when every broker that runs, and is not paused, is known to all others as alive.

        Raises:
            Unavailable: one ended, or they were not ready in time; its last words are in the message.
        """
        until = time.monotonic() + timeout_s
        running = self._serving() or self.brokers
        while True:
            for broker in running:
                if not broker.running:
                    raise Unavailable(f"broker {broker.number} ended:\n{broker.last_words()}", retry_after=1)
            if all(broker.listens() for broker in running) and self._alive() >= {broker.number for broker in running}:
                return
            if time.monotonic() > until:
                words = "\n".join(broker.last_words() for broker in running)
                raise Unavailable(f"expected brokers to be ready in {timeout_s:.0f} s, got:\n{words}", retry_after=1)
            time.sleep(0.05)

    def leader(self, topic: str, partition: int = 0) -> Broker:
        """The broker that leads a partition.

        Raises:
            Unavailable: nobody leads it now.
        """
        number = _ask(self._leader(topic, partition))
        for broker in self.brokers:
            if broker.number == number:
                return broker
        raise Unavailable(f"expected a leader of {topic}-{partition}, there is none now", retry_after=1)

    def stop(self) -> None:
        """End all brokers as an operator would, and let go of the folder."""
        for broker in self.brokers:
            broker.ask_to_stop()
        until = time.monotonic() + STOP_S
        for broker in self.brokers:
            broker.wait(max(0.0, until - time.monotonic()))
        self._let_go()

    def kill(self) -> None:
        """End all brokers at once, as kill -9 does, and let go of the folder."""
        for broker in self.brokers:
            broker.kill()
        self._let_go()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _serving(self) -> list[Broker]:
        return [broker for broker in self.brokers if broker.running and not broker.paused]

    def _internal(self) -> list[str]:
        return [f"127.0.0.1:{broker.ports['INTERNAL']}" for broker in self._serving()]

    def _alive(self) -> set[int]:
        """The numbers of the brokers that every running broker believes alive."""
        seen = [_ask(_described(address)) for address in self._internal()]
        return set.intersection(*seen) if seen else set()

    async def _leader(self, topic: str, partition: int) -> int | None:
        client = AIOKafkaClient(bootstrap_servers=",".join(self._internal()), request_timeout_ms=_ASK_MS)
        await client.bootstrap()
        try:
            await client.set_topics([topic])
            found: int | None = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            return found
        finally:
            await client.close()


def with_kafka(data: Path) -> Cluster:
    """Start the one broker of `icecore up --with-kafka`, whose data lie in DATA/kafka; started again, it is the same.

    Args:
        data: icecore's data folder.

    Raises:
        SettingsError: there is no Java.
        Unavailable: the jars could not be fetched, or another process runs it, or it did not start.
    """
    return Cluster(data / "kafka", durable=True).start()


def _take(path: Path) -> int:
    """Lock the file at `path`; returns its descriptor. The brokers hold it too, so it outlives whoever started them."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + LOCK_S  # the brokers of a starter that was killed need a moment to end
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(lock)
                raise Unavailable(
                    f"expected {path.parent} to be free, another process runs its Kafka brokers",
                    hint="stop that process, or choose another folder",
                    retry_after=LOCK_S,
                ) from None
        time.sleep(0.05)


def _remembered(path: Path, nodes: int, listeners: Sequence[str]) -> tuple[str, list[dict[str, int]]]:
    """The cluster's id, and each broker's ports by listener: those of the file at `path`, or new ones put there."""
    kept: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    if kept and len(kept["ports"]) != nodes:
        raise SettingsError(f"expected {nodes} brokers in {path.parent}, it was made with {len(kept['ports'])}")
    cluster_id = kept.get("cluster_id") or base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    ports: list[dict[str, int]] = kept.get("ports") or [{} for _ in range(nodes)]
    taken = {port for of_broker in ports for port in of_broker.values()}
    for number, of_broker in enumerate(ports):
        ports[number] = {name: _free_port(of_broker.get(name), taken) for name in listeners}
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"cluster_id": cluster_id, "ports": ports, "made_by": KAFKA_VERSION}))
    beside.replace(path)
    return cluster_id, ports


def _free_port(wanted: int | None, taken: set[int]) -> int:
    """`wanted` if nobody has it, else another free port that is not in `taken`, to which it is added."""
    candidates = [wanted] if wanted else []
    for port in [*candidates, *random.sample(_PORTS, 500)]:
        if port != wanted and (port in taken or port in _reserved):
            continue
        if not _reserve(port):
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            taken.add(port)
            return port
    raise Unavailable(f"expected a free port in {_PORTS.start}-{_PORTS.stop}, found none", retry_after=1)


def _reserve(port: int) -> bool:
    """Keep a port from the brokers of other processes until this one ends, also while ours is down; False if taken."""
    with _reserving:
        if port not in _reserved:
            if not _open:
                path = cache_folder() / "lock.ports"
                path.parent.mkdir(parents=True, exist_ok=True)
                # closed by the end of the process alone: closing it once would let go of every port
                _open.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                fcntl.lockf(_open[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)  # byte n stands for port n
            except OSError:
                return False
            _reserved.add(port)
        return True


def _settings(listeners: Mapping[str, Listener], ports: Sequence[Mapping[str, int]], durable: bool) -> dict[str, str]:
    """Kafka's settings that all brokers of the cluster share."""
    copies, in_sync = (3, 2) if len(ports) == 3 else (1, 1)
    protocols = {name: door.protocol for name, door in listeners.items()} | dict.fromkeys(_OWN, "PLAINTEXT")
    settings = {
        "process.roles": "broker,controller",
        "controller.quorum.voters": ",".join(
            f"{number}@127.0.0.1:{own['CONTROLLER']}" for number, own in enumerate(ports, start=1)
        ),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(copies),
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": str(in_sync),
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        "group.initial.rebalance.delay.ms": "0",
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.cleaner.dedupe.buffer.size": str(16 << 20),  # its default is half of our heap
    }
    if durable:
        settings["log.flush.interval.messages"] = "1"
    for name, door in listeners.items():
        settings |= door.settings(name)
    return settings


def _ask(question: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end in a thread of its own, so that callers may have an event loop of theirs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, question).result()


async def _described(address: str) -> set[int]:
    """The numbers of the brokers alive, as the broker at `address` sees it; empty while it cannot say."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=_ASK_MS)
    try:
        await admin.start()
        described = await admin.describe_cluster()
        return {int(broker["node_id"]) for broker in described["brokers"]}
    except (KafkaError, OSError):
        return set()
    finally:
        with contextlib.suppress(KafkaError, OSError):
            await admin.close()
