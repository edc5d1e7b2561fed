"""The ledger's fold over runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecore.events import (
    Envelope,
    Event,
    RunDeleted,
    RunDropped,
    RunFinished,
    RunRestored,
    RunStarted,
    RunSummarised,
    RunUpdated,
    UserCreated,
)
from icecore.position import Position
from icecore_projections.folds import Applied
from icecore_projections.folds.runs import RunChanges, RunRow, Value, fold, keys, values
from icecore_projections.schema import run_number

RUN = "ann/digits/r1"


def applied(offset: int, event: Event, producer: str = "p1", ts: int | None = None, actor: str = "ann") -> Applied:
    envelope = Envelope(
        id=f"id-{offset}",
        type=event.TYPE,
        v=event.VERSION,
        producer=producer,
        seq=offset,
        ts_client=0,
        ts_server=1_000 + offset if ts is None else ts,
        actor=actor,
    )
    return Applied(Position("ledger", 0, offset), envelope, event.key, event)


def folded(*events: Event | tuple[Event, str], state: dict[str, RunRow] | None = None) -> RunChanges:
    pairs = [event if isinstance(event, tuple) else (event, "p1") for event in events]
    return fold(state or {}, [applied(i, event, producer) for i, (event, producer) in enumerate(pairs)])


def last(*events: Event | tuple[Event, str]) -> RunRow:
    changes = folded(*events)
    assert not changes.rejections
    return changes.versions[-1]


START = RunStarted(run=RUN, started_ts=900, name="quiet-lake-1", config={"lr": 0.1, "net": {"depth": 3}}, tags=["a"])


def finish(state: Any = "finished", **fields: Any) -> RunFinished:
    return RunFinished(run=RUN, state=state, finished_ts=5_000, **fields)


def test_the_first_start_makes_the_run() -> None:
    """A first start makes a running run that knows who made it, where, and when by both clocks."""
    row = last(START)
    assert (row.path, row.entity, row.project, row.id) == (RUN, "ann", "digits", "r1")
    assert (row.user, row.state, row.created_ts, row.started_ts) == ("ann", "running", 1_000, 900)
    assert (row.open, row.off_first, row.off, row.number) == (["p1"], 0, 0, run_number(RUN))
    assert row.config == {"lr": 0.1, "net": {"depth": 3}}


def test_a_second_start_merges() -> None:
    """What a second process says wins key by key, what it leaves empty changes nothing, and the maker stays."""
    second = applied(1, RunStarted(run=RUN, started_ts=950, group="g", config={"lr": 0.2, "seed": 1}), "p2", actor="bo")
    row = fold({}, [applied(0, START), second]).versions[-1]
    assert (row.name, row.group, row.tags, row.user, row.started_ts) == ("quiet-lake-1", "g", ["a"], "ann", 900)
    assert row.config == {"lr": 0.2, "net": {"depth": 3}, "seed": 1}
    assert row.open == ["p1", "p2"]


def test_the_run_ends_with_its_last_writer_and_as_its_worst() -> None:
    """A run of several processes runs until all have ended, and its state and error are the worst one's."""
    start2, start3 = (RunStarted(run=RUN, started_ts=950), "p2"), (RunStarted(run=RUN, started_ts=950), "p3")
    failed = finish("failed", exit_code=1, error_type="ValueError", error_message="no", runtime_ms=70)
    changes = folded(
        START, start2, start3, (failed, "p2"), (finish("killed", exit_code=137), "p3"), finish(runtime_ms=50)
    )
    assert [row.state for row in changes.versions] == ["running"] * 5 + ["failed"]
    row = changes.versions[-1]
    assert (row.exit_code, row.error_type, row.error_message) == (1, "ValueError", "no")
    assert (row.runtime_ms, row.finished_ts, row.open) == (70, 5_000, [])


