"""The SQLite log while its disk fails, fills, rots, and its processes are killed."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from icecore.errors import LogCorrupt, LogError, LogForeign, LogFull, LogReadOnly
from icecore.log import StoredRecord
from icecore.position import LEDGER, METRICS, Place
from icecore.testing.appender import make_record
from icecore.testing.children import Acknowledged, child_appender
from icecore.testing.log_contract import check_acknowledged, read_all, run
from icecore_ingest.logs.segments import list_segments, wal_size
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_ingest.logs.verify import verify
from icecore_ingest.logs.wal import read_wal

ROUNDS = int(os.environ.get("ICECORE_SOAK_ROUNDS", "25"))
TINY = 256 << 10
LEDGER_0 = Place(LEDGER, 0)
STRACE = shutil.which("strace")


def opener(folder: Path, segment_size: int = TINY) -> str:
    return (
        "from pathlib import Path\n"
        "from icecore_ingest.logs.sqlite import SQLiteLog\n"
        f"async def open_log(): return SQLiteLog.open(Path({str(folder)!r}), segment_size={segment_size})\n"
    )


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root, to mount a small file system: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def append_until_full(log: SQLiteLog, stream: str, said: list[Acknowledged]) -> None:
    """Append until the disk is full; what was acknowledged goes to `said`."""
    for _ in range(10_000):
        seq = len(said)
        record = make_record("run", seq, os.urandom(20_000), stream)
        try:
            [position] = await log.append(stream, [record])
        except LogFull:
            return
        said.append(Acknowledged(stream, seq, position.partition, position.offset))
    raise AssertionError("the disk did not fill")


@pytest.mark.parametrize("segment_size", [1 << 30, TINY], ids=["one segment", "many segments"])
def test_full_disk(tmp_path: Path, segment_size: int) -> None:
    """A full disk refuses appends by name, loses nothing, and with space again the same log goes on by itself."""
    with mounted(tmp_path / "disk", "size=8m") as disk:
        (disk / "ballast").write_bytes(b"\0" * (3 << 20))

        async def test() -> None:
            log = SQLiteLog.open(disk / "log", segment_size=segment_size)
            said: list[Acknowledged] = []
            await append_until_full(log, METRICS, said)
            for _ in range(3):
                with pytest.raises(LogFull, match="full disk"):
                    await log.append(METRICS, [make_record("run", 0, os.urandom(100_000), "refused")])
            check_acknowledged(await read_all(log, METRICS), said)
            (disk / "ballast").unlink()
            before = len(said)
            await append_until_full(log, METRICS, said)
            assert len(said) > before + 10
            check_acknowledged(await read_all(log, METRICS), said)
            await log.close()
            assert list(verify(disk / "log")) == []

        run(test)


@pytest.mark.parametrize("options", ["size=64k", "size=8m,nr_inodes=6"], ids=["no space", "no inodes"])
def test_full_disk_from_the_start(tmp_path: Path, options: str) -> None:
    """On a disk with no room a log cannot be made, which is said, and it can once there is room."""
    with mounted(tmp_path / "disk", options) as disk:
        with pytest.raises(LogFull, match="full disk"):
            SQLiteLog.open(disk / "log")
        subprocess.run(["mount", "-o", "remount,size=8m,nr_inodes=1000", disk], check=True)

        async def test() -> None:
            log = SQLiteLog.open(disk / "log")
            await log.append(LEDGER, [make_record("run", 0)])
            await log.close()

        run(test)


def test_read_only_disk(tmp_path: Path) -> None:
    """On a disk mounted read-only the log can be read, and opening it to write says what is wrong."""
    with mounted(tmp_path / "disk", "size=8m") as disk:
        with child_appender(opener(disk / "log")) as child:
            child.wait_for(100)
            child.process.send_signal(signal.SIGKILL)
        run(lambda: _open_and_close(disk / "log"))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(LogReadOnly, match="read-only"):
            SQLiteLog.open(disk / "log")

        async def test() -> None:
            log = SQLiteLog.open(disk / "log", readonly=True)
            check_acknowledged(await read_all(log), child.acknowledged)
            await log.close()

        run(test)
        assert list(verify(disk / "log")) == []


async def _open_and_close(folder: Path) -> None:
    await SQLiteLog.open(folder, segment_size=TINY).close()


# -------------------------------------------------------------------------------------------------- failing disk

_POISONED = """
import asyncio, sys
from icecore.errors import LogPoisoned
from icecore.testing.appender import make_record
async def main():
    log = await open_log()
    for seq in range(5):
        await log.append("ledger", [make_record("run", seq, b"x" * 5000)])
    print("ready", flush=True)
    sys.stdin.readline()
    for attempt in range(3):
        try:
            await log.append("ledger", [make_record("run", 100 + attempt)])
            print("acknowledged", flush=True)
        except LogPoisoned as error:
            print("poisoned", str(error), flush=True)
    await log.close()
    print("closed", flush=True)
    sys.stdin.readline()
    again = await open_log()
    [position] = await again.append("ledger", [make_record("run", 200)])
    print("offset", position.offset, flush=True)
    await again.close()
