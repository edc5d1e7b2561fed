"""Lines between any two processes of a cluster: cut, half cut, reset, and slow."""

from __future__ import annotations

import random
import time

import pytest

from drills import drill
from lines import CUTS, ELSE
from topology import BROKER_SESSION_S, Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100_000)]

GATEWAYS, BROKERS = ("gateway-1", "gateway-2"), ("broker-1", "broker-2", "broker-3")
PAIRS = {
    "client and gateway": [(ELSE, gateway) for gateway in GATEWAYS],
    "gateway and store": [(gateway, "store") for gateway in GATEWAYS],
    "gateway and broker": [(gateway, broker) for gateway in GATEWAYS for broker in BROKERS],
    "store and broker": [("store", broker) for broker in BROKERS],
    "broker and broker": [(one, other) for one in BROKERS for other in BROKERS if one < other],
}


@pytest.mark.soak
@pytest.mark.parametrize("between", PAIRS)
def test_a_cut_line_loses_nothing(topology: Topology, between: str) -> None:
    """One line or more between two kinds of processes is cut (silent, deaf, mute or reset), and heals."""
    with drill(topology, f"cut {between}") as work:
        for chance in work.rounds():
            pairs = PAIRS[between]
            how = chance.choice(CUTS)
            for one, other in chance.sample(pairs, chance.randint(1, len(pairs))):
                topology.lines.cut(one, other, how)
            time.sleep(chance.choice([0.1, 0.2, 0.5, 1.0, 4.0]))
            topology.lines.heal()
            work.settle()


def test_cut_lines_of_every_kind_lose_nothing(topology: Topology) -> None:
    """In each round a line between two of each kind is cut, each in its own way, and all heal."""
    with drill(topology, "cut each kind") as work:
        for chance in work.rounds():
            for pairs in PAIRS.values():
                one, other = chance.choice(pairs)
                topology.lines.cut(one, other, chance.choice(CUTS))
                time.sleep(chance.uniform(0.0, 0.3))
            time.sleep(chance.choice([0.1, 0.5, 2.0]))
            topology.lines.heal()
            work.settle()
    seen = topology.lines.seen
    assert [pair for pairs in PAIRS.values() for pair in pairs if not seen[pair] and not seen[pair[::-1]]] == []


def test_a_broker_cut_from_the_others_takes_nothing_alone(topology: Topology) -> None:
    """A broker that loses both others, while clients still reach it, acknowledges nothing that it took alone."""
    with drill(topology, "isolate leader") as work:
        for chance in work.rounds():
            victim = f"broker-{chance.randint(1, 3)}"
            others = [name for name in BROKERS if name != victim]
            how = chance.choice(CUTS)
            for other in others:
                topology.lines.cut(victim, other, how)
            time.sleep(chance.choice([0.5, 1.0, BROKER_SESSION_S + 1.0]))
            topology.lines.heal()
            work.settle()


def test_a_slow_broker_loses_nothing(topology: Topology) -> None:
    """Everything to and from one broker takes up to half a second longer: all goes on, slower."""
    with drill(topology, "slow broker") as work:
        for chance in work.rounds():
            victim = chance.choice(BROKERS)
            for other in {*BROKERS, *GATEWAYS, "store"} - {victim}:
                topology.lines.slow(victim, other, delay(chance))
            work.settle()
            topology.lines.heal()
            work.settle()


def delay(chance: random.Random) -> float:
    """Seconds that a slow line adds in each direction."""
    return chance.choice([0.02, 0.1, 0.25])
