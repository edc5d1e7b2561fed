"""What is shipped: the wheel installs, and the client works alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_SCRIPT = """
import sys
import icecore
run = icecore.init(project="wheel", mode="offline")
run.log({"loss": 0.5})
run.finish()
server = {"duckdb", "pyarrow", "fastapi", "uvicorn", "numpy", "icecore_api.app", "pandas"} & set(sys.modules)
assert not server, server
print("logged", run.path)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_holds_the_four_packages(built: Path) -> None:
    """The wheel holds the four packages and the built web files, and nothing of the tests."""
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()

    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"icecore", "icecore_ingest", "icecore_projections", "icecore_api"}
    assert "icecore/py.typed" in names
    assert any(name.endswith("web/index.html") for name in names)


def test_the_sdist_holds_the_sources(built: Path) -> None:
    """The sdist holds the sources, the licence and the README."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {"LICENSE", "README.md", "pyproject.toml", "sdk/icecore/events.py"} <= names


def test_the_client_works_alone(built: Path, tmp_path: Path) -> None:
    """In an empty environment a script logs with the client alone, and `icecore up` says what is missing."""
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    wheel = next(built.glob("*.whl"))
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, wheel], check=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ICECORE_", "PYTHONPATH"))}
    env |= {"ICECORE_DIR": str(tmp_path / "spool"), "ICECORE_CONFIG_DIR": str(tmp_path / "config")}

    script = subprocess.run([python, "-c", _SCRIPT], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert script.returncode == 0, script.stderr
    assert "logged" in script.stdout
    up = subprocess.run([tmp_path / "env/bin/icecore", "up"], env=env, capture_output=True, text=True, check=False)
    assert up.returncode != 0
    assert "icecore[server]" in up.stderr
