"""Downloads of hostile manifests into prepared folders: refused before anything is written, never outside."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from artifact_server import ArtifactServer
from icecore.api import Api
from icecore.blob_cache import BlobCache
from icecore.errors import IcecoreError, Invalid, ServerFailed, UsageError
from icecore.hashing import hash_files
from icecore.stat_cache import StatCache
from icecore.target import STAGING, Target
from refused_paths import REFUSED

HOSTILE: list[str] = json.loads((Path(__file__).parents[1] / "golden" / "hostile_names.json").read_text())


def put(artifacts: ArtifactServer, entries: dict[str, dict[str, object]]) -> None:
    """Make a version that no honest client would have made."""
    text = json.dumps({"entries": entries, "version": 1}, sort_keys=True)
    digest = artifacts.keep(text.encode("utf-8", "surrogatepass"))
    version = {"digest": digest, "size": 1, "files": 1, "state": "committed", "description": "", "metadata": {}}
    artifacts.collections["ada/p/evil"] = {
        "path": "ada/p/evil",
        "type": "d",
        "versions": [{**version, "type": "d", "tags": [], "run": ""}],
        "aliases": {"latest": 0},
    }


def files(artifacts: ArtifactServer, *paths: str) -> None:
    """A version with these paths, each with a few bytes."""
    put(artifacts, {path: {"digest": artifacts.keep(b"evil"), "size": 4} for path in paths})


def everything(folder: Path) -> set[str]:
    """All that lies below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("path", REFUSED, ids=range(len(REFUSED)))
def test_a_hostile_path_writes_nothing(artifacts: ArtifactServer, tmp_path: Path, path: str) -> None:
    """Neither its own file nor the honest one beside it."""
    files(artifacts, "honest", path)
    before = everything(tmp_path / "work")
    with pytest.raises(Invalid):
        Api().artifact("p/evil").download()

    assert everything(tmp_path / "work") == before
    assert not (tmp_path / "a").exists()


