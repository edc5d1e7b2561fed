"""Rebuilds: compared at one position, switched by one rename, and never in between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from histories import PATHS, Said, append, fold_all, sample, to_records
from icecore.errors import LogReadOnly, StoreAhead, StoreError, StoreLocked
from icecore.log import Batch
from icecore.position import LEDGER, METRICS, Place, Token
from icecore.testing.memory_log import MemoryLog
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections import generations
from icecore_projections.rebuild import LogUntil, Progress, digest_of, rebuild
from icecore_projections.runner import Runner
from icecore_projections.store import Store

KILLS = max(6, int(os.environ.get("ICECORE_SOAK_ROUNDS", "0")) // 20)


def run(work: Any) -> Any:
    return asyncio.run(work)


async def log_of(steps: int = 60) -> MemoryLog:
    log = MemoryLog()
    await append(log, to_records(sample(steps=steps)))
    return log


@contextlib.contextmanager
def serving(folder: Path, log: MemoryLog) -> Iterator[Store]:
    store = generations.open_current(folder, log_id=log.log_id)
    with contextlib.closing(store):
        yield store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "REBUILD")


# ------------------------------------------------------------------------------------------------ beside a server


def test_a_rebuild_beside_a_serving_store_that_goes_on(tmp_path: Path) -> None:
    """While the serving store folds on, the new one is compared with it at one position, switched to, and equal."""

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
            more = iter(to_records(sample(seed=2, steps=400))[len(PATHS) :])

            def arrive(_: Progress) -> None:
                arriving.extend(asyncio.ensure_future(log.append(stream, [record])) for stream, record in [next(more)])

            arriving: list[Any] = []
            folding = asyncio.create_task(keep_folding(log, store))
            result = await rebuild(log, tmp_path, serving=store, progress=arrive)
            folding.cancel()
            await asyncio.gather(folding, *arriving, return_exceptions=True)
            await fold_all(log, store)
            assert (result.matches, result.switched, result.differing) == (True, True, [])
            assert result.serving is not None
            assert result.serving.token == result.digest.token == result.token
            old = digest_of(store)
        with serving(tmp_path, log) as store:
            assert store.path == result.path
            await fold_all(log, store)
            assert digest_of(store).hex == old.hex
        assert names(tmp_path) == [store.path.name, "CURRENT"]

    run(work())


async def keep_folding(log: MemoryLog, store: Store) -> None:
    while True:
        await fold_all(log, store, records=3)
        await asyncio.sleep(0)


def test_a_rebuild_of_a_folder(tmp_path: Path) -> None:
    """Without a server the store in the folder is compared and replaced, and the old file is removed."""

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
        stages: list[str] = []
        result = await rebuild(log, tmp_path, progress=lambda at: stages.append(at.stage))
        assert result.matches
        assert names(tmp_path) == ["000002.duckdb", "CURRENT"]
        assert list(dict.fromkeys(stages)) == ["compare", "fold", "digest", "catch up", "switch"]
        told = result.as_json()
        assert (told["matches"], told["differing"], told["switched"]) == (True, [], True)
        assert told["points"] == 60 * 4

    run(work())


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE points_hot SET value = value * 2 WHERE off = 5", "points"),
        ("UPDATE current_runs SET doc = replace(doc, '\"lr\":0.1', '\"lr\":0.2')", "current_runs"),
        ("DELETE FROM console WHERE line = 1", "console"),
    ],
)
def test_verify_finds_an_altered_row(tmp_path: Path, statement: str, table: str) -> None:
    """A row that somebody altered in the store is found, its table named; nothing is switched, the new file removed."""

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
            path = store.path
        with contextlib.closing(duckdb.connect(path)) as con:
            con.execute(statement)
        result = await rebuild(log, tmp_path, verify=True)
        assert (result.matches, result.switched, result.differing) == (False, False, [table])
        assert result.as_json()["differing"][0]["table"] == table
        assert names(tmp_path) == ["000001.duckdb", "CURRENT"]
        repaired = await rebuild(log, tmp_path)
        assert (repaired.switched, repaired.differing) == (True, [table])
        assert (await rebuild(log, tmp_path, verify=True)).matches

    run(work())


def test_upto_compares_only_at_that_position(tmp_path: Path) -> None:
    """Folded up to a position, a rebuild is compared if the store is exactly there, and is never switched to."""

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
            here = store.token()
        earlier = Token({Place(LEDGER, 0): 2, Place(METRICS, 0): 7})
        there = await rebuild(log, tmp_path, upto=here)
        assert (there.matches, there.switched) == (True, False)
        before = await rebuild(log, tmp_path, upto=earlier)
        assert (before.matches, before.token, before.digest.token) == (False, earlier, earlier)
        assert before.trouble == f"expected the serving store at {earlier}, got it at {here}"
        assert names(tmp_path) == ["000001.duckdb", "CURRENT"]

    run(work())


def test_a_damaged_store_is_replaced(tmp_path: Path) -> None:
    """Where the serving file cannot be read there is nothing to compare with, and the new one takes its place."""

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
            path = store.path
        path.write_bytes(b"\xff" * 20_000)
        result = await rebuild(log, tmp_path)
        assert (result.serving, result.switched) == (None, True)
        assert "got" in result.trouble
        assert (await rebuild(log, tmp_path, verify=True)).matches

    run(work())


def test_an_ended_rebuild_leaves_nothing(tmp_path: Path) -> None:
    """A rebuild that is stopped, by its progress or by its task, leaves the serving store and no other file."""

    class Stop(Exception):
        pass

    def stop_at(stage: str) -> Callable[[Progress], None]:
        def report(at: Progress) -> None:
            if at.stage == stage:
                raise Stop

        return report

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
        for stage in ("compare", "fold", "digest", "catch up", "switch"):
            with pytest.raises(Stop):
                await rebuild(log, tmp_path, progress=stop_at(stage))
            assert names(tmp_path) == ["000001.duckdb", "CURRENT"]
        task = asyncio.create_task(rebuild(log, tmp_path))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(tmp_path) == ["000001.duckdb", "CURRENT"]

    run(work())


def test_one_rebuild_at_a_time(tmp_path: Path) -> None:
    """A second rebuild of a folder is refused while one is under way, and nothing it needs is cleaned away."""

    async def work() -> None:
        log = await log_of()
        building = generations.fresh(tmp_path)
        with generations.building(tmp_path):
            building.touch()
            with pytest.raises(StoreLocked, match="expected no other rebuild"):
                await rebuild(log, tmp_path)
            assert generations.clean(tmp_path) == []
            assert building.exists()
        assert generations.clean(tmp_path) == [building.name]

    run(work())


def test_a_store_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    """A serving store that has folded what the log does not have is not replaced by one that knows less."""

    async def work() -> None:
        log = await log_of()
        with serving(tmp_path, log) as store:
            await fold_all(log, store)
            shorter = LogUntil(log, Token({Place(METRICS, 0): 3}))
            with pytest.raises(StoreAhead, match="expected the log to reach"):
                await rebuild(shorter, tmp_path, serving=store)
        assert names(tmp_path) == ["000001.duckdb", "CURRENT"]

    run(work())


def test_a_view_of_the_log_ends_where_it_should(tmp_path: Path) -> None:
    """A log until a token shows its records up to there and no further, and takes none."""

    async def work() -> None:
        log = await log_of()
        metrics = Place(METRICS, 0)
        view = LogUntil(log, Token({metrics: 5}))
        assert await view.end() == Token({metrics: 5})
        assert [r.position.offset for r in (await view.read(metrics, 2)).records] == [2, 3, 4]
        assert await view.read(metrics, 5) == Batch(metrics, [], 5)
        assert await view.read(Place(LEDGER, 0), 0) == Batch(Place(LEDGER, 0), [], 0)
        assert await view.wait(Token(), 0)
        assert not await view.wait(Token({metrics: 5}), 0)
        assert (view.log_id, view.partitions) == (log.log_id, log.partitions)
        with pytest.raises(LogReadOnly):
            await view.append(METRICS, [])
        await view.close()
        assert await log.start() == await view.start()

    run(work())


def test_known_poison_does_not_stop_a_rebuild(tmp_path: Path) -> None:
    """Poison that the serving store has passed over in small batches is passed over by a rebuild in large ones."""

    async def work() -> None:
        log = MemoryLog()
        await append(log, to_records([Said(1, ("metrics.logged", b"no json"), i) for i in range(30)]))
        with serving(tmp_path, log) as store:
            with pytest.raises(StoreError, match="expected the log to be foldable"):
                await rebuild(log, tmp_path, serving=store)
            assert generations.current(tmp_path) == store.path
            for _ in range(2):  # a person looks, and lets it go on
                runner = Runner(log, store, records=15)
                await runner.step()
                await runner.close()
            result = await rebuild(log, tmp_path, serving=store)
            assert (result.matches, result.serving and result.serving.tables["dead_letters"].rows) == (True, 30)

    run(work())


# -------------------------------------------------------------------------------------------------- generations


def test_the_first_open_makes_a_store(tmp_path: Path) -> None:
    """An empty folder gets its first generation, and CURRENT names it."""
    with contextlib.closing(generations.open_current(tmp_path / "store", log_id="a")) as store:
        assert generations.current(tmp_path / "store") == store.path
    assert names(tmp_path / "store") == ["000001.duckdb", "CURRENT"]


def test_left_overs_go_at_the_next_open(tmp_path: Path) -> None:
    """What a killed rebuild left behind is removed when the store is next opened; the serving file stays."""
    generations.open_current(tmp_path, log_id="a").close()
    for name in ("000002.duckdb", "000002.duckdb.wal", "CURRENT.new"):
        (tmp_path / name).write_bytes(b"left over")
    (tmp_path / "000002.duckdb.tmp").mkdir()
    generations.open_current(tmp_path, log_id="a").close()
    assert names(tmp_path) == ["000001.duckdb", "CURRENT"]


@pytest.mark.parametrize("content", [b"", b"../../etc/passwd\n", b"000009.duckdb\n", b"\xff\xfe"])
def test_a_current_that_names_no_store(tmp_path: Path, content: bytes) -> None:
    """A CURRENT that is damaged or names a file that is gone is none: a new store is begun."""
    generations.open_current(tmp_path, log_id="a").close()
    (tmp_path / "CURRENT").write_bytes(content)
    assert generations.current(tmp_path) is None
    generations.open_current(tmp_path, log_id="a").close()
    assert names(tmp_path) == ["000002.duckdb", "CURRENT"]


def test_a_damaged_store_is_set_aside(tmp_path: Path) -> None:
    """A file that cannot be opened is kept aside, with a sentence, and at most three of them are kept."""
    said: list[str] = []
    for _ in range(5):
        store = generations.open_current(tmp_path, log_id="a", say=said.append)
        store.close()
        store.path.write_bytes(b"\xff" * 20_000)
    store = generations.open_current(tmp_path, log_id="a", say=said.append)
    assert store.token() == Token()
    store.close()
    assert len(said) == 5
    assert "set aside" in said[0]
    aside = sorted(tmp_path.glob("damaged-*"))
    assert len(aside) == 3
    assert aside[-1].joinpath("000005.duckdb").read_bytes() == b"\xff" * 20_000


# ---------------------------------------------------------------------------------------------------- kill -9

REBUILD = """
import asyncio, sys
from pathlib import Path
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections import rebuild

