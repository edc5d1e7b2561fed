"""The spool: what it holds survives, and damage costs no more than what it hit."""

import contextlib
import re
import stat
import subprocess
from pathlib import Path

import orjson
import pytest

import icecore
from icecore.codec import frames
from icecore.events import RunDropped
from icecore.segments import HEAD, SpoolReader, read_acked, read_frames, segments
from icecore.spool import Spool, verify
from icecore.sync import sync

GENEROUS = 1 << 30


def spool_at(folder: Path, *, size_max: int = GENEROUS) -> Spool:
    """A spool below `folder`."""
    return Spool(folder / "spool", "e/p/r", "online", size_max=size_max)


def fill(spool: Spool, n: int, *, start: int = 0) -> None:
    """Append `n` events that say their number."""
    for i in range(start, start + n):
        assert spool.append("metrics.logged", 1, "metrics", orjson.dumps({"run": "e/p/r", "i": i}))
    spool.sync()


def numbers(batch_frames) -> list[int]:
    """What `fill` put into these frames."""
    return [orjson.loads(payload)["i"] for frame in batch_frames for _, payload in frames(frame)]


def test_what_was_appended_is_read_in_order_and_freed_when_acknowledged(tmp_path):
    """Frames come back in order, in batches; an acknowledged spool leaves nothing."""
    spool = spool_at(tmp_path)
    fill(spool, 25)
    read = []
    for most in (10, 10, 10):
        batch = spool.read(most, 1 << 20)
        read.append(numbers(batch.frames))
        spool.acknowledge(batch)

    assert read == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert spool.unsent == 0
    spool.close()


def test_a_spool_is_removed_when_all_of_it_was_acknowledged(tmp_path):
    """`close` removes the folder if the server has everything, and keeps it otherwise."""
    spool = spool_at(tmp_path)
    fill(spool, 5)
    batch = spool.read(100, 1 << 20)
    assert numbers(batch.frames) == [0, 1, 2, 3, 4]
    spool.acknowledge(batch)
    assert spool.unsent == 0
    fill(spool, 1, start=5)
    assert not spool.close()
    assert numbers(SpoolReader(spool.folder).read(None, 100, 1 << 20).frames) == [5]

    other = spool_at(tmp_path)
    fill(other, 3)
    other.acknowledge(other.read(100, 1 << 20))
    assert other.close()
    assert not other.folder.exists()


def test_acknowledged_segments_are_deleted_while_it_is_written(tmp_path):
    """A long run takes no more disk than what is not yet sent."""
    spool = spool_at(tmp_path)
    payload = orjson.dumps({"run": "e/p/r", "text": "x" * 1_000_000})
    for _ in range(40):
        spool.append("metrics.logged", 1, "metrics", payload)
    spool.sync()
    assert len(segments(spool.folder)) == 3
    while (batch := spool.read(1000, 8 << 20)).frames:
        spool.acknowledge(batch)
    assert segments(spool.folder) == [3]
    assert spool.close()


