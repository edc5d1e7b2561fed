"""What is around a cluster's processes: full disks, wrong clocks, and strangers in the consumer group."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from disks import Disk
from drills import CLUSTER_ROUNDS, drill
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
        for _ in work.rounds(max(5, CLUSTER_ROUNDS // 4)):
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


_STRANGER = """
import asyncio, sys
from pathlib import Path
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_ingest.logs.opening import open_log
from icecore_projections.faust_app import feeding
from icecore.position import Token

async def main():
    log = await open_log(sys.argv[1], readonly=True)
    async with feeding(KafkaSettings.parse(sys.argv[1]), sys.argv[2], log, Token, print) as feed:
        print("joining", flush=True)
        while await feed.wait(await feed.end(), 3600):
            print("took", flush=True)  # partitions were given to us, and with them what they hold

asyncio.run(main())
"""


@contextlib.contextmanager
def stranger(topology: Topology) -> Iterator[subprocess.Popen[str]]:
    """Another member of the store's consumer group, which takes partitions away and folds nothing."""
    group = (topology.folder / "store" / "data" / "run" / "group").read_text("ascii").strip()
    with subprocess.Popen(
        [sys.executable, "-c", _STRANGER, topology.log, group],
        env=dict(topology.store.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_storm_of_rebalances_loses_nothing(topology: Topology) -> None:
    """Members of the store's group join, take partitions and vanish, quickly: the store folds all, each event once."""
    with drill(topology, "rebalance storm") as work:
        for chance in work.rounds():
            with stranger(topology) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "joining\n"
                if chance.random() < 0.5:
                    assert process.stdout.readline() == "took\n"
                time.sleep(chance.uniform(0.0, 0.5))
                (process.kill if chance.random() < 0.5 else process.terminate)()
            work.settle()
