"""Names that others chose are shown on a terminal without steering it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from answering import AnsweringServer, Reply, answering
from icecore.cli import run
from icecore.cli.output import clean

EVIL = "in\u202evoice\u2066gpj.exe"
SHOWN = r"in\u202evoice\u2066gpj.exe"
VERSION = {
    "path": f"e/p/{EVIL}", "version": "v0", "type": EVIL, "aliases": [EVIL], "state": "committed", "description": EVIL,
    "metadata": {EVIL: EVIL}, "tags": [EVIL], "files": 1, "size": 1, "digest": "0", "parts": {EVIL: EVIL},
    "sources": [], "run": EVIL, "user": EVIL, "created_at": "2026", "updated_at": "2026",
}  # fmt: skip
LISTED = {
    "path": f"e/p/{EVIL}",
    "name": EVIL,
    "type": EVIL,
    "versions": 1,
    "aliases": {EVIL: "v0"},
    "created_at": "2026",
}
COLLECTION = {
    **LISTED, "description": EVIL, "tags": [EVIL], "owner": EVIL, "stages": [EVIL], "required": [EVIL],
    "checks": {EVIL: [EVIL]}, "template": EVIL, "card": f"# {EVIL}\n{EVIL}", "version": "v0", "open": [], "user": EVIL,
}  # fmt: skip
KEY = {"id": "k", "name": EVIL, "user": EVIL, "state": "active", "created_at": "", "revoked_at": "", "current": True}
ANSWERS = {
    "GET artifacts/e/p": {"artifacts": [LISTED]},
    "GET artifacts/e/p/x": {"versions": [VERSION], "cursor": None},
    "PUT artifacts/e/p/x/aliases/a": {"before": EVIL, "version": EVIL},
    "GET registry": {"collections": [COLLECTION]},
    "GET registry/e/p/x": COLLECTION,
    "PATCH registry/e/p/x": COLLECTION,
    "POST registry/e/p/x/links": VERSION,
    "GET holds": {"holds": [{"hold": EVIL, "scope": EVIL, "reason": EVIL, "user": EVIL, "at": "2026"}]},
    "DELETE artifacts/e/p/x/v0": VERSION,
    "GET keys": {"keys": [KEY]},
}
COMMANDS = [
    ["artifacts", "e/p"],
    ["artifact", "versions", "e/p/x"],
    ["registry", "list"],
    ["registry", "show", "e/p/x"],
    ["registry", "set", "e/p/x", "--owner", "o"],
    ["registry", "link", f"e/p/{EVIL}:v0", "e/p/x"],
    ["artifact", "delete", "e/p/x:v0"],
    ["key", "list"],
    ["artifact", "delete", "e/p/x:v1"],
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[AnsweringServer]:
    with answering() as state:
        monkeypatch.setenv("ICECORE_URL", state.url)
        monkeypatch.setenv("ICECORE_API_KEY", "good")
        state.answers = {at: lambda _, body=body: Reply(body) for at, body in ANSWERS.items()}
        refused = {"error": {"code": "conflict", "message": f"kept by {EVIL}", "hint": EVIL}}
        state.answers["DELETE artifacts/e/p/x/v1"] = lambda _: Reply(refused, 409)
        yield state


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.usefixtures("server")
def test_no_name_turns_text_around(capsys: pytest.CaptureFixture[str], as_json: list[str]) -> None:
    """Tables, sentences, errors and JSON show the numbers of characters that would; JSON still says the same."""
    for words in COMMANDS:
        run([*words, *as_json])
        said = capsys.readouterr()
        assert not {"\u202e", "\u2066"} & {*said.out, *said.err}, words
        assert SHOWN in said.out or SHOWN in said.err, words
        if as_json:
            assert EVIL in json.dumps(json.loads(said.out), ensure_ascii=False)


def test_what_is_read_from_right_to_left_stays() -> None:
    """Letters of every language are as they were; what breaks a line or hides its order is shown as a number."""
    assert clean("שלום مرحبا 数据 é\u200d") == "שלום مرحبا 数据 é\u200d"
    assert clean("a\u2028b\u200fc\u061cd\x1b[2Je") == r"a\u2028b\u200fc\u061cde"
