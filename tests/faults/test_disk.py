"""Disks that fill, and files that rot: honest errors, no lost data, and `fsck` names what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import Disk
from faults_harness import ROUNDS, Reader, Writer, check, check_rebuild, get, logged_steps, until, wait_folded, wait_for
from servers import Server, running_server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 MB, with 64 MB of it taken by `ballast`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder], check=False).returncode == 0
    if not mounted:
        pytest.skip("needs root, to mount a small file system")
    (folder / "ballast").write_bytes(b"\0" * (64 << 20))
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    """A full disk is told as 503; with space again the writer gets through, and nothing acknowledged is lost."""
    with running_server(small_disk / "server") as server:
        writer = Writer(server, "t/disk/w", rows=5000).start()
        until(lambda: writer.refusals[503] > 0, "the full disk to be refused with 503", 120)
        assert get(server, "status").status in {200, 503}
        (small_disk / "ballast").unlink()
        acknowledged = len(writer.acknowledged)
        until(lambda: len(writer.acknowledged) > acknowledged, "the writer to get through once there is space", 60)
        writer.finish()

        check(server, [writer])


def folding(server: Server) -> str:
    """What the store says it does; nothing where it does not answer."""
    answer = get(server, "status")
    return str(answer.json()["folding"]["state"]) if answer.status == 200 else ""


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that can be full at once, for the store alone."""
    (tmp_path / "data").mkdir()
    disk = Disk(tmp_path / "data" / "store")
    if not disk.mounted:
        pytest.skip("needs root, to mount a small file system")
    yield disk
    disk.close(keep=False)


def test_a_store_whose_disk_fills_again_and_again_loses_no_row(own_disk: Disk, tmp_path: Path) -> None:
    """However often commits find no space while people read, the store is what a rebuild folds from the log."""
    with running_server(tmp_path) as server:
        first = Writer(server, "t/disk/first", rows=100, pause_s=0.01).start()
        reader = Reader([first], [server.url]).start()
        writers = [first]
        for number in range(ROUNDS):
            own_disk.fill()
            until(
                lambda: get(server, "status").json()["folding"]["state"] == "waiting", "the store to find no space", 60
            )
            writers.append(Writer(server, f"t/disk/{number}").start())
            until(lambda: len(writers[-1].acknowledged) > 5, "events to be taken all the same")
            writers[-1].finish()
            own_disk.empty()
            wait_for(server, writers[-1].token)
        first.finish()
        reader.finish()

        check(server, writers)
        check_rebuild(server)


def flip(path: Path, at: float) -> None:
    """Flip one bit, `at` of the way through a file."""
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * at))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


@pytest.fixture
def written(tmp_path: Path) -> Iterator[tuple[Server, Writer]]:
    """A server that has folded one run, killed so that its files are as a power cut leaves them."""
    server = Server(data=tmp_path / "data", config_dir=tmp_path / "config").start()
    writer = Writer(server, "t/rot/w", rows=100).start()
    until(lambda: len(writer.acknowledged) > 200, "200 events to be acknowledged")
    writer.finish()
    wait_folded(server)
    server.stop(kill=True)
    yield server, writer
    server.stop(kill=True)


@pytest.mark.parametrize("suffix", [".duckdb", ".duckdb.wal"])
@pytest.mark.parametrize("at", [0.001, 0.3, 0.9])
def test_a_flipped_bit_in_the_store_is_healed(written: tuple[Server, Writer], suffix: str, at: float) -> None:
    """With a bit flipped in the store's file or its write-ahead log, the server starts and has every point."""
    server, writer = written
    for path in (server.data / "store").glob(f"*{suffix}"):
        flip(path, at)
    server.start()

    check(server, [writer])


@pytest.mark.parametrize("at", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_write_ahead_log_of_the_store_is_healed(written: tuple[Server, Writer], at: float) -> None:
    """With the store's write-ahead log cut off anywhere, what it held is folded again, once."""
    server, writer = written
    [wal] = (server.data / "store").glob("*.duckdb.wal")
    os.truncate(wal, int(wal.stat().st_size * at))
    server.start()

    check(server, [writer])
    check_rebuild(server)


def test_an_older_store_catches_up(written: tuple[Server, Writer], tmp_path: Path) -> None:
    """An older copy of the store, put back over a newer one, folds what it does not have, once."""
    server, writer = written
    older = tmp_path / "older"
    shutil.copytree(server.data / "store", older)
    server.start()
    second = Writer(server, "t/rot/second").start()
    until(lambda: len(second.acknowledged) > 50, "50 more events to be acknowledged")
    second.finish()
    wait_folded(server)
    server.stop(kill=True)
    shutil.rmtree(server.data / "store")
    shutil.copytree(older, server.data / "store")
    server.start()

    check(server, [writer, second])
    check_rebuild(server)


def test_a_lost_store_is_rebuilt(written: tuple[Server, Writer]) -> None:
    """With every store file gone, the server folds the log again."""
    server, writer = written
    for path in (server.data / "store").iterdir():
        path.unlink()
    server.start()

    check(server, [writer])


def test_a_flipped_bit_in_the_log_is_named(written: tuple[Server, Writer]) -> None:
    """With a payload altered in the log, fsck ends with 1 and names the stream and the offset."""
    import sqlite3

    server, _ = written
    (segment,) = (server.data / "log" / "metrics-0").glob("*.db")
    with sqlite3.connect(segment) as con:
        con.execute("UPDATE records SET payload = replace(payload, '1', '2') WHERE off = 17")
    con.close()
    report = server.run("python", "-m", "icecore", "fsck", "--data", str(server.data), "--json", check=False)

    assert report.returncode == 1, report.stdout + report.stderr
    assert "metrics" in report.stdout
    assert "17" in report.stdout


def test_a_damaged_snapshot_is_ignored(written: tuple[Server, Writer]) -> None:
    """With garbage in the identities' snapshot and in CURRENT, the server starts and the key still works."""
    server, writer = written
    (server.data / "run" / "identities.json").write_bytes(b"\xff{not json")
    (server.data / "store" / "CURRENT").write_bytes(b"../../etc/passwd\n")
    server.start()

    wait_folded(server)
    assert sum(logged_steps(server, writer.run).values()) == len(writer.acknowledged) * writer.rows
