"""The runner: from the log to the store, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from histories import append, fold_all, sample, to_records
from icecore.codec import encode_event
from icecore.errors import LogError, StoreAhead, StoreDamaged, StoreFull
from icecore.events import Envelope, Event, MetricsLogged, RunHeartbeat, RunStarted
from icecore.log import Batch, Record
from icecore.position import METRICS, Place, Token
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections.folds import Applied
from icecore_projections.folds.metrics import packed
from icecore_projections.poison import DEAD_MOST, PoisonDominatesError
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.store import Store
from icecore_projections.streams import Folded, MetricsFold, RunsFold

RUN = "ann/digits/r1"
KILLS = max(25, int(os.environ.get("ICECORE_SOAK_ROUNDS", "0")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as opened:
        yield opened


def record(seq: int, event: Event | bytes, kind: str = "metrics.logged") -> Record:
    payload = event if isinstance(event, bytes) else encode_event(event)
    kind = kind if isinstance(event, bytes) else event.TYPE
    return Record(RUN, Envelope(f"id-{seq}", kind, 1, "p", seq, 0, 1_000 + seq), payload)


def point(step: int) -> MetricsLogged:
    return MetricsLogged(run=RUN, blocks=[{"step": [step], "ts": [step], "cols": {"x": [float(step)]}}])


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    with store.reading() as con:
        return con.execute(query).fetchall()


def steps(store: Store) -> list[int]:
    return [step for (step,) in rows(store, "SELECT step FROM points_hot ORDER BY off")]


async def until(condition: Callable[[], bool], within: float = 30) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited for a condition that did not come"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(runner: Runner) -> Any:
    stop = asyncio.Event()
    task = asyncio.create_task(runner.run(stop))
    try:
        yield task
    finally:
        stop.set()
        if not task.done():
            await asyncio.wait_for(task, 30)


# ------------------------------------------------------------------------------------------------------- folding


def test_what_is_appended_is_folded_while_it_runs(store: Store) -> None:
    """A running runner is woken by the log, and whoever waits for a position is woken by the commit."""

    async def work() -> None:
        log = MemoryLog()
        async with running(Runner(log, store)):
            for turn in range(3):
                done = await log.append(METRICS, [record(turn, point(turn))])
                assert await store.wait_async(Token.after(done), 20)
                assert steps(store) == list(range(turn + 1))

    asyncio.run(work())


def test_a_duplicate_is_folded_once_and_counted(store: Store) -> None:
    """The same (producer, seq) again, in the same batch and in a later one, changes nothing."""

    async def work() -> None:
        log = MemoryLog()
        runner = Runner(log, store)
        await log.append(METRICS, [record(0, point(0)), record(1, point(1)), record(0, point(0))])
        await runner.catch_up()
        await log.append(METRICS, [record(1, point(1)), record(2, point(2))])
        await runner.catch_up()
        assert steps(store) == [0, 1, 2]
        assert runner.status.duplicates == 2
        assert rows(store, "SELECT intervals, duplicates FROM producers") == [("[[0,2]]", 2)]

    asyncio.run(work())


def test_unknown_events_are_counted_and_passed_over(store: Store) -> None:
    """A type or version of a later release is neither lost nor an error."""

    async def work() -> None:
        log = MemoryLog()
        runner = Runner(log, store)
        for turn in range(2):
            batch = [record(3 * turn, b"{}", "from.the.future"), record(3 * turn + 1, b"{}", "from.the.future")]
            await log.append(METRICS, [*batch, record(3 * turn + 2, point(turn))])
            await runner.catch_up()
        assert rows(store, "SELECT type, v, n FROM skipped") == [("from.the.future", 1, 4)]
        assert steps(store) == [0, 1]

    asyncio.run(work())


# -------------------------------------------------------------------------------------------------------- poison


BAD_LENGTHS = MetricsLogged(run=RUN, blocks=[{"step": [0], "ts": [0], "cols": {"x": [1.0, 2.0]}}])


def test_poison_is_set_aside_and_the_stream_goes_on(store: Store) -> None:
    """A payload that is no JSON and a block that breaks its rules become dead letters; the others are folded."""

    async def work() -> None:
        log = MemoryLog()
        events = [point(0), b"no json", point(2), BAD_LENGTHS, point(4)]
        await log.append(METRICS, [record(seq, event) for seq, event in enumerate(events)])
        runner = Runner(log, store)
        await runner.catch_up()
        assert steps(store) == [0, 2, 4]
        letters = rows(store, "SELECT off, id, type, key, attempts FROM dead_letters ORDER BY off")
        assert letters == [(n, f"id-{n}", "metrics.logged", RUN, 3) for n in (1, 3)]
        reasons = [why for (why,) in rows(store, "SELECT reason FROM dead_letters ORDER BY off")]
        assert "expected JSON" in reasons[0]
        assert "expected 1 values of 'x'" in reasons[1]
        assert rows(store, "SELECT intervals FROM producers") == [("[[0,4]]",)]
        assert runner.status.dead == 2

    asyncio.run(work())


class Picky(MetricsFold):
    """The metrics fold with a fault: it fails on some steps, when they are not first in their batch."""

    def __init__(self, hated: set[int]) -> None:
        super().__init__()
        self.hated = hated

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:
        for event in events[1:]:
            if isinstance(event.event, MetricsLogged) and packed(event.event)[0].steps[0] in self.hated:
                raise ValueError("a step that is hated")
        return super().fold(place, events)


def test_an_event_that_fails_only_after_others_is_found(store: Store) -> None:
    """Bisection finds it where it fails in company and not alone."""

    async def work() -> None:
        log = MemoryLog()
        await log.append(METRICS, [record(step, point(step)) for step in range(50)])
        await Runner(log, store, [RunsFold(), Picky({17, 31})]).catch_up()
        assert steps(store) == [step for step in range(50) if step not in (17, 31)]
        assert rows(store, "SELECT off, reason FROM dead_letters ORDER BY off") == [
            (17, "ValueError: a step that is hated"),
            (31, "ValueError: a step that is hated"),
        ]

    asyncio.run(work())


def test_dead_letters_are_tried_again_through_the_same_code(store: Store) -> None:
    """Once the fault is gone they are folded and no longer dead; what still fails stays, its tries counted."""

    async def work() -> None:
        log = MemoryLog()
        await log.append(METRICS, [record(step, point(step)) for step in range(5)] + [record(5, b"no json")])
        fold = Picky({2})
        runner = Runner(log, store, [RunsFold(), fold])
        await runner.catch_up()
        fold.hated = set()
        assert await runner.replay_dead_letters() == (1, 1)
        assert sorted(steps(store)) == [0, 1, 2, 3, 4]
        assert rows(store, "SELECT off, attempts FROM dead_letters") == [(5, 4)]
        assert rows(store, "SELECT n, total FROM series") == [(5, 10.0)]
        await log.append(METRICS, [record(6, point(6))])
        await runner.catch_up()
        assert rows(store, "SELECT n, total FROM series") == [(6, 16.0)]

    asyncio.run(work())


def test_folding_halts_when_poison_dominates_and_loses_nothing(store: Store) -> None:
    """So many dead letters are a fault of the program: nothing is committed until a person says so."""

    async def work() -> None:
        log = MemoryLog()
        bad = [record(seq, b"no json") for seq in range(DEAD_MOST + 1)]
        await log.append(METRICS, [*bad, record(len(bad), point(7))])
        runner = Runner(log, store)
        with pytest.raises(PoisonDominatesError):
            await runner.step()
        assert store.token() == Token()
        async with running(runner):
            await until(lambda: runner.state == "halted")
            assert "expected at most 20 of 1000" in runner.status.reason
            assert store.token() == Token()
            assert rows(store, "SELECT count(*) FROM dead_letters") == [(0,)]
        assert runner.state == "halted"

    asyncio.run(work())


def test_resume_counts_from_zero_again(store: Store) -> None:
    """After a halt that came bit by bit, a person may let the stream go on."""

    async def work() -> None:
        log = MemoryLog()
        runner = Runner(log, store, records=10)
        await log.append(METRICS, [record(seq, b"no json") for seq in range(DEAD_MOST + 5)])
        async with running(runner):
            await until(lambda: runner.state == "halted")
            assert store.token() == Token({Place(METRICS, 0): 20})
            runner.resume()
            assert await store.wait_async(Token({Place(METRICS, 0): 25}), 20)
            await until(lambda: runner.state == "running")
        assert rows(store, "SELECT count(*) FROM dead_letters") == [(25,)]

    asyncio.run(work())


# ------------------------------------------------------------------------------------------------------ failures


class Failing(MemoryLog):
    """A log that cannot be read for a while."""

    failures = 0

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        if self.failures:
            self.failures -= 1
            raise LogError("expected a readable log, got one that is not")
        return await super().read(place, start, records=records, size=size)


def test_a_log_that_cannot_be_read_is_waited_for(store: Store) -> None:
    """The runner says that it waits and why, and goes on by itself where it was; who reads the store is not cut off."""

    async def work() -> None:
        log = Failing()
        await log.append(METRICS, [record(0, point(0))])
        log.failures = 3
        seen: set[str] = set()
        runner = Runner(log, store, backoff_s=(0.02,))
        with store.reading() as con:
            async with running(runner):
                await until(lambda: bool(seen.add(runner.state)) or store.token() != Token())
            assert con.execute("SELECT count(*) FROM points_hot").fetchall() == [(1,)]
        assert "waiting" in seen
        assert steps(store) == [0]
        assert runner.state == "running"

    asyncio.run(work())


def test_a_log_that_lost_its_end_and_grew_again_is_known_by_its_last_record(tmp_path: Path) -> None:
    """Records that took the places of lost ones would never be folded: the store refuses, however long the log is."""

    async def work() -> None:
        whole, cut = MemoryLog(), MemoryLog()
        await whole.append(METRICS, [record(0, point(0)), record(1, point(1))])
        with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as store:
            await Runner(whole, store).catch_up()
        with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as store:
            await store.check_log(whole)
            await cut.append(METRICS, [record(0, point(0))])
            with pytest.raises(StoreAhead, match=r"reach offset 2.*ends at 1"):
                await store.check_log(cut)
            await cut.append(METRICS, [record(2, point(2)), record(3, point(3))])
            with pytest.raises(StoreAhead, match=r"record 1 of the log's metrics:0 to be the event id-1.*got id-2"):
                await store.check_log(cut)

    asyncio.run(work())


class Full(Store):
    """A store whose disk is full for some commits, after the rows were taken."""

    full = 0

    def commit(self, *args: Any) -> None:
        if self.full:
            self.full -= 1
            raise StoreFull("expected space, got none")
        super().commit(*args)


def test_a_full_disk_is_waited_out_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """The states in memory go back to what the store holds, so sums and sequence numbers are right afterwards."""

    async def work() -> None:
        log = MemoryLog()
        await log.append(METRICS, [record(0, point(1)), record(1, point(2))])
        with contextlib.closing(Full.open(tmp_path / "s.duckdb", log_id="log")) as store:
            assert isinstance(store, Full)
            runner = Runner(log, store, backoff_s=(0.02,))
            await runner.step()
            store.full = 3
            done = await log.append(METRICS, [record(2, point(3)), record(3, point(4))])
            async with running(runner):
                assert await store.wait_async(Token.after(done), 20)
            assert rows(store, "SELECT n, total FROM series") == [(4, 10.0)]
            assert rows(store, "SELECT intervals, duplicates FROM producers") == [("[[0,3]]", 0)]

    asyncio.run(work())


class Rotten(Store):
    """A store that turns out damaged at a commit."""

    def commit(self, *_: Any) -> None:
        raise StoreDamaged("expected a readable store, got a wrong checksum")


def test_damage_is_handed_to_who_can_set_the_store_aside(tmp_path: Path) -> None:
    """Trying again would be a loop without end."""

    async def work() -> None:
        log = MemoryLog()
        await log.append(METRICS, [record(0, point(0))])
        with contextlib.closing(Rotten.open(tmp_path / "s.duckdb", log_id="log")) as store:
            runner = Runner(log, store)
            with pytest.raises(StoreDamaged):
                await asyncio.wait_for(runner.run(asyncio.Event()), 20)
            assert runner.state == "halted"

    asyncio.run(work())


def test_stop_ends_a_run_that_has_nothing_to_do(store: Store) -> None:
    """At once, not when its wait is over."""

    async def work() -> float:
        runner = Runner(MemoryLog(), store, idle_s=60)
        stop = asyncio.Event()
        task = asyncio.create_task(runner.run(stop))
        await asyncio.sleep(0)
        began = time.monotonic()
        stop.set()
        await asyncio.wait_for(task, 30)
        return time.monotonic() - began

    assert asyncio.run(work()) < 10


def test_quiet_moments_are_used_to_compact(store: Store) -> None:
    """When nothing comes, a hot table that is worth it becomes a piece."""

    async def work() -> None:
        log = MemoryLog()
        block = {"step": list(range(60_000)), "ts": [0] * 60_000, "cols": {f"k{i}": [0.5] * 60_000 for i in range(9)}}
        await log.append(METRICS, [record(0, MetricsLogged(run=RUN, blocks=[block]))])
        async with running(Runner(log, store, idle_s=0.05)):
            await until(lambda: store.token() != Token() and store.hot["points"] == 0)
        assert rows(store, "SELECT count(*) FROM points_cold") == [(540_000,)]

    asyncio.run(work())


# -------------------------------------------------------------------------------------------------- kill -9


FOLDER = """
import asyncio, sys
from pathlib import Path
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections.runner import Runner
from icecore_projections.store import Store

