"""fsck: silent about what is whole, and exact about what is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from histories import append, fold_all, sample, to_records
from icecore.segments import Report as SpoolReport
from icecore.spool import Spool, spool_home
from icecore.spool import verify as verify_spools
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_ingest.logs.verify import verify as verify_log
from icecore_projections import generations
from icecore_projections.fsck import Finding, Progress, Report, _apart, fsck

_HEADERS, _BLOCK = 3 * 4096, 1 << 18
"""Bytes of a DuckDB file before its first block, and of a block."""


class Folder:
    """A data folder with a log and a store, and a check of both."""

    def __init__(self, root: Path) -> None:
        self.log = root / "log"
        self.store = root / "store"
        self.root = root

    def make(self, skip: Callable[[int], bool] = lambda _: False) -> Folder:
        async def work() -> None:
            log = SQLiteLog.open(self.log)
            records = [record for i, record in enumerate(to_records(sample(steps=60))) if not skip(i)]
            await append(log, records)
            with contextlib.closing(generations.open_current(self.store, log_id=log.log_id)) as store:
                await fold_all(log, store)
            await log.close()

        asyncio.run(work())
        return self

    def check(self, *, files: bool = True, **more: Any) -> Report:
        async def work() -> Report:
            log = SQLiteLog.open(self.log, readonly=True)
            try:
                if files:
                    more["log_check"] = lambda progress: verify_log(self.log, progress)
                return await fsck(log, self.store, **more)
            finally:
                await log.close()

        return asyncio.run(work())

    @contextlib.contextmanager
    def table(self) -> Iterator[duckdb.DuckDBPyConnection]:
        path = generations.current(self.store)
        assert path is not None
        with contextlib.closing(duckdb.connect(path)) as con:
            yield con


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path).make()


def errors(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity == "error"]


@pytest.mark.parametrize("files", [True, False])
def test_a_whole_folder_is_ok(folder: Folder, files: bool) -> None:
    """Nothing is wrong with what was written as it should be; each step says how much it looked at."""
    seen: list[Progress] = []
    report = folder.check(files=files, progress=seen.append)
    assert report.ok
    assert {step.what: (step.number > 0, step.ok) for step in report.checked} == {
        "log": (True, True),
        "store": (True, True),
        "rebuild": (True, True),
    }
    assert {at.step for at in seen} >= {"log", "store", "rebuild: fold"}
    notes = {finding.what: finding for finding in report.findings}
    assert notes.keys() == {"dead_letters", "rejections", "skipped"}
    assert notes["skipped"].found == "1 events of future.event v1"


def test_the_report_is_json(folder: Folder) -> None:
    """A report has a JSON form with the same words."""
    told = json.loads(json.dumps(folder.check().as_json()))
    assert told["ok"] is True
    assert told["findings"][0].keys() == {"severity", "what", "where", "expected", "found", "next"}
    assert told["checked"][0].keys() == {"what", "number", "unit", "seconds", "ok"}


@pytest.mark.parametrize("files", [True, False])
def test_a_flipped_bit_in_the_log_is_named(folder: Folder, files: bool) -> None:
    """One flipped bit of one payload: the stream, partition and offset of its record, and no comparison with it."""
    (segment,) = (folder.log / "metrics-0").glob("*.db")
    with contextlib.closing(sqlite3.connect(segment)) as db:
        (payload,) = db.execute("SELECT payload FROM records WHERE off = 17").fetchone()
        payload = bytes(payload)
        flipped = payload[:20] + bytes([payload[20] ^ 1]) + payload[21:]
        db.execute("UPDATE records SET payload = ? WHERE off = 17", [flipped])
        db.commit()
    report = folder.check(files=files)
    assert not report.ok
    (finding,) = errors(report)
    assert finding.what == "log"
    assert "metrics:0:17" in finding.where
    assert any("the log is damaged" in note.found for note in report.findings)


def test_a_flipped_bit_in_the_store_is_named(folder: Folder) -> None:
    """One flipped bit in a block of the store file: the file is named, and what repairs it."""
    path = generations.current(folder.store)
    assert path is not None
    with contextlib.closing(duckdb.connect(path)) as con:
        con.execute("CHECKPOINT")
        # a block that is in use: nothing reads those that are free
        ((block,),) = con.execute("SELECT max(block_id) FROM pragma_storage_info('current_runs')").fetchall()
    data = bytearray(path.read_bytes())
    data[_HEADERS + block * _BLOCK + _BLOCK // 2] ^= 1
    path.write_bytes(data)
    report = folder.check()
    assert not report.ok
    assert any(str(path) in f"{finding.found} {finding.where}" for finding in errors(report))


@pytest.mark.parametrize(
    ("statement", "what", "where"),
    [
        ("UPDATE points_hot SET value = 7 WHERE off = 5", "rebuild", "table points"),
        ("UPDATE current_runs SET doc = replace(doc, 'ann', 'bob')", "rebuild", "table current_runs"),
        ("UPDATE producers SET intervals = '[[5, 9], [0, 2]]' WHERE stream = 'ledger'", "sequence numbers", "ledger:0"),
        ("UPDATE producers SET duplicates = 1 WHERE stream = 'ledger'", "sequence numbers", "ledger:0"),
        ("UPDATE offsets SET next_offset = 9999 WHERE stream = 'ledger'", "store", "ledger:0"),
        ("UPDATE meta SET value = 'another' WHERE key = 'log_id'", "store", ""),
        ("UPDATE meta SET value = '999' WHERE key = 'format'", "store", ""),
    ],
)
def test_an_altered_store_is_found(folder: Folder, statement: str, what: str, where: str) -> None:
    """Whatever was altered in the store, a finding names the part it is in, and the next step."""
    with folder.table() as con:
        con.execute(statement)
    report = folder.check()
    found = [finding for finding in errors(report) if finding.what == what and finding.where.startswith(where)]
    assert found, report.findings
    assert all(finding.expected and finding.found and finding.next for finding in found)


def test_an_altered_rollup_is_found(folder: Folder) -> None:
    """A rollup that says another thing than the points under it is found, with its series."""

    async def compact() -> None:
        log = SQLiteLog.open(folder.log, readonly=True)
        with contextlib.closing(generations.open_current(folder.store, log_id=log.log_id)) as store:
            assert store.compact(1)
        await log.close()

    asyncio.run(compact())
    assert folder.check().ok
    with folder.table() as con:
        con.execute("UPDATE points_rolled SET most32 = most32 + 1, most64 = most64 + 1 WHERE series = 0")
    (finding,) = errors(folder.check())
    assert (finding.what, finding.where) == ("rollup", "points_rollup, series 0")


def test_a_gap_is_a_note(tmp_path: Path) -> None:
    """Events that have not come are said, with their numbers and how they come, and are no error."""
    report = Folder(tmp_path).make(skip=lambda i: i in (20, 21)).check()
    gaps = [finding for finding in report.findings if finding.what == "sequence numbers"]
    assert report.ok
    assert sum(int(finding.found.split(" ")[0]) for finding in gaps) == 2
    assert all("icecore sync" in finding.next for finding in gaps)


def test_a_store_that_is_behind_is_a_note(folder: Folder) -> None:
    """Records that the store has not folded yet are counted, and are no error."""

    async def more() -> None:
        log = SQLiteLog.open(folder.log)
        await append(log, to_records(sample(seed=9, steps=5))[:3])
        await log.close()

    asyncio.run(more())
    report = folder.check()
    assert report.ok
    assert any(f.what == "store" and f.found.startswith("3 records behind") for f in report.findings)


def test_no_store_yet_is_a_note_and_a_lost_one_an_error(folder: Folder) -> None:
    """Before the first start there is no store, and the digest is the log's; a store that is gone is an error."""
    digest = folder.check().digest
    path = generations.current(folder.store)
    assert path is not None
    path.unlink()
    (finding,) = errors(folder.check())
    assert "a store file named by CURRENT" in finding.expected
    (folder.store / "CURRENT").unlink()
    report = folder.check()
    assert report.ok
    assert any(finding.what == "store" for finding in report.findings)
    assert report.digest == digest
    assert generations.current(folder.store) is None


