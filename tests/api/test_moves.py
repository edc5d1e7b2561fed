"""The commands that move a log, as real processes: cut off, beside a server, and back again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokers import Kafka
from histories import append, sample, to_records
from icecore.position import METRICS
from icecore.testing.appender import make_record
from icecore_ingest.logs.copying import compare
from icecore_ingest.logs.opening import open_log
from icecore_ingest.logs.sqlite import SQLiteLog
from servers import Server, clean_env, running_server, wait_until

KILLS = 5
TRAIN = """
import icecore, sys
run = icecore.init(project="moves", id=sys.argv[1], resume="allow")
for step in range(int(sys.argv[2])):
    run.log({"loss": 1 / (step + 1)}, step=step)
run.finish()
"""
IMPATIENT = "import os; os.environ['ICECORE_FINISH_TIMEOUT'] = '0.5'"
TRAIN_ON = """
import icecore, pathlib, sys, time
run = icecore.init(project="moves", id=sys.argv[1])
step = 0
while not pathlib.Path(sys.argv[2]).exists():
    run.log({"loss": 1 / (step + 1)}, step=step)
    step += 1
    time.sleep(0.001)
for _ in range(10):
    run.log({"loss": 0.0}, step=1_000_000)
run.finish()
"""


def run(work: Any) -> Any:
    return asyncio.run(work)


def icecore(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "icecore", *arguments],
        env=clean_env(folder / "config"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def large(folder: Path) -> None:
    """A log of real events and some thousand others of many keys."""
    log = SQLiteLog.open(folder)
    await append(log, to_records(sample(steps=100)))
    for part in range(10):
        await log.append(METRICS, [make_record(f"k{n % 23}", part * 1_000 + n, b"x" * 900) for n in range(1_000)])
    await log.close()


async def records_in(where: str) -> int:
    with contextlib.suppress(Exception):
        log = await open_log(where, readonly=True)
        try:
            return sum((await log.end()).as_dict().values())
        finally:
            await log.close()
    return 0


def copy_with_kills(folder: Path, source: str, target: str) -> dict[str, Any]:
    """Copy in processes that are killed once they have written some more; then one that may end."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    command = [sys.executable, "-m", "icecore", "log", "copy", "--from", source, "--to", target, "--json"]
    for _ in range(KILLS):
        before = run(records_in(target))
        with subprocess.Popen(command, env=clean_env(folder / "config"), stdout=subprocess.DEVNULL) as process:
            wait_until(lambda b=before, p=process: run(records_in(target)) > b or p.poll() is not None, 60)
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
    done = icecore(folder, *command[3:])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def same(source: str, target: str) -> bool:
    one, other = await open_log(source, readonly=True), await open_log(target, readonly=True)
    try:
        return (await compare(one, other)).matches
    finally:
        await one.close()
        await other.close()


@pytest.mark.slow
def test_a_copy_that_is_killed(tmp_path: Path) -> None:
    """Killed again and again, `icecore log copy` ends with every record once, and says so."""
    run(large(tmp_path / "log"))
    target = f"sqlite://{tmp_path / 'new/log'}"
    found = copy_with_kills(tmp_path, str(tmp_path / "log"), target)

    assert found["matches"]
    assert found["source"] == found["target"]
    assert run(same(str(tmp_path / "log"), target))


@pytest.mark.slow
def test_a_copy_to_kafka_that_is_killed(tmp_path: Path, broker: Kafka) -> None:
    """The same into a real Kafka, whose topics the command makes, and from there back into files."""
    run(large(tmp_path / "log"))
    source = str(tmp_path / "log")
    kafka = f"kafka://{broker.bootstrap}?prefix=moves-{time.time_ns()}&partitions=4&single_replica=1"
    there = copy_with_kills(tmp_path, source, kafka)
    back = copy_with_kills(tmp_path, kafka, str(tmp_path / "back"))

    assert there["matches"]
    assert back["matches"]
    assert there["source"] == back["target"]
    assert run(same(source, str(tmp_path / "back")))
    done = icecore(tmp_path, "backup", str(tmp_path / "backup"), "--log", kafka, "--json")
    assert json.loads(done.stdout)["records"] == there["target"]["records"]
    assert icecore(tmp_path, "restore", str(tmp_path / "backup"), "--data", str(tmp_path / "data")).returncode == 0
    assert run(same(source, str(tmp_path / "data/log")))


