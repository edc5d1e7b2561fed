"""kill -9 of every kind of process of a cluster, again and again, while clients write and read."""

from __future__ import annotations

import random
import time

import pytest

from drills import drill
from faults_harness import until
from icecore.errors import Unavailable
from icecore_api.broker import Broker
from topology import HANGS_S, PARTITIONS, Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100_000)]


def test_a_killed_gateway_loses_nothing(topology: Topology) -> None:
    """Kill -9 of either gateway at random moments: the other goes on, and each event is there once."""
    with drill(topology, "kill gateway") as work:
        for chance in work.rounds():
            victim = chance.choice(topology.gateways)
            time.sleep(chance.uniform(0.0, 0.3))
            victim.kill()
            victim.start()
            victim.wait_ready()
            work.settle()


def test_a_killed_store_loses_nothing(topology: Topology) -> None:
    """Kill -9 of the store, which is the Faust worker: it goes on where its file says, and folds each event once."""
    with drill(topology, "kill store") as work:
        for chance in work.rounds():
            time.sleep(chance.uniform(0.0, 0.3))
            topology.store.kill()
            topology.store.start()
            if chance.random() < 0.3:  # again, while it begins
                time.sleep(chance.uniform(0.0, 2.0))
                topology.store.kill()
                topology.store.start()
            topology.store.wait_ready()
            work.settle()


def test_a_killed_broker_loses_nothing(topology: Topology) -> None:
    """Kill -9 of one broker of three: without it everything goes on, and it comes back."""
    with drill(topology, "kill broker") as work:
        for chance in work.rounds():
            victim = chance.choice(topology.brokers.brokers)
            time.sleep(chance.uniform(0.0, 0.3))
            victim.kill()
            work.settle()
            victim.start()
            until(victim.listens, "the broker to be back", HANGS_S)


def test_a_killed_leader_loses_nothing(topology: Topology) -> None:
    """Kill -9 of the broker that leads the ledger, or a partition of the metrics: another leads, nothing is lost."""
    with drill(topology, "kill leader") as work:
        for number, chance in enumerate(work.rounds()):
            victim = leader(topology, chance, "ledger" if number % 2 else "metrics")
            victim.kill()
            work.settle()
            victim.start()
            until(victim.listens, "the broker to be back", HANGS_S)


def leader(topology: Topology, chance: random.Random, stream: str) -> Broker:
    """Who leads the ledger or some partition of the metrics; waits while nobody does."""
    partition = chance.randrange(PARTITIONS) if stream == "metrics" else 0
    found: list[Broker] = []

    def known() -> bool:
        try:
            found.append(topology.brokers.leader(f"icecore.{stream}", partition))
        except Unavailable:
            return False
        return True

    until(known, f"a leader of {stream}-{partition}", HANGS_S)
    return found[0]


def test_all_brokers_killed_lose_nothing(topology: Topology) -> None:
    """Kill -9 of all three brokers within a moment: without them nothing is taken, then all goes on."""
    with drill(topology, "kill all brokers") as work:
        for chance in work.rounds():
            brokers = chance.sample(topology.brokers.brokers, 3)
            for victim in brokers:
                time.sleep(chance.uniform(0.0, 0.1))
                victim.kill()
            Topology.start_brokers(brokers)
            work.settle()