def test_a_lost_log_is_an_error(folder: Folder) -> None:
    """Records missing at the log's start are found by the check that reads it."""
    (segment,) = (folder.log / "metrics-0").glob("*.db")
    with contextlib.closing(sqlite3.connect(segment)) as db:
        db.execute("DELETE FROM records WHERE off = 4")
        db.commit()
    assert any("4" in finding.where for finding in errors(folder.check()))


@pytest.mark.parametrize("sentence", ["expected x, got y: z", "expected x, got: y: z"])
def test_an_error_becomes_a_finding(sentence: str) -> None:
    """What an error expected and what it got are told apart, however it says so."""
    assert _apart(sentence) == ("x", "y: z")


def test_damaged_spools_are_named(folder: Folder) -> None:
    """A frame of a spool whose bytes were changed is an error; whole frames that wait for a server are a note."""
    home = spool_home(folder.root)
    for run in ("a/b/whole", "a/b/hurt"):
        spool = Spool(home, run, "online", size_max=1 << 20)
        for _ in range(5):
            spool.append("run.heartbeat", 1, "metrics", json.dumps({"run": run}).encode())
        spool.sync()
        spool.close()
        if run == "a/b/hurt":
            (segment,) = spool.folder.glob("*.seg")
            data = bytearray(segment.read_bytes())
            data[len(data) // 2] ^= 1
            segment.write_bytes(data)
    report = folder.check(spools=lambda: verify_spools(folder.root))
    (finding,) = errors(report)
    assert finding.what == "spool"
    assert "a/b/hurt" in finding.where
    assert any(f.what == "spool" and f.severity == "note" and "a/b/whole" in f.where for f in report.findings)


def test_refused_events_are_a_note(folder: Folder) -> None:
    """Events that the server refused for good are said, and where its words are."""
    refused = SpoolReport(
        folder=folder.root / "p1", run="a/b/c", alive=False, frames=3, corrupt=0, torn=0, pending=0, refused=2
    )
    report = folder.check(spools=lambda: [refused])
    assert report.ok
    assert any("2 events that the server refused" in finding.found for finding in report.findings)
