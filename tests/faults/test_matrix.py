"""docs/reliability.md names, for every fault, a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reliability.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
CONCERNS_US = {*range(1, 29), *range(33, 40), 42, 43, 44}
"""Rows of the matrix about client, gateway, log, worker and store."""


def rows() -> dict[int, str]:
    """The matrix: what is said of each fault."""
    found = re.findall(r"^\| (\d+) \|[^|]*\|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(number): text.strip() for number, text in found}


def test_every_fault_has_a_test_or_a_reason() -> None:
    """Each row about a part that we have names a test, or says in a sentence why there is none."""
    table = rows()

    assert table.keys() == CONCERNS_US
    assert [n for n, text in table.items() if not NAMED.search(text) and not text.startswith("None: ")] == []


def test_every_named_test_exists() -> None:
    """A test that the page names is a function in that file."""
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))
    missing = []
    for file, name in set(named):
        path = ROOT / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{file}::{name}")

    assert len(named) > 40
    assert missing == []


def test_every_drill_is_on_the_page() -> None:
    """What is done to the cluster is written down, each drill in the page's table."""
    page = PAGE.read_text(encoding="utf-8")
    tests = [
        f"{path.relative_to(ROOT)}::{node.name}"
        for path in Path(__file__).parent.glob("test_cluster_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]

    assert len(tests) > 10
    assert [test for test in tests if f"`{test}`" not in page] == []
