"""Applied once: the set of sequence numbers of each producer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.events import Envelope
from icecore.log import StoredRecord
from icecore.position import Place, Position
from icecore_projections.dedupe import Dedupe, Intervals
from icecore_projections.folds import Changes, Rows
from icecore_projections.store import Store

PLACE = Place("metrics", 0)
numbers = st.lists(st.integers(0, 40))


@given(numbers)
def test_a_set_of_intervals_is_a_set(added: list[int]) -> None:
    """Adding says True the first time only, and the intervals cover exactly what was added."""
    seen: set[int] = set()
    intervals = Intervals()
    for number in added:
        assert intervals.add(number) == (number not in seen)
        seen.add(number)
    assert [n for first, last in intervals.pairs() for n in range(first, last + 1)] == sorted(seen)


@given(numbers)
def test_intervals_are_as_few_as_can_be(added: list[int]) -> None:
    """Intervals are sorted, and a number is missing between any two."""
    intervals = Intervals()
    for number in added:
        intervals.add(number)
    pairs = intervals.pairs()
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(pairs))


@given(numbers)
def test_intervals_survive_their_json(added: list[int]) -> None:
    """What is written is read back the same."""
    intervals = Intervals()
    for number in added:
        intervals.add(number)
    assert Intervals.loads(intervals.dumps()).pairs() == intervals.pairs()


@given(st.permutations(range(12)))
def test_gaps_heal_in_any_order(order: list[int]) -> None:
    """When all numbers have come, in whatever order, no gap is left; before, gaps are what has not come."""
    intervals = Intervals()
    came: set[int] = set()
    for number in order:
        intervals.add(number)
        came.add(number)
        missing = {n for first, last in intervals.gaps() for n in range(first, last + 1)}
        assert missing == set(range(max(came))) - came
    assert intervals.gaps() == []
    assert intervals.pairs() == [(0, 11)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as opened:
        yield opened


def record(offset: int, producer: str, seq: int) -> StoredRecord:
    envelope = Envelope(id=str(offset), type="run.heartbeat", v=1, producer=producer, seq=seq, ts_client=0)
    return StoredRecord(Position(*PLACE, offset), "a/b/c", envelope, b"{}")


def apply(dedupe: Dedupe, store: Store, records: list[StoredRecord]) -> list[int]:
    """Offsets of the fresh ones; the state is committed."""
    with store.reading() as con:
        kept, rows = dedupe.fresh(con, PLACE, records)
    producers = {"producers": [Rows(("stream", "part", "producer"), rows)]}
    store.commit(Changes(replace=producers), {PLACE: (records[-1].position.next_offset, 0)})
    return [kept_one.position.offset for kept_one in kept]


def test_a_duplicate_is_dropped_and_counted_across_a_restart(store: Store) -> None:
    """A store opened again knows what its producers have said."""
    assert apply(Dedupe(), store, [record(0, "p", 0), record(1, "p", 1), record(2, "q", 0)]) == [0, 1, 2]
    assert apply(Dedupe(), store, [record(3, "p", 1), record(4, "p", 3), record(5, "q", 0)]) == [4]
    with store.reading() as con:
        rows = con.execute("SELECT producer, key, intervals, duplicates FROM producers ORDER BY 1").fetchall()
    assert rows == [("p", "a/b/c", "[[0,1],[3,3]]", 1), ("q", "a/b/c", "[[0,0]]", 1)]


def test_what_was_not_committed_is_forgotten(store: Store) -> None:
    """After `forget`, numbers of a batch that was not committed are fresh again."""
    dedupe = Dedupe()
    with store.reading() as con:
        dedupe.fresh(con, PLACE, [record(0, "p", 0)])
    dedupe.forget()
    assert apply(dedupe, store, [record(0, "p", 0)]) == [0]
