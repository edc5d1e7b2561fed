"""The surroundings of a client that logs and downloads."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact_server import ArtifactServer, serving_artifacts


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArtifactServer]:
    """A server of artifacts that the environment points at, an empty cache, and an empty folder to work in."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with serving_artifacts() as serving:
        for name, value in {
            "ICECORE_DIR": tmp_path / "icecore",
            "ICECORE_CONFIG_DIR": tmp_path / "config",
            "ICECORE_ENTITY": "ada",
            "ICECORE_SILENT": "1",
            "ICECORE_ARTIFACT_CACHE": tmp_path / "cache",
            "ICECORE_URL": serving.url,
            "ICECORE_API_KEY": "key",
        }.items():
            monkeypatch.setenv(name, str(value))
        yield serving
