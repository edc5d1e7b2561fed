"""Artifacts as a script uses them: logged, found again, downloaded, named, and changed by nobody in between."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

import icecore
from artifact_server import ArtifactServer
from icecore.api import Api
from icecore.artifact import Artifact
from icecore.errors import Conflict, IcecoreError, NotFound, UsageError
from icecore.run import Run
from icecore.transfer import PART_BYTES


@pytest.fixture
def run(artifacts: ArtifactServer) -> Iterator[Run]:
    with icecore.init(project="p", id="r1") as going:
        yield going


def folder_of(files: dict[str, bytes], where: str = "data") -> Path:
    root = Path(where)
    root.mkdir(exist_ok=True)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def tree(root: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def logged(run: Run, files: dict[str, bytes], name: str = "set", **more: object) -> Artifact:
    artifact = Artifact(name, type="dataset")
    artifact.add_dir(folder_of(files, f"of-{name}-{len(files)}"))
    return run.log_artifact(artifact, **more).wait()


def test_a_model_is_logged_and_comes_back(run: Run, artifacts: ArtifactServer) -> None:
    """A file with metadata becomes v0 with its names, and the same bytes are downloaded."""
    Path("m.pt").write_bytes(b"weights" * 1000)
    artifact = Artifact("bert", type="model", description="a model", metadata={"f1": 0.9, "by": {"host": "h"}})
    artifact.add_file("m.pt")
    assert artifact.name == "bert"
    assert artifact.state == "PENDING"
    run.log_artifact(artifact, aliases=["best"], tags=["big"])
    artifact.wait()

    assert (artifact.name, artifact.version) == ("bert:v0", "v0")
    assert artifact.qualified_name == "ada/p/bert:v0"
    assert set(artifact.aliases) == {"latest", "best"}
    assert (artifact.tags, artifact.state, artifact.size) == (["big"], "COMMITTED", 7000)
    found = run.use_artifact("bert:best", type="model")
    assert found.metadata == {"f1": 0.9, "by": {"host": "h"}}
    assert found.description == "a model"
    assert found.digest == artifact.digest
    folder = found.download()
    assert folder == str(Path("artifacts/bert:v0").absolute())
    assert tree(folder) == {"m.pt": b"weights" * 1000}
    found.verify()
    assert artifacts.uses == [("ada/p/bert", "v0", "ada/p/r1")]


def test_a_folder_keeps_its_shape(run: Run) -> None:
    """Nested, empty and unicode names, 0-byte files and empty folders come back as they were."""
    files = {"a.txt": b"1", "deep/er/b.bin": b"\0" * 300_000, "zero": b"", "año/ñ 😀.txt": b"u", ".hidden": b"h"}
    root = folder_of(files)
    (root / "nothing" / "here").mkdir(parents=True)
    artifact = Artifact("set", type="dataset")
    artifact.add_dir(root, name="raw")
    folder = run.log_artifact(artifact).wait().download("out")

    assert tree(folder) == {f"raw/{name}": data for name, data in files.items()}
    assert list((Path(folder) / "raw/nothing/here").iterdir()) == []
    assert sorted(file.path for file in artifact.files()) == sorted(f"raw/{name}" for name in files)


def test_names_in_another_unicode_form_are_one(run: Run) -> None:
    """A decomposed name is kept in NFC, and two files whose names differ in form only are refused."""
    decomposed = unicodedata.normalize("NFD", "é.txt")
    artifact = logged(run, {decomposed: b"1"})
    assert list(artifact.manifest) == ["é.txt"]
    assert artifact.get_entry(decomposed).size == 1

    with pytest.raises(UsageError, match="one file for"):
        Artifact("two", type="d").add_dir(folder_of({decomposed: b"1", "é.txt": b"2"}, "both"))


def test_the_same_again_is_the_same_version_and_sends_nothing(run: Run, artifacts: ArtifactServer) -> None:
    """Logging an unchanged folder asks for one digest and sends no blob."""
    files = {f"{number}.txt": str(number).encode() for number in range(500)}
    first = logged(run, files)
    artifacts.asked.clear()
    again = logged(run, files)

    assert (first.version, again.version) == ("v0", "v0")
    assert artifacts.count("POST blobs/pack") == artifacts.count("PUT blobs") == 0
    assert artifacts.sent("POST blobs/missing") < 200


def test_one_changed_file_sends_only_itself(run: Run, artifacts: ArtifactServer) -> None:
    """The next version sends the changed file and the manifest."""
    files = {f"{number}.txt": str(number).encode() * 100 for number in range(300)}
    logged(run, files)
    artifacts.asked.clear()
    changed = logged(run, {**files, "7.txt": b"changed"})
    manifest = len(artifacts.blobs[changed.digest])

    assert changed.version == "v1"
    assert artifacts.sent("POST blobs/pack") == len(b"changed") + manifest + 2 * 40


def test_a_large_file_goes_in_parts_and_a_killed_upload_goes_on(run: Run, artifacts: ArtifactServer) -> None:
    """Parts that are there already are not sent again."""
    data = os.urandom(PART_BYTES) * 2 + b"tail"
    Path("big.bin").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    artifacts.uploads[digest] = {
        "size": len(data),
        "part_size": PART_BYTES,
        "parts": {1: data[PART_BYTES : 2 * PART_BYTES]},
    }
    artifact = Artifact("big", type="model")
    artifact.add_file("big.bin")
    run.log_artifact(artifact).wait()

    assert artifacts.sent(f"PUT uploads/{digest}") == PART_BYTES + 4
    assert artifacts.blobs[digest] == data
    assert Path(artifact.download("out"), "big.bin").read_bytes() == data


def test_a_large_download_goes_on_where_it_was_cut(run: Run, artifacts: ArtifactServer, tmp_path: Path) -> None:
    """Parts fetched before are not fetched again, and the whole is checked."""
    data = os.urandom(PART_BYTES) * 3
    digest = artifacts.keep(data)
    Path("big.bin").write_bytes(data)
    artifact = Artifact("big", type="model")
    artifact.add_file("big.bin")
    run.log_artifact(artifact).wait()
    partial = tmp_path / "cache" / "partial"
    partial.mkdir(parents=True)
    (partial / digest).write_bytes(data[:PART_BYTES])
    (partial / f"{digest}.parts").write_text("0\n")
    artifacts.asked.clear()
    folder = artifact.download("out")

    assert tree(folder) == {"big.bin": data}
    assert artifacts.count(f"GET blobs/{digest}") == 2
    assert list(partial.iterdir()) == []


def test_answers_that_end_early_are_asked_for_again(run: Run, artifacts: ArtifactServer) -> None:
    """A cut answer and a busy server cost time, not files."""
    files = {f"{number}.bin": os.urandom(5000) for number in range(50)} | {"mid": os.urandom(400_000)}
    artifact = logged(run, files)
    artifacts.cut, artifacts.busy = 2, 2

    assert tree(artifact.download("out")) == files


def test_the_next_download_needs_no_network(run: Run, artifacts: ArtifactServer) -> None:
    """Files come from the cache, and a file of the cache that was changed is fetched again."""
    files = {f"{number}.bin": os.urandom(1000) for number in range(20)}
    artifact = logged(run, files)
    artifact.download("one")
    artifacts.asked.clear()
    artifact.download("two")
    assert artifacts.asked == []

    damaged = artifact.get_entry("3.bin").digest
    packs = artifact._here().downloader().cache.packs
    ((pack, (place,)),) = packs.find([damaged]).items()
    kept = packs.folder / pack
    kept.chmod(0o600)
    with kept.open("r+b") as file:
        file.seek(place.offset + 500)
        file.write(bytes([files["3.bin"][500] ^ 1]))
    assert tree(artifact.download("three")) == files
    assert artifacts.count(f"GET blobs/{damaged}") == 1


def test_what_is_written_in_a_download_changes_no_other(run: Run) -> None:
    """Writing to a downloaded file leaves the cache and other downloads as they are."""
    artifact = logged(run, {"a": b"old" * 100_000})
    first = Path(artifact.download("one"), "a")
    with first.open("r+b") as file:
        file.write(b"new")
    again = artifact.download("two")

    assert tree(again) == {"a": b"old" * 100_000}
    assert artifact.download("one") == str(first.parent)
    assert first.read_bytes() == b"old" * 100_000


def test_a_file_that_changes_before_it_is_sent_is_an_error(run: Run, artifacts: ArtifactServer) -> None:
    """The error names the file, nothing is stored of it, and the artifact can be mended."""
    path = Path("m.pt")
    path.write_bytes(b"one")
    artifact = Artifact("bert", type="model")
    artifact.add_file(path)
    path.write_bytes(b"other")
    with pytest.raises(UsageError, match=r"m\.pt as it was"):
        run.log_artifact(artifact).wait()
    assert artifacts.collections == {}
    artifact.remove("m.pt")
    artifact.add_file(path)

    assert run.log_artifact(artifact).wait().version == "v0"


def test_finish_tells_what_was_not_logged(artifacts: ArtifactServer) -> None:
    """A script that never waits ends with the error, once the run itself is finished."""
    path = Path("m.pt")
    path.write_bytes(b"one")
    artifact = Artifact("bert", type="model")
    artifact.add_file(path)
    path.write_bytes(b"other")
    run = icecore.init(project="p")
    run.log_artifact(artifact)
    with pytest.raises(UsageError, match="as it was"):
        run.finish()


def test_aliases_move_with_save(run: Run) -> None:
    """An alias that is appended names this version alone, and one taken off is gone unless somebody moved it."""
    logged(run, {"a": b"1"}, aliases=["production"])
    second = logged(run, {"a": b"2", "b": b""})
    second.aliases.append("production")
    second.save()
    assert run.use_artifact("set:production").version == "v1"
    assert run.use_artifact("set:v0").aliases == []
    second.aliases.remove("production")
    stale = run.use_artifact("set:production")
    second.save()
    with pytest.raises(NotFound):
        run.use_artifact("set:production")

    stale.aliases.remove("production")
    with pytest.raises(Conflict, match="found"):
        stale.save()


def test_words_are_changed_with_save(run: Run) -> None:
    """Description, metadata and tags that were changed are what the next reader sees."""
    artifact = logged(run, {"a": b"1"})
    artifact.metadata["f1"] = 0.7
    artifact.description, artifact.tags = "better", ["x"]
    artifact.save()
    found = Api().artifact("p/set")

    assert (found.metadata, found.description, found.tags) == ({"f1": 0.7}, "better", ["x"])


def test_a_new_draft_shares_the_files(run: Run, artifacts: ArtifactServer) -> None:
    """Files that stay are not read or sent again, and the draft becomes the next version."""
    logged(run, {"a": b"1" * 1000, "b": b"2"})
    draft = run.use_artifact("set").new_draft()
    draft.remove("b")
    with draft.new_file("notes/c.txt") as file:
        file.write("three")
    artifacts.asked.clear()
    run.log_artifact(draft).wait()

    assert draft.name == "set:v1"
    assert tree(draft.download("out")) == {"a": b"1" * 1000, "notes/c.txt": b"three"}
    assert artifacts.sent("POST blobs/pack") < 1000


def test_parts_of_an_artifact_are_downloaded(run: Run) -> None:
    """`path_prefix` takes a folder or a file, and an entry downloads itself."""
    artifact = logged(run, {"x/1": b"1", "x/2": b"2", "xy": b"3"})

    assert tree(artifact.download("one", path_prefix="x/")) == {"x/1": b"1", "x/2": b"2"}
    assert Path(artifact.get_entry("xy").download("two")).read_bytes() == b"3"
    assert tree("two") == {"xy": b"3"}
    with pytest.raises(NotFound, match="below"):
        artifact.download("three", path_prefix="z")


def test_verify_names_what_is_wrong(run: Run) -> None:
    """Missing, changed and foreign files are told; download mends the first two."""
    artifact = logged(run, {"a": b"1", "b": b"2"})
    folder = Path(artifact.download("out"))
    (folder / "a").write_bytes(b"x")
    with pytest.raises(UsageError, match="other bytes"):
        artifact.verify(folder)
    (folder / "a").unlink()
    with pytest.raises(UsageError, match="nothing"):
        artifact.verify(folder)
    artifact.download("out")
    artifact.verify(folder)
    (folder / "more").write_bytes(b"")
    with pytest.raises(UsageError, match="more"):
        artifact.verify(folder)


def test_links_inside_are_followed_and_outside_refused(run: Run, tmp_path: Path) -> None:
    """A link to a file or folder inside is its content; one that leads out, or back to itself, is an error."""
    root = folder_of({"real/a": b"1"})
    (root / "link").symlink_to("real")
    (root / "file").symlink_to("real/a")
    artifact = Artifact("set", type="d")
    artifact.add_dir(root)
    assert sorted(artifact.manifest) == ["file", "link/a", "real/a"]

    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    (root / "out").symlink_to(secret)
    with pytest.raises(UsageError, match="stay inside"):
        Artifact("set", type="d").add_dir(root)
    (root / "out").unlink()
    (root / "loop").symlink_to(".")
    with pytest.raises(UsageError, match="leads back"):
        Artifact("set", type="d").add_dir(root)


def test_what_is_no_file_is_refused(artifacts: ArtifactServer) -> None:
    """A pipe, a missing file, a folder given as a file and a file given as a folder are errors that say so."""
    root = folder_of({"a": b"1"})
    os.mkfifo(root / "pipe")
    with pytest.raises(UsageError, match="pipe"):
        Artifact("set", type="d").add_dir(root)
    with pytest.raises(UsageError, match="can be read"):
        Artifact("set", type="d").add_file("nowhere")
    with pytest.raises(UsageError, match="folder"):
        Artifact("set", type="d").add_file(root)
    with pytest.raises(UsageError, match="folder"):
        Artifact("set", type="d").add_dir(root / "a")


@pytest.mark.parametrize("name", ["../up", "/abs", "a\\b", "CON", "nul.txt", "a\0b", "C:x", "a//b", "."])
def test_names_that_no_one_could_download_are_not_added(artifacts: ArtifactServer, name: str) -> None:
    """Whoever adds a file learns of a bad name, not whoever downloads it."""
    Path("a").write_bytes(b"1")
    with pytest.raises(UsageError):
        Artifact("set", type="d").add_file("a", name=name)


def test_references_stay_where_they_are(run: Run, artifacts: ArtifactServer) -> None:
    """A local reference sends no bytes, is checked when downloaded, and S3 is told but not fetched."""
    root = folder_of({"a.csv": b"1,2", "b.csv": b"3"})
    artifact = Artifact("refs", type="dataset")
    artifact.add_reference(root.absolute().as_uri(), name="raw")
    artifact.add_reference("s3://bucket/x.bin", checksum="etag-1")
    run.log_artifact(artifact).wait()
    assert artifact.get_entry("x.bin").ref_target() == "s3://bucket/x.bin"
    assert artifact.size == 0
    assert tree(artifact.download("out", path_prefix="raw")) == {"raw/a.csv": b"1,2", "raw/b.csv": b"3"}
    with pytest.raises(UsageError, match=r"s3://.*allow_missing_references=True"):
        artifact.download("out")
    with pytest.raises(UsageError, match="checksum=False adds it"):
        Artifact("web", type="dataset").add_reference("http://127.0.0.1:9/x.csv")
    assert "x.bin" not in tree(artifact.download("out", allow_missing_references=True))

    (root / "a.csv").write_bytes(b"9,9")
    with pytest.raises(UsageError, match="other bytes"):
        artifact.download("new", path_prefix="raw/a.csv")
    assert tree("new") == {}


def test_lineage_knows_runs(run: Run) -> None:
    """`logged_by` and `used_by` are runs."""
    artifact = logged(run, {"a": b"1"})
    run.use_artifact("set:v0")
    made_by = artifact.logged_by()

    assert made_by.path == "ada/p/r1"
    assert [user.path for user in artifact.used_by()] == ["ada/p/r1"]


def test_delete_minds_aliases(run: Run) -> None:
    """A version with an alias is deleted only with it."""
    artifact = logged(run, {"a": b"1"}, aliases=["best"])
    with pytest.raises(Conflict):
        artifact.delete()
    artifact.delete(delete_aliases=True)

    assert artifact.state == "DELETED"


def test_api_finds_artifacts(run: Run) -> None:
    """Names resolve with parts left out, versions are listed newest first, and collections by project."""
    for number in range(5):
        logged(run, {"a": b"%d" % number, **{f"f{n}": b"" for n in range(number)}})
    api = Api(overrides={"project": "p"})

    names = ["set", "set:latest", "p/set:v4", "ada/p/set"]
    assert {api.artifact(name).qualified_name for name in names} == {"ada/p/set:v4"}
    assert [found.version for found in api.artifacts("dataset", "set", per_page=2)] == ["v4", "v3", "v2", "v1", "v0"]
    assert len(api.artifacts("dataset", "p/set")) == 5
    assert [found.name for found in api.artifact_collections("p")] == ["set"]
    assert api.artifact_types("p") == ["dataset"]
    (kind,) = api.artifact_types("p")
    assert (kind.name, [found.name for found in kind.collections()]) == ("dataset", ["set"])
    with pytest.raises(NotFound, match=r"got 'model' \(dataset\)"):
        api.artifact_type("model", "p")
    assert (api.artifact_exists("set:v4"), api.artifact_exists("set:v5")) == (True, False)
    assert api.artifact_exists("set", type="model") is False
    with pytest.raises(UsageError, match="of type"):
        api.artifact("set", type="model")
    with pytest.raises(NotFound):
        api.artifact("other")


def test_models_have_their_own_words(run: Run) -> None:
    """`log_model` and `use_model` log and fetch a file of type model."""
    Path("m.pt").write_bytes(b"w")
    run.log_model("m.pt", "net", aliases=["best"]).wait()

    assert Path(run.use_model("net:best")).read_bytes() == b"w"
    logged(run, {"a": b"1"})
    with pytest.raises(UsageError, match="model"):
        run.use_model("set")


def test_offline_says_that_artifacts_need_a_server(home: Path, tmp_path: Path) -> None:
    """Offline, nothing is dropped in silence."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    with icecore.init(project="p", mode="offline") as run:
        with pytest.raises(UsageError, match="offline"):
            run.log_artifact(str(path))
        with pytest.raises(UsageError, match="offline"):
            run.use_artifact("a")


