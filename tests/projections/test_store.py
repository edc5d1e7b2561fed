"""The store: one transaction a batch, waiting for a position, and files that cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from icecore.errors import StoreAhead, StoreDamaged, StoreError, StoreFull, StoreTooNew
from icecore.position import Place, Token
from icecore_projections import generations
from icecore_projections.failures import told
from icecore_projections.folds import Changes, Rows
from icecore_projections.schema import FORMAT, TABLES
from icecore_projections.store import Store

METRICS = Place("metrics", 0)
LEDGER = Place("ledger", 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as opened:
        yield opened


def lines(*texts: str) -> Changes:
    table = pa.table({"run": [1] * len(texts), "off": [0] * len(texts), "text": list(texts)})
    return Changes({"console": [table]})


def count(store: Store, table: str = "console") -> int:
    with store.reading() as con:
        return int(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


# ------------------------------------------------------------------------------------------------------- commits


def test_a_new_store_has_every_table_and_has_folded_nothing(store: Store) -> None:
    """Opening a path where nothing is makes the tables."""
    with store.reading() as con:
        names = {name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    assert names == set(TABLES)
    assert store.token() == Token()


def test_rows_and_offsets_survive_together(tmp_path: Path) -> None:
    """What was committed is there after opening again, at the offset it was committed with."""
    first = Store.open(tmp_path / "s.duckdb", log_id="log")
    first.commit(lines("a", "b"), {METRICS: (2, 50), LEDGER: (1, 40)})
    first.close()
    with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as again:
        assert again.token() == Token({METRICS: 2, LEDGER: 1})
        assert count(again) == 2


def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    """One bad row anywhere, and neither rows nor offsets move."""
    store.commit(lines("a"), {METRICS: (1, 0)})
    bad = Changes({**lines("b").append, "texts": [pa.table({"series": ["no number"]})]})
    with pytest.raises(StoreError):
        store.commit(bad, {METRICS: (2, 0)})
    assert count(store) == 1
    assert store.token() == Token({METRICS: 1})
    with pytest.raises(StoreError, match="anew"):
        store.commit(lines("c"), {METRICS: (2, 0)})
    store.reopen()
    store.commit(lines("c"), {METRICS: (2, 0)})
    assert count(store) == 2


def test_changes_append_update_replace_and_delete(store: Store) -> None:
    """Each kind of change does what its name says, in one commit."""
    activity = pa.table({"run": [1, 2], "path": ["a", "b"], "points": [1, 1]})
    store.commit(Changes({"run_activity": [activity], **lines("x").append}), {METRICS: (1, 0)})
    meta = pa.table({"key": ["format"], "value": ["changed"]})
    changes = Changes(
        append=lines("y").append,
        update={"run_activity": [Rows(("run",), pa.table({"run": [2], "points": [7]}))]},
        replace={"meta": [Rows(("key",), meta)]},
        delete={"console": [Rows(("run", "text"), pa.table({"run": [1], "text": ["x"]}))]},
    )
    store.commit(changes, {METRICS: (2, 0)})
    with store.reading() as con:
        assert con.execute("SELECT run, path, points FROM run_activity ORDER BY 1").fetchall() == [
            (1, "a", 1),
            (2, "b", 7),
        ]
        assert con.execute("SELECT value FROM meta WHERE key = 'format'").fetchall() == [("changed",)]
        assert con.execute("SELECT text FROM console").fetchall() == [("y",)]


# ------------------------------------------------------------------------------------------------------- waiting


def test_wait_returns_when_the_position_is_folded(store: Store) -> None:
    """A thread that waits for a token is woken by the commit that covers it, not by an earlier one."""
    want = Token({METRICS: 2})
    assert not store.wait(want, 0)
    woken: list[bool] = []
    waiter = threading.Thread(target=lambda: woken.append(store.wait(want, 20)))
    waiter.start()
    store.commit(lines("a"), {METRICS: (1, 0)})
    assert waiter.is_alive()
    store.commit(lines("b"), {METRICS: (2, 0)})
    waiter.join(20)
    assert woken == [True]


def test_a_task_waits_without_blocking_its_loop(store: Store) -> None:
    """`wait_async` is woken from the committing thread, and says False when time is up."""

    async def work() -> tuple[bool, bool, bool]:
        too_late = await store.wait_async(Token({METRICS: 1}), 0.01)
        task = asyncio.create_task(store.wait_async(Token({METRICS: 1}), 20))
        await asyncio.to_thread(store.commit, lines("a"), {METRICS: (1, 0)})
        return too_late, await task, await store.wait_async(Token(), 0)

    assert asyncio.run(work()) == (False, True, True)


# ------------------------------------------------------------------------------------- files that cannot be used


def test_another_process_is_kept_out(tmp_path: Path, store: Store) -> None:
    """A store that is open elsewhere is refused, saying so."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom icecore.errors import StoreLocked\n"
        "from icecore_projections.store import Store\n"
        "try: Store.open(Path(sys.argv[1]), log_id='log')\n"
        "except StoreLocked as error: print('locked', error.hint)\n"
    )
    said = subprocess.run([sys.executable, "-c", script, store.path], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("locked stop the other icecore")


def test_a_store_of_another_log_is_refused(tmp_path: Path, store: Store) -> None:
    """It may be someone's only copy of a mistake: it is neither used nor set aside."""
    store.close()
    with pytest.raises(StoreAhead, match="folded from log other, got one of log log"):
        Store.open(store.path, log_id="other")


def test_a_store_ahead_of_its_log_names_the_partition_and_both_ends(store: Store) -> None:
    """The log lost its end: the message says where, and what to do."""
    store.commit(lines("a"), {METRICS: (7, 0), LEDGER: (1, 0)})
    store.check(Token({METRICS: 7, LEDGER: 3}))
    with pytest.raises(StoreAhead, match=r"metrics:0 to reach offset 7.*ends at 5") as caught:
        store.check(Token({METRICS: 5, LEDGER: 3}))
    assert caught.value.facts == {"stream": "metrics", "partition": 0, "folded": 7, "end": 5}
    assert "log" in caught.value.hint


@pytest.mark.parametrize(("offset", "error"), [(1, StoreTooNew), (-1, StoreDamaged)])
def test_another_format_is_to_be_rebuilt(store: Store, offset: int, error: type[StoreError]) -> None:
    """A newer format is not understood, an older one is out of date."""
    meta = pa.table({"key": ["format"], "value": [str(FORMAT + offset)]})
    store.commit(Changes(replace={"meta": [Rows(("key",), meta)]}), {METRICS: (1, 0)})
    store.close()
    with pytest.raises(error, match=f"format {FORMAT}, got format {FORMAT + offset}"):
        Store.open(store.path, log_id="log")


def test_a_file_that_is_no_store_is_damage(tmp_path: Path) -> None:
    """Text, an empty database, and a folder are told apart from a store."""
    path = tmp_path / "x.duckdb"
    path.write_text("not a database, " * 1000)
    with pytest.raises(StoreDamaged):
        Store.open(path, log_id="log")
    path.unlink()
    with duckdb.connect(path) as con:
        con.execute("CREATE TABLE theirs (x INT)")
    with pytest.raises(StoreDamaged, match="without"):
        Store.open(path, log_id="log")


@pytest.mark.parametrize("text", ["IO Error: No space left on device", "Could not write: Disk quota exceeded"])
def test_a_full_disk_is_not_damage(text: str, tmp_path: Path) -> None:
    """It passes; the store must not be set aside for it."""
    assert isinstance(told(duckdb.IOException(text), tmp_path, opening=True), StoreFull)


def _big_store(path: Path) -> None:
    """A store with more than headers to hit, part of it in the write-ahead log."""
    store = Store.open(path, log_id="log")
    store.commit(lines(*(f"line {i} {i * i}" for i in range(30_000))), {METRICS: (1, 0)})
    store.checkpoint()
    store.close()


def _flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("at", [0.0001, 0.3, 0.6, 0.9])
def test_a_flipped_bit_in_the_file_is_found(tmp_path: Path, at: float) -> None:
    """At the latest by `verify`, which reads every block: as damage, or as nothing where no data lies there."""
    path = tmp_path / "s.duckdb"
    _big_store(path)
    with duckdb.connect(path, read_only=True) as con:
        before = con.execute("SELECT count(*), sum(hash(text)) FROM console").fetchall()
    _flip(path, at)
    found = before
    with contextlib.suppress(StoreDamaged), contextlib.closing(Store.open(path, log_id="log")) as store:
        store.verify()
        with store.reading() as con:
            found = con.execute("SELECT count(*), sum(hash(text)) FROM console").fetchall()
    assert found == before


def test_flipped_bits_over_the_whole_file_are_damage(tmp_path: Path) -> None:
    """With a bit flipped in every block, something is found for certain."""
    path = tmp_path / "s.duckdb"
    _big_store(path)
    data = bytearray(path.read_bytes())
    for at in range(0x3000 + 5_000, len(data), 20_000):
        data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreDamaged), contextlib.closing(Store.open(path, log_id="log")) as store:
        store.verify()


