"""Downloads that are killed, meet a full disk, or share a cache; and the cache's own commands."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifact_server import ArtifactServer
from disks import Disk
from icecore.api import Api
from icecore.blob_cache import BlobCache
from icecore.errors import UsageError
from icecore.progress_line import shown
from icecore.transfer import PART_BYTES, Progress

DEADLINE_S = 60.0


def put(artifacts: ArtifactServer, files: dict[str, bytes]) -> None:
    """Make ada/p/data:v0 of these files."""
    entries = {path: {"digest": artifacts.keep(data), "size": len(data)} for path, data in files.items()}
    digest = artifacts.keep(json.dumps({"entries": entries, "version": 1}, sort_keys=True).encode())
    version = {"digest": digest, "size": 1, "files": 1, "state": "committed", "description": "", "metadata": {}}
    artifacts.collections["ada/p/data"] = {
        "path": "ada/p/data",
        "type": "d",
        "versions": [{**version, "type": "d", "tags": [], "run": ""}],
        "aliases": {"latest": 0},
    }


def tree(root: Path) -> dict[str, bytes]:
    """Path -> bytes of all files below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def downloading(target: Path) -> subprocess.Popen[bytes]:
    """A process that downloads ada/p/data."""
    code = "import sys; from icecore.api import Api; Api().artifact('p/data').download(sys.argv[1])"
    return subprocess.Popen([sys.executable, "-c", code, str(target)], stderr=subprocess.PIPE)