async def main():
    log = SQLiteLog.open(Path(sys.argv[1]))
    store = Store.open(Path(sys.argv[2]), log_id=log.log_id)
    runner = Runner(log, store, records=3)
    print("folding", flush=True)
    n = 0
    while await runner.step():
        n += 1
        if n % 7 == 0:
            store.compact(1)
        if n % 11 == 0:
            store.checkpoint()
    await log.close()
    store.close()
    print("done", flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_kill_at_any_moment_then_folding_on_gives_what_one_run_gives(tmp_path: Path) -> None:
    """A folding process is killed again and again; what it leaves opens, goes on, and ends like a fresh fold."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    async def write() -> str:
        log = SQLiteLog.open(tmp_path / "log")
        await append(log, to_records(sample(seed=seed, steps=300)))
        log_id = log.log_id
        with contextlib.closing(Store.open(tmp_path / "whole.duckdb", log_id=log_id)) as whole:
            await fold_all(log, whole)
            digest = digest_of(whole)
        await log.close()
        return digest.hex + " " + log_id

    want, log_id = asyncio.run(write()).split()
    killed = rounds = 0
    path = tmp_path / "killed.duckdb"
    while killed < KILLS:
        rounds += 1
        process = subprocess.Popen(
            [sys.executable, "-c", FOLDER, tmp_path / "log", path], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "folding\n"
        try:
            process.wait(chance.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        finished = process.wait() == 0
        process.stdout.close()
        if finished:
            with contextlib.closing(Store.open(path, log_id=log_id)) as store:
                assert digest_of(store).hex == want
            path.unlink()
    last = subprocess.run([sys.executable, "-c", FOLDER, tmp_path / "log", path], check=True, capture_output=True)
    assert last.stdout.endswith(b"done\n")
    with contextlib.closing(Store.open(path, log_id=log_id)) as store:
        assert digest_of(store).hex == want


def test_a_started_run_and_its_heartbeats_meet_in_the_tables(store: Store) -> None:
    """The two streams fold into tables of their own, in one commit."""

    async def work() -> None:
        log = MemoryLog()
        await log.append("ledger", [record(0, RunStarted(run=RUN, started_ts=5, config={"lr": 0.5}))])
        await log.append(METRICS, [record(0, RunHeartbeat(run=RUN))])
        await Runner(log, store).step()
        assert rows(store, "SELECT c.id, a.path FROM current_runs c JOIN run_activity a USING (run)") == [("r1", RUN)]
        assert rows(store, "SELECT path, number FROM run_values") == [("config.lr", 0.5)]

    asyncio.run(work())


def test_a_read_that_waits_ends_the_gathering(store: Store) -> None:
    """A trickle of data is let gather, but a read that waits for it is answered without that delay."""

    async def work() -> float:
        log = MemoryLog()
        began = asyncio.get_running_loop().time()
        stop = asyncio.Event()
        folding = asyncio.create_task(Runner(log, store, gather_s=60.0).run(stop))
        for seq in range(3):
            positions = await log.append(METRICS, [record(seq, point(seq))])
            assert await store.wait_async(Token.after(positions), 50)
        stop.set()
        await folding
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(work()) < 60
