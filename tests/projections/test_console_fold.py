"""`console.logged` -> rows."""

from __future__ import annotations

import pytest

from icecore.errors import Invalid
from icecore.events import ConsoleLogged
from icecore_projections.folds.console import rows
from icecore_projections.schema import run_number


def said(run: str, *texts: str) -> ConsoleLogged:
    return ConsoleLogged(run=run, ts=list(range(len(texts))), stream=["stderr"] * len(texts), text=list(texts))


def test_lines_keep_their_event_their_number_and_their_text() -> None:
    """Every line is a row: its run, its record's offset, its place within it, and the text with its colours."""
    table = rows([(7, said("a/b/c", "one", "\x1b[31mtwo é")), (9, said("a/b/d", "three"))])
    assert table is not None
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (run_number("a/b/c"), 7, 0, 0, "stderr", "one"),
        (run_number("a/b/c"), 7, 1, 1, "stderr", "\x1b[31mtwo é"),
        (run_number("a/b/d"), 9, 0, 0, "stderr", "three"),
    ]


def test_events_without_lines_make_no_rows() -> None:
    """An empty event is fine, and nothing."""
    assert rows([(0, said("a/b/c"))]) is None


def test_columns_of_different_lengths_are_refused() -> None:
    """A line without a time or a stream is never guessed at."""
    with pytest.raises(Invalid, match="one length"):
        rows([(0, ConsoleLogged(run="a/b/c", ts=[1], stream=[], text=["x"]))])
