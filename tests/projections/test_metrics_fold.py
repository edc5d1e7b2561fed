"""The metrics stream's fold: points, statistics, texts, activity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import HISTORIES, Said, to_records
from icecore.codec import decode_event
from icecore.errors import BadRequest, Invalid
from icecore.events import Envelope, Event, MetricsLogged, RunHeartbeat, SystemLogged
from icecore.limits import most
from icecore.position import METRICS, Position
from icecore_projections.folds import Applied
from icecore_projections.folds.metrics import MetricsFolded, MetricsState, fold
from icecore_projections.folds.series import STATISTICS

RUN = "ann/digits/r1"
NAN, INF = math.nan, math.inf


def applied(offset: int, event: Event) -> Applied:
    envelope = Envelope(
        id=f"id-{offset}", type=event.TYPE, v=1, producer="p", seq=offset, ts_client=0, ts_server=1_000 + offset
    )
    return Applied(Position(METRICS, 0, offset), envelope, event.key, event)


def logged(*blocks: dict[str, Any], run: str = RUN) -> MetricsLogged:
    return MetricsLogged(run=run, blocks=list(blocks))


def block(steps: Sequence[int], **columns: Sequence[float | None]) -> dict[str, Any]:
    return {"step": list(steps), "ts": [10 * step for step in steps], "cols": {k: list(v) for k, v in columns.items()}}


def folded(*events: Event, partition: int = 0) -> MetricsFolded:
    return fold(MetricsState(), partition, [applied(i, event) for i, event in enumerate(events)])


def series(result: MetricsFolded) -> dict[tuple[str, str], dict[str, Any]]:
    """New series by (kind, key)."""
    rows = [row for table in result.changes.append.get("series", []) for row in table.to_pylist()]
    return {(row["kind"], row["key"]): row for row in rows}


def points(result: MetricsFolded, table: str = "points_hot") -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for rows in result.changes.append.get(table, []) for row in rows.to_pylist()]


def test_columns_become_points_in_log_order() -> None:
    """Each column of each block gives its points: series number, step, time, value and the record's offset."""
    result = folded(logged(block([0, 1], loss=[0.5, 0.25], acc=[1, 2])), logged(block([2], loss=[0.125])))
    assert points(result) == [
        (0, 0, 0, 0.5, 0),
        (0, 1, 10, 0.25, 0),
        (256, 0, 0, 1.0, 0),
        (256, 1, 10, 2.0, 0),
        (0, 2, 20, 0.125, 1),
    ]


def test_series_are_numbered_by_first_appearance_in_their_partition() -> None:
    """A number is ordinal * 256 + partition, so partitions never share one."""
    result = folded(logged(block([0], b=[1], a=[1])), logged(block([0], a=[1]), run="x/y/z"), partition=3)
    assert [row["series"] for rows in result.changes.append["series"] for row in rows.to_pylist()] == [3, 259, 515]


def test_nan_is_counted_and_left_out_of_the_statistics() -> None:
    """NaN stays a point, but not the least, the most or part of the sum."""
    row = series(folded(logged(block([0, 1, 2], loss=[None, 3.0, 1.0]))))["metric", "loss"]
    assert (row["n"], row["nans"], row["least"], row["most"], row["total"]) == (3, 1, 1.0, 3.0, 4.0)


def test_a_series_of_nan_alone_has_no_least_and_no_most() -> None:
    """They are NULL, and the last value is NaN."""
    row = series(folded(logged(block([0], loss=[None]))))["metric", "loss"]
    assert (row["least"], row["most"], row["n"], row["nans"]) == (None, None, 1, 1)
    assert math.isnan(row["last"])


def test_infinities_are_put_back() -> None:
    """±Infinity beside the column replaces the null it is written as."""
    one = {**block([0, 1, 2], x=[None, None, 1.0]), "inf": {"x": {"+": [0], "-": [1]}}}
    result = folded(logged(one))
    assert [point[3] for point in points(result)] == [INF, -INF, 1.0]
    row = series(result)["metric", "x"]
    assert (row["least"], row["most"], row["nans"]) == (-INF, INF, 0)
    assert math.isnan(row["total"])


def test_last_is_the_value_at_the_highest_step_and_of_equals_the_later() -> None:
    """Steps may come in any order; first is the value at the lowest step, of equals the earlier."""
    row = series(folded(logged(block([5, 1, 5, 1], loss=[1, 2, 3, 4])), logged(block([4], loss=[9]))))["metric", "loss"]
    assert (row["last_step"], row["last"], row["first_step"], row["first"]) == (5, 3.0, 1, 2.0)
    assert (row["last_ts"], row["off"]) == (50, 1)


def test_values_keep_every_bit() -> None:
    """-0.0, subnormals and integers around 2^53 are points as they were sent."""
    values = [-0.0, 5e-324, float(2**53 - 1), float(2**53), 1.7976931348623157e308]
    result = folded(logged(block(range(5), x=values)))
    assert np.array([p[3] for p in points(result)]).tobytes() == np.array(values).tobytes()


