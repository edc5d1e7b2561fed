"""kill -9 of every kind of process of a cluster, again and again, while clients write and read."""

from __future__ import annotations

import time

import pytest

from drills import drill
from topology import Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100_000)]


def test_a_killed_gateway_loses_nothing(topology: Topology) -> None:
    """Kill -9 of either gateway at random moments: the others go on, and each event is there once."""
    with drill(topology, "kill gateway") as work:
        for chance in work.rounds():
            victim = chance.choice(topology.gateways)
            time.sleep(chance.uniform(0.0, 0.3))
            victim.kill()
            victim.start()
            victim.wait_ready()
            work.settle()
