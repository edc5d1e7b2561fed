"""From an evaluation to production and back, on the command line of a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from icecore.api import Api
from servers import Server, wait_until

NAME = "owner/promo/bert"

TRAIN = """
import sys
import icecore as wandb

with wandb.init(entity="owner", project="promo", job_type="train") as run:
    model = wandb.Artifact("bert", type="model", metadata={"f1": float(sys.argv[1])})
    with model.new_file("w") as file:
        file.write(sys.argv[1])
    run.log_artifact(model, aliases=["staging"])
"""

EVALUATE = """
import icecore as wandb

with wandb.init(entity="owner", project="promo", job_type="eval") as run:
    run.use_artifact("bert:staging").download()
    run.log({"acc": 0.7})
"""


def said(server: Server, *words: str) -> Any:
    """The JSON of a command."""
    return json.loads(server.cli(*words, "--json").stdout)


@contextmanager
def browser(server: Server) -> Iterator[httpx.Client]:
    """Another credential of the same person: a browser's session."""
    parts = urlsplit(server.login_url)
    token = parse_qs(parts.query or parts.fragment)["token"][0]
    with httpx.Client(base_url=server.url, timeout=30, headers={"Origin": server.url}) as client:
        client.post("/api/v1/login", json={"token": token}).raise_for_status()
        yield client


def test_a_model_goes_to_production_and_back(own_server: Server) -> None:
    """Evaluated, asked for, approved by another credential, seen at once, rolled back, and known as of then."""
    server = own_server
    api = Api(api_key=server.api_key, overrides={"url": server.url})
    server.run("python", "-c", TRAIN, "0.9")
    checks = ("metadata.f1 >= 0.85", "evaluated by eval with acc > 0.5", "approved")
    words = [word for check in checks for word in ("--check", "production", check)]
    said(server, "registry", "set", NAME, *words, "--stages", "staging,production", "--owner", "ann")
    assert "staging, production" in server.cli("registry", "show", NAME).stdout

    refused = server.cli("promote", f"{NAME}:staging", "--to", "production", "--dry-run", check=False)
    assert (refused.returncode, "NO  evaluated by a run with job_type eval" in refused.stdout) == (1, True)
    assert server.cli("promote", f"{NAME}:v0", "--to", "production", check=False).returncode == 1
    server.run("python", "-c", EVALUATE)

    def is_evaluated(version: str) -> bool:
        return api.registry(NAME).promote(version, "production", dry_run=True)["outcome"] == "waits"

    wait_until(lambda: is_evaluated("v0"), 20, "the summary of the evaluation")
    asked = said(server, "promote", f"{NAME}:v0", "--to", "production", "--reason", "f1 0.9")
    name = asked["promotion"]["promotion"]
    assert server.cli("promote", "approve", name, check=False).returncode == 1
    assert server.cli("alias", "move", f"{NAME}:production", "v0", check=False).returncode == 1
    with browser(server) as other:
        other.post(f"/api/v1/promotions/{name}/approve", json={"reason": "seen"}).raise_for_status()
        assert api.artifact(f"{NAME}:production").version == "v0"
        then = datetime.now(UTC)
        server.run("python", "-c", TRAIN, "0.95")
        server.run("python", "-c", EVALUATE)
        wait_until(lambda: is_evaluated("v1"), 20, "the summary of the evaluation")
        again = said(server, "promote", f"{NAME}:v1", "--to", "production")["promotion"]["promotion"]
        other.post(f"/api/v1/promotions/{again}/approve", json={}).raise_for_status()
        wait_until(lambda: api.artifact(f"{NAME}:production").version == "v1", 1.0, "the move, within a second")
        pinned = api.artifact(f"{NAME}:v0")

    back = server.cli("promote", "rollback", NAME, "--to", "production", "--reason", "bad").stdout
    assert back == f"{NAME}:production: v1 -> v0\n"
    listed = said(server, "promote", "list", NAME)["promotions"]
    assert [(one["state"], one["requested_by"]) for one in listed] == [("rolled_back", "owner"), ("applied", "owner")]
    moves = said(server, "alias", "history", f"{NAME}:production")["history"]
    assert [(move["before"], move["version"]) for move in moves] == [("v1", "v0"), ("v0", "v1"), (None, "v0")]
    assert moves[2]["reason"] == f"f1 0.9; promotion {name}; asked by owner; approved by owner"
    as_of = then.strftime("%Y-%m-%d %H:%M:%S.%f")
    shown = said(server, "artifact", "show", f"{NAME}:latest", "--as-of", as_of)
    assert (shown["version"], shown["aliases"]) == ("v0", ["latest", "production", "staging"])
    assert api.artifact(f"{NAME}:latest").version == "v1"
    assert pinned.version == "v0"


def test_a_second_key_approves_until_it_is_revoked(server: Server) -> None:
    """`icecore key create` is all that it takes; after `icecore key revoke` gateway and store refuse it at once."""
    server.run("python", "-c", TRAIN, "0.5")
    said(server, "registry", "set", NAME, "--check", "production", "approved")
    assert said(server, "promote", f"{NAME}:v0", "--to", "production")["outcome"] == "waits"
    assert server.cli("promote", "approve", f"{NAME}:v0", check=False).returncode == 1
    key = said(server, "key", "create", "reviewer")
    other = replace(server, api_key=key["key"])
    assert "owner/promo/bert:v0 to production: applied" in other.cli("promote", "approve", f"{NAME}:v0").stdout
    steps = said(server, "promote", "list", NAME)["promotions"][0]["steps"]
    assert len({step["credential"] for step in steps}) == 2

    def statuses() -> list[int]:
        headers = {"Authorization": f"Bearer {key['key']}"}
        asked = (("POST", "events"), ("GET", "viewer"))  # no events: the gateway refuses only their lack
        return [httpx.request(how, f"{server.url}/api/v1/{path}", headers=headers).status_code for how, path in asked]

    assert statuses() == [400, 200]
    server.cli("key", "revoke", "reviewer")
    assert statuses() == [401, 401]
    assert server.cli("key", "revoke", "reviewer", check=False).returncode == 5
