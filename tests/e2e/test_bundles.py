"""Links, registries, bundles and versions of several writers, as scripts and people use them with a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import icecore
from icecore.api import Api
from icecore.artifact import Artifact
from icecore.artifact_names import registry_name
from icecore.errors import Conflict, UsageError
from icecore.run import Run
from servers import Server


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run of a project of this test's own, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    told = {"URL": server.url, "API_KEY": server.api_key, "DIR": str(tmp_path / "icecore"), "ENTITY": "ann"}
    quiet = {"SILENT": "1", "CONSOLE": "off", "GIT": "0", "PACKAGES": "0", "SYSTEM_SECONDS": "0"}
    for name, value in {**told, **quiet, "ARTIFACT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(f"ICECORE_{name}", value)
    with icecore.init(project=f"p-{tmp_path.name}", id="r1", group="workers") as going:
        yield going


@pytest.fixture
def api(server: Server, run: Run) -> Api:
    del run
    return Api(api_key=server.api_key, overrides={"url": server.url})


def logged(run: Run, name: str, files: dict[str, str], kind: str = "dataset", **more: Any) -> Artifact:
    made = Artifact(name, type=kind)
    for path, text in files.items():
        with made.new_file(path) as file:
            file.write(text)
    return run.log_artifact(made, **more).wait()


def tree(folder: str) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_bundle_downloads_as_one_folder_and_keeps_its_parts(run: Run, server: Server) -> None:
    """Each part lies in its folder, also through a new process's eyes; what it pins is known and cannot be deleted."""
    images = logged(run, "imgs", {"a.png": "1", "deep/b.png": "2"})
    logged(run, "clip", {"w.pt": "3"}, "model", aliases=["prod"])
    bundle = icecore.Bundle("vqa", {"images": images, "model": "clip:prod"}, metadata={"k": 1})
    with pytest.raises(UsageError, match="bundle"):
        bundle.add_file(__file__)
    run.log_artifact(bundle, aliases=["staging"]).wait()
    found = run.use_artifact("vqa:staging")
    files = {"images/a.png": "1", "images/deep/b.png": "2", "model/w.pt": "3"}

    assert tree(bundle.download("by-who-logged-it")) == files
    assert {file.path for file in bundle.files()} == set(files)
    assert (found.type, found.version, found.metadata, found.digest) == ("bundle", "v0", {"k": 1}, bundle.digest)
    assert tree(found.download("out")) == files
    found.verify("out")
    assert tree(found.download("only", path_prefix="model")) == {"model/w.pt": "3"}
    assert found.parts["images"] == images.qualified_name
    assert found.part("model").name == "clip:v0"
    shown = server.cli("artifact", "show", bundle.qualified_name).stdout
    assert [line for line in ("latest, staging", f"images: {images.qualified_name}") if line not in shown] == []
    with pytest.raises(Conflict, match="vqa:v0"):
        images.delete(delete_aliases=True)
    assert run.log_artifact(found, aliases=["again"]).wait().version == "v0"
    found.delete(delete_aliases=True)
    images.delete(delete_aliases=True)
    with pytest.raises(Conflict, match="deleted"):
        run.log_artifact(icecore.Bundle("vqa", {"images": images})).wait()


def test_a_version_is_linked_into_a_registry(run: Run, api: Api, tmp_path: Path) -> None:
    """It has a number and aliases there and the same bytes, and knows where it came from; unlinking takes it out."""
    collection = f"registry/model/{tmp_path.name}"
    made = logged(run, "churn", {"w": "1"}, "model")
    linked = made.link(collection, aliases=["staging"])
    Path("m.bin").write_bytes(b"2")
    model = run.link_model("m.bin", tmp_path.name, aliases="production")

    assert (linked.qualified_name, linked.digest, linked.is_link) == (f"{collection}:v0", made.digest, True)
    assert (linked.source_name, linked.source_artifact.qualified_name) == ("churn:v0", made.qualified_name)
    assert (linked.source_entity, linked.source_project, linked.source_version) == ("ann", run.project, "v0")
    assert (made.is_link, made.source_artifact.qualified_name) == (False, made.qualified_name)
    assert model.qualified_name == f"{collection}:v1"
    found = api.registry(f"model/{tmp_path.name}")
    assert found.aliases == {"latest": "v1", "production": "v1", "staging": "v0"}
    assert tree(run.use_artifact(f"{collection}:staging").download("out")) == {"w": "1"}
    with pytest.raises(Conflict, match=collection):
        made.delete(delete_aliases=True)
    linked.unlink(delete_aliases=True)
    made.delete(delete_aliases=True)
    assert api.registry(collection).aliases == {"latest": "v1", "production": "v1"}
    with pytest.raises(UsageError, match="linked"):
        made.unlink()


