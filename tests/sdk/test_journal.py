"""What server processes say: one shape, levels, and Python's own logging in it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from icecore import journal
from icecore.errors import SettingsError


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    journal.begin("tests", {})
    root.handlers, root.level = handlers, level


def _said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_levels_and_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines below the level are not said; facts cannot take the place of the shape's own fields."""
    journal.begin("gateway", {"ICECORE_LOG_LEVEL": "Warning"})
    journal.say("quiet", "info")
    journal.say("loud", "error", number=1, ts="mine", odd={1: object})
    (line,) = _said(capsys)

    assert list(line) == ["ts", "level", "process", "what", "number", "odd"]
    assert (line["level"], line["process"], line["what"], line["number"]) == ("error", "gateway", "loud", 1)
    assert line["ts"].endswith("Z")
    assert line["ts"] != "mine"


def test_logging_comes_along(capsys: pytest.CaptureFixture[str]) -> None:
    """What our modules log is a line with its logger; libraries that say every retry are left out."""
    journal.begin("store", {})
    logging.getLogger("icecore_projections.runner").warning("folding is %s", "halted")
    logging.getLogger("aiokafka.conn").error("no broker")
    try:
        raise KeyError("hunter2")
    except KeyError:
        logging.getLogger("icecore.test").exception("it failed")
    first, second = _said(capsys)

    assert (first["what"], first["level"], first["logger"]) == (
        "folding is halted",
        "warning",
        "icecore_projections.runner",
    )
    assert (second["what"], second["level"], second["error"]) == ("it failed", "error", "KeyError")
    assert second["at"][-1].startswith("test_journal.py:")
    assert "hunter2" not in str(second)


def test_a_person_reads_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As text a line has the time, the process, the words and the facts."""
    journal.begin("store", {"ICECORE_LOG_FORMAT": "text"})
    journal.say("the owner was made", key_is_in="/data/owner-key", n=2)
    journal.say("bad", "warning")
    first, second = capsys.readouterr().err.splitlines()

    assert first[8:] == " store: the owner was made key_is_in=/data/owner-key n=2"
    assert second[8:] == " store: warning: bad"


def test_a_terminal_is_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stderr is a terminal lines are text, unless JSON is asked for."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for form, start in (("", "{"), ("json", "{")):
        stream = Terminal()
        monkeypatch.setattr("sys.stderr", stream)
        journal.begin("store", {"ICECORE_LOG_FORMAT": form})
        journal.say("hello")
        assert stream.getvalue().startswith(start) == (form == "json")


@pytest.mark.parametrize("name", ["ICECORE_LOG_LEVEL", "ICECORE_LOG_FORMAT"])
def test_nonsense_is_refused(name: str) -> None:
    """A level or form that is none is said by its variable."""
    with pytest.raises(SettingsError, match=name):
        journal.begin("store", {name: "loudly"})


def test_nobody_listening_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stderr is no reason to fail."""
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)

    journal.say("into the void", "error")