def _with_wal(folder: Path) -> Path:
    """A store as a kill leaves it: the last commit only in the write-ahead log."""
    live = folder / "live.duckdb"
    store = Store.open(live, log_id="log")
    store.checkpoint()
    store.commit(lines("only in the log", *("x" * 50 for _ in range(500))), {METRICS: (1, 0)})
    copy = folder / "store" / "000001.duckdb"
    copy.parent.mkdir()
    for suffix in ("", ".wal"):
        shutil.copy(f"{live}{suffix}", f"{copy}{suffix}")
    store.close()
    generations.switch(copy.parent, copy)
    return copy


def test_a_killed_store_reads_its_write_ahead_log(tmp_path: Path) -> None:
    """A copy of the files of a running store opens, and has the last commit."""
    with contextlib.closing(Store.open(_with_wal(tmp_path), log_id="log")) as store:
        assert store.token() == Token({METRICS: 1})
        assert count(store) == 501


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_write_ahead_log_sets_the_store_aside(tmp_path: Path, at: float) -> None:
    """The store is moved away with its log, an empty one takes its place, and a person is told."""
    path = _with_wal(tmp_path)
    _flip(path.with_name(path.name + ".wal"), at)
    said: list[str] = []
    with contextlib.closing(generations.open_current(path.parent, log_id="log", say=said.append)) as store:
        if said:
            assert store.token() == Token()
            assert count(store) == 0
            (aside,) = path.parent.glob("damaged-*")
            assert {file.name for file in aside.iterdir()} == {path.name, path.name + ".wal"}
            assert "rebuilt from the log" in said[0]
        else:  # DuckDB took the torn end for a kill in the middle of a write: the commit is not there, whole
            assert store.token() == Token()
            assert count(store) == 0