def test_a_registry_is_set_up_and_promotes(run: Run, api: Api, tmp_path: Path) -> None:
    """Settings, card, checks, promotion and roll back, as objects."""
    model = logged(run, "net", {"w": "1"}, "model")
    found = api.create_registry(f"model/{tmp_path.name}", "model", required=["f1"], template="F1 {metadata.f1}")
    with pytest.raises(Conflict, match="f1"):
        found.link(model)
    model.metadata["f1"] = 0.9
    model.save()
    found.link(model)
    assert found.card() == "F1 0.9"
    found.set(checks={"production": ["metadata.f1 > 0.95"]}, owner="ann")
    assert found.promote("v0", "production", dry_run=True)["outcome"] == "refused"
    with pytest.raises(Conflict, match=r"found 0\.9"):
        found.promote("v0", "production")
    found.set(checks={"production": ["approved"]})
    waits = found.promote("v0", "production", "because")
    (promotion,) = found.promotions("requested")
    assert (waits["outcome"], promotion.version, promotion.reason) == ("waits", "v0", "because")
    promotion.reject("no")
    assert api.promotion(promotion.id).state == "rejected"
    found.set(checks={})
    assert found.promote("v0", "production")["outcome"] == "applied"
    assert found.artifact("production").version == "v0"
    assert f"registry/model/{tmp_path.name}" in [one.path for one in api.registries()]
    with pytest.raises(UsageError, match="nonsense"):
        found.set(nonsense=1)


def test_writers_of_one_version_may_be_killed(run: Run, server: Server, tmp_path: Path) -> None:
    """One that dies after it has sent its part, and one that sends it again, change nothing: the version is whole."""
    text = (
        "import os, signal, sys, icecore\n"
        f"run = icecore.init(project='{run.project}', group='workers')\n"
        "part = icecore.Artifact('big', type='dataset')\n"
        "with part.new_file(f'{sys.argv[1]}.txt') as file: file.write(sys.argv[1])\n"
        "run.upsert_artifact(part)\n"
        "print('sent', flush=True)\n"
        "if sys.argv[2:]: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**server.env(), **{name: value for name, value in os.environ.items() if name.startswith("ICECORE_")}}
    for words, status in ((["a", "die"], -signal.SIGKILL), (["a"], 0), (["b"], 0)):
        env["ICECORE_DIR"] = str(tmp_path / "-".join(words))
        command = [sys.executable, "-c", text, *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (status, "sent\n"), done.stderr
    made = run.finish_artifact(Artifact("big", type="dataset"), aliases=["whole"])
    assert (made.version, set(made.aliases)) == ("v0", {"latest", "whole"})
    assert tree(made.download("out")) == {"a.txt": "a", "b.txt": "b"}


def test_writers_that_disagree_are_named(run: Run) -> None:
    """Two contents of one path are a conflict that names the path and both; nothing is made."""
    for text in ("1", "2"):
        part = Artifact("clash", type="dataset")
        with part.new_file("same") as file:
            file.write(text)
        run.upsert_artifact(part, distributed_id="x")
    with pytest.raises(Conflict, match=r"'same'.*part.*part"):
        run.finish_artifact(Artifact("clash", type="dataset"), distributed_id="x")


def test_a_disabled_run_links_and_sends_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With mode="disabled" a script goes on, and gets its drafts back."""
    del run
    monkeypatch.setenv("ICECORE_URL", "http://127.0.0.1:1")
    icecore.finish()
    with icecore.init(mode="disabled", project="p") as quiet:
        draft = Artifact("net", type="model")
        assert quiet.link_artifact(draft, "registry/model/net") is draft
        assert quiet.upsert_artifact(draft, distributed_id="x") is draft
        assert quiet.finish_artifact(draft, distributed_id="x") is draft


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("churn", "registry/model/churn"),
        ("other/churn", "ann/other/churn"),
        ("registry/model/churn", "registry/model/churn"),
        ("wandb-registry-model/churn", "registry/model/churn"),
        ("team/wandb-registry-data/churn", "registry/data/churn"),
    ],
)
def test_a_collection_has_several_names(said: str, meant: str) -> None:
    """One name is of the type's registry, two are of the entity, and wandb's ways to say it are understood."""
    assert registry_name(said, "model", "ann").path == meant


@pytest.mark.parametrize("said", ["", "a/b/c/d", "/a", "a:v3"])
def test_a_name_that_is_no_collection_is_refused(said: str) -> None:
    """It is said, before anything is asked."""
    with pytest.raises(UsageError):
        registry_name(said, "model", "ann")