def test_disabled_keeps_nothing(artifacts: ArtifactServer) -> None:
    """A disabled run logs no artifact, and says nothing."""
    Path("a").write_bytes(b"1")
    with icecore.init(project="p", mode="disabled") as run:
        artifact = run.log_artifact("a", type="d").wait()

    assert artifact.state == "PENDING"
    assert artifacts.asked == []


def test_logged_artifacts_do_not_change(run: Run) -> None:
    """Adding to a version is refused, with the way to the next."""
    artifact = logged(run, {"a": b"1"})
    with pytest.raises(UsageError, match="new_draft"):
        artifact.add_file("of-set-1/a", name="b")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Artifact("a/b", type="d"),
        lambda: Artifact("a:v1", type="d"),
        lambda: Artifact("a", type=""),
        lambda: Artifact("a", type="d", metadata=[1]),
        lambda: Artifact("a", type="d", metadata={"x": "y" * (1 << 21)}),
        lambda: Artifact("a", type="d", colour="red"),
        lambda: Artifact("a", type="d").version,
        lambda: Artifact("a", type="d").add_reference("ftp://x/y"),
        lambda: Artifact("a", type="d").remove("x"),
    ],
)
def test_wrong_calls_say_so(artifacts: ArtifactServer, make: object) -> None:
    """Each mistake is a UsageError."""
    with pytest.raises(UsageError, match="expected"):
        make()  # type: ignore[operator]


def test_a_server_that_refuses_is_heard(run: Run, artifacts: ArtifactServer) -> None:
    """A type other than the artifact's own is the server's Conflict, at wait."""
    logged(run, {"a": b"1"})
    other = Artifact("set", type="model")
    other.add_file("of-set-1/a", name="z")
    with pytest.raises(IcecoreError, match="expected a dataset"):
        run.log_artifact(other).wait()
