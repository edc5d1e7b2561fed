"""The benchmarks run, at a tiny size, and say what they measured."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("module", ["start", "client", "ingest", "queries", "runs", "store"])
def test_a_benchmark_runs_at_tiny_size(module: str) -> None:
    """Every benchmark module measures something and names it."""
    results = importlib.import_module(f"benchmarks.{module}").run(0.002)

    assert results
    assert all(result.value > 0 and result.name and result.unit for result in results)


def test_peers_are_compared_by_the_same_work() -> None:
    """The comparison runs icecore by the same script as the peers, and counts calls a second."""
    from benchmarks import peers

    results = peers.run(0.002, ("icecore",))

    assert results[0].value > 0
