"""The README's commands and code do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from servers import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def run_path(server: Server) -> str:
    """The run that the README's script makes."""
    done = server.run("python", "-c", blocks("python")[0] + "\nprint('path', run.path)")
    for block in blocks("python")[1:]:
        server.run("python", "-c", block)
    assert "finished 0.99" in done.stdout
    assert "train/loss" in done.stdout
    return done.stdout.split("path ")[-1].strip()


def icecore_commands() -> list[str]:
    """Every `icecore …` line of the command-line section."""
    lines = "\n".join(blocks("sh")).splitlines()
    return [
        line.split("#")[0].strip() for line in lines if line.startswith("icecore ") and line.strip() != "icecore up"
    ]


@pytest.mark.parametrize("command", icecore_commands())
def test_every_command_works(server: Server, run_path: str, command: str) -> None:
    """Each command line of the README ends well against a running server."""
    words = shlex.split(command.replace("owner/digits/RUN", run_path))

    assert server.cli(*words[1:]).returncode == 0


def test_the_make_targets_exist() -> None:
    """The two commands of the README are targets, and `make help` names them."""
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "make demo" in said
    assert "make test" in said


def test_make_demo_works(tmp_path: Path, server: Server) -> None:
    """`make demo` without a terminal trains, kills, resumes, syncs, shows the best with its lineage, and exits 0."""
    done = subprocess.run(
        [sys.executable, "-m", "icecore", "demo", "--data", str(tmp_path / "data")],
        env=server.env(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "each once" in done.stdout
    assert "val/accuracy" in done.stdout
    assert re.search(r"net:production: nothing -> v\d+", done.stdout)
    assert re.search(r"run prepare +\(preprocess", done.stdout), "the best model came from the data"
    assert "on the disk" in done.stdout
    advice = done.stdout.partition("What to try next")[2]
    assert f"icecore up --data {tmp_path / 'data'}" in advice, "the server ended with the demo"
    assert "/login#" not in advice, "nothing answers there any more"