def test_a_finish_of_a_closed_writer_is_only_heard() -> None:
    """The end of a producer that is not open changes nothing but when the run was last heard."""
    changes = folded(START, finish(), (finish("failed"), "p9"))
    before, after = changes.versions[1:]
    assert (after.state, after.heard_ts, after.off) == ("finished", 1_002, 2)
    assert before.to_doc().replace(str(before.heard_ts), "T") == after.to_doc().replace(str(after.heard_ts), "T")


def test_a_resume_takes_the_run_over() -> None:
    """A resuming process is the run's only writer, earlier endings no longer count, and runtimes add up."""
    resumed = (RunStarted(run=RUN, started_ts=2_000, resumed=True), "p2")
    row = last(START, finish("failed", exit_code=1, runtime_ms=40), resumed)
    assert (row.state, row.open, row.exit_code, row.error_type, row.finished_ts) == ("running", ["p2"], None, "", None)
    row = last(START, finish("failed", exit_code=1, runtime_ms=40), resumed, (finish(runtime_ms=5), "p2"))
    assert (row.state, row.exit_code, row.runtime_ms) == ("finished", 0, 45)


def test_a_resume_of_a_crashed_run_forgets_the_dead_writer() -> None:
    """After a kill -9 the dead producer stays open until a resume, and the resuming one alone ends the run."""
    row = last(START, (RunStarted(run=RUN, started_ts=2_000, resumed=True), "p2"), (finish(), "p2"))
    assert row.state == "finished"


def test_updates_set_and_remove_top_level_keys() -> None:
    """An update sets and removes the fields it names; a field it leaves out stays, an empty one empties."""
    update = RunUpdated(
        run=RUN, notes="n", tags=[], config={"lr": 1}, config_removed=["net", "lr"], metrics={"acc": {"summary": "max"}}
    )
    row = last(START, update)
    assert (row.name, row.notes, row.tags, row.config) == ("quiet-lake-1", "n", [], {"lr": 1})
    assert row.metrics == {"acc": {"summary": "max"}}


def test_summary_values_are_set_and_removed_by_dotted_path() -> None:
    """Explicit summary values are kept by their dotted paths until they are removed."""
    row = last(
        START,
        RunSummarised(run=RUN, set={"val/f1": 0.9, "a.b": {"c": 1}}),
        RunSummarised(run=RUN, set={"best": True}, removed=["val/f1"]),
    )
    assert row.summary == {"a.b": {"c": 1}, "best": True}


@pytest.mark.parametrize(
    "event",
    [RunUpdated(run=RUN), RunSummarised(run=RUN), finish(), RunDropped(run=RUN, reason="full"), RunDeleted(run=RUN)],
)
def test_an_unknown_run_is_refused(event: Event) -> None:
    """Everything but a start is rejected for a run that never started, and the reason says so."""
    changes = folded(event)
    assert not changes.versions
    (rejection,) = changes.rejections
    assert rejection.reason == f"no such run: expected {RUN!r} to have started, found none"
    assert (rejection.position, rejection.id, rejection.type, rejection.key) == (
        Position("ledger", 0, 0),
        "id-0",
        event.TYPE,
        RUN,
    )


def test_deletion_and_restoration_alternate() -> None:
    """A run is deleted once and restored once; a second of either is rejected, and nothing else is lost."""
    deleted, restored = RunDeleted(run=RUN), RunRestored(run=RUN)
    changes = folded(START, restored, deleted, deleted, restored, restored)
    assert [row.deleted for row in changes.versions] == [False, True, False]
    assert [(r.position.offset, r.reason.split(":")[0]) for r in changes.rejections] == [
        (1, "not deleted"),
        (3, "already deleted"),
        (5, "not deleted"),
    ]


def test_a_start_on_a_deleted_run_is_kept_but_restores_nothing() -> None:
    """A deleted run that is started again stays deleted, and what the start said is there when it is restored."""
    changes = folded(
        START, RunDeleted(run=RUN), (RunStarted(run=RUN, started_ts=1, notes="again"), "p2"), RunRestored(run=RUN)
    )
    assert [(row.deleted, row.notes) for row in changes.versions[2:]] == [(True, "again"), (False, "again")]


