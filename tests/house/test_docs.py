"""Documents say what the code does."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from servers import Server

ROOT = Path(__file__).parents[2]


def test_made_documents_are_true() -> None:
    """docs/events.md, limits.md, settings.md and cli.md are what the code makes of them."""
    made = subprocess.run(
        [sys.executable, ROOT / "docs/made.py", "--check"], capture_output=True, text=True, check=False
    )

    assert made.returncode == 0, made.stderr


WALK_NAMES = {
    "Run.log": "icecore.run:Run.log",
    "spool.append": "icecore.spool:Spool.append",
    "admit": "icecore_ingest.admit:admit",
    "EventLog.append": "icecore.log:EventLog.append",
    "Runner.step": "icecore_projections.runner:Runner.step",
    "metrics.fold": "icecore_projections.folds.metrics:fold",
    "Store.commit": "icecore_projections.store:Store.commit",
    "Store.wait": "icecore_projections.store:Store.wait",
    "runs.fold": "icecore_projections.folds.runs:fold",
}


@pytest.mark.parametrize("name", WALK_NAMES)
def test_the_walks_exist(name: str) -> None:
    """Every name on the walks of ARCHITECTURE.md is a name in the code."""
    module, _, attribute = WALK_NAMES[name].partition(":")
    thing = importlib.import_module(module)
    for part in attribute.split("."):
        thing = getattr(thing, part)

    assert callable(thing)
    assert f"`{name}`" in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    """Every relative link in a Markdown file names a file that exists."""
    broken = [
        f"{path.relative_to(ROOT)} -> {target}"
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]

    assert broken == []


def test_the_request_of_the_events_page_works(server: Server) -> None:
    """The shell lines of docs/events.md send an event, and the run is there."""
    (lines,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/events.md").read_text(encoding="utf-8"), re.DOTALL)
    done = server.run("bash", "-c", lines)

    assert '"token"' in done.stdout
    assert server.cli("run", "owner/hello/r1", "--json").returncode == 0
