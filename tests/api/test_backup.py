"""Backups: what is new as new files, one manifest at the end, and back only when every byte is as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from histories import append, fold_all, sample, to_records
from icecore.errors import Conflict, LogCorrupt, NotFound, Unavailable
from icecore.log import EventLog
from icecore.position import LEDGER, METRICS, Place
from icecore.testing.appender import make_record
from icecore.testing.memory_log import MemoryLog
from icecore_api.backup import MANIFEST, PROGRESS, backup, check, read_manifest
from icecore_api.restoring import restore
from icecore_api.supervise import Lock
from icecore_ingest.logs.copying import compare
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_ingest.logs.verify import verify
from icecore_projections.rebuild import digest_of
from icecore_projections.store import Store

KILLS = max(8, int(os.environ.get("ICECORE_SOAK_ROUNDS", "0")) // 10)


def run(work: Any) -> Any:
    return asyncio.run(work)


async def log_in(folder: Path, steps: int = 200) -> SQLiteLog:
    log = SQLiteLog.open(folder)
    await append(log, to_records(sample(steps=steps)))
    return log


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


async def digest(log: EventLog, folder: Path, name: str) -> str:
    with contextlib.closing(Store.open(folder / f"{name}.duckdb", log_id=log.log_id)) as store:
        await fold_all(log, store)
        return digest_of(store).hex


def test_a_backup_comes_back_as_the_same_log(tmp_path: Path) -> None:
    """The restored log has the id, the offsets and the bytes of the first, passes every check, and takes records."""

    async def work() -> None:
        first = await log_in(tmp_path / "data/log")
        done = await backup(first, tmp_path / "backup", tmp_path / "data")
        assert done["token"] == str(await first.end())
        found = await restore(tmp_path / "backup", tmp_path / "new")
        again = SQLiteLog.open(tmp_path / "new/log")
        assert (again.log_id, await again.end()) == (first.log_id, await first.end())
        assert found["records"] == done["records"] == sum((await first.end()).as_dict().values())
        for place in (Place(LEDGER, 0), Place(METRICS, 0)):
            ours, theirs = await first.read(place, 0), await again.read(place, 0)
            assert list(ours.records) == list(theirs.records)
        assert await digest(first, tmp_path, "a") == await digest(again, tmp_path, "b")
        await again.append(METRICS, [make_record("k", 1)])
        await again.close()
        assert list(verify(tmp_path / "new/log")) == []
        await first.close()

    run(work())


def test_a_second_backup_writes_what_is_new(tmp_path: Path) -> None:
    """Pieces that hold what was there already stay as they are, and a backup of nothing new writes no piece."""

    async def work() -> None:
        log = await log_in(tmp_path / "log", steps=2_000)
        first = await backup(log, tmp_path / "backup")
        before = content(tmp_path / "backup/log")
        await log.append(METRICS, [make_record("k", n) for n in range(20)])
        second = await backup(log, tmp_path / "backup")
        after = content(tmp_path / "backup/log")
        assert {name: after.get(name) for name in before} == before
        assert (second["new_records"], second["records"]) == (20, first["records"] + 20)
        assert 0 < second["new_bytes"] < first["new_bytes"] / 2
        third = await backup(log, tmp_path / "backup")
        assert (third["new_records"], third["new_bytes"]) == (0, 0)
        assert content(tmp_path / "backup/log") == after
        await log.close()

    run(work())


def test_many_small_backups_are_few_pieces(tmp_path: Path) -> None:
    """Sixty backups of a few records each end as a handful of pieces, none of them over the size asked for."""

    async def work() -> None:
        log = SQLiteLog.open(tmp_path / "log")
        for n in range(60):
            await log.append(METRICS, [make_record("k", n, b"x" * 3_000) for _ in range(10)])
            done = await backup(log, tmp_path / "backup", size=400_000)
        pieces = read_manifest(tmp_path / "backup").pieces
        assert done["records"] == 600
        assert len(pieces) < 16
        assert max(piece.size for piece in pieces) < 500_000
        assert len(list((tmp_path / "backup/log").rglob("*.db"))) == len(pieces)
        await restore(tmp_path / "backup", tmp_path / "new")
        again = SQLiteLog.open(tmp_path / "new/log", readonly=True)
        assert (await compare_logs(log, again)) is True
        await again.close()
        await log.close()

    run(work())


async def compare_logs(one: EventLog, other: EventLog) -> bool:
    found = await compare(one, other)
    return found.matches and found.source_token == found.target_token


def test_blobs_and_keys_come_along(tmp_path: Path) -> None:
    """Files of blobs/ and keys/ are copied once, come back with their bytes, and go when they are gone."""

    async def work() -> None:
        data = tmp_path / "data"
        log = await log_in(data / "log")
        made_again = ("blobs/index.db", "blobs/index.db-wal", "blobs/drafts/x.draft", "blobs/uploads/x/bytes")
        for name in ("blobs/ab/abcd", "blobs/ef/ef01", "keys/ledger.key", *made_again):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_bytes(name.encode() * 100)
        assert (await backup(log, tmp_path / "backup", data))["new_files"] == 3
        (data / "blobs/ab/abcd").unlink()
        (data / "keys/ledger.key").write_bytes(b"other" * 300)
        done = await backup(log, tmp_path / "backup", data)
        assert (done["files"], done["new_files"]) == (2, 1)
        await restore(tmp_path / "backup", tmp_path / "new")
        assert content(tmp_path / "new/blobs") == {"ef/ef01": content(data / "blobs")["ef/ef01"]}
        assert content(tmp_path / "new/keys") == content(data / "keys")
        assert sorted(content(tmp_path / "backup/files")) == ["blobs/ef/ef01", "keys/ledger.key"]
        await log.close()

    run(work())


@pytest.mark.parametrize("which", ["log", "files", MANIFEST])
def test_damage_is_named_and_nothing_is_written(tmp_path: Path, which: str) -> None:
    """One flipped bit, or a file cut short or gone: the check and the restore name the file, and write nothing."""

    async def work() -> None:
        data = tmp_path / "data"
        log = await log_in(data / "log")
        (data / "blobs").mkdir()
        (data / "blobs/one").write_bytes(b"1" * 1_000)
        await backup(log, tmp_path / "backup", data)
        await log.close()
        files = [p for p in (tmp_path / "backup").rglob("*") if p.is_file() and which in str(p.relative_to(tmp_path))]
        for path in files:
            whole = path.read_bytes()
            middle = len(whole) // 2
            for broken in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:middle], None):
                path.unlink() if broken is None else path.write_bytes(broken)
                with pytest.raises((LogCorrupt, NotFound), match=path.name):
                    await restore(tmp_path / "backup", tmp_path / "new")
                if which != MANIFEST:
                    (damage,) = check(tmp_path / "backup")
                    assert (tmp_path / "backup" / damage.file) == path
                assert not (tmp_path / "new").exists()
                path.write_bytes(whole)
        assert check(tmp_path / "backup") == []

    run(work())


def test_a_damaged_log_spoils_no_backup(tmp_path: Path) -> None:
    """A record of the log that fails its checksum stops a backup, which stays what it was before."""

    async def work() -> None:
        log = await log_in(tmp_path / "log")
        await backup(log, tmp_path / "backup")
        before = (tmp_path / "backup" / MANIFEST).read_bytes()
        await log.append(METRICS, [make_record("k", n, b"needle" * 5_000) for n in range(3)])
        await log.close()
        (file,) = (tmp_path / "log/metrics-0").glob("*.db")
        whole = file.read_bytes()
        at = whole.rindex(b"needleneedle")
        file.write_bytes(whole[:at] + b"N" + whole[at + 1 :])
        damaged = SQLiteLog.open(tmp_path / "log", readonly=True)
        with pytest.raises(LogCorrupt, match="expected a whole record at metrics:0"):
            await backup(damaged, tmp_path / "backup")
        await damaged.close()
        assert (tmp_path / "backup" / MANIFEST).read_bytes() == before
        assert check(tmp_path / "backup") == []

    run(work())


def test_where_a_restore_may_go(tmp_path: Path) -> None:
    """An older state of the same log is brought forward; a newer one, another log or other files are refused."""

    async def work() -> None:
        log = await log_in(tmp_path / "data/log")
        await backup(log, tmp_path / "old")
        await restore(tmp_path / "old", tmp_path / "new")
        await log.append(METRICS, [make_record("k", 1)])
        await backup(log, tmp_path / "backup")
        await restore(tmp_path / "backup", tmp_path / "new")
        again = SQLiteLog.open(tmp_path / "new/log", readonly=True)
        assert await again.end() == await log.end()
        await again.close()
        with pytest.raises(Conflict, match="no more than the backup"):
            await restore(tmp_path / "old", tmp_path / "new")
        other = await log_in(tmp_path / "other/log", steps=3)
        await other.close()
        with pytest.raises(Conflict, match="another log"):
            await restore(tmp_path / "backup", tmp_path / "other")
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters/mine.txt").write_text("mine")
        with pytest.raises(Conflict, match=r"mine\.txt"):
            await restore(tmp_path / "backup", tmp_path / "letters")
        assert sorted(content(tmp_path / "letters")) == ["mine.txt"]
        forked = SQLiteLog.open(tmp_path / "new/log")
        await forked.append(METRICS, [make_record("fork", 1)])
        await forked.close()
        await log.append(METRICS, [make_record("k", 2), make_record("k", 3)])
        await backup(log, tmp_path / "backup")
        with pytest.raises(Conflict, match="gone different ways"):
            await restore(tmp_path / "backup", tmp_path / "new")
        with contextlib.closing(Lock(tmp_path / "new")), pytest.raises((Unavailable, Conflict)):
            await restore(tmp_path / "backup", tmp_path / "new")
        await log.close()

    run(work())


def test_a_backup_stays_with_its_log(tmp_path: Path) -> None:
    """A folder with other files, a backup of another log, and a log that lost its end are refused."""

    async def work() -> None:
        log, other = await log_in(tmp_path / "a"), await log_in(tmp_path / "b")
        await backup(log, tmp_path / "backup")
        with pytest.raises(Conflict, match="got one of log"):
            await backup(other, tmp_path / "backup")
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters/mine.txt").write_text("mine")
        with pytest.raises(Conflict, match=r"mine\.txt"):
            await backup(log, tmp_path / "letters")
        await restore(tmp_path / "backup", tmp_path / "new")
        await log.append(METRICS, [make_record("k", n) for n in range(2)])
        await backup(log, tmp_path / "backup")
        shorter = SQLiteLog.open(tmp_path / "new/log")
        with pytest.raises(Conflict, match="lost its end"):
            await backup(shorter, tmp_path / "backup")
        await shorter.append(METRICS, [make_record("fork", n) for n in range(3)])
        with pytest.raises(Conflict, match="lost its end and was written to since"):
            await backup(shorter, tmp_path / "backup")
        for one in (log, other, shorter):
            await one.close()

    run(work())


def test_a_log_of_many_partitions_is_backed_up_as_one(tmp_path: Path) -> None:
    """A cluster's log is kept as a log of files, grows with it, and its store has the same digest."""

    async def work() -> None:
        log = MemoryLog({LEDGER: 1, METRICS: 5})
        records = to_records(sample(steps=300))
        await append(log, records[:150])
        await backup(log, tmp_path / "backup", size=20_000)
        await append(log, records[150:])
        done = await backup(log, tmp_path / "backup", size=20_000)
        assert done["records"] == len(records)
        await restore(tmp_path / "backup", tmp_path / "new")
        again = SQLiteLog.open(tmp_path / "new/log", readonly=True)
        assert (await compare(log, again)).matches
        assert again.log_id == done["log_id"] != log.log_id
        assert await digest(log, tmp_path, "a") == await digest(again, tmp_path, "b")
        await again.close()

    run(work())


