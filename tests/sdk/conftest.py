"""A client's surroundings: its own folders, no capture, and a server that remembers."""

import pytest

from artifact_server import serving_artifacts
from icecore.testing.server import RecordingServer


@pytest.fixture
def home(tmp_path, monkeypatch):
    """ICECORE_DIR, with everything else of the environment set so that a test sees only what it logs."""
    for name, value in {
        "ICECORE_DIR": tmp_path / "icecore",
        "ICECORE_CONFIG_DIR": tmp_path / "config",
        "ICECORE_ENTITY": "ada",
        "ICECORE_SILENT": "1",
        "ICECORE_CONSOLE": "off",
        "ICECORE_GIT": "0",
        "ICECORE_METADATA": "0",
        "ICECORE_PACKAGES": "0",
        "ICECORE_SYSTEM_SECONDS": "0",
        "ICECORE_FINISH_TIMEOUT": "30",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("ICECORE_RUN_ID", raising=False)
    return tmp_path / "icecore"


@pytest.fixture
def server(home, monkeypatch):
    """A recording server that the environment points at."""
    with RecordingServer() as recording:
        monkeypatch.setenv("ICECORE_URL", recording.url)
        monkeypatch.setenv("ICECORE_API_KEY", recording.key)
        yield recording


@pytest.fixture
def artifacts(home, tmp_path, monkeypatch):
    """A server of artifacts that the environment points at, an empty cache, and an empty folder to work in."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ICECORE_ARTIFACT_CACHE", str(tmp_path / "cache"))
    with serving_artifacts() as serving:
        monkeypatch.setenv("ICECORE_URL", serving.url)
        monkeypatch.setenv("ICECORE_API_KEY", "key")
        yield serving
