"""The house rules that a linter does not know."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"sdk/icecore", "ingest/icecore_ingest", "projections/icecore_projections", "api/icecore_api"}
TEST_ROOMS = {"sdk", "ingest", "projections", "api", "contract", "simulation", "faults", "e2e", "golden", "house"}
FUNCTION_LINES = 60
FILE_LINES = 500


def _tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [ROOT / line for line in listed if line and (ROOT / line).exists()]


PYTHON = _tracked("*.py")


def test_functions_are_short() -> None:
    """No function is longer than 60 lines."""
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {node.end_lineno - node.lineno + 1}"
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]

    assert long == []


def test_files_are_short() -> None:
    """No file of code is longer than 500 lines."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in PYTHON
        if (lines := path.read_text(encoding="utf-8").count("\n")) > FILE_LINES
    }

    assert long == {}


def test_folders_match_the_map() -> None:
    """Code lies in the four rooms, tests in their folders, and the outer folders are no packages."""
    for path in PYTHON:
        parts = path.relative_to(ROOT).parts
        if parts[0] in {"sdk", "ingest", "projections", "api"}:
            assert "/".join(parts[:2]) in ROOMS, path
        elif parts[0] == "tests" and len(parts) > 2:
            assert parts[1] in TEST_ROOMS, path
        else:
            assert parts[0] in {"tests", "benchmarks", "examples", "docs"}, path
    for outer in ("sdk", "ingest", "projections", "api"):
        assert not (ROOT / outer / "__init__.py").exists()


def test_no_module_is_dead() -> None:
    """Every module of the rooms is imported by another, or is an entry."""
    sources = {path: path.read_text(encoding="utf-8") for path in PYTHON}
    text = "\n".join(sources.values()) + (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dead = []
    for path in PYTHON:
        relative = path.relative_to(ROOT)
        if "/".join(relative.parts[:2]) not in ROOMS or path.name in {"__init__.py", "__main__.py"}:
            continue
        dotted = ".".join(relative.with_suffix("").parts[1:])
        package, _, module = dotted.rpartition(".")
        used = (
            re.search(rf"\b{re.escape(dotted)}\b", text)
            or re.search(rf"from {re.escape(package)} import \(?[^)]*\b{module}\b", text)
            or re.search(rf"from \.* ?import [^)\n]*\b{module}\b", text)
        )
        if not used:
            dead.append(str(relative))

    assert dead == []


def test_required_top_level() -> None:
    """The top level holds what every reader expects there."""
    for name in ("pyproject.toml", "ingest", "projections", "api", "sdk", "tests", "README.md", "GLOSSARY.md"):
        assert (ROOT / name).exists(), name
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE", "docs/decisions"):
        assert (ROOT / name).exists(), name
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("path", _tracked("tests/**/test_*.py", "tests/test_*.py"), ids=lambda p: p.stem)
def test_every_test_says_what_it_shows(path: Path) -> None:
    """A test's docstring is one sentence of behaviour."""
    silent = [
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert silent == []


def test_no_machine_is_named() -> None:
    """No tracked file names a machine's paths, a registry's host or a secret."""
    words = ("/" + "work/", "/" + "root/", "pypi" + ".org", "files.python" + "hosted", "BEGIN " + "PRIVATE KEY")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in _tracked()
        if path.suffix not in {".png", ".svg", ".db", ".parquet"}
        for word in words
        if word in path.read_text(encoding="utf-8", errors="ignore")
    ]

    assert found == []
