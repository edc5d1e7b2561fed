"""Copies of logs: between any two kinds, cut off anywhere, and equal in the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from brokers import Kafka
from histories import append, fold_all, sample, shuffled, to_records
from icecore.errors import Conflict, LogAway
from icecore.log import EventLog, Record, StoredRecord
from icecore.position import LEDGER, METRICS, Place, Position, Token
from icecore.testing.appender import make_record
from icecore.testing.log_contract import read_all
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.logs.copying import compare, copy, fingerprint, in_order
from icecore_ingest.logs.opening import open_log
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections.rebuild import digest_of
from icecore_projections.store import Store

WIDE = {LEDGER: 1, METRICS: 5}


def run(work: Any) -> Any:
    return asyncio.run(work)


async def filled(log: EventLog, steps: int = 300) -> EventLog:
    """A log with real events of several runs, metrics of which come in any order of runs, and some twice."""
    records = to_records(sample(steps=steps))
    await append(log, [*shuffled(records, 7), *records[5:9]])
    return log


async def by_key(log: EventLog) -> dict[tuple[str, str], list[tuple[Any, bytes]]]:
    """What each key says, in order: envelopes and payloads."""
    found: dict[tuple[str, str], list[tuple[Any, bytes]]] = defaultdict(list)
    for stream in (LEDGER, METRICS):
        for lane in (await read_all(log, stream)).values():
            for record in lane:
                found[stream, record.key].append((record.envelope, record.payload))
    return found


async def store_digest(log: EventLog, folder: Path) -> str:
    with contextlib.closing(Store.open(folder / f"{log.log_id}.duckdb", log_id=log.log_id)) as store:
        await fold_all(log, store)
        return digest_of(store).hex


def test_a_copy_there_and_back(tmp_path: Path) -> None:
    """From one partition to five and back: envelopes, payloads and each key's order stay, and stores are equal."""

    async def work() -> None:
        first = await filled(SQLiteLog.open(tmp_path / "a"))
        wide = MemoryLog(WIDE)
        back = SQLiteLog.open(tmp_path / "b")
        there, again = await copy(first, wide), await copy(wide, back)
        assert (there.matches, again.matches, there.behind) == (True, True, 0)
        assert there.written == again.written == sum((await first.end()).as_dict().values())
        assert len((await wide.end()).as_dict()) > 2
        assert await by_key(first) == await by_key(wide) == await by_key(back)
        digests = [await store_digest(log, tmp_path) for log in (first, wide, back)]
        assert len(set(digests)) == 1
        await first.close()
        await back.close()

    run(work())


def test_a_copy_between_embedded_logs_is_byte_for_byte(tmp_path: Path) -> None:
    """Keys, envelopes, payloads, offsets and checksums in the target's files are those in the source's."""

    async def work() -> None:
        for name in ("a", "b"):
            log = SQLiteLog.open(tmp_path / name)
            if name == "a":
                await filled(log)
                kept = log
            else:
                assert (await copy(kept, log)).matches
                await log.close()
                await kept.close()

    run(work())
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a")


def rows(folder: Path) -> list[Any]:
    found = []
    for file in sorted(folder.rglob("*.db")):
        with contextlib.closing(sqlite3.connect(file)) as db:
            found += db.execute("SELECT off, key, envelope, payload, crc FROM records ORDER BY off").fetchall()
    return found


def test_the_order_in_time_is_kept_when_partitions_are_merged(tmp_path: Path) -> None:
    """Partitions are merged by the server's times, so a time still names a place in the copy."""

    async def work() -> None:
        wide = MemoryLog(WIDE)
        for at in range(50):
            made = make_record(f"k{at % 7}", at)
            envelope = type(made.envelope)(**{**_fields(made.envelope), "ts_server": at})
            await wide.append(METRICS, [Record(made.key, envelope, made.payload)])
        log = SQLiteLog.open(tmp_path / "log")
        await copy(wide, log)
        lane = (await read_all(log, METRICS))[Place(METRICS, 0)]
        assert [record.envelope.ts_server for record in lane] == list(range(50))
        await log.close()

    run(work())


def _fields(envelope: Any) -> dict[str, Any]:
    return {name: getattr(envelope, name) for name in envelope.__struct_fields__}


