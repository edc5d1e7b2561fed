"""The chart benchmark runs at a tiny size."""

from __future__ import annotations

from benchmarks.queries import run
from benchmarks.runs import run as find_runs


def test_the_chart_benchmark_measures() -> None:
    """Every figure is there and more than nothing."""
    results = run(0.001)

    assert len(results) == 6
    assert all(result.value > 0 for result in results)
    assert {result.name for result in results if result.target} == {
        "one series of 100k points at the store",
        "100 runs x 10k points at the store",
        "full history export, Arrow, at the store",
    }


def test_the_benchmark_of_finding_runs_measures() -> None:
    """Finding the best runs is measured at the store and through a server."""
    results = find_runs(0.005)

    assert all(result.value > 0 for result in results)
    assert {result.name for result in results if result.target} == {
        "top 10 of 100,000 runs, 3 config filters, at the store",
        "top 10 of 100,000 runs, 3 config filters, over HTTP",
    }
