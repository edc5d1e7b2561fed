"""What deploy/ holds besides: Kubernetes manifests, a systemd unit, a dashboard; and what docs/deploy.md says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from e2e.compose_processes import COMPOSE, ROOT, image_environment, read_compose
from icecore_ingest.metric_defs import METRICS, MetricName

KUBERNETES = ROOT / "deploy/kubernetes"
SCHEMAS = json.loads((ROOT / "tests/e2e/kubernetes-schema.json").read_text("utf-8"))
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))
OBJECTS: list[dict[str, Any]] = [
    one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((KUBERNETES / name).read_text("utf-8"))
]
WORKLOADS = [one for one in OBJECTS if "template" in one.get("spec", {})]
COMPOSED = read_compose()


def named(one: dict[str, Any]) -> str:
    """An object as people say it: Kind/name."""
    return f"{one['kind']}/{one['metadata']['name']}"


def wrong_in(one: dict[str, Any]) -> list[str]:
    """What Kubernetes' own schema says against an object."""
    schema = {"$ref": f"#/$defs/{SCHEMAS['kinds'][one['kind']]}", "$defs": SCHEMAS["$defs"]}
    return [error.message for error in jsonschema_rs.validator_for(schema).iter_errors(one)]


def pod(one: dict[str, Any]) -> dict[str, Any]:
    """The pod that a workload makes."""
    made: dict[str, Any] = one["spec"]["template"]["spec"]
    return made


# ------------------------------------------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("one", OBJECTS, ids=named)
def test_kubernetes_takes_each_object(one: dict[str, Any]) -> None:
    """Each manifest is what Kubernetes 1.34 says an object of its kind may be, and no field is unknown to it."""
    assert wrong_in(one) == []


def test_kubernetes_schema_finds_what_is_wrong() -> None:
    """A misspelt field deep in a pod is found, so that the test above can fail."""
    (store,) = [one for one in WORKLOADS if one["kind"] == "StatefulSet"]
    wrong = json.loads(json.dumps(store))
    pod(wrong)["containers"][0]["readinesProbe"] = {}

    assert any("readinesProbe" in message for message in wrong_in(wrong))


def test_every_manifest_is_used() -> None:
    """The kustomization names every file of its folder, and kubectl, where it is installed, builds it whole."""
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}

    assert set(KUSTOMIZATION["resources"]) == files
    if shutil.which("kubectl"):
        built = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True, check=True).stdout
        made = [one for one in yaml.safe_load_all(built) if one["kind"] != "ConfigMap"]
        assert sorted(map(named, made)) == sorted(map(named, OBJECTS))
        assert {c["image"] for one in made if one in WORKLOADS for c in pod(one)["containers"]} <= {
            "registry.example.com/icecore:0.1.0"
        }


