"""Copies as of a moment: the log and the store as they were, complete in themselves."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from histories import append, fold_all, sample, to_records
from icecore.errors import BadRequest, Conflict, Invalid, UsageError
from icecore.log import EventLog, Record
from icecore.position import LEDGER, METRICS, Place, Token
from icecore.testing.appender import make_record
from icecore.testing.memory_log import MemoryLog
from icecore_api.checks import check_folder
from icecore_api.replaying import NOTE, iso, read_note, replay
from icecore_ingest.logs.moments import token_at
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections.rebuild import LogUntil, digest_of
from icecore_projections.store import Store

T0 = 1_700_000_000_000


def run(work: Any) -> Any:
    return asyncio.run(work)


def at(record: Record, ts: int) -> Record:
    return Record(record.key, msgspec.structs.replace(record.envelope, ts_server=ts), record.payload)


async def fill(log: EventLog) -> EventLog:
    """Real events, a second apart."""
    await append(log, [(s, at(r, T0 + 1_000 * n)) for n, (s, r) in enumerate(to_records(sample(steps=120)))])
    return log


async def rebuilt(log: EventLog, until: Token, path: Path) -> str:
    """The digest of a store that is folded from the log up to a token."""
    with contextlib.closing(Store.open(path, log_id=log.log_id)) as store:
        await fold_all(LogUntil(log, until), store)
        return digest_of(store).hex


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("asked", ["time", "position"])
def test_a_copy_as_of_a_moment(tmp_path: Path, asked: str, wide: bool) -> None:
    """The copy has the store that a rebuild of the log up to the moment is, ends there, and is whole to fsck."""

    async def work() -> None:
        log = await fill(MemoryLog({LEDGER: 1, METRICS: 4}) if wide else SQLiteLog.open(tmp_path / "log"))
        until = await token_at(log, T0 + 60_500)
        to = iso(T0 + 60_500) if asked == "time" else str(until)
        note = await replay(log, to, tmp_path / "copy", size=3_000)
        assert (note.source, note.source_id, note.records) == (str(until), log.log_id, sum(until.as_dict().values()))
        assert read_note(tmp_path / "copy") == note
        assert note.digest == await rebuilt(log, until, tmp_path / "upto.duckdb")
        assert note.digest != await rebuilt(log, await log.end(), tmp_path / "all.duckdb")
        own = SQLiteLog.open(tmp_path / "copy/log", readonly=True)
        assert str(await own.end()) == note.token
        assert (own.log_id == log.log_id) is not wide
        if not wide:
            assert note.token == note.source
        checked = (await check_folder(tmp_path / "copy", tmp_path / "copy/log", lambda _: None)).as_json()
        assert (checked["ok"], checked["digest"]) == (True, note.digest)
        assert note.ts_ms == (T0 + 60_500 if asked == "time" else note.ts_ms)
        assert T0 + 59_000 <= note.ts_ms <= T0 + 60_500
        await own.close()
        await log.close()

    run(work())


def test_a_time_is_the_last_offsets_up_to_it() -> None:
    """However the clocks of several gateways differ, a time covers everything up to the last record of that time."""

    async def work() -> None:
        seed = random.SystemRandom().randrange(1 << 32)
        print(f"seed {seed}")
        chance = random.Random(seed)
        log = MemoryLog({LEDGER: 1, METRICS: 3})
        for n in range(3_000):
            ts = T0 + 500 * n + chance.choice([0, 20_000, -20_000, 0])
            await log.append(METRICS, [at(make_record(f"k{n % 17}", n), ts)])
        for ts in [T0 - 10**9, T0 + 10**9, *(T0 + chance.randrange(1_500_000) for _ in range(20))]:
            expected = {}
            for number in range(3):
                lane = (await log.read(Place(METRICS, number), 0)).records
                expected[Place(METRICS, number)] = max(
                    (r.position.next_offset for r in lane if r.envelope.ts_server <= ts), default=0
                )
            assert await token_at(log, ts) == Token(expected)

    run(work())


def test_the_beginning_and_the_end(tmp_path: Path) -> None:
    """As of a time before the first event the copy is empty; as of one after the last it holds everything."""

    async def work() -> None:
        log = await fill(SQLiteLog.open(tmp_path / "log"))
        first = await replay(log, "2001-01-01", tmp_path / "first")
        last = await replay(log, "2100-01-01T00:00:00+02:00", tmp_path / "last")
        assert (first.records, first.token) == (0, "")
        assert last.token == str(await log.end())
        assert first.moment == "2001-01-01T00:00:00.000Z"
        assert last.ts_ms == last.made_ts  # nothing is known of what comes
        await log.close()

    run(work())


def test_what_is_refused(tmp_path: Path) -> None:
    """A position beyond the end, words that are no moment, and a folder with anything in it; nothing is written."""

    async def work() -> None:
        log = await fill(SQLiteLog.open(tmp_path / "log"))
        for to, error in [
            ("metrics:0:99999", UsageError),
            ("metrics:7:1", UsageError),
            ("yesterday", BadRequest),
            ("2026-13-01", Invalid),
        ]:
            with pytest.raises(error, match="expected"):
                await replay(log, to, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        with pytest.raises(Conflict, match="empty folder"):
            await replay(log, "2100-01-01", tmp_path)
        await log.close()

    run(work())


def test_a_replay_that_was_cut_off_is_begun_again(tmp_path: Path) -> None:
    """What a killed replay left is no copy, and no obstacle to the next one."""

    async def work() -> None:
        log = await fill(SQLiteLog.open(tmp_path / "log"))
        (tmp_path / "copy/.replaying/log/ledger-0").mkdir(parents=True)
        (tmp_path / "copy/log").mkdir()
        assert read_note(tmp_path / "copy") is None
        note = await replay(log, "2100-01-01", tmp_path / "copy")
        assert read_note(tmp_path / "copy") == note
        assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [NOTE, "lock", "log", "store"]
        await log.close()

    run(work())