def test_folders_and_files_are_for_their_user_only(tmp_path):
    """Spools hold configs: 0700 and 0600."""
    spool = spool_at(tmp_path)
    fill(spool, 1)
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    for path in spool.folder.glob("*.seg"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (spool.folder / "meta.json").exists()
    spool.abandon()


@pytest.mark.parametrize("where", ["head", "length", "crc", "body", "hole"])
def test_damage_costs_only_the_frame_it_hit(tmp_path, where):
    """One damaged frame is skipped and counted; all the others are read."""
    spool = spool_at(tmp_path)
    fill(spool, 20)
    path = spool.folder / "000001.seg"
    spool.abandon()
    data = bytearray(path.read_bytes())
    starts = [0]
    for found in read_frames(bytes(data), final=True):
        starts.append(found.end)
    at = starts[10]
    if where == "head":
        data[at : at + 8] = b"\xff" * 8
    elif where == "length":
        data[at] ^= 1
    elif where == "crc":
        data[at + 5] ^= 4
    elif where == "body":
        data[at + HEAD.size + 30] ^= 1
    else:
        data[at : starts[11]] = bytes(starts[11] - at)
    path.write_bytes(data)

    reader = SpoolReader(spool.folder)
    assert numbers(reader.read(None, 100, 1 << 20).frames) == [i for i in range(20) if i != 10]
    assert (reader.scan.corrupt, reader.scan.skipped_bytes) == (1, starts[11] - starts[10])
    (report,) = verify(tmp_path)
    assert (report.frames, report.corrupt, report.pending, report.run) == (19, 1, 19, "e/p/r")
    assert not report.sound


def test_every_flipped_bit_costs_at_most_one_frame(tmp_path):
    """Wherever a bit flips, the others are read."""
    spool = spool_at(tmp_path)
    fill(spool, 5)
    path = spool.folder / "000001.seg"
    spool.abandon()
    sound = path.read_bytes()
    for at in range(0, len(sound), 7):
        data = bytearray(sound)
        data[at] ^= 1 << (at % 8)
        found = [found.frame for found in read_frames(bytes(data), final=True) if found.frame]
        assert len(found) == 4


def test_every_torn_tail_is_no_damage(tmp_path):
    """A file cut anywhere gives every whole frame before the cut, and is not called corrupt."""
    spool = spool_at(tmp_path)
    fill(spool, 4)
    sound = (spool.folder / "000001.seg").read_bytes()
    spool.abandon()
    ends = [found.end for found in read_frames(sound, final=True)]
    for cut in range(len(sound)):
        found = list(read_frames(sound[:cut], final=True))
        assert sum(f.frame is not None for f in found) == sum(end <= cut for end in ends)
        assert sum(f.skipped for f in found) == 0


def test_a_damaged_spool_is_sent_without_the_damage_and_said_on_the_run(server, home):
    """`sync` sends what is sound and tells the run how much was not."""
    with icecore.init(project="p", id="r", mode="offline") as run:
        for i in range(10):
            run.log({"a": i})
            run._recorder.writer.drain()
    (folder,) = (home / "spool").iterdir()
    path = folder / "000001.seg"
    data = bytearray(path.read_bytes())
    ends = [found.end for found in read_frames(bytes(data), final=True)]
    data[ends[3] + 50] ^= 1
    path.write_bytes(data)

    (result,) = sync(home, server.url, server.key)
    assert (result.done, result.corrupt) == (True, 1)
    assert len(server.rows()) == 9
    (dropped,) = server.events(RunDropped)
    assert "damaged" in dropped.reason
    assert len(server.gaps()) == 1
    assert list((home / "spool").iterdir()) == []


def test_a_full_spool_drops_metrics_first_and_says_so(home, monkeypatch, capfd):
    """Beyond ICECORE_SPOOL_MAX metrics are dropped and counted; the end of the run still fits."""
    monkeypatch.setenv("ICECORE_SPOOL_MAX", "300KB")
    with icecore.init(project="p", mode="offline") as run:
        for i in range(1000):
            run.log({f"key-{j}": float(i * j) / 7 for j in range(50)})
            if i % 10 == 0:
                run._recorder.writer.drain()

    (folder,) = (home / "spool").iterdir()
    kept = [pair for frame in SpoolReader(folder).read(None, 10**6, 1 << 30).frames for pair in frames(frame)]
    assert any(b"run.finished" in envelope for envelope, _ in kept)
    dropped = [orjson.loads(payload) for envelope, payload in kept if b"run.dropped" in envelope]
    assert sum(event["points"] for event in dropped) > 1000
    assert sum(path.stat().st_size for path in folder.glob("*.seg")) < 320 * 1024
    assert capfd.readouterr().err.count("spool is full") == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_never_reaches_the_training_and_what_fits_is_sent(server, small_disk, capfd):
    """Nothing is raised, memory takes over while the disk is full, and a server that is there gets all of it."""
    ballast = small_disk / "ballast"
    with icecore.init(project="p", dir=small_disk / "icecore") as run:
        run.log({"a": 0})
        fill_disk(ballast)
        for i in range(1, 2000):
            run.log({"a": i})
    ballast.unlink()

    assert [step for step, _ in server.rows()] == list(range(2000))
    assert server.gaps() == {}


def fill_disk(ballast: Path) -> None:
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_without_a_server_goes_on_when_there_is_room_again(home, small_disk):
    """What waited in memory is written once the disk takes it."""
    spool = spool_at(small_disk)
    fill(spool, 10)
    ballast = small_disk / "ballast"
    fill_disk(ballast)
    big = "x" * 20_000
    for i in range(10, 30):
        assert spool.append("metrics.logged", 1, "metrics", orjson.dumps({"run": "e/p/r", "i": i, "big": big}))
    assert not spool.sync()
    assert spool.trouble
    ballast.unlink()
    spool.acknowledge(spool.read(1000, 8 << 20))
    fill(spool, 1, start=30)
    assert not spool.trouble
    batch = SpoolReader(spool.folder).read(None, 1000, 8 << 20)
    spool.abandon()
    assert numbers(batch.frames)[-21:] == list(range(10, 31))


def test_a_folder_that_cannot_be_made_costs_nothing_while_there_is_a_server(server, tmp_path, capfd):
    """A file stands where the folder should be: everything is sent from memory, with one warning."""
    (tmp_path / "not-a-folder").write_text("")
    with icecore.init(project="p", dir=tmp_path / "not-a-folder") as run:
        for i in range(100):
            run.log({"a": i})

    assert len(server.rows()) == 100


def test_what_ends_with_the_process_is_said(home, tmp_path, capfd):
    """An offline run whose folder cannot be made loses what it logged, and does not say that it is kept."""
    (tmp_path / "not-a-folder").write_text("")
    with icecore.init(project="p", entity="e", id="r", mode="offline", dir=tmp_path / "not-a-folder") as run:
        run.log({"a": 1})

    said = capfd.readouterr().err
    assert re.search(
        r"warning: \d+ events \(\d+ bytes\) of run e/p/r were neither sent nor written to .* are lost", said
    )
    assert "is kept in" not in said


def test_acked_survives_and_nonsense_in_it_means_send_all(tmp_path):
    """A damaged `acked` file sends everything again, which the server knows already."""
    spool = spool_at(tmp_path)
    fill(spool, 5)
    spool.acknowledge(spool.read(3, 1 << 20))
    spool.abandon()
    assert numbers(SpoolReader(spool.folder).read(None, 10, 1 << 20).frames) == [3, 4]
    (spool.folder / "acked").write_text("nonsense")
    assert read_acked(spool.folder) == (0, 0)
    assert numbers(SpoolReader(spool.folder).read(None, 10, 1 << 20).frames) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["a digit more", "another digit", "the next segment", "cut short", "-1 -1 00000000"])