asyncio.run(main())
"""


def test_failed_fsync_poisons(tmp_path: Path) -> None:
    """After one failed fsync nothing is acknowledged, though later ones succeed, until the log is opened again."""
    if STRACE is None:
        pytest.skip("needs strace, to make an fsync fail")
    program = [sys.executable, "-c", opener(tmp_path / "log") + _POISONED]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    inject = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=1"]
    tracer = subprocess.Popen([STRACE, "-f", *inject, "-p", str(child.pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    if "attached" not in first:
        child.kill()
        child.communicate()
        tracer.communicate()
        pytest.skip(f"strace cannot attach here: {first}")
    child.stdin.write("go\n")
    child.stdin.flush()
    lines = [child.stdout.readline() for _ in range(4)]
    tracer.send_signal(signal.SIGINT)  # it lets go of the child, whose fsyncs all succeed from now on
    tracer.communicate(timeout=60)
    lines += child.communicate("go\n", timeout=60)[0].splitlines()
    assert [line.split()[0] for line in lines] == ["poisoned", "poisoned", "poisoned", "closed", "offset"]
    assert "disk I/O error" in lines[0]
    assert list(verify(tmp_path / "log")) == []

    async def test() -> None:
        log = SQLiteLog.open(tmp_path / "log")
        lane = (await read_all(log))[LEDGER_0]
        seqs = [record.envelope.seq for record in lane]
        assert seqs[:5] == list(range(5))
        assert seqs[-1] == 200
        assert int(lines[-1].split()[1]) == len(seqs) - 1
        assert set(seqs[5:-1]) <= {100}, "attempts after the failed one never reached the file"
        await log.close()

    run(test)


# ------------------------------------------------------------------------------------------------------------ rot


def flip(file: Path, bit: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(bit // 8)
        [byte] = handle.read(1)
        handle.seek(bit // 8)
        handle.write(bytes([byte ^ (1 << bit % 8)]))


def seeded() -> random.Random:
    seed = int(os.environ.get("ICECORE_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))
    print(f"ICECORE_TEST_SEED={seed}")
    return random.Random(seed)


async def what_can_be_read(folder: Path) -> tuple[list[StoredRecord], LogError | None]:
    """The ledger's records up to the first error, and that error."""
    found: list[StoredRecord] = []
    try:
        log = SQLiteLog.open(folder, readonly=True)
    except LogError as error:
        return found, error
    try:
        while batch := (await log.read(LEDGER_0, len(found))).records:
            found += batch
    except LogError as error:
        return found, error
    finally:
        await log.close()
    return found, None


def make_whole_log(folder: Path) -> list[StoredRecord]:
    async def make() -> None:
        log = SQLiteLog.open(folder, segment_size=TINY)
        for seq in range(60):
            await log.append(LEDGER, [make_record("run", seq, os.urandom(3_000 + 500 * (seq % 40)))])
        await log.close()

    run(make)
    found, error = asyncio.run(what_can_be_read(folder))
    assert (len(found), error) == (60, None)
    return found


def any_bit(chance: random.Random, file: Path) -> int:
    """Any bit of a file of SQLite's, half of the time one of a page's head, which says where its rows lie."""
    page, pages = 16384 * 8, file.stat().st_size // 16384
    return page * chance.randrange(pages) + chance.randrange(chance.choice([page, 8 * 120]))


