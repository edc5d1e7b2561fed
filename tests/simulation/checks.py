"""What must be true of any world once it is healed, whatever befell it."""

from __future__ import annotations

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from icecore.log import StoredRecord
from icecore.position import STREAMS, Place
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.identities import Identities
from icecore_projections.dedupe import Intervals
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.schema import run_number
from icecore_projections.store import Store
from simulation.clients import Sent, Spool
from simulation.light_store import Disk, LightStore, rows_of
from simulation.world import World

Row = dict[str, Any]

NAMES = ("series", "runs", "current_runs", "run_values", "run_activity", "producers", "dead_letters", "rejections")
TABLES = (*NAMES, "skipped", "texts", "console", "points", "system")
_LEFT_OUT = frozenset({"off", "off_first", "series", "part", "duplicates", "reason", "attempts", "ts_server"})
"""What depends on where records lie, as the digest leaves it out too."""


async def check(world: World) -> None:
    """All of the promises.

    Raises:
        AssertionError: one is broken; the message says which.
    """
    assert not world.loop.failures, f"nobody handled {world.loop.failures}"
    assert not world.wrong, world.wrong
    records = await _records(world.log)
    _accepted_are_there(world, records)
    _producers_are_in_order(records)
    store = world.store.store
    assert store is not None
    tables = {name: rows_of(store, name) for name in TABLES}
    _applied_is_what_was_sent(world.spools, records, tables["producers"])
    for spool in world.spools:
        _run_is_whole(spool, {_name(record) for record in records}, tables)
    await _identities_agree(world)
    await _a_fresh_fold_agrees(world, store, tables)


async def _records(log: MemoryLog) -> list[StoredRecord]:
    places = [Place(stream, n) for stream in STREAMS for n in range(log.partitions[stream])]
    return [record for place in places for record in (await log.read(place, 0, size=1 << 60)).records]


def _name(record: StoredRecord) -> Sent:
    return record.position.stream, record.envelope.producer, record.envelope.seq


def _accepted_are_there(world: World, records: Iterable[StoredRecord]) -> None:
    """What was acknowledged is in the log, with the bytes it was sent as."""
    payloads: defaultdict[Sent, set[bytes]] = defaultdict(set)
    for record in records:
        payloads[_name(record)].add(record.payload)
    for spool in world.spools:
        sent = {one.name: one.frame.split(b"\n")[1] for one in spool.written}
        assert spool.refused == [], f"{spool.run} was refused: {spool.refused}"
        lost = sorted(spool.acknowledged - payloads.keys())
        assert not lost, f"acknowledged but not in the log: {lost}"
        other = [name for name, payload in sent.items() if payloads.get(name, {payload}) != {payload}]
        assert not other, f"in the log with other bytes than were sent: {other}"
        if spool.run not in world.given_up:
            assert spool.acknowledged == sent.keys(), f"{spool.run} is done, but {len(spool.acknowledged)} were taken"


def _producers_are_in_order(records: Iterable[StoredRecord]) -> None:
    """What is left of a producer without repetitions is 0, 1, 2 …: what folds see is in the order it was sent."""
    seen: defaultdict[tuple[Place, str], list[int]] = defaultdict(list)
    for record in records:
        seqs = seen[record.position.place, record.envelope.producer]
        if record.envelope.seq not in seqs:
            seqs.append(record.envelope.seq)
    for (place, producer), seqs in seen.items():
        assert seqs == list(range(len(seqs))), f"{producer} in {place} has {seqs}"


def _applied_is_what_was_sent(spools: list[Spool], records: list[StoredRecord], producers: list[Row]) -> None:
    """The intervals of each producer are what is in the log, and the duplicates are counted."""
    in_log = Counter((*record.position.place, record.envelope.producer) for record in records)
    expected = {
        (stream, part, producer): (
            len({_name(r) for r in records if (*r.position.place, r.envelope.producer) == key}),
            n,
        )
        for key, n in in_log.items()
        for stream, part, producer in [key]
    }
    found = {}
    for row in producers:
        pairs = Intervals.loads(row["intervals"]).pairs()
        assert [pair[0] for pair in pairs] == [0], f"gaps in {row}"
        applied = pairs[0][1] + 1
        found[row["stream"], row["part"], row["producer"]] = (applied, applied + row["duplicates"])
    assert found == expected, f"applied {found}, sent {expected}"
    assert {spool.producer for spool in spools if spool.acknowledged} <= {key[2] for key in found}


def _run_is_whole(spool: Spool, taken: set[Sent], tables: dict[str, list[Row]]) -> None:
    """A run's points, lines and config are those of its events in the log: once each, in order."""
    number = run_number(spool.run)
    expected = [step for name in sorted(taken) for step in spool.steps_of.get(name, ())]
    [series] = [row["series"] for row in tables["series"] if row["run"] == number and row["key"] == "x"] or [None]
    points = sorted((row["off"], row["step"], row["value"]) for row in tables["points"] if row["series"] == series)
    assert [step for _, step, _ in points] == expected, f"{spool.run} has {points}, logged {expected}"
    assert [value for _, _, value in points] == [float(step) for step in expected]
    lines = sorted((row["off"], row["text"]) for row in tables["console"] if row["run"] == number)
    logged = [line for name, line in spool.lines_of.items() if name in taken]
    assert [text for _, text in lines] == logged, f"{spool.run} has {lines}, logged {logged}"
    configs = [n for name, n in spool.config_of.items() if name in taken]
    docs = [orjson.loads(row["doc"]) for row in tables["current_runs"] if row["run"] == number]
    assert [doc["config"] for doc in docs] == [{"n": n} for n in configs[-1:]], f"{spool.run} has {docs}"


async def _identities_agree(world: World) -> None:
    """Gateways know what a fold of the ledger from its start knows."""
    fresh = await Identities.open(world.log)
    for gateway in world.gateways:
        assert gateway.identities is not None
        assert gateway.identities.next_offset == fresh.next_offset
        assert gateway.identities.state == fresh.state, f"{gateway.name} knows other identities than the ledger"


async def _a_fresh_fold_agrees(world: World, store: Store, tables: dict[str, list[Row]]) -> None:
    """Folded anew, in other batches, the log says the same."""
    batch = random.Random(f"fresh {world.seed}").choice([2, 7, 10_000])
    if isinstance(world.disk, Path):
        path = world.disk.with_name("fresh.duckdb")
        with contextlib.closing(Store.open(path, log_id=world.log.log_id, threads=1)) as fresh:
            await Runner(world.log, fresh, records=batch).catch_up()
            found, expected = digest_of(store), digest_of(fresh)
            assert found.hex == expected.hex, f"other digests: {found.differing(expected)}"
        return
    light = LightStore(Disk(world.log.log_id))
    await Runner(world.log, light, records=batch).catch_up()
    assert light.token() == store.token()
    anew = {name: rows_of(light, name) for name in TABLES}
    for name in TABLES:
        ours, theirs = _said(tables, name), _said(anew, name)
        assert ours == theirs, f"{name}: {ours - theirs} should be {theirs - ours}"


def _said(tables: dict[str, list[Row]], name: str) -> Counter[str]:
    """What a table says, without numbers that depend on how records were batched."""
    series = {row["series"]: (row["run"], row["kind"], row["key"]) for row in tables["series"]}
    return Counter(
        repr([series.get(row["series"], row["series"]) if "series" in row else None])
        + repr([value for column, value in row.items() if column not in _LEFT_OUT])
        for row in tables[name]
    )
