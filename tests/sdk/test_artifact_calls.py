"""Artifacts by the words that scripts have for them: what a run is logging, and functions of the package."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import icecore
from artifact_server import ArtifactServer
from icecore.artifact import Artifact
from icecore.artifact_home import Home
from icecore.errors import UsageError
from icecore.hashing import Held, LocalFile
from icecore.run import Run
from icecore.settings import Settings
from icecore.stat_cache import Stamp, StatCache
from icecore.uploads import Holding, Source


@pytest.fixture
def run(artifacts: ArtifactServer) -> Iterator[Run]:
    with icecore.init(project="p", id="r1") as going:
        yield going


def test_what_a_run_is_logging_can_be_used_by_it(run: Run, artifacts: ArtifactServer) -> None:
    """`use_artifact` waits for its own run's versions of that name, and says what was wrong with them, once."""
    artifacts.busy = 3
    Path("m.pt").write_bytes(b"weights")
    run.log_model("m.pt", "net")
    assert Path(run.use_model("net:latest")).read_bytes() == b"weights"
    other = Artifact("net", type="model")
    Path("m.pt").write_bytes(b"others")
    other.add_file("m.pt")
    Path("m.pt").write_bytes(b"third")  # before it is logged
    run.log_artifact(other)
    with pytest.raises(UsageError, match="as it was"):
        run.use_artifact("net:latest")
    assert run.use_artifact("net:latest").version == "v0"


def test_a_checkpoint_may_be_written_over_once_it_is_logged(run: Run, artifacts: ArtifactServer) -> None:
    """Each version has the bytes of its time; what is too much to be held must stay until it is sent."""
    path = Path("model.pt")
    for epoch in range(5):
        path.write_bytes(b"epoch %d" % epoch)
        checkpoint = Artifact("net", type="model")
        checkpoint.add_file(path)
        run.log_artifact(checkpoint)
    for epoch in range(5):
        folder = run.use_artifact(f"net:v{epoch}").download(f"v{epoch}")
        assert Path(folder, "model.pt").read_bytes() == b"epoch %d" % epoch


def test_memory_for_what_is_to_be_sent_is_bounded(tmp_path: Path) -> None:
    """Files are held while there is room for all of an upload's, and give their room back."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    file = LocalFile(str(path), Stamp.of(path.stat()), digest)
    first, second = {digest: Source(digest, 7, file)}, {digest: Source(digest, 7, file)}
    holding = Holding(most=7)

    assert (holding.hold(first), holding.hold(second)) == (7, 0)
    path.write_bytes(b"other")
    assert first[digest].whole() == b"weights"
    with pytest.raises(UsageError, match="5 bytes instead of 7"):
        second[digest].whole()
    holding.let_go(7)
    assert holding.hold(second) == 7


def hashed_long_ago(paths: list[Path]) -> None:
    """As if these files had been hashed when they had been left alone for long."""
    where = Home(Settings.load()).settings.artifact_cache / "stat.db"
    cache = StatCache(where)
    old = Stamp(0, 1, 1, 0)
    cache.remember((str(path), old, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)
    with closing(sqlite3.connect(where)) as db, db:
        rows = [(*Stamp.of(path.stat()), os.fsencode(path)) for path in paths]
        db.executemany("UPDATE files SET size = ?, mtime = ?, ctime = ?, inode = ? WHERE path = ?", rows)


@pytest.mark.parametrize("lacks", ["none", "one", "all"])
def test_files_hashed_before_are_sent_only_where_the_server_lacks_them(
    run: Run, artifacts: ArtifactServer, lacks: str
) -> None:
    """It is asked about some of them; one that is not there in spite of that is sent once the commit names it."""
    folder = Path("many").resolve()
    folder.mkdir()
    paths = [folder / f"{number}" for number in range(1500)]
    contents = {path: b"content of %s" % path.name.encode() for path in paths}
    for path, content in contents.items():
        path.write_bytes(content)
        if lacks != "all":
            artifacts.keep(content)
    hashed_long_ago(paths)
    if lacks == "one":
        # the last one that a look into the folder finds is among those that are not asked about
        artifacts.blobs.pop(hashlib.sha256(contents[list(folder.iterdir())[-1]]).hexdigest())
    artifact = Artifact("many", type="dataset")
    artifact.add_dir(folder)

    assert run.log_artifact(artifact).wait().version == "v0"
    assert {hashlib.sha256(content).hexdigest() for content in contents.values()} <= artifacts.blobs.keys()
    asked = artifacts.sent("POST blobs/missing") // 67
    assert (1000 <= asked < 1100) if lacks == "none" else asked >= 1500


def test_files_of_a_folder_are_sent_as_they_were_added(run: Run, artifacts: ArtifactServer) -> None:
    """Small ones are in memory since then, within a bound, whatever becomes of them."""
    folder = Path("many")
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}").write_bytes(b"%d" % number)
    artifact = Artifact("many", type="dataset")
    artifact.add_dir(folder)
    (folder / "7").write_bytes(b"other")
    assert Path(run.log_artifact(artifact).wait().download("out"), "7").read_bytes() == b"7"

    held = Held(most=3)
    for data in (b"ab", b"cd", b"e"):
        held.keep(data.hex(), data)
    assert [held.take(data.hex()) for data in (b"ab", b"cd", b"e", b"e")] == [b"ab", None, b"e", None]


def test_functions_of_the_package_speak_of_the_current_run(run: Run, artifacts: ArtifactServer) -> None:
    """`wandb.log_artifact` and the like are the run's; without a run they say what to call first."""
    Path("m.pt").write_bytes(b"w")
    icecore.log_artifact("m.pt", name="file", type="data").wait()
    icecore.log_model("m.pt", "net", aliases=["best"])
    assert icecore.use_artifact("file:latest", type="data").version == "v0"
    assert Path(icecore.use_model("net:best")).read_bytes() == b"w"
    assert [used.rpartition("/")[2] for *_, used in artifacts.uses] == [run.id, run.id]
    icecore.finish()
    with pytest.raises(UsageError, match=r"icecore\.use_model\(\), got none"):
        icecore.use_model("net:best")