def test_a_store_opened_anew_shares_nothing_with_what_failed(tmp_path: Path) -> None:
    """After `reopen` no connection is left of the database before, whoever still held one."""
    with contextlib.closing(Store.open(tmp_path / "s.duckdb", log_id="log")) as store:
        reader = store.cursor()
        reader.execute("ATTACH ':memory:' AS only_in_memory")
        store.reopen()
        with pytest.raises(duckdb.Error):
            reader.execute("SELECT 1")
        with contextlib.closing(store.cursor()) as after:
            names = [name for (name,) in after.execute("SELECT database_name FROM duckdb_databases()").fetchall()]
        assert "only_in_memory" not in names


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells which files a process has open")
def test_a_read_that_goes_on_keeps_the_store_from_being_opened_anew(tmp_path: Path) -> None:
    """While somebody else in the process holds the file, `reopen` refuses, and reads meanwhile are told to wait."""
    path = tmp_path / "s.duckdb"
    with contextlib.closing(Store.open(path, log_id="log")) as store:
        with path.open("rb"):
            with pytest.raises(StoreError, match="expected all reads"):
                store.reopen()
            with pytest.raises(StoreError, match="opened anew"):
                store.cursor()
        store.reopen()
        with contextlib.closing(store.cursor()) as after:
            assert after.execute("SELECT count(*) FROM runs").fetchall() == [(0,)]