def test_a_persons_edit_does_not_make_a_dead_run_look_alive() -> None:
    """Only a writer's words count as hearing from the run; the server's producer is none."""
    changes = folded(START, (RunUpdated(run=RUN, notes="x"), "server"), RunUpdated(run=RUN, notes="y"))
    assert [row.heard_ts for row in changes.versions] == [1_000, 1_000, 1_002]


def test_hearing_never_goes_back() -> None:
    """A server clock that jumps back does not move the moment a run was last heard."""
    changes = fold({}, [applied(0, START, ts=9_000), applied(1, finish(), ts=10)])
    assert changes.versions[-1].heard_ts == 9_000


def test_losses_add_up_by_reason_within_bounds() -> None:
    """What clients could not keep is summed by reason, and neither reasons nor keys grow without end."""
    many = [RunDropped(run=RUN, reason=f"r{i % 300}", events=1, points=2, keys=[f"k{i}"]) for i in range(900)]
    row = last(START, *many)
    assert len(row.dropped) == 100
    assert sum(dropped.points for dropped in row.dropped) == 1_800
    assert sum(dropped.times for dropped in row.dropped) == 900
    assert max(len(dropped.keys) for dropped in row.dropped) <= 100


def test_two_paths_of_one_number_do_not_mix() -> None:
    """A start whose path has the number of another run is rejected, naming both."""
    owner = last(START)
    fields = {name: getattr(owner, name) for name in owner.__struct_fields__}
    holder = _SameNumber(**{**fields, "path": "x/y/z"})
    changes = fold({holder.path: holder}, [applied(9, START)])
    (rejection,) = changes.rejections
    assert not changes.versions
    assert "expected a free run number" in rejection.reason
    assert "'x/y/z'" in rejection.reason


class _SameNumber(RunRow, frozen=True, kw_only=True):
    """A row with the number of `RUN`: no two real paths with one BLAKE2b number are known."""

    @property
    def number(self) -> int:
        return run_number(RUN)


