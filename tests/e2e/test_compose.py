"""compose.yaml is right, and what it starts works: its services as processes, a real broker, the real client."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from brokers import need_kafka
from e2e.compose_processes import (
    HAPROXY,
    ROOT,
    Processes,
    env_file,
    last_stage,
    read_compose,
)
from icecore_api.broker import Cluster
from icecore_ingest.identity import new_key
from icecore_ingest.metric_defs import METRICS
from servers import clean_env, wait_until

THREE = env_file(ROOT / "deploy/cluster.env")
SCHEMA = json.loads((ROOT / "tests/e2e/compose-spec.json").read_text("utf-8"))
COMPOSED = read_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
OWN = [name for name, service in SERVICES.items() if "build" in service]


# ------------------------------------------------------------------------------------------------------ as it is read


@pytest.mark.parametrize("variables", [{}, THREE], ids=["one broker", "three brokers"])
def test_the_file_is_a_compose_file(variables: Mapping[str, str]) -> None:
    """The Compose specification's own schema takes the file, whole, with one broker and with three."""
    schema = jsonschema_rs.validator_for({**SCHEMA, "$schema": "https://json-schema.org/draft/2020-12/schema"})

    assert [error.message for error in schema.iter_errors(read_compose(variables))] == []


def test_the_schema_finds_what_is_wrong() -> None:
    """A misspelt word of a service is an error of that schema, so that the test above can fail."""
    schema = jsonschema_rs.validator_for(SCHEMA)
    wrong = {"services": {"store": {**SERVICES["store"], "read_onyl": True}}}

    assert not schema.is_valid(wrong)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_and_without_rights(name: str) -> None:
    """Each service has a user that is not root, a root folder it cannot write, limits, and no rights to gain."""
    service = SERVICES[name]

    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(service[limit] for limit in ("mem_limit", "cpus", "pids_limit"))
    assert service["restart"] in {"unless-stopped", "on-failure:5"}
    assert service["healthcheck"].get("test") or (service["healthcheck"]["disable"] and service["restart"] != "always")
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service)
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []) if volume.startswith("."))
    assert re.search(r":[^:]*\d|:local$", service["image"]), "a version, not whatever is newest"


