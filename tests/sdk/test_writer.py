"""The writer: what the training thread leaves in the queue becomes events on disk, within bounds."""

import time

import orjson
import pytest

from icecore.codec import frames
from icecore.events import RunUpdated
from icecore.lanes import LANES_MOST, VALUES_MOST
from icecore.limits import most
from icecore.segments import SpoolReader
from icecore.spool import Spool
from icecore.summary import Summary
from icecore.writer import ROWS_MOST, Writer


@pytest.fixture
def spool(tmp_path):
    """A spool of this test."""
    spool = Spool(tmp_path / "spool", "e/p/r", "offline", size_max=1 << 30)
    yield spool
    spool.abandon()


def writer_of(spool: Spool, **how) -> Writer:
    """A writer whose run never changes."""
    return Writer("e/p/r", spool, Summary(lambda *_: None, lambda: None), list, **how)


def kept(spool: Spool) -> list[tuple[str, dict]]:
    """(type, payload) of everything on disk."""
    pairs = [pair for frame in SpoolReader(spool.folder).read(None, 10**9, 1 << 40).frames for pair in frames(frame)]
    return [(orjson.loads(envelope)["type"], orjson.loads(payload)) for envelope, payload in pairs]


def test_a_quiet_run_says_that_it_is_alive(spool):
    """Nothing said for the heartbeat's time: a heartbeat, and again."""
    writer = writer_of(spool, heartbeat_seconds=0.05)
    writer.start()
    deadline = time.monotonic() + 20
    while len(kept(spool)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    writer.stop()

    assert {type_ for type_, _ in kept(spool)} == {"run.heartbeat"}


def test_rows_are_on_disk_without_being_asked(spool):
    """The thread writes what is queued within a moment."""
    writer = writer_of(spool)
    writer.start()
    writer.queue.append((0, time.time_ns(), {"a": 1.0}))
    deadline = time.monotonic() + 20
    while not kept(spool):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    writer.stop()

    ((type_, payload),) = kept(spool)
    assert (type_, payload["blocks"][0]["cols"]) == ("metrics.logged", {"a": [1.0]})


def test_memory_is_bounded_when_nobody_writes(spool):
    """Beyond the queue's bound the newest rows are dropped, each call costs milliseconds, and the count is told."""
    writer = writer_of(spool)
    row = {"a": 1.0, "b": 2.0}
    writer.queue.extend((i, 0, row) for i in range(ROWS_MOST))
    for i in range(5):
        writer.queue.append((ROWS_MOST + i, 0, row))
        writer.relieve()
    assert len(writer.queue) == ROWS_MOST
    writer.save()

    dropped = [payload for type_, payload in kept(spool) if type_ == "run.dropped"]
    assert [(event["events"], event["points"]) for event in dropped] == [(5, 10)]
    rows = sum(len(block["step"]) for type_, p in kept(spool) if type_ == "metrics.logged" for block in p["blocks"])
    assert rows == ROWS_MOST


def test_lanes_are_bounded_too(spool):
    """Beyond a lane's bound its newest row goes, the others stay whole, and the count is told."""
    writer = writer_of(spool)
    lane = writer.lanes.of({"a": 1.0, "b": 2.0})
    lane.flat.extend([0, 0, 1.0, 2.0] * (VALUES_MOST // 4))
    lane.flat += [7, 0, 1.0, 2.0]
    writer.relieve()
    writer.save()

    dropped = [payload for type_, payload in kept(spool) if type_ == "run.dropped"]
    assert [(event["events"], event["points"]) for event in dropped] == [(1, 2)]
    steps = [step for type_, p in kept(spool) if type_ == "metrics.logged" for b in p["blocks"] for step in b["step"]]
    assert (len(steps), set(steps)) == (VALUES_MOST // 4, {0})


def test_lanes_are_few_and_never_change_hands(spool):
    """The same keys have the same lane; too many kinds of rows, or too wide ones, have none."""
    lanes = writer_of(spool).lanes
    first = lanes.of({"k0": 1})
    for i in range(LANES_MOST):
        lanes.of({f"k{i}": 1})

    assert lanes.of({"k0": 2}) is first
    assert lanes.of({"one more": 1}) is None
    assert writer_of(spool).lanes.of({f"k{i}": 1 for i in range(5000)}) is None


def test_an_int_that_no_float_holds_is_said_once(spool, capfd):
    """One warning a key, with what is kept instead."""
    writer = writer_of(spool)
    for step in range(3):
        writer.queue.append((step, 0, {"id": 10**400, "n": 2**53 + 1, "fine": 3}))
        writer.drain()

    words = capfd.readouterr().err
    assert (words.count("'id'"), words.count("'n'"), words.count("'fine'")) == (1, 1, 0)
    assert "kept as inf" in words
    assert "9007199254740993 is kept as 9007199254740992.0" in words


def test_an_event_over_the_limit_is_counted_not_sent(spool):
    """The gateway would refuse it: the run says that it was left out."""
    writer = writer_of(spool)
    assert not writer.emit(RunUpdated(run="e/p/r", metadata={"x": "y" * most("event_bytes")}))
    writer.save()

    ((type_, payload),) = kept(spool)
    assert type_ == "run.dropped"
    assert "event_bytes" in payload["reason"]
