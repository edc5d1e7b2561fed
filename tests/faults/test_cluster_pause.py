"""SIGSTOP and SIGCONT: processes that are neither dead nor alive, and go on in the belief that no time has passed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from drills import drill
from faults_harness import until
from topology import BROKER_SESSION_S, HANGS_S, Topology

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100_000)]


@pytest.mark.soak
def test_a_paused_gateway_doubles_nothing(topology: Topology) -> None:
    """A gateway paused for longer than its clients wait: they go to the other, and what it held arrives late, once."""
    with drill(topology, "pause gateway") as work:
        for chance in work.rounds():
            victim = chance.choice(topology.gateways)
            victim.pause()
            time.sleep(chance.choice([0.1, 0.5, 1.0, 6.0]))
            if chance.random() < 0.5:
                work.settle()
            victim.resume()
            work.settle()


ASKED_S = 0.3
"""How often a coordinator is asked: each time it takes a client of its own."""


def members(topology: Topology) -> int:
    """How many members the store's consumer group has, as its coordinator says."""
    group = (topology.folder / "store" / "data" / "run" / "group").read_text("ascii").strip()

    async def ask() -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=topology.brokers.bootstrap, request_timeout_ms=5000)
        try:
            await admin.start()
            found = (await admin.describe_consumer_groups([group]))[0].groups[0]
            return -1 if found[0] else len(found[5])
        except KafkaError:
            return -1
        finally:
            await admin.close()

    return asyncio.run(ask())


def second_store(topology: Topology) -> subprocess.CompletedProcess[str]:
    """Try to serve the same folder from another process."""
    words = [sys.executable, "-m", "icecore", *topology.store.words, "--port", "0"]
    return subprocess.run(
        words, env=dict(topology.store.env), capture_output=True, text=True, timeout=HANGS_S, check=False
    )


@pytest.mark.soak
def test_a_store_paused_beyond_its_session_folds_once(topology: Topology) -> None:
    """A store stopped until its group has given it up goes on where its file is; nobody else could have the file."""
    with drill(topology, "pause store") as work:
        for number, _ in enumerate(work.rounds()):
            until(lambda: members(topology) == 1, "the store to be in its group", HANGS_S, ASKED_S)
            topology.store.pause()
            until(lambda: members(topology) == 0, "the group to give the store up", HANGS_S, ASKED_S)
            if number % 5 == 0:
                refused = second_store(topology)
                assert refused.returncode == 2
                assert "serves it" in refused.stderr
            topology.store.resume()
            work.settle()


@pytest.mark.soak
def test_a_paused_broker_loses_nothing(topology: Topology) -> None:
    """Brokers paused for less or for longer than their session, even all three, go on without having led meanwhile."""
    with drill(topology, "pause brokers") as work:
        for chance in work.rounds():
            victims = chance.sample(topology.brokers.brokers, chance.choice([1, 1, 2, 3]))
            for victim in victims:
                victim.pause()
            time.sleep(chance.choice([0.2, 0.5, 1.0, BROKER_SESSION_S + 1.0]))
            if len(victims) == 1 and chance.random() < 0.5:
                work.settle()
            for victim in victims:
                victim.resume()
            work.settle()


def test_paused_processes_of_every_kind_lose_nothing(topology: Topology) -> None:
    """The store is stopped beyond its session, and meanwhile a gateway and a broker for a while; each goes on, once."""
    with drill(topology, "pause each kind") as work:
        for number, chance in enumerate(work.rounds()):
            until(lambda: members(topology) == 1, "the store to be in its group", HANGS_S, ASKED_S)
            topology.store.pause()
            gateway, broker = chance.choice(topology.gateways), chance.choice(topology.brokers.brokers)
            gateway.pause()
            broker.pause()
            time.sleep(chance.choice([0.2, 0.5, 1.0, BROKER_SESSION_S + 1.0]))
            broker.resume()
            until(lambda: members(topology) == 0, "the group to give the store up", HANGS_S, ASKED_S)
            if number % 5 == 0:
                refused = second_store(topology)
                assert refused.returncode == 2
                assert "serves it" in refused.stderr
            gateway.resume()
            topology.store.resume()
            work.settle()
