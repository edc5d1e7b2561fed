"""The scripts under examples/ run as they are, against a real server."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from icecore.api import Api
from servers import Server

EXAMPLES = Path(__file__).parents[2] / "examples"

LOG_RUNS = """
import icecore as wandb
for number in range(3):
    config = {"learning_rate": 10.0 ** -number, "batch_size": 16}
    with wandb.init(project="username/text-classifier", config=config, name=f"run-{number}") as run:
        for step in range(20):
            run.log({"train/loss": 1 / (step + 1), "val/loss": 2 / (step + 1), "val/f1": number / 10 + step / 1000})
"""


@pytest.fixture(scope="module")
def api(server: Server) -> Api:
    return Api(api_key=server.api_key, overrides={"url": server.url})


def test_start_runs(server: Server, api: Api) -> None:
    """Groups, tags, notes and `team/project` land where they are looked for."""
    server.run("python", str(EXAMPLES / "start_runs.py"))
    (run,) = api.runs("text-classifier", filters={"group": "ablation-study"})
    other = api.runs("team-a/pretraining", order="-created_at")[0]  # other tests work there, too

    assert run.tags == ["bert", "lr-sweep", "bug-fix"]
    assert run.notes == "Testing if dropout=0.3 fixes overfitting"
    assert run.entity == api.viewer
    assert (other.job_type, other.state) == ("train", "finished")
    assert run.state == "finished"
    assert run.metadata["program"].endswith("start_runs.py")


def test_compare_runs(server: Server) -> None:
    """The best run is printed first, with its config and minutes, then the head of a history."""
    server.run("python", "-c", LOG_RUNS)
    out = server.run("python", str(EXAMPLES / "compare_runs.py")).stdout
    lines = out.splitlines()

    assert lines[0].split() == ["name", "learning_rate", "batch_size", "val_f1", "runtime_minutes"]
    assert [line.split()[1] for line in lines[1:4]] == ["run-2", "run-1", "run-0"]
    assert lines[1].split()[2:5] == ["0.01", "16", "0.219"]
    assert lines[4].split() == ["_step", "_timestamp", "_runtime", "train/loss", "val/loss"]
    assert len(lines) == 10
    assert lines[5].split()[1] == "0"


def test_sklearn_sweep(server: Server, api: Api) -> None:
    """Each model of the sweep is a run with its loss curve, and the best is found by its score."""
    out = server.run("python", "-W", "ignore", str(EXAMPLES / "sklearn_sweep.py")).stdout
    runs = api.runs("digits-sweep")
    best = re.search(r"best: (\S+) with learning rate (\S+)", out)

    assert len(runs) == 3
    assert best is not None
    assert best[1] == max(runs, key=lambda run: run.summary["test/accuracy"]).name
    assert runs[0].history(keys=["train/loss"], samples=None)["train/loss"].between(0, 10).sum() == 15
    assert runs[0].config["MLPClassifier"]["learning_rate_init"] == 0.1


def test_keras_loop(server: Server, api: Api) -> None:
    """The Keras training's epochs and every tenth batch are its history."""
    server.run("python", str(EXAMPLES / "keras_loop.py"), KERAS_BACKEND="jax")
    (run,) = api.runs("keras-loop")
    history = run.history(samples=None)

    assert history["epoch/epoch"].dropna().tolist() == [0, 1, 2]
    assert history["batch/batch_step"].dropna().tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    assert run.summary["epoch/val_accuracy"] > 0.3


def test_what_a_run_prints_and_measures_can_be_read(server: Server, api: Api) -> None:
    """Console output of Python, C code and children, the machine's metrics and the facts reach the server."""
    script = (
        "import os, icecore\n"
        "run = icecore.init(project='captured', settings={'system_seconds': 0.05})\n"
        "print('from python'); os.system('echo from a child'); run.log({'a': 1}); run.finish()\n"
    )
    server.run("python", "-c", script)
    (run,) = api.runs("captured")
    system = run.history(stream="system", samples=None)

    assert {"host", "packages", "command", "cpu_count_logical"} <= run.metadata.keys()
    assert len(system) >= 1
    assert system["process.rss_bytes"].iloc[-1] > 1e6
    console = server.cli("console", run.path).stdout
    assert [line for line in console.splitlines() if line.startswith("from")] == ["from python", "from a child"]


def test_a_process_reads_what_it_has_logged(server: Server) -> None:
    """Directly after finish, Api shows the run with all its points."""
    script = (
        "import icecore\n"
        "for number in range(5):\n"
        "    with icecore.init(project='own-writes') as run:\n"
        "        for step in range(100): run.log({'x': step})\n"
        "    found = icecore.Api().run(f'own-writes/{run.id}')\n"
        "    assert found.state == 'finished', found.state\n"
        "    assert len(found.history(samples=None)) == 100\n"
        "    assert found.summary['x'] == 99\n"
    )
    server.run("python", "-c", script)


def test_changes_through_the_api(server: Server, api: Api) -> None:
    """Name, tags, config and summary changed through Api are what the next reader sees; a deleted run is gone."""
    server.run("python", "-c", "import icecore; icecore.init(project='changed', config={'a': 1, 'b': 2}).log({'x': 1})")
    (run,) = api.runs("changed")
    run.name, run.tags, run.notes = "renamed", ["best"], "noted"
    run.config["c"] = {"d": 3}
    del run.config["a"]
    run.summary["final"] = 0.5
    run.update()
    (again,) = Api(api_key=server.api_key, overrides={"url": server.url}).runs("changed", {"tags": "best"})

    assert (again.name, again.notes) == ("renamed", "noted")
    assert again.config == {"b": 2, "c": {"d": 3}}
    assert (again.summary["final"], again.summary["x"]) == (0.5, 1)
    run.delete()
    assert len(api.runs("changed")) == 0
    run.restore()
    assert len(api.runs("changed")) == 1


def test_exports_hold_every_point(server: Server, api: Api, tmp_path: Path) -> None:
    """Every format of `history --out` has every row, NaN and infinities included."""
    script = (
        "import icecore, math\n"
        "run = icecore.init(project='exported', id='whole')\n"
        "for step in range(1000): run.log({'x': step, 'odd': [math.nan, math.inf, -math.inf, 0.5][step % 4]})\n"
    )
    server.run("python", "-c", script)
    path = f"{api.default_entity}/exported/whole"
    for kind in ("parquet", "csv", "arrow", "json", "jsonl"):
        server.cli("history", path, "--out", str(tmp_path / f"h.{kind}"))
    frame = api.run(path).history(samples=None)
    parquet = pd.read_parquet(tmp_path / "h.parquet")

    assert parquet["x"].tolist() == frame["x"].tolist() == list(range(1000))
    assert parquet["odd"].isna().sum() == frame["odd"].isna().sum() == 250
    assert frame["odd"].tolist()[1:4] == [float("inf"), float("-inf"), 0.5]
    assert len(pd.read_csv(tmp_path / "h.csv")) == 1000
    assert (tmp_path / "h.jsonl").read_bytes().count(b"\n") == 1000
    assert (tmp_path / "h.arrow").stat().st_size > 16_000
    assert not list(tmp_path.glob(".*"))