BACKUP = """
import asyncio, sys
from pathlib import Path
from icecore_api.backup import backup
from icecore_ingest.logs.sqlite import SQLiteLog

async def main(log_folder, folder):
    log = SQLiteLog.open(log_folder, readonly=True)
    print("ready", flush=True)
    def report(told):
        print("on", flush=True)
        sys.stdin.readline()  # goes on when it is told to, or not at all

    done = await backup(log, folder, report=report, size=60_000)
    print("done", flush=True)
    await log.close()

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_a_backup(tmp_path: Path) -> None:
    """Killed at any moment, what was a whole backup still is; the next call goes on, and ends with all of it."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    folder = tmp_path / "backup"

    async def prepare() -> None:
        log = await log_in(tmp_path / "log")
        await backup(log, folder, size=60_000)
        await log.append(METRICS, [make_record(f"k{n % 7}", n, os.urandom(400)) for n in range(4_000)])
        await log.close()

    run(prepare())
    whole, resumed = (folder / MANIFEST).read_bytes(), False
    for n in range(KILLS):
        # the first is killed when something is done and the backup is not whole yet: there the others go on
        moment = "on\n" if not n else chance.choice(["ready\n", "on\n", "done\n"])
        with subprocess.Popen(
            [sys.executable, "-c", BACKUP, str(tmp_path / "log"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                if line in {moment, "done\n"}:
                    break
                if line == "on\n":
                    process.stdin.write("\n")
                    process.stdin.flush()
            process.send_signal(signal.SIGKILL)
        if (folder / MANIFEST).read_bytes() == whole:
            assert check(folder) == []
        resumed |= (folder / PROGRESS).exists()

    async def finish() -> None:
        log = SQLiteLog.open(tmp_path / "log", readonly=True)
        await backup(log, folder, size=60_000)
        assert check(folder) == []
        await restore(folder, tmp_path / "new")
        again = SQLiteLog.open(tmp_path / "new/log", readonly=True)
        assert await compare_logs(log, again)
        await again.close()
        await log.close()
        assert not (folder / PROGRESS).exists()
        assert len(list((folder / "log").rglob("*.db"))) == len(read_manifest(folder).pieces)

    run(finish())
    assert resumed


def test_a_restore_that_is_cut_off_is_begun_again(tmp_path: Path) -> None:
    """What a killed restore left behind is no obstacle to the next one."""

    async def work() -> None:
        log = await log_in(tmp_path / "log")
        await backup(log, tmp_path / "backup")
        half = tmp_path / "new/.restoring/log/ledger-0"
        half.mkdir(parents=True)
        (half / "00000000000000000000.db").write_bytes(b"half")
        await restore(tmp_path / "backup", tmp_path / "new")
        again = SQLiteLog.open(tmp_path / "new/log", readonly=True)
        assert await compare_logs(log, again)
        assert not (tmp_path / "new/.restoring").exists()
        await again.close()
        await log.close()

    run(work())