def test_a_served_log_is_no_target(tmp_path: Path, server: Server) -> None:
    """A copy into the log of a running server is refused, and so is one into a log with other records."""
    run(large(tmp_path / "log"))
    served = icecore(tmp_path, "log", "copy", "--from", str(tmp_path / "log"), "--to", str(server.data / "log"))
    assert served.returncode == 6
    assert "serves it" in served.stderr
    other = SQLiteLog.open(tmp_path / "other")
    run(append(other, to_records(sample(steps=3))))
    run(other.close())
    refused = icecore(tmp_path, "log", "copy", "--from", str(tmp_path / "log"), "--to", str(tmp_path / "other"))
    assert refused.returncode == 1
    assert "nothing but records of the source" in refused.stderr
    (tmp_path / "data").mkdir()
    (tmp_path / "other").rename(tmp_path / "data/log")
    different = icecore(
        tmp_path, "log", "copy", "--from", str(tmp_path / "log"), "--to", str(tmp_path / "data"), "--verify"
    )
    assert (different.returncode, "do not hold the same" in different.stdout) == (1, True)


@contextlib.contextmanager
def training(server: Server, name: str, **extra: str) -> Iterator[Path]:
    """A client that logs until the file that this yields is made; in the end it has ended."""
    stop = server.config_dir.parent / f"stop-{name}"
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN_ON, name, str(stop)], env=server.env(**extra), stderr=subprocess.DEVNULL
    ) as client:
        try:
            yield stop
            stop.touch()
            client.wait(60)
        finally:
            client.kill()


