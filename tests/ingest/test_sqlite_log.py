"""The SQLite log: what it has beyond the contract of every log."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

import pytest

from icecore.errors import LogError, LogForeign, LogLocked, LogReadOnly, LogTooNew
from icecore.position import LEDGER, METRICS, Place, Position, Token
from icecore.testing.appender import make_record
from icecore.testing.children import child_appender
from icecore.testing.log_contract import read_all, run
from icecore_ingest.logs.segments import Segment, is_sealed, list_segments, open_readable, wal_size
from icecore_ingest.logs.sqlite import SEGMENT_SIZE, SQLiteLog
from icecore_ingest.logs.verify import verify

TINY = 128 << 10
LEDGER_0 = Place(LEDGER, 0)


@asynccontextmanager
async def opened(
    folder: Path, *, segment_size: int = SEGMENT_SIZE, readonly: bool = False, lock_timeout: float = 10.0
) -> AsyncIterator[SQLiteLog]:
    log = SQLiteLog.open(folder, segment_size=segment_size, readonly=readonly, lock_timeout=lock_timeout)
    try:
        yield log
    finally:
        await log.close()


async def fill(log: SQLiteLog, count: int, size: int = 10_000) -> None:
    for seq in range(count):
        await log.append(LEDGER, [make_record("run", seq, b"%d" % seq * (size // len(b"%d" % seq)))])


def opener(folder: Path, segment_size: int = SEGMENT_SIZE) -> str:
    return (
        "from pathlib import Path\n"
        "from icecore_ingest.logs.sqlite import SQLiteLog\n"
        f"async def open_log(): return SQLiteLog.open(Path({str(folder)!r}), segment_size={segment_size})\n"
    )


def modes_below(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    """Folders have mode 0700 and files 0600, the WAL too."""

    async def test() -> None:
        async with opened(tmp_path / "log") as log:
            await fill(log, 2)
            modes = modes_below(tmp_path / "log")
            assert any(path.name.endswith("-wal") for path in modes)
            assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
            assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}

    old = os.umask(0)
    try:
        run(test)
    finally:
        os.umask(old)


def test_segments_are_named_by_their_first_offset(tmp_path: Path) -> None:
    """A full segment is sealed, keeps no WAL, and the next begins where it ends."""

    async def test() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            await fill(log, 50)
            segments = list_segments(tmp_path / "log" / "ledger-0")
            assert len(segments) > 3
            for segment, following in pairwise(segments):
                with closing(open_readable(segment, LEDGER_0)) as db:
                    assert is_sealed(db)
                    assert db.execute("SELECT max(off) FROM records").fetchall() == [(following.first - 1,)]
                assert wal_size(segment) == 0
            assert len((await read_all(log))[LEDGER_0]) == 50

    run(test)


def test_a_sealed_segment_needs_only_its_file(tmp_path: Path) -> None:
    """A sealed file copied elsewhere, read-only, can be read where it lies, and nothing is made beside it."""

    async def test() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            await fill(log, 30)
            first = list_segments(tmp_path / "log" / "ledger-0")[0]
            archive = tmp_path / "archive"
            archive.mkdir()
            copy = Segment(archive / first.path.name, 0)
            shutil.copyfile(first.path, copy.path)
            copy.path.chmod(0o400)
            with closing(open_readable(copy, LEDGER_0)) as db:
                assert db.execute("SELECT count(*) > 3 FROM records").fetchall() == [(1,)]
                assert [path.name for path in archive.iterdir()] == [copy.path.name]

    run(test)


def test_archived_segments_are_missed_by_name(tmp_path: Path) -> None:
    """With the oldest segment gone the log starts later, and reading before that says what to do."""

    async def test() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            await fill(log, 30)
        first, second, *_ = list_segments(tmp_path / "log" / "ledger-0")
        first.path.unlink()
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            assert await log.start() == Token({LEDGER_0: second.first})
            assert (await log.read(LEDGER_0, second.first)).records
            with pytest.raises(LogError, match="put them back"):
                await log.read(LEDGER_0, 0)
            assert [p.offset for p in await log.append(LEDGER, [make_record("run", 30)])] == [30]

    run(test)


def test_a_lost_segment_is_a_hole(tmp_path: Path) -> None:
    """With a segment in the middle gone, reading ends in front of it and then raises, and a check names it."""

    async def test() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            await fill(log, 50)
        _, second, third, *_ = list_segments(tmp_path / "log" / "ledger-0")
        second.path.unlink()
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            assert (await log.read(LEDGER_0, 0)).next_offset == second.first
            with pytest.raises(LogError, match=str(third.first)):
                await log.read(LEDGER_0, second.first)
        assert [(finding.place, finding.offset) for finding in verify(tmp_path / "log")] == [(LEDGER_0, second.first)]

    run(test)


def test_dying_between_seal_and_next_segment(tmp_path: Path) -> None:
    """A sealed segment with none after it, as a process leaves it that dies in between, is gone on from."""

    async def test() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            while len(list_segments(tmp_path / "log" / "ledger-0")) < 3:
                await log.append(LEDGER, [make_record("run", 0, b"x" * 10_000)])
        _, end = following = list_segments(tmp_path / "log" / "ledger-0")[-1]
        following.path.unlink()
        async with opened(tmp_path / "log", readonly=True) as reader:
            assert (await reader.end()).next_offset(LEDGER_0) == end
            async with opened(tmp_path / "log", segment_size=TINY) as log:
                assert await log.append(LEDGER, [make_record("run", 1)]) == [Position(*LEDGER_0, end)]
            assert (await reader.read(LEDGER_0, end)).next_offset == end + 1
        assert list(verify(tmp_path / "log")) == []

    run(test)


def test_made_by_several_processes_at_once(tmp_path: Path) -> None:
    """Processes that open a new folder at the same moment agree on one log."""
    program = (
        "import sys; from pathlib import Path; from icecore_ingest.logs.sqlite import SQLiteLog\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin: print(SQLiteLog.open(Path(line.strip())).log_id, flush=True)\n"
    )
    command = [sys.executable, "-c", program]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    pipes = [(child.stdin, child.stdout) for child in children if child.stdin and child.stdout]
    for _, out in pipes:
        assert out.readline() == "ready\n"
    for number in range(30):
        for into, _ in pipes:
            into.write(f"{tmp_path / str(number) / 'log'}\n")
            into.flush()
        ids = {out.readline() for _, out in pipes}
        assert len(ids) == 1
        assert ids != {""}
    for child in children:
        child.communicate(timeout=60)
    assert [child.returncode for child in children] == [0, 0, 0, 0]


def test_readonly_opens_nothing_for_writing(tmp_path: Path) -> None:
    """A log opened to read refuses appends, makes nothing, and follows another's appends."""
    with pytest.raises(LogForeign, match="LOG_ID"):
        SQLiteLog.open(tmp_path / "none", readonly=True)
    assert not (tmp_path / "none").exists()

    async def test() -> None:
        async with opened(tmp_path / "log") as log, opened(tmp_path / "log", readonly=True) as reader:
            with pytest.raises(LogReadOnly):
                await reader.append(LEDGER, [make_record("run", 0)])
            waiting = asyncio.ensure_future(reader.wait(Token(), 30))
            await fill(log, 3)
            assert await waiting
            assert (await reader.read(LEDGER_0, 0)).next_offset == 3
            assert reader.log_id == log.log_id

    run(test)