def test_hostile_names_lie_inside_or_nowhere(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Every name of the golden list, each in a version of its own."""
    root = tmp_path / "work" / "deep" / "target"
    taken = 0
    for number, name in enumerate(HOSTILE):
        files(artifacts, name)
        try:
            Api().artifact("p/evil").download(root / str(number))
        except IcecoreError:
            continue
        taken += 1
        written = [path for path in (root / str(number)).rglob("*") if path.is_file()]
        assert [str(path.relative_to(root / str(number))) for path in written] == [name]

    assert everything(tmp_path / "work" / "deep") >= {"target"}
    assert {path.split("/")[0] for path in everything(tmp_path / "work" / "deep")} == {"target"}
    assert taken > 50


def _link_file(root: Path, outside: Path) -> None:
    root.mkdir()
    (root / "a").symlink_to(outside / "file")


def _link_folder(root: Path, outside: Path) -> None:
    root.mkdir()
    (root / "x").symlink_to(outside)


def _link_deep(root: Path, outside: Path) -> None:
    (root / "x").mkdir(parents=True)
    (root / "x" / "y").symlink_to(outside)


def _file_for_folder(root: Path, outside: Path) -> None:
    root.mkdir()
    (root / "x").write_bytes(b"mine")


def _folder_for_file(root: Path, outside: Path) -> None:
    (root / "a").mkdir(parents=True)


def _pipe(root: Path, outside: Path) -> None:
    root.mkdir()
    os.mkfifo(root / "a")


@pytest.mark.parametrize("prepare", [_link_file, _link_folder, _link_deep, _file_for_folder, _folder_for_file, _pipe])
def test_what_is_in_the_way_is_not_followed(
    artifacts: ArtifactServer, tmp_path: Path, prepare: Callable[[Path, Path], None]
) -> None:
    """Links, pipes, files for folders: nothing is written inside, outside, or through them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    root = tmp_path / "target"
    prepare(root, outside)
    before = everything(root)
    files(artifacts, "0first", "a", "x/y/b")
    with pytest.raises(Invalid, match="expected"):
        Api().artifact("p/evil").download(root)

    assert everything(root) == before
    assert everything(outside) == {"file"}
    assert (outside / "file").read_bytes() == b"mine"


def test_a_link_planted_while_it_runs_leads_nowhere(tmp_path: Path) -> None:
    """The folder was checked; a link that appears afterwards is not followed."""
    outside, root = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target = Target(root)
    target.check(["x/a"])
    with target:
        (root / "x").symlink_to(outside)
        with pytest.raises(Invalid, match="link"), target.folder("x") as folder:
            target.write(folder, "a", b"evil")
        (root / "a").symlink_to(outside / "a")
        with target.folder("") as folder:
            target.write(folder, "a", b"mine")

    assert everything(outside) == set()
    assert (root / "a").read_bytes() == b"mine"
    assert not (root / "a").is_symlink()


def test_the_chosen_folder_may_be_a_link(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """It is the caller's own."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    files(artifacts, "x/a")
    Api().artifact("p/evil").download(tmp_path / "link")

    assert (tmp_path / "real" / "x" / "a").read_bytes() == b"evil"


@pytest.mark.parametrize("size", [4, 300_000, 17 * 1024 * 1024])
def test_bytes_that_are_not_the_digests_are_not_written(artifacts: ArtifactServer, tmp_path: Path, size: int) -> None:
    """A server that gives other bytes is told so; no file appears, and the cache keeps nothing of it."""
    digest = hashlib.sha256(b"other").hexdigest()
    artifacts.blobs[digest] = b"x" * size
    put(artifacts, {"a": {"digest": digest, "size": size}})
    with pytest.raises(ServerFailed, match=digest):
        Api().artifact("p/evil").download(tmp_path / "target")

    assert everything(tmp_path / "target") == set()
    assert digest not in "".join(everything(tmp_path / "cache"))


def test_the_staging_folder_is_nobodys_path(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """A manifest may not name files where unfinished ones are."""
    files(artifacts, f"{STAGING}1/a")
    with pytest.raises(Invalid, match="until they are whole"):
        Api().artifact("p/evil").download(tmp_path / "target")


def test_two_downloads_at_once_are_both_whole(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Into one folder, from several threads."""
    data = {f"d{number % 7}/{number}": os.urandom(2000) for number in range(200)}
    put(artifacts, {path: {"digest": artifacts.keep(some), "size": len(some)} for path, some in data.items()})
    errors: list[BaseException] = []

    def work() -> None:
        try:
            Api().artifact("p/evil").download(tmp_path / "target")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert {path: (tmp_path / "target" / path).read_bytes() for path in data} == data
    assert not list((tmp_path / "target").glob(f"{STAGING}*"))


def test_a_file_that_is_replaced_while_it_is_looked_at_is_downloaded(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Another download into the same folder puts the same bytes there, again and again, and one file goes."""
    target = tmp_path / "target"
    target.mkdir()
    data = os.urandom(4 << 20)
    put(artifacts, {"a": {"digest": artifacts.keep(data), "size": len(data)}})
    version, ended = Api().artifact("p/evil"), threading.Event()

    def replace() -> None:
        while not ended.is_set():
            (tmp_path / "draft").write_bytes(data)
            (tmp_path / "draft").rename(target / "a")

    other = threading.Thread(target=replace)
    other.start()
    try:
        for _ in range(8):
            version.download(target)
    finally:
        ended.set()
        other.join()

    assert (target / "a").read_bytes() == data
    gone = hash_files([str(tmp_path / "gone")], StatCache(tmp_path / "stats"), str(tmp_path), may_go=True)
    assert [file.digest for file in gone] == [""]
    with pytest.raises(UsageError, match="No such file"):
        hash_files([str(tmp_path / "gone")], StatCache(tmp_path / "stats"), str(tmp_path))


def test_a_file_that_is_there_with_these_bytes_is_left_alone(tmp_path: Path) -> None:
    """Another download has just put it there; other bytes, and a link to the same ones, are replaced."""
    with Target(tmp_path) as target, target.folder("") as folder:
        target.write(folder, "a", b"one")
        inode = (tmp_path / "a").stat().st_ino
        target.write(folder, "a", b"one")
        assert (tmp_path / "a").stat().st_ino == inode
        target.write(folder, "a", b"two")
        (tmp_path / "b").symlink_to("a")
        target.write(folder, "b", b"two")

    assert not (tmp_path / "b").is_symlink()
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [b"two", b"two"]


def test_a_folder_that_cannot_be_written_says_so(artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Here: a file where the folder should be."""
    (tmp_path / "target").write_bytes(b"")
    files(artifacts, "a")
    with pytest.raises(UsageError, match="folder"):
        Api().artifact("p/evil").download(tmp_path / "target")


# ---- the cache


def test_the_cache_stays_within_its_size(tmp_path: Path) -> None:
    """What was used longest ago goes first."""
    cache = BlobCache(tmp_path / "cache", 10_000)
    names = {number: hashlib.sha256(b"%d" % number).hexdigest() for number in range(20)}
    for number, digest in names.items():
        cache.add(digest, b"x" * 1000)
        os.utime(cache.path(digest), (number, number))
        cache.settle()
    held = {number for number, digest in names.items() if cache.has(digest)}

    assert cache.stat().bytes <= 10_000
    assert held
    assert min(held) > 5
    assert 19 in held
    assert cache.clear().files == len(held)
    assert cache.stat().files == 0


def test_the_caches_files_are_read_only_and_private(tmp_path: Path) -> None:
    """Nobody writes to them by accident, and nobody else reads them."""
    cache = BlobCache(tmp_path / "cache", 10_000)
    cache.add("ab" * 32, b"x")

    assert Path(cache.path("ab" * 32)).stat().st_mode & 0o777 == 0o400


def test_a_blob_that_would_push_out_the_rest_is_not_kept(tmp_path: Path) -> None:
    """And a cache of size 0 keeps nothing."""
    cache = BlobCache(tmp_path / "cache", 10_000)
    cache.add("ab" * 32, b"x" * 5000)
    BlobCache(tmp_path / "none", 0).add("ab" * 32, b"x")

    assert not cache.has("ab" * 32)
    assert everything(tmp_path) == set()