def test_flipped_bits(tmp_path: Path) -> None:
    """One flipped bit never changes what is read: the records before it come, then an error that a check finds too."""
    whole = make_whole_log(tmp_path / "log")
    chance, noticed = seeded(), 0
    for number in range(ROUNDS):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "log", copy)
        file = chance.choice(list_segments(copy / "ledger-0")).path
        flip(file, any_bit(chance, file) if number else 3)  # the first is in the file's magic: never unnoticed
        found, error = asyncio.run(what_can_be_read(copy))
        assert found == whole[: len(found)]
        findings = list(verify(copy))
        if error is None:
            assert len(found) == len(whole)  # a bit that nothing uses
        else:
            noticed += 1
            assert isinstance(error, LogCorrupt | LogForeign) or type(error).__name__ == "LogTooNew", error
            assert str(file) in str(error)
            assert str(file) in {finding.file for finding in findings}
        with suppress(LogError):  # or it can still be appended to: the damage is in a sealed segment
            run(lambda copy=copy: _open_and_close(copy))
        shutil.rmtree(copy)
    assert noticed


def test_a_check_goes_on_after_damage(tmp_path: Path) -> None:
    """Two damaged records in one segment are both found, and nothing else."""
    make_whole_log(tmp_path / "log")
    file = list_segments(tmp_path / "log" / "ledger-0")[1].path
    data = file.read_bytes()
    [*_, a, b] = sorted(offset for offset in range(0, len(data), 16384) if data[offset : offset + 4] != b"\0\0\0\0")[
        -9::4
    ]
    for at in (a, b):
        flip(file, 8 * (at + 9_000))
    found = [finding.offset for finding in verify(tmp_path / "log")]
    assert len(found) == 2
    assert None not in found


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, list[Acknowledged]]:
    """A log whose process was killed: its last commits are in the WAL only."""
    with child_appender(opener(tmp_path / "log", 1 << 30), tasks=1) as child:
        child.wait_for(60)
        child.finish(kill=True)
    return tmp_path / "log", child.acknowledged