def test_locked_by_another_program(tmp_path: Path) -> None:
    """While another program holds the file an append fails after its time, and the next one works."""

    async def test() -> None:
        async with opened(tmp_path / "log", lock_timeout=0.1) as log:
            await fill(log, 1)
            file = list_segments(tmp_path / "log" / "ledger-0")[0].path
            with closing(sqlite3.connect(file, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(LogLocked, match=r"for 0\.1 s"):
                    await log.append(LEDGER, [make_record("run", 1)])
                other.execute("ROLLBACK")
                assert [p.offset for p in await log.append(LEDGER, [make_record("run", 2)])] == [1]

    run(test)


def test_a_busy_process_does_not_starve_another(tmp_path: Path) -> None:
    """Beside a process that appends without pause, each append of another gets its turn."""
    with child_appender(opener(tmp_path / "log"), tasks=8, size=4000) as child:
        child.wait_for(50)

        async def test() -> None:
            async with opened(tmp_path / "log") as log:
                slowest = 0.0
                for seq in range(30):
                    started = time.monotonic()
                    await log.append(LEDGER, [make_record("other", seq)])
                    slowest = max(slowest, time.monotonic() - started)
                assert slowest < 5

        run(test)
        before = len(child.acknowledged)
        child.wait_for(before + 10)


@pytest.mark.parametrize("what", ["text", "empty", "another database", "another stream", "another offset"])
def test_foreign_files(tmp_path: Path, what: str) -> None:
    """A file that is not the segment its name says is refused by name, and left as it is."""

    async def make() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            await fill(log, 20)
            await log.append(METRICS, [make_record("run", 0)])

    run(make)
    lane = tmp_path / "log" / "ledger-0"
    file = list_segments(lane)[-1].path
    match what:
        case "text":
            file.write_text("dear diary, " * 2000)
        case "empty":
            file.write_bytes(b"")
        case "another database":
            file.unlink()
            with closing(sqlite3.connect(file)) as db:
                db.execute("CREATE TABLE records(off)")
        case "another stream":
            shutil.copyfile(tmp_path / "log" / "metrics-0" / f"{0:020d}.db", file)
        case _:
            shutil.copyfile(list_segments(lane)[0].path, file)
    before = file.read_bytes()
    with pytest.raises(LogForeign, match=file.name):
        SQLiteLog.open(tmp_path / "log")
    assert file.read_bytes() == before
    assert [finding.file for finding in verify(tmp_path / "log")] == [str(file)]


def test_a_folder_of_other_things(tmp_path: Path) -> None:
    """A folder with files of somebody else's is not made a log."""
    (tmp_path / "thesis.tex").write_text("hello")
    with pytest.raises(LogForeign, match=r"thesis\.tex"):
        SQLiteLog.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_newer_format(tmp_path: Path) -> None:
    """A segment of a newer format is refused, and says which version is needed."""

    async def make() -> None:
        async with opened(tmp_path / "log") as log:
            await fill(log, 2)

    run(make)
    file = list_segments(tmp_path / "log" / "ledger-0")[0].path
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(LogTooNew, match="got format 2"):
        SQLiteLog.open(tmp_path / "log")

    async def test() -> None:
        async with opened(tmp_path / "log", readonly=True) as log:
            with pytest.raises(LogTooNew, match="got format 2"):
                await log.read(LEDGER_0, 0)

    run(test)


def test_verify_a_whole_log(tmp_path: Path) -> None:
    """A whole log has no findings, in use or not, and the progress goes up to all its records."""

    async def test() -> None:
        async with opened(tmp_path / "log", segment_size=TINY) as log:
            await fill(log, 40)
            said: list[tuple[int, int]] = []
            assert list(verify(tmp_path / "log", lambda done, total: said.append((done, total)))) == []
            assert said[-1] == (40, 40)
            assert said == sorted(said)
        assert list(verify(tmp_path / "log")) == []

    run(test)
