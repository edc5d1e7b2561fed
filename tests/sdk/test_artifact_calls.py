"""Artifacts by the words that scripts have for them: what a run is logging, and functions of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import icecore
from artifact_server import ArtifactServer
from icecore.artifact import Artifact
from icecore.errors import UsageError
from icecore.run import Run


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
    Path("m.pt").write_bytes(b"third")
    run.log_artifact(other)
    with pytest.raises(UsageError, match="as it was"):
        run.use_artifact("net:latest")
    assert run.use_artifact("net:latest").version == "v0"


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
