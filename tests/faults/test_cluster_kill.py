"""kill -9 of every kind of process of a cluster, again and again, while clients write and read."""

from __future__ import annotations

import random
import time

import pytest

from drills import drill
from faults_harness import until
from icecore.errors import Unavailable
from icecore_api.broker import Broker
from topology import HANGS_S, PARTITIONS, Part, Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100_000)]


@pytest.mark.soak
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


@pytest.mark.soak
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


@pytest.mark.soak
def test_a_killed_broker_loses_nothing(topology: Topology) -> None:
    """Kill -9 of one broker of three, mostly of one that leads the ledger or metrics: without it everything goes on."""
    with drill(topology, "kill broker") as work:
        for chance in work.rounds():
            victim = one_broker(topology, chance)
            victim.kill()
            work.settle()
            victim.start()
            until(victim.listens, "the broker to be back", HANGS_S)


def one_broker(topology: Topology, chance: random.Random) -> Broker:
    """The leader of the ledger, of some partition of the metrics, or any broker."""
    which = chance.choice(["ledger", "metrics", "any"])
    return chance.choice(topology.brokers.brokers) if which == "any" else leader(topology, chance, which)


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


def test_killed_processes_of_every_kind_lose_nothing(topology: Topology) -> None:
    """Kill -9 of a broker that leads, of a gateway and of the store within two seconds, in any order: all come back."""
    with drill(topology, "kill each kind") as work:
        for chance in work.rounds():
            broker, gateway = one_broker(topology, chance), chance.choice(topology.gateways)
            victims: list[Broker | Part] = [broker, gateway, topology.store]
            for victim in chance.sample(victims, 3):
                victim.kill()
                if isinstance(victim, Part):
                    victim.start()
                time.sleep(chance.choice([0.0, 0.1, 1.0]))
            work.settle()  # without that broker
            broker.start()
            for part in topology.parts:
                part.wait_ready()
            until(broker.listens, "the broker to be back", HANGS_S)
            work.settle()


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
