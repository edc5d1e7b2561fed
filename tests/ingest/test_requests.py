"""What every request has around it: an id, a line where something is wrong, and a last resort."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from icecore import journal
from icecore.errors import SettingsError
from icecore_ingest.answers import Message, Receive, Scope, Send, answer
from icecore_ingest.requests import Requests, Watched


@pytest.fixture(autouse=True)
def said(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The lines said so far, at level warning and above; afterwards the process is as it was."""
    journal.begin("tests", {"ICECORE_LOG_LEVEL": "warning"})
    yield lambda: [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    journal.begin("tests", {})


async def _ask(app: Any, watched: Watched, *headers: tuple[bytes, bytes]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/a", "query_string": b"key=secret", "headers": [*headers]}
    await Requests(app, watched)(scope, receive, send)
    return sent


async def _fails(_scope: Scope, _receive: Receive, _send: Send) -> None:
    password = "hunter2"
    raise ValueError(password)


async def _works(scope: Scope, _receive: Receive, send: Send) -> None:
    heard = dict(scope["headers"])[b"x-request-id"]
    await answer(send, 200, b"{}", ((b"x-request-id", b"the application's own"), (b"heard", heard)))


def test_a_fault_is_told_by_an_id(said: Any) -> None:
    """The client learns an id and nothing else; the line with that id says where it happened, and no value."""
    failed: list[int] = []
    watched = Watched(failed=lambda: failed.append(1))
    head, body = asyncio.run(_ask(_fails, watched, (b"x-request-id", b"abc")))

    assert head["status"] == 500
    assert (b"x-request-id", b"abc") in head["headers"]
    error = orjson.loads(body["body"])["error"]
    assert (error["code"], error["request_id"]) == ("internal", "abc")
    lines = said()
    fault = next(line for line in lines if line["what"] == "internal error")
    assert (fault["level"], fault["process"], fault["request"], fault["error"]) == (
        "error",
        "tests",
        "abc",
        "ValueError",
    )
    assert fault["at"][-1].startswith("test_requests.py:")
    assert "hunter2" not in str(lines)
    assert failed == [1]


@pytest.mark.parametrize("bad", [b"", b"a b", b"x" * 65, b"caf\xe9", b'"><script>', b"a\x1bb"])
def test_what_may_not_stand_in_a_log_is_replaced(bad: bytes) -> None:
    """An id that is empty, long or odd gives way to one of ours; the application and the client see that one."""
    head, _ = asyncio.run(_ask(_works, Watched(), (b"x-request-id", bad)))
    ids = [value for name, value in head["headers"] if name in {b"x-request-id", b"heard"}]

    assert len(ids) == 2
    assert ids[0] == ids[1] != bad
    assert len(ids[0]) == 16


def test_slow_requests_are_said_without_their_query(said: Any) -> None:
    """A request slower than the setting is a warning; a quick one is none."""
    asyncio.run(_ask(_works, Watched(slow_s=10)))
    assert said() == []

    asyncio.run(_ask(_works, Watched(slow_s=-1)))
    (line,) = said()
    assert (line["what"], line["path"], line["status"]) == ("slow request", "/a", 200)
    assert "secret" not in str(line)


def test_the_slow_setting_is_a_number() -> None:
    """ICECORE_SLOW_SECONDS is read, and nonsense is refused by name."""
    assert Watched.of({"ICECORE_SLOW_SECONDS": "0.25"}).slow_s == 0.25
    with pytest.raises(SettingsError, match="ICECORE_SLOW_SECONDS"):
        Watched.of({"ICECORE_SLOW_SECONDS": "soon"})