def listens(port: int) -> bool:
    """Whether anybody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def steps(server: Server, name: str) -> int:
    """How far a run is, as the server knows it; -1 where it does not know the run."""
    done = server.cli("run", f"owner/moves/{name}", "--json", check=False)
    return json.loads(done.stdout)["last_step"] or 0 if done.returncode == 0 else -1


def test_yesterdays_backup_and_what_clients_hold(tmp_path: Path) -> None:
    """A backup taken while a client logs, brought back: all of before is there, and spools bring what they hold."""
    backup, new = str(tmp_path / "backup"), tmp_path / "new"
    with running_server(tmp_path) as server:
        server.run("python", "-c", TRAIN, "before", "100")
        with training(server, "meanwhile"):
            wait_until(lambda: steps(server, "meanwhile") > 0)
            done = json.loads(server.cli("backup", backup, "--data", str(server.data), "--json").stdout)
        assert done["records"] > 0
        server.run("python", "-c", TRAIN, "lost", "10")
        with training(server, "held", ICECORE_FINISH_TIMEOUT="0.5"):
            wait_until(lambda: steps(server, "held") > 0)
            server.stop(kill=True)  # the disk dies, and a client goes on
            wait_until(lambda: not listens(server.port), what="the end of the gateway, which outlives its supervisor")
    checked = server.cli("backup", backup, "--verify")
    assert "every file is as it was written" in checked.stdout
    server.cli("restore", backup, "--data", str(new))
    again = Server(data=new, config_dir=server.config_dir, port=server.port, api_key=server.api_key).start()
    try:
        sent = json.loads(again.cli("sync", "--json", check=False).stdout)["spools"]
        assert [one["done"] for one in sent] == [True]
        assert steps(again, "before") == 99
        assert 0 < steps(again, "meanwhile") < 1_000_000
        assert steps(again, "lost") == -1
        assert steps(again, "held") == -1  # the start of this run was taken by the server that is gone
        again.run("python", "-c", TRAIN, "held", "0")
        assert steps(again, "held") == 1_000_000
        found = json.loads(again.cli("fsck", "--json", check=False).stdout)
        assert [one for one in found["findings"] if one["severity"] == "error"] == []
    finally:
        again.stop()


@contextlib.contextmanager
def read_only(data: Path, config_dir: Path) -> Iterator[Server]:
    server = Server(data=data, config_dir=config_dir, arguments=("--read-only",)).start()
    try:
        (saved,) = json.loads((config_dir / "credentials.json").read_text()).values()
        server.api_key = saved["api_key"]
        yield server
    finally:
        server.stop()


def asked(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
    request = urllib.request.Request(f"{server.url}/{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


def test_an_auditors_copy(tmp_path: Path) -> None:
    """A copy as of a moment answers with what was then, to keys and links of its own, and takes nothing at all."""
    with running_server(tmp_path) as server:
        server.run("python", "-c", TRAIN, "then", "10")
        position = json.loads(server.cli("status", "--json").stdout)["log"]
        server.run("python", "-c", TRAIN, "later", "10")
        to = ",".join(f"{place}:{n}" for place, n in position.items())
        copy = tmp_path / "copy"
        note = json.loads(
            server.cli("replay", "--to", to, "--into", str(copy), "--data", str(server.data), "--json").stdout
        )
    before = {str(p): p.read_bytes() for p in sorted((copy / "log").rglob("*.db"))}
    wrong = icecore(tmp_path, "up", "--data", str(copy), "--port", "0")
    assert (wrong.returncode, "--read-only" in wrong.stderr) == (2, True)
    with read_only(copy, tmp_path / "auditor") as auditor:
        runs = json.loads(auditor.cli("runs", "owner/moves", "--json").stdout)["runs"]
        assert [one["id"] for one in runs] == ["then"]
        status = json.loads(auditor.cli("status", "--digest", "--json").stdout)
        assert status["read_only"]["token"] == note["token"] == to
        assert (status["digest"], status["lag"]) == (note["digest"], 0)
        assert json.loads(auditor.cli("fsck", "--json", check=False).stdout)["digest"] == note["digest"]
        key = {"Authorization": f"Bearer {auditor.api_key}"}
        large = b"x" * (6 << 20)
        for method, path, body in [
            ("POST", "api/v1/events", b"{}\n{}\n"),
            ("POST", "api/v1/events", large),
            ("PATCH", "api/v1/runs/owner/moves/then", b'{"notes":"x"}'),
            ("DELETE", "api/v1/runs/owner/moves/then", None),
            ("POST", "api/v1/dead-letters/replay", None),
        ]:
            code, answer, _ = asked(auditor, method, path, body, **key)
            assert (code, answer["error"]["code"], answer["error"]["as_of"]) == (403, "read_only", note["time"])
        assert asked(auditor, "POST", "api/v1/events", b"{}\n{}\n")[0] == 401
        said = auditor.run("python", "-c", IMPATIENT + TRAIN, "now", "1").stderr
        assert "takes nothing: expected a server that takes changes" in said
        assert "`icecore sync`" in said
        assert "icecore login" not in said, "the key is not what is wrong"
        token = auditor.login_url.partition("token=")[2]
        code, _, headers = asked(auditor, "POST", "api/v1/login", json.dumps({"token": token}).encode())
        assert code == 200
        cookie = {"Cookie": headers["set-cookie"].partition(";")[0]}
        assert asked(auditor, "GET", "api/v1/viewer", **cookie)[1]["user"] == "owner"
        assert asked(auditor, "POST", "api/v1/login", json.dumps({"token": token}).encode())[0] == 401
        assert asked(auditor, "POST", "api/v1/logout", b"", **cookie)[0] == 200
        assert asked(auditor, "GET", "api/v1/viewer", **cookie)[0] == 401
        server_key = {"Authorization": f"Bearer {server.api_key}"}
        assert asked(auditor, "GET", "api/v1/viewer", **server_key)[0] == 200  # it was good at that moment
        assert asked(auditor, "GET", "api/v1/viewer", Authorization="Bearer " + "k" * 50)[0] == 401
    assert {str(p): p.read_bytes() for p in sorted((copy / "log").rglob("*.db"))} == before


def test_a_folder_that_is_no_copy_is_served_read_only_too(tmp_path: Path) -> None:
    """`icecore up --read-only` shows any stopped data folder as of its last event."""
    with running_server(tmp_path) as server:
        server.run("python", "-c", TRAIN, "then", "10")
        wait_until(lambda: json.loads(server.cli("status", "--json").stdout)["lag"] == 0)
    with read_only(server.data, tmp_path / "auditor") as auditor:
        assert '"then"' in auditor.cli("runs", "owner/moves", "--json").stdout
        status = json.loads(auditor.cli("status", "--json").stdout)
        assert status["read_only"]["token"]
        assert auditor.cli("run", "owner/moves/none", check=False).returncode == 5
    with running_server(tmp_path) as server:
        again = {"Authorization": f"Bearer {auditor.api_key}"}
        assert asked(server, "GET", "api/v1/viewer", **again)[0] == 401  # that door is closed


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    """Every command that needs a data folder says which one has no log in it, and makes nothing."""
    for command in (["backup", str(tmp_path / "b")], ["replay", "--to", "2026-01-01", "--into", str(tmp_path / "c")]):
        done = icecore(tmp_path, *command, "--data", str(tmp_path / "none"))
        assert (done.returncode, "expected a data folder with a log in it" in done.stderr) == (5, True)
    assert icecore(tmp_path, "restore", str(tmp_path), "--data", str(tmp_path / "d")).returncode == 5
    assert not (tmp_path / "d").exists()
