"""The cluster that the drills hurt: one for all of them, whole again before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brokers import need_kafka
from topology import Topology


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the drills of one kind each to `make soak`: every round of the others does all kinds."""
    if config.option.markexpr or "::" in " ".join(config.args):
        return
    later = [item for item in items if item.get_closest_marker("soak")]
    if later:
        config.hook.pytest_deselected(items=later)
        items[:] = [item for item in items if item not in later]


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