async def main(log_folder, store_folder):
    log = SQLiteLog.open(log_folder, readonly=True)
    print("ready", flush=True)
    while True:
        result = await rebuild.rebuild(log, store_folder, progress=lambda at: print(at.stage, flush=True))
        assert result.matches, result.as_json()
        print("done", flush=True)

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    """Kill -9 of a process that rebuilds and switches without end: the store opens, is whole, and says what it said."""

    async def prepare() -> tuple[str, str]:
        log = SQLiteLog.open(tmp_path / "log")
        await append(log, to_records(sample(steps=300)))
        with contextlib.closing(generations.open_current(tmp_path / "store", log_id=log.log_id)) as store:
            await fold_all(log, store)
            found = digest_of(store).hex
        await log.close()
        return log.log_id, found

    log_id, expected = run(prepare())
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    chance = random.Random(seed)
    seen: set[str] = set()
    for last in [False] * KILLS + [True]:
        with subprocess.Popen(
            [sys.executable, "-c", REBUILD, str(tmp_path / "log"), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            stage = chance.choice(["compare", "fold", "digest", "catch up", "switch", "switch", "done"])
            stage = "done" if last else stage
            for line in process.stdout:
                if line.strip() == stage:
                    break
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
        with contextlib.closing(generations.open_current(tmp_path / "store", log_id=log_id)) as store:
            assert digest_of(store).hex == expected
            seen.add(store.path.name)
        assert names(tmp_path / "store") == [store.path.name, "CURRENT"]
    assert len(seen) > 1
