"""`icecore key`: what is shown of keys, and which one a name means."""

from __future__ import annotations

import json
from typing import Any

import pytest

from answering import AnsweringServer, Reply, answering
from icecore.cli import run

KEYS = [("key_1", "ci", "active"), ("key_2", "ci", "active"), ("key_3", "me", "active"), ("key_4", "old", "revoked")]


def told(key_id: str, name: str, state: str) -> dict[str, Any]:
    times = {"created_at": "2026", "revoked_at": None if state == "active" else "2026"}
    return {"id": key_id, "name": name, "user": "owner", "state": state, "current": key_id == "key_3", **times}


def revoked(server: AnsweringServer) -> list[str]:
    return [asked.path for asked in server.asked if asked.method == "DELETE"]


def test_a_key_is_shown_alone_on_stdout_and_revoked_by_name_or_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So `KEY=$(icecore key create ci)` is the key; a name of several, or of none in force, revokes nothing."""
    with answering() as server:
        monkeypatch.setenv("ICECORE_URL", server.url)
        monkeypatch.setenv("ICECORE_API_KEY", "good")
        server.answers = {
            "GET keys": lambda _: Reply({"keys": [told(*key) for key in KEYS]}),
            "POST keys": lambda asked: Reply({**told("key_5", asked.body["name"], "active"), "key": "icecore-secret"}),
            **{f"DELETE keys/{key[0]}": lambda _, key=key: Reply(told(key[0], key[1], "revoked")) for key in KEYS},
        }
        assert run(["key", "create", "box"]) == 0
        said = capsys.readouterr()
        assert (said.out, "box is key_5" in said.err, "secret" in said.err) == ("icecore-secret\n", True, False)
        assert run(["key", "list"]) == 0
        listed = capsys.readouterr().out
        assert ("active, this one" in listed, "old" in listed) == (True, False)
        assert run(["key", "list", "--all", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["keys"]) == len(KEYS)
        assert [run(["key", "revoke", name]) for name in ("ci", "old", "none")] == [2, 5, 5]
        assert revoked(server) == []
        assert "key_1, key_2" in capsys.readouterr().err
        assert [run(["key", "revoke", name]) for name in ("key_2", "me")] == [0, 0]
        assert revoked(server) == ["keys/key_2", "keys/key_3"]
        assert capsys.readouterr().err.count("icecore login") == 1
