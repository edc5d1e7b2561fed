"""Scripts that people have, with a real server: models, datasets, aliases, and who made what from what."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from icecore.api import Api
from servers import Server, wait_until

LOG_MODEL = """
import os, socket, time
import icecore as wandb

open("model.pt", "wb").write(b"weights " * 100_000)
with wandb.init(project="nlp", id="train-1", job_type="train") as run:
    artifact = wandb.Artifact(
        "bert-classifier", type="model", description="fine-tuned",
        metadata={"f1_score": 0.91, "user": "ann", "hostname": socket.gethostname(), "timestamp": time.time()},
    )
    artifact.add_file("model.pt")
    run.log_artifact(artifact, aliases=["best"])
    artifact.wait()
    print(artifact.name, artifact.qualified_name.split("/", 1)[1])
    artifact.aliases.append("production")
    artifact.save()
"""

USE_MODEL = """
import icecore as wandb

with wandb.init(project="nlp", id="serve-1", job_type="inference") as run:
    for name in ("bert-classifier:latest", "bert-classifier:v0", "bert-classifier:production"):
        artifact = run.use_artifact(name, type="model")
        folder = artifact.download()
        print(name, artifact.version, artifact.metadata["f1_score"], folder, len(open(folder + "/model.pt").read()))
"""

PREPROCESS = """
import os
import icecore as wandb

os.makedirs("desk/raw", exist_ok=True)
for number in range(2000):
    open(f"desk/raw/{number}.txt", "w").write(f"ticket {number}")
with wandb.init(project="desk", id="collect") as run:
    dataset = wandb.Artifact("desk-tickets", type="dataset")
    dataset.add_dir("desk/raw/")
    run.log_artifact(dataset)

with wandb.init(project="desk", id="clean", job_type="preprocess") as run:
    raw = run.use_artifact("desk-tickets:latest")
    folder = raw.download()
    assert len(os.listdir(folder)) == 2000
    clean = wandb.Artifact("desk-tickets-clean", type="dataset")
    with clean.new_file("all.txt") as file:
        for name in sorted(os.listdir(folder)):
            file.write(open(os.path.join(folder, name)).read() + "\\n")
    run.log_artifact(clean)
"""

CROSS = """
import icecore as wandb

open("base.pt", "wb").write(b"base")
with wandb.init(entity="team-a", project="pretraining") as run_a:
    run_a.log_model("base.pt", name="bert-base")
with wandb.init(entity="team-b", project="tuning", id="tuned") as run_b:
    folder = run_b.use_artifact("team-a/pretraining/bert-base:latest").download()
    print(open(folder + "/base.pt").read())
"""


@pytest.fixture(scope="module")
def api(server: Server) -> Api:
    return Api(api_key=server.api_key, overrides={"url": server.url})


def script(server: Server, text: str) -> str:
    cache = server.config_dir.parent / "artifact-cache"
    return server.run("python", "-c", text, ICECORE_ARTIFACT_CACHE=str(cache)).stdout


def test_a_model_is_logged_used_and_promoted(server: Server, api: Api) -> None:
    """By latest, by number and by production the same bytes come back, and both runs are known."""
    assert script(server, LOG_MODEL).split() == ["bert-classifier:v0", "nlp/bert-classifier:v0"]
    lines = [line.split() for line in script(server, USE_MODEL).splitlines()]
    found = api.artifact("nlp/bert-classifier:production")

    assert [line[1:3] for line in lines] == [["v0", "0.91"]] * 3
    assert all(line[3].endswith("artifacts/bert-classifier:v0") and line[4] == "800000" for line in lines)
    assert set(found.aliases) == {"latest", "best", "production"}
    assert found.logged_by().id == "train-1"
    assert [run.id for run in found.used_by()] == ["serve-1"]
    assert [
        one.version
        for one in api.artifacts("model", "nlp/bert-classifier", filters={"metadata.f1_score": {"$gt": 0.8}})
    ] == ["v0"]
    assert len(api.artifacts("model", "nlp/bert-classifier", filters={"metadata.f1_score": {"$gt": 0.95}})) == 0


def test_lineage_is_known_without_a_word(server: Server, api: Api) -> None:
    """The cleaned dataset came from the raw one, through the run that did it."""
    script(server, PREPROCESS)
    clean = api.artifact("desk/desk-tickets-clean")
    run = clean.logged_by()
    raw = api.artifact("desk/desk-tickets:v0")

    assert run.id == "clean"
    assert [user.id for user in raw.used_by()] == ["clean"]
    assert len(raw.files()) == 2000


def test_artifacts_cross_teams(server: Server) -> None:
    """A version is used where it is, by its full name."""
    assert script(server, CROSS).strip() == "base"


def test_many_commit_at_once(server: Server, api: Api, tmp_path: Path) -> None:
    """Eight processes log eight contents under one name: eight versions, each with its own bytes."""
    text = (
        "import sys, icecore\n"
        "with icecore.init(project='race') as run:\n"
        "    a = icecore.Artifact('one', type='d')\n"
        "    with a.new_file('n') as file: file.write(sys.argv[1])\n"
        "    print(sys.argv[1], run.log_artifact(a).wait().version)\n"
    )
    going = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(number)], env=server.env(), stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        for number in range(8)
    ]
    said = dict(process.communicate(timeout=120)[0].split() for process in going)

    assert sorted(said.values()) == [f"v{number}" for number in range(8)]
    for number, version in said.items():
        path = api.artifact(f"race/one:{version}").file(tmp_path / version)
        assert Path(path).read_text() == number


def test_a_killed_upload_goes_on(server: Server, api: Api, tmp_path: Path) -> None:
    """A kill -9 in the middle of a large file: nothing is visible, and the next attempt sends the rest."""
    data = random.Random(7).randbytes(1 << 20) * 200
    path = tmp_path / "big.bin"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    text = (
        "import sys, icecore\n"
        "with icecore.init(project='killed') as run:\n"
        "    print(run.log_artifact(sys.argv[1], name='big', type='d').wait().version)\n"
    )
    words = [sys.executable, "-c", text, str(path)]
    process = subprocess.Popen(words, env=server.env(), cwd=tmp_path, stdout=subprocess.PIPE)
    parts = wait_until(lambda: api.client.ask("GET", f"uploads/{digest}")["parts"], 60, "a part on the server")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert parts
    if not api.artifact_exists("killed/big"):
        assert api.client.ask("POST", "blobs/missing", body={"digests": [digest]})["missing"] == [digest]
    done = subprocess.run(
        words, env=server.env(), cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.split() == ["v0"]
    found = api.artifact("killed/big")
    assert Path(found.file(tmp_path / "out")).read_bytes() == data


def test_a_script_that_just_ends_has_logged(server: Server, api: Api) -> None:
    """Neither wait nor finish is needed: the end of the script waits; an exception ends the run, not the upload."""
    text = (
        "import icecore\n"
        "run = icecore.init(project='ends', id='plain')\n"
        "artifact = icecore.Artifact('many', type='d')\n"
        "for number in range(300):\n"
        "    with artifact.new_file(f'{number}.txt') as file: file.write(str(number) * 1000)\n"
        "run.log_artifact(artifact)\n"
        "import sys; sys.exit(3)\n"
    )
    done = server.run("python", "-c", text, check=False)

    assert done.returncode == 3, done.stderr
    assert "logged many:v0" in done.stderr, done.stderr
    assert len(api.artifact("ends/many:v0").files()) == 300
    assert api.run("ends/plain").exit_code == 3
