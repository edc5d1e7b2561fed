"""The cluster that the drills hurt: one for all of them, whole again before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokers import need_kafka
from topology import Topology


@pytest.fixture(scope="session")
def _topology(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Topology]:
    need_kafka()
    made = Topology(tmp_path_factory.mktemp("topology"))
    try:
        yield made.start()
    finally:
        made.close(keep=request.session.testsfailed > 0)


@pytest.fixture
def topology(_topology: Topology) -> Topology:
    """Three brokers, two gateways and a store, all alive at the start of each test, to be hurt by it."""
    print(f"topology in {_topology.folder}")
    _topology.heal()
    return _topology
