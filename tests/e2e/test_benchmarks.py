"""The benchmarks run, at a tiny size, and say what they measured."""

from __future__ import annotations

import importlib

import pytest

from brokers import need_kafka


@pytest.mark.parametrize(
    "module", ["start", "client", "ingest", "queries", "runs", "store", "artifacts", "chunking", "lineage"]
)
def test_a_benchmark_runs_at_tiny_size(module: str) -> None:
    """Every benchmark module measures something and names it."""
    results = importlib.import_module(f"benchmarks.{module}").run(0.002)

    assert results
    assert all(result.value > 0 and result.name and result.unit for result in results)


def test_the_way_through_kafka_is_measured() -> None:
    """The same ingest runs through a real broker and Faust."""
    need_kafka()
    from benchmarks import kafka

    results = kafka.run(0.001)

    assert len(results) == 4
    assert all(result.value > 0 for result in results)


def test_growth_is_measured_size_by_size(capsys: pytest.CaptureFixture[str]) -> None:
    """One column for each size asked for."""
    from benchmarks import growth

    assert growth.main(["--points", "0.05", "0.1", "--runs", "100"]) == 0
    said = capsys.readouterr().out

    assert "0.05 M points" in said
    assert "100 runs" in said


def test_peers_are_compared_by_the_same_work() -> None:
    """The comparison runs icecore by the same script as the peers, and counts calls a second."""
    from benchmarks import peers

    results = peers.run(0.002, ("icecore",))

    assert results[0].value > 0