def test_a_wrong_number_in_acked_never_leaves_events_out(tmp_path, damage):
    """An `acked` file that says more than the server has is not believed: everything is sent again."""
    spool = spool_at(tmp_path)
    fill(spool, 5)
    spool.acknowledge(spool.read(3, 1 << 20))
    spool.abandon()
    acked = spool.folder / "acked"
    segment, offset, crc = acked.read_text().split()
    acked.write_text(
        {
            "a digit more": f"{segment} {offset}9 {crc}",
            "another digit": f"{segment} {int(offset) ^ 4} {crc}",
            "the next segment": f"{int(segment) + 1} {offset} {crc}",
            "cut short": f"{segment} {offset}",
        }.get(damage, damage)
    )

    assert numbers(SpoolReader(spool.folder).read(None, 10, 1 << 20).frames) == [0, 1, 2, 3, 4]


def test_a_small_spool_that_is_sent_never_fills(server, monkeypatch):
    """What the server has makes room, also where the whole spool is smaller than a usual segment."""
    monkeypatch.setenv("ICECORE_SPOOL_MAX", "400KB")
    with icecore.init(project="p") as run:
        for i in range(10):
            for j in range(20):
                run.log({f"key-{k}": (i + j) / 7 for k in range(100)})
            run._recorder.writer.save()
            while run._recorder.spool.unsent:
                run._recorder.uploader._thread.join(0.01)

    assert len(server.rows()) == 200
    assert server.events(RunDropped) == []
