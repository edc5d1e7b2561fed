"""What is around a cluster's processes: full disks, wrong clocks, and strangers in the consumer group."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Self

import pytest

from disks import Disk
from drills import drill
from faults_harness import get, until
from topology import HANGS_S, Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100_000)]


def own_disk(disk: Disk) -> Disk:
    """The disk, where there is one."""
    if not disk.mounted:
        pytest.skip("needs root, to mount a small file system")
    return disk


@pytest.mark.soak
def test_a_broker_with_a_full_disk_loses_nothing(topology: Topology) -> None:
    """A broker's disk is full, by which Kafka ends it; the others go on, and with space again it comes back."""
    disk, victim = own_disk(topology.disks["broker-3"]), topology.brokers.brokers[2]
    with drill(topology, "full disk of a broker") as work:
        for chance in work.rounds():
            disk.fill()
            until(lambda: not victim.running, "Kafka to end a broker that cannot write", HANGS_S)
            time.sleep(chance.uniform(0.0, 1.0))
            work.settle()
            disk.empty()
            victim.start()
            until(victim.listens, "the broker to be back", HANGS_S)


def folding(topology: Topology) -> bool:
    """Whether the store says that it folds."""
    answer = get(topology, "status")
    return bool(answer.status == 200 and answer.json()["folding"]["state"] == "running")


@pytest.mark.soak
def test_a_store_with_a_full_disk_loses_nothing(topology: Topology) -> None:
    """The store's disk is full: events are still taken; with space again it folds all it has missed, once."""
    disk = own_disk(topology.disks["store"])
    with drill(topology, "full disk of the store") as work:
        for chance in work.rounds():
            disk.fill()
            until(lambda: not folding(topology), "the store to say that it cannot write", HANGS_S)
            before = work.acknowledged
            until(lambda before=before: work.acknowledged > before + 10, "events to be taken all the same", HANGS_S)
            time.sleep(chance.uniform(0.0, 2.0))
            disk.empty()
            topology.store.wait_ready()
            work.settle()


def test_full_disks_lose_nothing(topology: Topology) -> None:
    """A broker's disk and the store's are full at once: events are taken, and all is folded when there is space."""
    store, disk = own_disk(topology.disks["store"]), own_disk(topology.disks["broker-3"])
    victim = topology.brokers.brokers[2]
    with drill(topology, "full disks") as work:
        for _ in work.rounds():
            store.fill()
            disk.fill()
            until(lambda: not victim.running, "Kafka to end a broker that cannot write", HANGS_S)
            until(lambda: not folding(topology), "the store to say that it cannot write", HANGS_S)
            before = work.acknowledged
            until(lambda before=before: work.acknowledged > before + 10, "events to be taken all the same", HANGS_S)
            disk.empty()
            victim.start()
            store.empty()
            topology.store.wait_ready()
            work.settle()
            until(victim.listens, "the broker to be back", HANGS_S)


JUMPS_S = (3600, -3600, 86_400 * 400, -86_400 * 400, 0.5, -0.5, 7 * 86_400, -30)


def test_clocks_that_jump_change_nothing(topology: Topology) -> None:
    """Clocks of gateways and store jump by seconds to years, both ways: what is there, and its order, stay the same."""
    with drill(topology, "clock jumps") as work:
        for chance in work.rounds():
            for part in chance.sample(topology.parts, chance.randint(1, len(topology.parts))):
                part.clock.jump(chance.choice(JUMPS_S))
            work.settle()
            if chance.random() < 0.5:
                for part in topology.parts:
                    part.clock.jump(0)
                work.settle()


_STRANGERS = """
import asyncio, os, signal, sys
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_ingest.logs.opening import open_log
from icecore_projections.faust_app import FoldingApp
from icecore_projections.feed import Feed
from icecore.position import Token

async def join():
    log = await open_log(sys.argv[1], readonly=True)
    app = FoldingApp(KafkaSettings.parse(sys.argv[1]), sys.argv[2])
    app.attach(Feed(log), Token)
    app.on_partitions_assigned.connect(took)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: loop.create_task(app.stop()))  # leaves the group
    print("joins", os.getpid(), flush=True)
    await app.start()
    await app.wait_until_stopped()

async def took(app, assigned, **_):
    if assigned:
        print("took", os.getpid(), flush=True)

children = []
for _ in sys.stdin:  # a line asks for one more; what takes long was imported before
    if (pid := os.fork()) == 0:
        asyncio.run(join())
        os._exit(0)
    children.append(pid)
    print("made", pid, flush=True)
for pid in children:
    if os.waitpid(pid, os.WNOHANG) == (0, 0):
        os.kill(pid, signal.SIGKILL)
"""


class Strangers:
    """Other members of the store's consumer group, a process for each, that take partitions away and fold nothing."""

    def __init__(self, topology: Topology) -> None:
        group = (topology.folder / "store" / "data" / "run" / "group").read_text("ascii").strip()
        with (topology.folder / "strangers.stderr").open("w", encoding="utf-8") as stderr:
            self._nursery = subprocess.Popen(
                [sys.executable, "-c", _STRANGERS, topology.patient_log, group],
                env=dict(topology.store.env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._said: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()  # by which all that are left are killed
        self._nursery.wait(HANGS_S)

    def _listen(self) -> None:
        assert self._nursery.stdout is not None
        with self._nursery.stdout:
            for line in self._nursery.stdout:
                word, pid = line.split()
                self._said.put((word, int(pid)))

    def join(self) -> int:
        """One more joins the group; returns its process id, once it has begun to."""
        assert self._nursery.stdin is not None
        self._nursery.stdin.write("one more\n")
        self._nursery.stdin.flush()
        pid = self.hear("made")
        return self.hear("joins", pid)

    def hear(self, word: str, pid: int = 0) -> int:
        """Wait until a stranger says something; returns who it was."""
        deadline = time.monotonic() + HANGS_S
        while True:
            said, who = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            if said == word and pid in {0, who}:
                return who


def test_a_storm_of_rebalances_loses_nothing(topology: Topology) -> None:
    """Members of the store's group join, take partitions and vanish, quickly: the store folds all, each event once."""
    with Strangers(topology) as strangers, drill(topology, "rebalance storm") as work:
        for chance in work.rounds():
            stranger = strangers.join()
            if chance.random() < 0.5:
                strangers.hear("took", stranger)
                work.settle()
            time.sleep(chance.uniform(0.0, 0.5))
            os.kill(stranger, chance.choice([signal.SIGKILL, signal.SIGTERM]))
            work.settle()