def test_texts_and_booleans_are_series_of_their_own_kind() -> None:
    """The same key may be a number, a text and a boolean; a boolean's text is true or false."""
    mixed = {**block([0, 1], x=[1, 2]), "text": {"x": ["a", "b"]}, "bool": {"x": [True, False]}}
    result = folded(logged(mixed))
    rows = [tuple(row.values()) for row in result.changes.append["texts"][0].to_pylist()]
    assert rows == [(256, 0, 0, "a", 0), (256, 1, 10, "b", 0), (512, 0, 0, "true", 0), (512, 1, 10, "false", 0)]
    found = series(result)
    assert found["text", "x"]["last_text"] == "b"
    assert found["bool", "x"]["last_text"] == "false"
    assert found["text", "x"]["least"] is found["text", "x"]["total"] is found["text", "x"]["last"] is None


def test_system_metrics_have_tables_and_a_kind_of_their_own() -> None:
    """They leave the history's last step and number of points alone, and may come without steps."""
    event = SystemLogged(run=RUN, blocks=[{"ts": [7, 9], "cols": {"cpu": [0.5, 1.0]}}])
    result = folded(event)
    assert points(result, "system_hot") == [(0, 7, 7, 0.5, 0), (0, 9, 9, 1.0, 0)]
    activity = result.activity[RUN]
    assert (activity.points, activity.last_step, activity.heard_ts) == (0, None, 1_000)


def test_activity_counts_rows_and_points_and_remembers_when_a_run_was_heard() -> None:
    """First and last by the server's clock; the highest step, not the latest."""
    result = folded(logged(block([0, 9], a=[1, 2], b=[1, 2])), RunHeartbeat(run=RUN), logged(block([3], a=[1])))
    row = result.activity[RUN]
    assert (row.first_ts, row.heard_ts, row.last_step, row.points, row.rows_seen, row.off) == (1_000, 1_002, 9, 5, 3, 2)


def test_a_run_with_too_many_keys_is_rejected_and_the_others_go_on() -> None:
    """The event over the limit changes nothing, and the reason names the limit; a known key is always taken."""
    limit = most("metric_keys")
    wide = logged({"step": [0], "ts": [0], "cols": {f"k{i}": [1.0] for i in range(limit)}})
    result = folded(
        wide, logged(block([1], one_more=[1])), logged(block([2], k5=[1])), logged(block([0], x=[1]), run="a/b/c")
    )
    assert [(no.position.offset, str(limit) in why) for no, why in result.rejected] == [(1, True)]
    assert len(points(result)) == limit + 2


@pytest.mark.parametrize(
    "bad",
    [
        {"step": [0, 1], "ts": [0], "cols": {"x": [1, 2]}},
        {"step": [0], "ts": [0], "cols": {"x": [1, 2]}},
        {"step": [0], "ts": [0], "cols": {"x": ["1.5"]}},
        {"step": [0], "ts": [0], "cols": {"x": [True]}},
        {"step": [0.5], "ts": [0], "cols": {"x": [1]}},
        {"step": [2**63], "ts": [0], "cols": {"x": [1]}},
        {"ts": [0], "cols": {"x": [1]}},
        {"step": [0], "ts": [0], "cols": {"x": [None]}, "inf": {"x": {"+": [1]}}},
        {"step": [0], "ts": [0], "text": {"x": [1]}},
        {"step": [0], "ts": [0], "bool": {"x": [1]}},
    ],
)
def test_blocks_that_break_the_rules_are_never_guessed_at(bad: dict[str, Any]) -> None:
    """Lengths that differ, texts among numbers, steps that are no 64-bit integers: refused, saying what is expected."""
    with pytest.raises(Invalid, match="expected"):
        folded(logged(bad))


def test_a_fold_changes_nothing_but_what_it_returns() -> None:
    """The same fold twice gives the same, since the state stays as it was."""
    state = MetricsState()
    state.advance(fold(state, 0, [applied(0, logged(block([0], x=[1], y=[2])))]))
    events = [applied(1, logged(block([1], x=[5], z=[1])))]
    first, second = fold(state, 0, events), fold(state, 0, events)
    assert points(first) == points(second)
    assert first.statistics.tobytes() == second.statistics.tobytes()


def _applied(history: list[Said]) -> list[Applied]:
    events = []
    records = [record for stream, record in to_records(history) if stream == METRICS]
    for offset, record in enumerate(records):
        try:
            event = decode_event(record.envelope, record.payload)
        except BadRequest:
            continue
        if event is not None:
            events.append(Applied(Position(METRICS, 0, offset), record.envelope, record.key, event))
    return events


def _state_after(events: list[Applied], cuts: list[int]) -> MetricsState:
    state = MetricsState()
    edges = sorted({0, *(cut % (len(events) + 1) for cut in cuts), len(events)})
    for first, last in itertools.pairwise(edges):
        state.advance(fold(state, 0, events[first:last]))
    return state


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.lists(st.integers(0, 40), max_size=6))
def test_statistics_are_the_same_bits_for_any_batching(history: list[Said], cuts: list[int]) -> None:
    """Sums, ends, counts, texts and activity do not depend on where batches were cut."""
    events = _applied(history)
    whole, parts = _state_after(events, []), _state_after(events, cuts)
    assert parts.series.slots == whole.series.slots
    assert parts.series.numbers == whole.series.numbers
    n = len(whole.series)
    for name in STATISTICS.names or ():
        mine, theirs = parts.series.statistics[name][:n], whole.series.statistics[name][:n]
        if mine.dtype.kind == "f":  # which NaN it is does not count
            mine, theirs = np.where(np.isnan(mine), NAN, mine), np.where(np.isnan(theirs), NAN, theirs)
        assert mine.tobytes() == theirs.tobytes(), name
    assert parts.series.last_text == whole.series.last_text
    assert parts.activity == whole.activity
