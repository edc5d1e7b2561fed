"""The scripts about artifacts under examples/ run as they are, and the command line says what they did."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from icecore.api import Api
from servers import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def api(server: Server) -> Api:
    return Api(api_key=server.api_key, overrides={"url": server.url})


def example(server: Server, name: str) -> str:
    """What an example prints."""
    cache = server.config_dir.parent / "artifact-cache"
    return server.run("python", str(EXAMPLES / name), ICECORE_ARTIFACT_CACHE=str(cache)).stdout


def test_log_models(server: Server, api: Api) -> None:
    """Four versions, of which production is the best; each name gives its bytes, and all but one expire."""
    lines = example(server, "log_models.py").splitlines()
    found = api.artifact("text-classifier/bert-classifier:production")

    assert [line.split()[:3] for line in lines[:3]] == [
        ["bert-classifier:latest", "v3", "0.91"],
        ["bert-classifier:v3", "v3", "0.91"],
        ["bert-classifier:production", "v3", "0.91"],
    ]
    assert lines[3:] == ["used: bert-classifier:v3", "good ones: v3 v2 v1"]
    assert found.ttl is not None
    assert found.ttl.days == 7
    assert {"user", "hostname", "timestamp", "commit"} <= found.metadata.keys()


def test_clean_tickets(server: Server, api: Api) -> None:
    """The tuned model came from the raw tickets and from another team's model, as far as the graph goes."""
    said = example(server, "clean_tickets.py")
    graph = api.lineage("tickets/bert-tickets:v0", direction="up")

    assert "came from support-tickets:v0: True" in said
    assert re.search(r"way: support-tickets:v0 -> \S+ -> support-tickets-clean:v0 -> \S+ -> bert-tickets:v0", said)
    assert said.startswith("flowchart LR\n")
    assert "team-a/pretraining/bert-base:v0" in {node.id for node in graph.nodes}
    assert {node.group for node in graph.nodes if node.kind == "run"} == {"collect", "preprocess", "train"}


def test_model_workflow(server: Server, api: Api) -> None:
    """What is in production is the first model; the difference to what is in staging says why that one is worse."""
    said = example(server, "model_workflow.py")

    assert "model:v3 is in production: f1 0.9" in said
    assert "model:v7 stays in staging" in said
    assert "checkpoints of that run: model:v0 model:v1 model:v2 model:v3" in said
    assert re.search(r"input +customers +v0 -> v1", said)
    assert re.search(r"config +lr +0.1 -> 0.02", said)
    assert re.search(r"metadata +rows +400 -> 80", said)
    assert api.artifact("churn/model:production").version == "v3"


def test_the_command_line_tells_lineage_diff_and_impact(server: Server, tmp_path: Path) -> None:
    """Of what the workflow did: trees, drawings, differences, and what a bad dataset would hurt."""
    tree = server.cli("artifact", "lineage", "churn/model:production").stdout
    assert server.cli("artifact", "lineage", "churn/model:production", "--up", "--down").stdout == tree
    server.cli("artifact", "lineage", "churn/model:production", "--format", "svg", "--out", str(tmp_path / "l.svg"))
    drawn = ET.parse(tmp_path / "l.svg").getroot()
    way = json.loads(server.cli("artifact", "lineage", "churn/model:v3", "--to", "customers:v0", "--json").stdout)
    differs = json.loads(server.cli("artifact", "diff", "churn/model:v3", ":v7", "--lineage", "--json").stdout)
    hurt = json.loads(server.cli("artifact", "impact", "churn/customers:v0", "--json").stdout)
    told = server.cli("artifact", "impact", "churn/customers:v0").stdout

    assert "made from" in tree
    assert "customers:v0" in tree
    assert any("model:v3" in (text.text or "") for text in drawn.iter() if text.tag.endswith("text"))
    assert [node["kind"] for node in way["nodes"]] == ["version", "run", "version"]
    assert [one["artifact"].rpartition("/")[2] for one in differs["lineage"]["inputs"]] == ["customers"]
    assert differs["lineage"]["inputs"][0]["differs"]["metadata"]["rows"] == {"before": 400, "after": 80}
    assert differs["lineage"]["config"]["lr"] == {"before": 0.1, "after": 0.02}
    assert [one["alias"] for one in hurt["served_by"]] == ["production"]
    assert (hurt["runs_count"], hurt["versions_count"]) == (2, 4)
    assert "production" in told
