"""Folding ahead of the commit: what fails in between leaves nothing behind, in the store or in memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from histories import append, doubled, folded, sample, to_records
from icecore.codec import encode_event
from icecore.errors import StoreError, StoreFull
from icecore.events import Envelope, MetricsLogged
from icecore.log import Record
from icecore.position import LEDGER, METRICS, Place, Token
from icecore.testing.memory_log import MemoryLog
from icecore_projections.folds import Changes
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.store import Store


class Failing(Store):
    """A store of which some commits fail: before anything is written, or with the answer lost after it."""

    chance: random.Random
    failed = 0

    def commit(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        """Write a batch, or fail."""
        fate = self.chance.random()
        if fate < 0.3:
            self.failed += 1
            raise StoreFull("expected space, got none")
        super().commit(changes, offsets)
        if fate < 0.4:
            self.failed += 1
            raise StoreError("expected an answer, got none")


def point(step: int) -> MetricsLogged:
    return MetricsLogged(run="ann/digits/r1", blocks=[{"step": [step], "ts": [step], "cols": {"x": [float(step)]}}])


def record(seq: int, payload: bytes) -> Record:
    return Record("ann/digits/r1", Envelope(f"id-{seq}", "metrics.logged", 1, "p", seq, 0, 1_000 + seq), payload)


@pytest.mark.parametrize("seed", range(6))
def test_commits_that_fail_while_the_next_batch_is_folded_change_nothing(tmp_path: Path, seed: int) -> None:
    """Whichever commits fail, with whatever was folded ahead of them, the digest is that of one fold in one batch."""
    chance = random.Random(seed)
    records = doubled(to_records(sample(seed)), seed)
    whole = folded(records, tmp_path / "whole.duckdb")

    async def work() -> None:
        log = MemoryLog({LEDGER: 1, METRICS: 1})
        await append(log, records)
        with contextlib.closing(Failing.open(tmp_path / "s.duckdb", log_id=log.log_id)) as store:
            assert isinstance(store, Failing)
            store.chance = chance
            runner = Runner(log, store, records=chance.randint(2, 9))
            while True:
                before = store.token()
                try:
                    if not await runner.step():
                        break
                except StoreError:
                    if chance.random() < 0.5:
                        await runner.recover()
                assert store.token().covers(before)
            assert store.failed > 0
            assert store.token() == await log.end()
            assert digest_of(store).differing(whole) == []

    asyncio.run(work())


def test_dead_records_are_counted_once_whatever_is_tried_again(tmp_path: Path) -> None:
    """A batch that is folded again after a failed commit brings the count of its poison with it once."""

    async def work() -> None:
        log = MemoryLog()
        bad = [record(seq, b"no json") for seq in range(12)]
        good = [record(seq, encode_event(point(seq))) for seq in range(12, 200)]
        await log.append(METRICS, bad + good)
        with contextlib.closing(Failing.open(tmp_path / "s.duckdb", log_id=log.log_id)) as store:
            assert isinstance(store, Failing)
            store.chance = random.Random(3)
            runner = Runner(log, store, records=4)
            while True:
                try:
                    if not await runner.step():
                        break
                except StoreFull:
                    continue
                except StoreError:
                    await runner.recover()
            assert store.failed > 2
            with store.reading() as con:
                assert con.execute("SELECT count(*), count(DISTINCT off) FROM dead_letters").fetchall() == [(12, 12)]
                assert con.execute("SELECT n FROM series").fetchall() == [(188,)]

    asyncio.run(work())


def test_a_step_that_is_cancelled_leaves_no_write_behind(tmp_path: Path) -> None:
    """A cancelled step returns only when its write is done or never begun, and the next goes on from there."""

    async def work() -> None:
        log = MemoryLog()
        await log.append(METRICS, [record(seq, encode_event(point(seq))) for seq in range(400)])
        with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id=log.log_id)) as store:
            runner = Runner(log, store, records=7)
            chance = random.Random(11)
            for _ in range(40):
                step = asyncio.ensure_future(runner.step())
                for _ in range(chance.randrange(30)):
                    await asyncio.sleep(0)
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
                with store.reading() as con:
                    ((rows,),) = con.execute("SELECT coalesce(sum(n), 0) FROM series").fetchall()
                assert store.token().next_offset(Place(METRICS, 0)) == rows
            token = await runner.catch_up()
            assert token == Token({Place(METRICS, 0): 400})
            with store.reading() as con:
                assert con.execute("SELECT n FROM series").fetchall() == [(400,)]

    asyncio.run(work())