@pytest.mark.parametrize("one", WORKLOADS, ids=named)
def test_every_pod_meets_the_restricted_standard(one: dict[str, Any]) -> None:
    """Each pod runs as a user without rights, on a root folder it cannot write, within limits, and tokenless."""
    spec = pod(one)
    (container,) = spec["containers"]
    rights = container["securityContext"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert rights == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]
    if one["kind"] != "Job":
        assert all(container[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe"))


@pytest.mark.parametrize("one", WORKLOADS, ids=named)
def test_pods_are_told_what_the_compose_file_tells(one: dict[str, Any]) -> None:
    """A workload runs the command of the compose service of its part, with the variables that one sets."""
    part = one["metadata"]["labels"]["app.kubernetes.io/component"]
    service = COMPOSED["services"]["gateway-1" if part == "gateway" else part]
    (container,) = pod(one)["containers"]
    literals = KUSTOMIZATION["configMapGenerator"][0]["literals"]
    told = {entry["name"] for entry in container.get("env", [])} | {line.split("=")[0] for line in literals}

    assert container["args"] == service["command"]
    assert set(service["environment"]) <= told | set(image_environment())


def test_selectors_meet_their_pods() -> None:
    """Each service, budget and policy selects pods that some workload makes, and names a port they have."""
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in WORKLOADS]
    for one in OBJECTS:
        spec = one.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector and one not in WORKLOADS:
            wanted = selector.get("matchLabels", selector).items()
            assert any(wanted <= have.items() for have in labels), named(one)


def test_only_gateways_reach_the_store() -> None:
    """Of icecore's own pods a gateway alone may call the store, and whatever is not named may call nothing."""
    policies = {one["metadata"]["name"]: one["spec"] for one in OBJECTS if one["kind"] == "NetworkPolicy"}
    callers = [who["podSelector"] for who in policies["to-store"]["ingress"][0]["from"] if "podSelector" in who]

    assert "ingress" not in policies["nothing-in"]
    assert [caller["matchLabels"]["app.kubernetes.io/component"] for caller in callers] == ["gateway"]


# ----------------------------------------------------------------------------------------------------------- systemd


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Systemd finds nothing to say against the unit, and its command is one that icecore has."""
    text = (ROOT / "deploy/icecore.service").read_text("utf-8")
    (command,) = re.findall(r"^ExecStart=(\S+) (\S+) (.*)$", text, re.MULTILINE)
    help_text = subprocess.run(
        [sys.executable, "-m", "icecore", command[1], "--help"], capture_output=True, text=True, check=True
    ).stdout

    assert all(option in help_text for option in re.findall(r"--\w+", command[2]))
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "icecore.service"
        unit.write_text(text.replace(command[0], sys.executable), "utf-8")
        said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        assert (said.returncode, said.stderr) == (0, "")


# --------------------------------------------------------------------------------------------------------- dashboard

DASHBOARD = json.loads((ROOT / "deploy/grafana/icecore.json").read_text("utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
_PARTS = ("_bucket", "_sum", "_count")


def metrics_of(expression: str) -> Iterator[tuple[MetricName, str]]:
    """Each metric of ours that an expression names, with what is asked of a histogram."""
    for word in re.findall(r"\bicecore_\w+", re.sub(r'"[^"]*"', '""', expression)):
        part = next((end for end in _PARTS if word.endswith(end) and word not in METRICS), "")
        yield word.removesuffix(part), part


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_shows_what_there_is(expression: str) -> None:
    """Each expression names metrics and labels that icecore has, and asks of each kind what it can be asked."""
    found = list(metrics_of(expression))
    labels = {label for name, _ in found for label in METRICS[name].labels} | {"job", "instance", "le"}

    assert found or expression.startswith("sum(up{")
    for name, part in found:
        assert bool(part) == (METRICS[name].kind == "histogram"), name
        counted = METRICS[name].kind == "gauge" or re.search(rf"(rate|increase)\({name}{part}\[", expression)
        assert counted, f"{name} is a counter: its rate says something"
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", group)) <= labels


def test_the_dashboard_is_provisioned() -> None:
    """Grafana is given the dashboard, from the folder it looks in, and the source that its panels name."""
    grafana = COMPOSED["services"]["grafana"]
    source = yaml.safe_load((ROOT / "deploy/grafana/datasource.yaml").read_text("utf-8"))["datasources"][0]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provider.yaml").read_text("utf-8"))["providers"][0]
    mounted = [volume.split(":")[1] for volume in grafana["volumes"]]

    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert f"{provider['options']['path']}/icecore.json" in mounted
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted
    assert "prometheus:9090" in source["url"]


# ------------------------------------------------------------------------------------------------------ the document

DOCUMENT = (ROOT / "docs/deploy.md").read_text("utf-8")
COMMANDS = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.match(r"(icecore|docker compose)\b", line)])
def test_the_document_names_what_there_is(command: str) -> None:
    """Each command of docs/deploy.md is one of icecore's, with its options, or names services, files and profiles."""
    words = command.split()
    if words[0] == "icecore":
        names = [word for word in words[1:3] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
        shown = subprocess.run(
            [sys.executable, "-m", "icecore", *names, "--help"], capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        assert all(option in shown.stdout for option in re.findall(r"--[\w-]+", command))
        return
    check_compose(words[2:])


def check_compose(words: list[str]) -> None:
    """The words after `docker compose` name profiles, files and services that are there."""
    services = COMPOSED["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    while words[0] in {"--profile", "--env-file", "-f"}:
        option, value, *words = words
        assert value in profiles if option == "--profile" else (ROOT / value).is_file()
    verb, *rest = words

    assert verb in {"up", "build"}
    assert {word for word in rest if not word.startswith("-")} <= set(services)


def test_the_files_the_document_names_are_there() -> None:
    """Each path below deploy/ that the document or the compose file speaks of exists."""
    paths = set(re.findall(r"deploy/[\w./-]*\w", DOCUMENT + COMPOSE.read_text("utf-8"))) - {"deploy/deploy"}

    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists() and path != "deploy.md"] == []


def test_the_overlay_for_a_bucket_gives_the_store_its_way_out() -> None:
    """deploy/s3.yaml is a compose file, and changes nothing but where the store's bytes are."""
    overlay = yaml.safe_load((ROOT / "deploy/s3.yaml").read_text("utf-8"))
    schema = json.loads((ROOT / "tests/e2e/compose-spec.json").read_text("utf-8"))

    assert jsonschema_rs.is_valid({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"}, overlay)
    assert overlay["services"].keys() == {"store"}
    assert set(overlay["services"]["store"]["networks"]) == {*COMPOSED["services"]["store"]["networks"], "bucket"}
    assert set(overlay["services"]["store"]["environment"]) == {
        "ICECORE_BLOBS", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
    }  # fmt: skip