def test_only_the_proxy_and_the_pictures_have_doors_and_those_are_local() -> None:
    """Ports are on loopback unless somebody says otherwise, and brokers, gateways and store have none."""
    doors = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(doors) == {"proxy", "prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in doors.values() for port in ports)
    assert all(SERVICES[name]["networks"] == ["inside"] for name in ("store", "kafka-1", "kafka-2", "kafka-3"))
    assert COMPOSED["networks"]["inside"]["internal"] is True


def test_every_file_it_mounts_is_there_and_every_secret_is_not() -> None:
    """What the file mounts is in the repository; secrets are not, nor can they be added by accident."""
    mounted = [v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", []) if v.startswith(".")]
    files = [secret["file"] for secret in COMPOSED["secrets"].values()]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False)

    assert mounted
    assert all((ROOT / path).is_file() for path in mounted)
    assert ignored.stdout.split() == files


def test_the_image_runs_without_rights_and_tools() -> None:
    """The last stage has a user, a signal and a health check, installs nothing, and copies only what was built."""
    stage = dict(last_stage())
    copied = [rest for name, rest in last_stage() if name == "COPY"]
    runs = " ".join(rest for name, rest in last_stage() if name == "RUN")

    assert stage["USER"] == SERVICES["store"]["user"] == "10001:10001"
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert "/healthz" in stage["HEALTHCHECK"]
    assert copied == ["--from=build /opt/icecore /opt/icecore"]
    assert " install " not in runs.replace("install -d", "")


def test_the_image_is_made_of_hashed_versions_of_files_that_are_sent() -> None:
    """Every install of the Dockerfile checks hashes, and .dockerignore lets through each file it copies."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    sent = [line[1:].removesuffix("/*.txt") for line in _lines(".dockerignore") if line.startswith("!")]
    copied = [
        word
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    installs = [line for line in text.splitlines() if "pip install" in line]

    assert installs
    assert all("--require-hashes" in line or "--no-deps /dist/" in line for line in installs)
    assert set(copied) == set(sent)
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_the_versions_that_are_tested() -> None:
    """The image's locked versions are those that the tests run with, the server's own requirements among them."""
    image, tested = (
        set(re.findall(r"^\S+==\S+", (ROOT / f"requirements/{name}.txt").read_text("utf-8"), re.MULTILINE))
        for name in ("server", "dev")
    )
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["server"]
    names = {one.partition("==")[0] for one in image}

    assert image - tested == set()
    assert {re.split(r"[^\w-]", one)[0] for one in wanted} <= names


def _lines(name: str) -> list[str]:
    return (ROOT / name).read_text("utf-8").splitlines()


# ------------------------------------------------------------------------------------------------------ as it is run

ADDRESSES = {
    "NODE_ID",
    "PROCESS_ROLES",
    "CONTROLLER_QUORUM_VOTERS",
    "CONTROLLER_LISTENER_NAMES",
    "LISTENERS",
    "INTER_BROKER_LISTENER_NAME",
    "LISTENER_SECURITY_PROTOCOL_MAP",
    "ADVERTISED_LISTENERS",
    "LOG_DIRS",
    "HEAP_OPTS",
}
"""What the broker's image is told that differs where the broker is a process."""


def broker_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """The brokers' settings in compose.yaml, by Kafka's names for them, as the image derives them."""
    environment = read_compose(variables)["services"]["kafka-1"]["environment"]
    given = {name.removeprefix("KAFKA_"): str(value) for name, value in environment.items() if name != "CLUSTER_ID"}
    return {name.lower().replace("_", "."): value for name, value in given.items() if name not in ADDRESSES}


@dataclass
class Composed:
    """A running composition, and its owner's key."""

    processes: Processes
    brokers: Cluster
    key: str
    variables: Mapping[str, str]

    def accepted(self, gateway: str) -> int:
        """How many events a gateway has taken, by its own /metrics."""
        with urllib.request.urlopen(self.processes.url(gateway) + "/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(int(number) for number in re.findall(r"^icecore_events_total\{.*\} (\d+)$", text, re.MULTILINE))

    def status(self) -> dict[str, Any]:
        """What the server says of itself, through the proxy."""
        request = urllib.request.Request(
            self.processes.url("proxy") + "/api/v1/status", headers={"Authorization": f"Bearer {self.key}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def client(self, code: str, *words: str) -> subprocess.Popen[str]:
        """Start a client's script against the proxy."""
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            env=self.environment(),
            cwd=self.processes.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def environment(self) -> dict[str, str]:
        """A client's, who calls the proxy by a name and not by an address."""
        url = self.processes.url("proxy").replace("127.0.0.1", "localhost")
        folder = self.processes.folder / "client"
        return clean_env(folder, ICECORE_URL=url, ICECORE_API_KEY=self.key, ICECORE_DIR=str(folder))

    def said(self, client: subprocess.Popen[str]) -> str:
        """What a client's script printed; it must end well."""
        out, errors = client.communicate(timeout=180)
        assert client.returncode == 0, out + errors
        return out


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="one broker", marks=pytest.mark.slow),
        pytest.param(THREE, id="three brokers", marks=pytest.mark.slow),
    ],
)
def composed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """Everything that `docker compose up` starts, as processes."""
    need_kafka()
    folder, variables = tmp_path_factory.mktemp("compose"), request.param
    nodes = len(variables.get("KAFKA_VOTERS", "one").split(","))
    brokers = Cluster(folder / "kafka", nodes, settings=broker_settings(variables))
    key = "icecore-" + secrets.token_hex(24)
    try:
        brokers.start()
        kafka = {f"kafka-{number}:9092": at for number, at in enumerate(brokers.bootstrap.split(","), start=1)}
        with Processes(folder, kafka, variables, {"owner_key": key}) as processes:
            processes.up()
            yield Composed(processes, brokers, key, variables)
    finally:
        brokers.kill()


LOG = """
import sys, icecore
for name in sys.argv[1:]:
    with icecore.init(project="owner/composed", id=name, config={"name": name}) as run:
        for step in range(2_000):
            run.log({"loss": 1 / (step + 1), "step": float(step)})
"""
READ = """
import json, sys, icecore
run = icecore.Api().run("owner/composed/" + sys.argv[1])
print(json.dumps([run.state, [row["step"] for row in run.rows(["step"])]]))
"""


def read_back(composed: Composed, run: str) -> tuple[str, list[float]]:
    """A run's state, and the values of `step` in their order, as a client reads them once all is folded."""
    wait_until(lambda: composed.status()["lag"] == 0, 60, "a folded log")
    state, steps = json.loads(composed.said(composed.client(READ, run)))
    return state, steps


def test_a_real_broker_takes_the_settings(composed: Composed) -> None:
    """Each setting of compose.yaml's brokers is one that Kafka knows, and has the value given."""

    async def effective() -> dict[str, str]:
        admin = AIOKafkaAdminClient(bootstrap_servers=composed.brokers.bootstrap)
        await admin.start()
        try:
            answers = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")])
            return {entry[0]: entry[1] for answer in answers for one in answer.resources for entry in one[4]}
        finally:
            await admin.close()

    wanted, found = broker_settings(composed.variables), asyncio.run(effective())

    assert {name: found.get(name) for name in wanted} == wanted


def test_two_runs_go_through_both_gateways(composed: Composed) -> None:
    """A client logs two runs through the proxy; each gateway takes a part; every point is read back, once."""
    composed.said(composed.client(LOG, "first", "second"))

    assert read_back(composed, "first") == ("finished", [float(step) for step in range(2_000)])
    assert read_back(composed, "second") == ("finished", [float(step) for step in range(2_000)])
    if HAPROXY:  # the stand-in shares out connections, of which one client may have one
        assert all(composed.accepted(name) > 0 for name in ("gateway-1", "gateway-2"))


UNTIL = """
import pathlib, sys, time, icecore
with icecore.init(project="owner/composed", id=sys.argv[1]) as run:
    step = 0
    while not pathlib.Path(sys.argv[2]).exists():
        run.log({"step": float(step)})
        step += 1
        time.sleep(0.002)
print(step)
"""


def test_the_readme_way_works(composed: Composed, tmp_path: Path) -> None:
    """The README's lines for a cluster do what they say, the composition here standing for `docker compose up`."""
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    before, _, after = block.partition("docker compose up -d --wait")
    key = tmp_path / "secrets/owner-key"
    subprocess.run(["bash", "-euc", before], cwd=tmp_path, check=True)
    made = key.read_text("utf-8").strip()
    key.write_text(composed.key + "\n", "utf-8")  # the composition has another one already
    url = composed.environment()["ICECORE_URL"]
    login = (
        after.partition("\n")[2]
        .replace("http://localhost:8700", url)
        .replace("icecore ", f"{sys.executable} -m icecore ")
    )
    done = subprocess.run(
        ["bash", "-euc", login], cwd=tmp_path, env=clean_env(tmp_path), capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert new_key("owner", secret=made)[0] == made
    assert oct(key.parent.stat().st_mode & 0o777) == "0o700"


def test_prometheus_is_answered(composed: Composed) -> None:
    """Each target of deploy/prometheus.yml answers as Prometheus calls it; all our metrics are among the answers."""
    jobs = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    targets = {target for job in jobs for one in job["static_configs"] for target in one["targets"]}
    said = ""
    for target in targets - {"127.0.0.1:9090"}:
        url = composed.processes.url(target.partition(":")[0]) + "/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": target}), timeout=10) as answer:
            said += answer.read().decode()

    assert set(METRICS) <= set(re.findall(r"^# TYPE (\w+)", said, re.MULTILINE))