def test_damaged_wal(killed: tuple[Path, list[Acknowledged]]) -> None:
    """A WAL damaged in the middle keeps the log closed until somebody has put it aside; what was before stays."""
    folder, said = killed
    segment = list_segments(folder / "ledger-0")[0]
    wal = Path(f"{segment.path}-wal")
    assert read_wal(wal).lost_commits == 0
    flip(wal, 8 * (wal.stat().st_size // 2))
    before = wal.read_bytes()
    assert read_wal(wal).lost_commits > 1
    assert [finding.file for finding in verify(folder)] == [str(wal)]
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="out of the log's folder"):
            SQLiteLog.open(folder)
    [kept] = folder.glob("ledger-0/*.damaged-*")
    assert kept.read_bytes() == before
    assert [finding.file for finding in verify(folder)] == [str(kept)]
    kept.unlink()

    async def test() -> None:
        log = SQLiteLog.open(folder)
        lane = (await read_all(log))[LEDGER_0]
        assert 0 < len(lane) < len(said)
        assert [r.envelope.seq for r in lane] == [s.seq for s in said[: len(lane)]]
        [position] = await log.append(LEDGER, [make_record("run", 0)])
        assert position.offset == len(lane)
        await log.close()

    run(test)


@pytest.mark.parametrize("at", [0, 10, 17, 25])
def test_damaged_wal_head(killed: tuple[Path, list[Acknowledged]], at: int) -> None:
    """A WAL whose first bytes are damaged is not taken for an empty one."""
    folder, _ = killed
    wal = Path(f"{list_segments(folder / 'ledger-0')[0].path}-wal")
    flip(wal, 8 * at)
    with pytest.raises(LogCorrupt, match="out of the log's folder"):
        SQLiteLog.open(folder)


def test_truncated_wal(killed: tuple[Path, list[Acknowledged]], tmp_path: Path) -> None:
    """A WAL cut off anywhere gives a log that opens with the first records, whole, and goes on."""
    folder, said = killed
    chance = seeded()
    for number in range(10):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        wal = Path(f"{list_segments(copy / 'ledger-0')[0].path}-wal")
        os.truncate(wal, chance.randrange(wal.stat().st_size))

        async def test(copy: Path = copy) -> None:
            log = SQLiteLog.open(copy)
            lane = (await read_all(log))[LEDGER_0]
            assert [r.envelope.seq for r in lane] == [s.seq for s in said[: len(lane)]]
            [position] = await log.append(LEDGER, [make_record("run", 0)])
            assert position.offset == len(lane)
            await log.close()

        run(test)
        assert list(verify(copy)) == []


# ------------------------------------------------------------------------------------------------------ power cut


@contextmanager
def loop_mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root, to mount an image: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_power_cut(tmp_path: Path) -> None:
    """What was acknowledged before the power went is on the disk: a copy of the device, made while it is written."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4, to make a disk")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    with (
        loop_mounted(image, tmp_path / "disk") as disk,
        child_appender(opener(disk / "log"), size=3000) as child,
    ):
        for number in range(4):
            child.wait_for(len(child.acknowledged) + 30)
            child.process.send_signal(signal.SIGSTOP)  # the copy takes a while, a power cut does not
            said = list(child.acknowledged)
            shutil.copyfile(image, tmp_path / f"copy{number}")
            child.process.send_signal(signal.SIGCONT)
            with loop_mounted(tmp_path / f"copy{number}", tmp_path / f"after{number}") as after:
                run(lambda after=after, said=said: _check_and_go_on(after / "log", said))
                assert list(verify(after / "log")) == []
            (tmp_path / f"copy{number}").unlink()


async def _check_and_go_on(folder: Path, said: list[Acknowledged]) -> None:
    log = SQLiteLog.open(folder, segment_size=TINY)
    check_acknowledged(await read_all(log), said)
    await log.append(LEDGER, [make_record("after", 0)])
    await log.close()


# ----------------------------------------------------------------------------------------------------------- kill


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """Two processes append and one is killed at a random moment, round after round: what was acknowledged is there."""
    chance = seeded()
    said: list[Acknowledged] = []
    with child_appender(opener(tmp_path / "log"), producer="steady", tasks=2, size=3000) as steady:
        for number in range(ROUNDS):
            with child_appender(opener(tmp_path / "log"), producer=f"child{number}", size=3000) as child:
                child.wait_for(chance.randrange(1, 40))
                child.finish(kill=True)
            said += child.acknowledged
        steady.wait_for(len(steady.acknowledged) + 5)
        steady.finish(kill=True)
    said += steady.acknowledged

    async def test() -> None:
        log = SQLiteLog.open(tmp_path / "log")
        check_acknowledged(await read_all(log), said)
        await log.close()

    run(test)
    assert list(verify(tmp_path / "log")) == []
    assert len(list_segments(tmp_path / "log" / "ledger-0")) > 3


@pytest.mark.parametrize("call", ["link", "unlink", "fsync,fdatasync"])
@pytest.mark.parametrize("when", [1, 2, 3])
def test_killed_while_a_segment_is_made(tmp_path: Path, call: str, when: int) -> None:
    """Killed at each system call by which the next segment comes to be, the log goes on, and loses nothing."""
    if STRACE is None:
        pytest.skip("needs strace, to kill at a system call")
    run(lambda: _open_and_close(tmp_path / "log"))
    trace = [STRACE, "-f", "-o", str(tmp_path / "trace"), "-e", f"trace={call}"]
    with child_appender(opener(tmp_path / "log"), producer="filling", tasks=1, size=20_000, count=8) as filling:
        assert filling.finish() == 0
    program = opener(tmp_path / "log") + "from icecore.testing.appender import main\nmain(open_log)\n"
    command = [*trace, "-e", f"inject={call}:signal=KILL:when={when + (12 if ',' in call else 0)}", sys.executable]
    killed = subprocess.run(
        [*command, "-c", program, LEDGER, "killed", "1", "20000", "40"], stdout=subprocess.PIPE, check=False, timeout=60
    )
    if killed.returncode == 1:
        pytest.skip("strace cannot trace here")
    assert killed.returncode == -signal.SIGKILL
    lines = [line.split() for line in killed.stdout.decode().splitlines() if line != "ready"]
    said = [Acknowledged(name, int(seq), int(partition), int(offset)) for name, seq, partition, offset in lines]

    async def test() -> None:
        log = SQLiteLog.open(tmp_path / "log", segment_size=TINY)
        check_acknowledged(await read_all(log), filling.acknowledged + said)
        await log.append(LEDGER, [make_record("after", 0)])
        sealed = list_segments(tmp_path / "log" / "ledger-0")[:-1]
        assert [wal_size(segment) for segment in sealed] == [0] * len(sealed)
        await log.close()

    run(test)
    assert list(verify(tmp_path / "log")) == []
