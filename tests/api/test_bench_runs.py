"""The benchmark of finding runs works at a tiny size."""

from __future__ import annotations

from benchmarks.runs import run


def test_the_benchmark_of_finding_runs_measures() -> None:
    """Every figure is there and more than nothing."""
    results = run(0.001)

    assert len(results) == 3
    assert all(result.value > 0 for result in results)