def test_a_killed_gateway_loses_nothing(composed: Composed) -> None:
    """One gateway is killed while a client logs: the other takes over, and every point is there once."""
    processes, enough = composed.processes, composed.processes.folder / f"enough-{secrets.token_hex(4)}"
    before = composed.accepted("gateway-1"), composed.accepted("gateway-2")
    client = composed.client(UNTIL, "killed", str(enough))
    try:
        wait_until(
            lambda: composed.accepted("gateway-1") + composed.accepted("gateway-2") > sum(before) + 5, 60, "events"
        )
        processes.kill("gateway-1")
        taken = composed.accepted("gateway-2")
        wait_until(lambda: composed.accepted("gateway-2") > taken + 5, 60, "events at the other gateway")
        processes.start("gateway-1")  # as `restart` has Compose do
        processes.wait("gateway-1")
    finally:
        enough.touch()
    steps = int(composed.said(client))

    assert steps > 0
    assert read_back(composed, "killed") == ("finished", [float(step) for step in range(steps)])


def test_the_outside_sees_no_metrics(composed: Composed) -> None:
    """The proxy keeps each process's own numbers to the inside, and does not answer for unknown names."""
    if not HAPROXY:
        pytest.skip("HAProxy is not installed here: its stand-in passes everything on")
    url = composed.processes.url("proxy")

    assert _status(url + "/metrics") == 404
    assert _status(url + "/healthz") == 200
    assert _status(url + "/healthz", Host="other.example") == 403


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return int(error.code)


def test_it_goes_down_and_up_again(composed: Composed) -> None:
    """Asked to stop, every service ends well in its time; started again, its volumes hold all that was logged."""
    composed.said(composed.client(LOG, "before"))
    codes = composed.processes.down()
    composed.processes.up()

    assert {name: code for name, code in codes.items() if code} == {}
    assert read_back(composed, "before")[1] == [float(step) for step in range(2_000)]


def test_the_proxy_says_try_again_where_no_gateway_is_left(composed: Composed) -> None:
    """Without any gateway the proxy answers 503 with Retry-After and an error like the gateways' own."""
    if not HAPROXY:
        pytest.skip("HAProxy is not installed here")
    processes = composed.processes
    for name in ("gateway-1", "gateway-2"):
        processes.kill(name)
    try:
        wait_until(lambda: _status(processes.url("proxy") + "/healthz") == 503, 30, "503")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(processes.url("proxy") + "/healthz", timeout=10)
    finally:
        for name in ("gateway-1", "gateway-2"):
            processes.start(name)
            processes.wait(name)

    assert refused.value.headers["retry-after"] == "1"
    assert json.loads(refused.value.read())["error"]["code"] == "unavailable"