@pytest.mark.parametrize("path", ["", "a/b", "a//c", "a/b/c/d"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """A start at something that is no entity/project/run_id is rejected."""
    changes = folded(RunStarted(run=path, started_ts=0))
    assert not changes.versions
    assert "expected a run path" in changes.rejections[0].reason


def test_other_events_are_passed_over() -> None:
    """Events of other subjects need no state and change nothing."""
    other = applied(0, UserCreated(user="ann"))
    assert keys([other, applied(1, START)]) == {RUN}
    assert fold({}, [other]) == RunChanges()


def test_values_are_the_leaves_people_filter_by() -> None:
    """Each leaf of config and summary is a number, a text or both, by its dotted path."""
    config = {
        "lr": 0.5,
        "on": True,
        "off": False,
        "net": {"depth": 3, "act": "relu", "none": None, "empty": {}},
        "big": 2**53 + 1,
        "layers": [1, {"b": 2, "a": 1}],
    }
    row = last(
        RunStarted(run=RUN, started_ts=0, config=config), RunSummarised(run=RUN, set={"val/f1": 1, "m.x": {"y": -0.0}})
    )
    assert values(row) == [
        Value("config.big", float(2**53), "9007199254740993"),
        Value("config.layers", None, '[1,{"a":1,"b":2}]'),
        Value("config.lr", 0.5, None),
        Value("config.net.act", None, "relu"),
        Value("config.net.depth", 3.0, None),
        Value("config.net.empty", None, "{}"),
        Value("config.net.none", None, None),
        Value("config.off", 0.0, "false"),
        Value("config.on", 1.0, "true"),
        Value("summary.m.x.y", 0.0, None),
        Value("summary.val/f1", 1.0, None),
    ]


def test_a_path_spelled_twice_is_one_value() -> None:
    """`{"a.b": 1, "a": {"b": 2}}` has one value at a.b, the nested one, whatever the order of the keys."""
    for config in ({"a.b": 1, "a": {"b": 2}}, {"a": {"b": 2}, "a.b": 1}):
        assert values(last(RunStarted(run=RUN, started_ts=0, config=config))) == [Value("config.a.b", 2.0, None)]


def test_deep_trees_do_not_overflow() -> None:
    """A config deeper than Python recurses still has its leaf."""
    tree: dict[str, Any] = {"leaf": 1}
    for _ in range(5_000):
        tree = {"d": tree}
    row = last(RunStarted(run=RUN, started_ts=0, config=tree))
    (value,) = values(row)
    assert value.number == 1
    assert value.path.endswith(".leaf")


# ------------------------------------------------------------------------------------------------- properties

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
TREES = st.dictionaries(st.sampled_from(["lr", "net", "a.b", "é"]), JSON, max_size=3)
RUNS = st.sampled_from([RUN, "ann/digits/r2", "bo/x/r1"])
PRODUCERS = st.sampled_from(["p1", "p2", "p3"])
SMALL = st.integers(0, 99)
ENDINGS = st.sampled_from(["finished", "failed", "killed"])
REMOVED = st.lists(st.sampled_from(["lr", "net"]), max_size=2)
NAMES = st.sampled_from(["", "n"])
EVENTS = st.one_of(
    st.builds(RunStarted, run=RUNS, started_ts=SMALL, config=TREES, resumed=st.booleans(), name=NAMES),
    st.builds(RunUpdated, run=RUNS, config=TREES, config_removed=REMOVED, tags=st.none() | st.just(["t"])),
    st.builds(RunSummarised, run=RUNS, set=TREES, removed=REMOVED),
    st.builds(RunFinished, run=RUNS, state=ENDINGS, finished_ts=SMALL, runtime_ms=SMALL),
    st.builds(RunDropped, run=RUNS, reason=st.sampled_from(["full", "odd"]), points=SMALL),
    st.builds(RunDeleted, run=RUNS),
    st.builds(RunRestored, run=RUNS),
)
HISTORIES = st.lists(st.tuples(EVENTS, PRODUCERS), max_size=25)


def stored(row: RunRow) -> RunRow:
    """A row as it comes back from the store."""
    return RunRow.from_doc(row.to_doc(), off=row.off, off_first=row.off_first)


@settings(max_examples=150, deadline=None)
@given(history=HISTORIES, cuts=st.sets(st.integers(0, 25), max_size=6))
def test_any_batching_makes_the_same_versions(history: list[tuple[Event, str]], cuts: set[int]) -> None:
    """However the events are cut into batches, with the state stored between them, the versions are the same."""
    events = [applied(i, event, producer) for i, (event, producer) in enumerate(history)]
    whole = fold({}, events)
    state: dict[str, RunRow] = {}
    parts = RunChanges()
    bounds = [0, *sorted(cuts), len(events)]
    for start, end in itertools.pairwise(bounds):
        batch = events[start:end]
        part = fold({path: state[path] for path in keys(batch) & state.keys()}, batch)
        state |= {path: stored(row) for path, row in part.current.items()}
        parts.versions += part.versions
        parts.rejections += part.rejections
    assert [(row.off, row.to_doc()) for row in parts.versions] == [(row.off, row.to_doc()) for row in whole.versions]
    assert parts.rejections == whole.rejections


@settings(max_examples=150, deadline=None)
@given(history=HISTORIES)
def test_every_event_is_applied_or_refused_and_the_state_makes_sense(history: list[tuple[Event, str]]) -> None:
    """Each event gives one version or one rejection; a run is running exactly while a writer is open."""
    changes = folded(*history)
    offsets = [row.off for row in changes.versions] + [r.position.offset for r in changes.rejections]
    assert sorted(offsets) == list(range(len(history)))
    for row in changes.versions:
        assert (row.state == "running") == bool(row.open)
        assert stored(row) == row
        for value in values(row):
            assert value.number is None or math.isfinite(value.number)
