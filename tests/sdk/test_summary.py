"""Summary: one value a metric by itself, and what is set by hand wins."""

import math
from itertools import pairwise

import pytest

import icecore
from icecore.events import RunSummarised, RunUpdated


@pytest.fixture
def run(home):
    """An offline run."""
    with icecore.init(project="p", mode="offline") as run:
        yield run


def test_the_value_at_the_highest_step_is_the_summary_at_once(run):
    """Live, without waiting; of equal steps the later; late rows of low steps change nothing."""
    run.log({"a": 1, "t": {"x": "one"}, "ok": True})
    assert dict(run.summary) == {"a": 1, "t.x": "one", "ok": True}
    run.log({"a": 5}, step=10)
    run.log({"a": 6}, step=10)
    run.log({"a": 9}, step=3)
    run.log({"a": math.nan}, step=2)

    assert run.summary["a"] == run.summary.a == run.summary.get("a") == 6
    assert run.summary["t"] == {"x": "one"}
    assert "b" not in run.summary
    assert run.summary.get("b", 3) == 3


@pytest.mark.parametrize(
    ("kind", "expected"), [("min", 1), ("max", 9), ("mean", 4.6), ("first", 4), ("last", 5), ("none", None)]
)
def test_define_metric_chooses_what_the_summary_is(run, kind, expected):
    """min, max and mean leave NaN out; a pattern stands for many keys."""
    run.define_metric("val/*", summary=kind)
    for step, value in [(1, 1.0), (2, 9.0), (0, 4.0), (3, math.nan), (7, 4.0), (8, 5.0)]:
        run.log({"val/a": value}, step=step)

    assert run.summary.get("val/a") == expected
    run.log({"other": 3})
    assert run.summary["other"] == 3


def test_a_value_set_by_hand_wins_over_later_rows(run):
    """And can be taken back."""
    run.log({"a": 1})
    run.summary["a"] = 100
    run.summary.update({"best": {"acc": 0.5}})
    run.log({"a": 2})
    assert run.summary["a"] == 100
    assert run.summary["best.acc"] == 0.5
    del run.summary["a"]

    assert run.summary["a"] == 2


def test_changes_become_few_events(server):
    """A thousand sets are a handful of events that come to the same."""
    with icecore.init(project="p") as run:
        for i in range(1000):
            run.summary["best"] = i
        run.summary["gone"] = 1
        run.define_metric("loss", summary="min", step_metric="epoch", hidden=True)
        del run.summary["gone"]

    events = server.events(RunSummarised)
    assert len(events) < 20
    values = [event.set["best"] for event in events if "best" in event.set]
    assert values[-1] == 999
    assert all(a < b for a, b in pairwise(values))
    assert "gone" in events[-1].removed or all("gone" not in event.set for event in events)
    defined = [event.metrics for event in server.events(RunUpdated) if event.metrics]
    assert defined == [{"loss": {"summary": "min", "step_metric": "epoch", "hidden": "true"}}]