def icecore(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line."""
    return subprocess.run([sys.executable, "-m", "icecore", *words], capture_output=True, text=True, check=False)


# ---- kill -9


def test_a_killed_download_goes_on_where_it_was(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Killed in the middle of a large file: nothing lies under its name, and only the rest is fetched."""
    parts = 8
    data = os.urandom(1 << 20) * (PART_BYTES // (1 << 20)) * (parts - 1) + os.urandom(1000)
    put(artifacts, {"x/large": data})
    target = tmp_path / "target"
    notes = tmp_path / "cache" / "partial" / f"{hashlib.sha256(data).hexdigest()}.parts"
    artifacts.ranges = there = 3
    child = downloading(target)
    stop = time.monotonic() + DEADLINE_S
    while not (notes.exists() and len(notes.read_text().split()) == there):
        assert time.monotonic() < stop, child.poll()
        assert child.poll() is None, child.communicate()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    artifacts.ranges = 1 << 30
    artifacts.go_on.set()
    assert [path for path in tree(target) if path.startswith("x/")] == []
    artifacts.asked.clear()
    Api().artifact("p/data").download(target)

    assert artifacts.count("GET blobs/") == parts - there
    assert (target / "x/large").read_bytes() == data


def test_only_what_is_asked_for_is_fetched(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """`path_prefix` names a folder or a file, and no file whose name only begins alike."""
    put(artifacts, {"a/x": b"1", "a/b/y": b"2", "ab/z": b"3", "c": b"4"})
    artifact = Api().artifact("p/data")
    artifact.download(tmp_path / "folder", path_prefix="a")
    artifact.download(tmp_path / "file", path_prefix="c")

    assert tree(tmp_path / "folder") == {"a/x": b"1", "a/b/y": b"2"}
    assert tree(tmp_path / "file") == {"c": b"4"}


# ---- full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system that can be full."""
    disk = Disk(tmp_path / "disk")
    if not disk.mounted:
        pytest.skip("needs root, to mount a small file system")
    yield disk
    disk.close(keep=False)


@pytest.mark.parametrize("size", [20_000, PART_BYTES + 1_000_000])
@pytest.mark.parametrize("which", ["target", "cache", "both"])
def test_a_full_disk_leaves_nothing_half(
    artifacts: ArtifactServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, which: str, size: int
) -> None:
    """The error names the folder; no file is short; with space again the same call ends it, from a sound cache."""
    files = {f"d{n % 3}/{n}": os.urandom(size) for n in range(6)}
    put(artifacts, files)
    target, cache = (disk.folder / name if which in {name, "both"} else tmp_path / name for name in ("target", "cache"))
    monkeypatch.setenv("ICECORE_ARTIFACT_CACHE", str(cache))
    artifact = Api().artifact("p/data")
    artifact.files()  # the manifest is there
    target.mkdir()
    disk.fill()
    told = ""
    try:
        artifact.download(target)
    except UsageError as error:
        told = str(error)
    if which != "cache":
        assert str(disk.folder) in told
    if told:
        assert "free some space" in told
    assert {path: data for path, data in tree(target).items() if ".icecore" not in path}.items() <= files.items()
    disk.empty()
    artifact.download(target)
    assert tree(target) == files
    artifact.download(tmp_path / "again")

    assert tree(tmp_path / "again") == files


# ---- a cache for several


def test_two_processes_share_a_cache(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """At once, into folders of their own; afterwards nothing has to be fetched, and nothing is there twice."""
    files = {f"d{n % 7}/{n}": os.urandom(3000) for n in range(1200)} | {"large": os.urandom(PART_BYTES + 5)}
    put(artifacts, files)
    children = [downloading(tmp_path / name) for name in ("one", "two")]
    said = [child.communicate()[1] for child in children]
    artifacts.asked.clear()
    third = Path(Api().artifact("p/data").download(tmp_path / "three"))

    assert said == [b"", b""]
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(third) == files
    assert artifacts.count("GET blobs/") + artifacts.count("POST blobs/") == 0


def test_packs_go_when_there_is_no_room(tmp_path: Path) -> None:
    """Those used longest ago first, as a whole; others still give what they have, and the index knows no more."""
    cache = BlobCache(tmp_path / "cache", 100_000)
    blobs = [(hashlib.sha256(b"%d" % n).hexdigest(), b"%d" % n) for n in range(40)]
    for number in range(20):
        some = [(digest, data.ljust(4000)) for digest, data in blobs[number * 2 : number * 2 + 2]]
        some = [(hashlib.sha256(data).hexdigest(), data) for _, data in some]
        blobs[number * 2 : number * 2 + 2] = some
        cache.add_small(some)
        (pack,) = cache.packs.find([some[0][0]])
        os.utime(cache.packs.folder / pack, (number, number))
        cache.settle()
    found = cache.packs.find([digest for digest, _ in blobs])
    held = {place.digest: data for pack, places in found.items() for place, data in cache.packs.read(pack, places)}

    assert cache.stat().bytes <= 100_000
    assert cache.stat().files == len(held)
    assert held == dict(blobs[-len(held) :])
    assert len(held) >= 10


def test_a_pack_that_is_lost_or_short_is_fetched_again(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """One was deleted, one cut, and the index of a third cache is no database: only time is lost."""
    files = {str(number): os.urandom(2000) for number in range(1200)}
    put(artifacts, files)
    artifact = Api().artifact("p/data")
    artifact.download(tmp_path / "one")
    packs = sorted((tmp_path / "cache" / "packs").glob("*.pack"))
    assert len(packs) >= 2
    packs[0].unlink()
    packs[1].chmod(0o600)
    os.truncate(packs[1], 5000)
    artifact.download(tmp_path / "two")
    (tmp_path / "cache" / "packs.db").write_bytes(os.urandom(5000))
    artifact.download(tmp_path / "three")

    assert tree(tmp_path / "two") == tree(tmp_path / "three") == files


# ---- what people see


def test_the_cache_is_told_and_cleared(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Size, files, limit and how often it had what was wanted; cleared only when that is said."""
    put(artifacts, {str(number): os.urandom(1000) for number in range(30)})
    artifact = Api().artifact("p/data")
    artifact.download(tmp_path / "one")
    artifact.download(tmp_path / "two")
    said: dict[str, Any] = json.loads(icecore("cache", "stat", "--json").stdout)
    refused = icecore("cache", "clear", "--json")
    cleared = json.loads(icecore("cache", "clear", "--yes", "--json").stdout)
    after = json.loads(icecore("cache", "stat", "--json").stdout)

    assert said["files"] == 31
    assert 30_000 < said["bytes"] < 50_000
    assert said["limit"] == 20 << 30
    assert (said["asked"], said["hit_rate"]) == (60, 0.5)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert cleared["files"] == 31
    assert (after["files"], after["bytes"], after["hit_rate"]) == (0, 0, None)
    assert "found here" in icecore("cache", "stat").stdout


def test_a_terminal_is_told_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, rate and time left, on one line that is gone at the end; elsewhere and when silent nothing."""
    main, side = pty.openpty()
    progress = Progress()
    progress.expect(4_000_000)
    progress.add(1_000_000)
    silence = io.StringIO()
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "__stderr__", terminal)
        wanted = threading.Event()
        said = bytearray()

        def read() -> None:
            while b"s left" not in said:
                said.extend(os.read(main, 1000))
            wanted.set()

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        with shown(progress, "downloading x", silent=False):
            assert wanted.wait(DEADLINE_S)
    os.close(main)
    monkeypatch.setattr(sys, "__stderr__", silence)
    with shown(progress, "downloading x", silent=False):
        progress.add(1)

    assert b"icecore: downloading x: 1.0 of 4.0 MB, " in said
    assert b" MB/s, " in said
    assert silence.getvalue() == ""
