"""`icecore artifact parts`: what several writers sent, and taking some of it back."""

from __future__ import annotations

import json

import pytest

from answering import Reply, answering
from icecore.cli import run


def test_a_part_is_taken_back_by_the_beginning_of_its_digest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It must be that of one part: none is "not found", several are refused, and nothing is sent."""
    listed = [{"manifest": digest * 32, "run": "e/p/r"} for digest in ("ab", "ac")]
    with answering() as server:
        monkeypatch.setenv("ICECORE_URL", server.url)
        monkeypatch.setenv("ICECORE_API_KEY", "good")
        server.answers = {
            "GET parts/e/p/x/epoch%205": lambda _: Reply({"distributed_id": "epoch 5", "parts": listed}),
            "DELETE parts/e/p/x/epoch%205": lambda asked: Reply({"manifest": asked.query["part"], "parts": 1}),
        }
        words = ["artifact", "parts", "e/p/x", "epoch 5"]
        assert run(words) == 0
        assert "ab" * 32 in capsys.readouterr().out
        assert [run([*words, "--withdraw", text]) for text in ("x", "a")] == [5, 2]
        assert {asked.method for asked in server.asked} == {"GET"}
        capsys.readouterr()
        assert run([*words, "--withdraw", "ab", "--reason", "old", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["manifest"] == "ab" * 32
        assert server.asked[-1].query["reason"] == "old"