class Breaking(MemoryLog):
    """A log that takes a part of a call now and then, and says that it does not know."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(WIDE)
        self.chance = chance
        self.breaks = True

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        if self.breaks and self.chance.random() < 0.6:
            lost = self.chance.randrange(self.partitions[stream])
            whole = await MemoryLog(WIDE).append(stream, records)
            await super().append(stream, [r for r, at in zip(records, whole, strict=True) if at.partition != lost])
            raise LogAway("expected a leader, got none")
        return await super().append(stream, records)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_copy_that_is_cut_off_again_and_again(tmp_path: Path, seed: int, noted: bool) -> None:
    """Whatever part of a call was taken when it failed, calling again ends with every record once, in order."""

    async def work() -> None:
        source = MemoryLog({LEDGER: 1, METRICS: 3})
        chance = random.Random(seed)
        await filled(source, 40)
        target = Breaking(chance)
        more = iter(to_records(sample(seed=3, steps=60)))
        for attempt in range(60):
            target.breaks = attempt < 50
            try:
                copied = await copy(source, target, note=tmp_path / "note" if noted else None)
            except LogAway:
                for stream, record in [next(more)]:
                    await source.append(stream, [record])
                continue
            assert copied.matches
            if attempt > 20:
                break
        assert await by_key(source) == await by_key(target)
        assert copied.written + copied.already == sum((await source.end()).as_dict().values())

    run(work())


def test_a_target_with_other_records_is_refused(tmp_path: Path) -> None:
    """A target that holds a record the source does not have is refused, and not written to."""

    async def work() -> None:
        source = await filled(MemoryLog())
        for log in (SQLiteLog.open(tmp_path / "log"), MemoryLog(WIDE)):
            await copy(source, log)
            await log.append(METRICS, [make_record("k", 1)])
            end = await log.end()
            await source.append(METRICS, [make_record("k", 2)])
            with pytest.raises(Conflict, match=r"nothing but records of the source, got 1 others in its metrics"):
                await copy(source, log)
            assert await log.end() == end
            assert not (await compare(source, log)).matches
            await log.close()
        with pytest.raises(Conflict, match="same one twice"):
            await copy(source, source)

    run(work())


def test_a_fingerprint_sees_every_byte_and_the_order_within_a_key() -> None:
    """One byte of a payload, a server time, or two records of a key changed about: the fingerprint is another one."""

    async def of(records: Sequence[tuple[str, Record]]) -> str:
        log = MemoryLog()
        await append(log, records)
        return (await fingerprint(log, await log.end())).digest

    async def work() -> None:
        records = [(METRICS, make_record(key, n)) for n, key in enumerate("aabb")]
        a0, a1, b0, b1 = records
        same = await of(records)
        assert await of([b0, a0, b1, a1]) == same
        late = type(a0[1].envelope)(**{**_fields(a0[1].envelope), "ts_server": 5})
        others = [
            [a1, a0, b0, b1],
            [a0, a1, b0],
            [a0, a1, b0, b1, b1],
            [(METRICS, Record("a", a0[1].envelope, b"{ }")), a1, b0, b1],
            [(METRICS, Record("a", late, b"{}")), a1, b0, b1],
            [(LEDGER, a0[1]), a1, b0, b1],
        ]
        assert same not in [await of(other) for other in others]

    run(work())


def test_what_comes_while_copying_is_counted() -> None:
    """A copy ends where the source ended when it began; what came later is `behind`, and the next call's."""

    async def work() -> None:
        source, target = await filled(MemoryLog()), MemoryLog(WIDE)
        late = [make_record("late", 0)]
        arriving: list[Any] = []

        def arrive(_: Any) -> None:
            if late:
                arriving.append(asyncio.ensure_future(source.append(METRICS, [late.pop()])))

        copied = await copy(source, target, report=arrive)
        assert (copied.matches, copied.behind) == (True, 1)
        again = await copy(source, target)
        assert (again.matches, again.behind, again.written) == (True, 0, 1)

    run(work())


def test_chunks_cover_what_was_asked_for() -> None:
    """Reading in order from one token to another gives exactly what lies between them, and tokens to go on from."""

    async def work() -> None:
        log = MemoryLog(WIDE)
        await log.append(METRICS, [make_record(f"k{n % 997}", n) for n in range(10_000)])
        until = Token({Place(METRICS, n): 1_000 + n for n in range(5)})
        start = Token({Place(METRICS, n): 10 * n for n in range(5)})
        found: list[StoredRecord] = []
        async for chunk in in_order(log, METRICS, start, until):
            found += chunk.records
            assert chunk.token == start.merge(Token.after(record.position for record in found))
        assert chunk.token == until
        assert len(found) == len({record.position for record in found})
        assert min(r.position.offset for r in found if r.position.partition == 4) == 40

    run(work())


# ------------------------------------------------------------------------------------------------------------ Kafka


@pytest.mark.slow
def test_to_kafka_and_back(tmp_path: Path, broker: Kafka) -> None:
    """From files to a real Kafka with other partitions, to a second one, and back: all stores have one digest."""
    from icecore_ingest.logs import kafka_topics
    from icecore_ingest.logs.kafka_settings import KafkaSettings

    async def topics(prefix: str, partitions: int) -> str:
        url = f"kafka://{broker.bootstrap}?prefix={prefix}&partitions={partitions}&single_replica=1"
        await kafka_topics.create(KafkaSettings.parse(url))
        return url

    async def work() -> None:
        name = f"copy-{time.time_ns()}"
        urls = [await topics(f"{name}-a", 4), await topics(f"{name}-b", 3), await topics(f"{name}-c", 3)]
        places = [str(tmp_path / "first"), *urls, f"sqlite://{tmp_path / 'last'}"]
        first = await open_log(places[0])
        await filled(first)
        await first.close()
        digests, contents, ends = set(), [], []
        for here, there in itertools.pairwise(places):
            source, target = await open_log(here, readonly=True), await open_log(there)
            copied = await copy(source, target)
            assert copied.matches
            digests |= {
                await store_digest(source, tmp_path),
                await store_digest(target, tmp_path),
            }
            contents += [await by_key(source), await by_key(target)]
            ends.append(await target.end())
            assert (await copy(source, target)).written == 0
            await source.close()
            await target.close()
        assert len(digests) == 1
        assert all(content == contents[0] for content in contents)
        assert ends[1] == ends[2]

    run(work())
