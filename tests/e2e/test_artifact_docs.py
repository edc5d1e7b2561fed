"""What docs/artifacts.md shows is run: each section's Python, `icecore` lines and scripts, in their order."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from servers import Server

TEXT = (Path(__file__).parents[2] / "docs" / "artifacts.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_does_what_it_shows(server: Server, title: str) -> None:
    """Its scripts and commands end well, in their order, against a running server."""
    cache = str(server.config_dir.parent / "artifact-cache")
    shown = re.findall(r"^```(python|sh|bash)\n(.*?)^```", SECTIONS[title], re.MULTILINE | re.DOTALL)
    assert shown
    for language, block in shown:
        if language == "python":
            server.run("python", "-c", block, ICECORE_ARTIFACT_CACHE=cache)
            continue
        if language == "bash":
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            server.run("bash", "-euc", block, ICECORE_ARTIFACT_CACHE=cache, PATH=path)
            continue
        lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
        commands = [words[1:] for words in lines if words[:1] == ["icecore"]]
        assert commands
        # in one process, since starting is most of what a command takes
        text = f"from icecore.cli import run\nfor words in {commands!r}:\n    assert run(words) == 0, words\n"
        server.run("python", "-c", text, ICECORE_ARTIFACT_CACHE=cache)
