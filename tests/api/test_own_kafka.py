"""`icecore up --with-kafka` as a user meets it: a broker that comes along, is kept alive, and is found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from brokers import need_kafka
from faults_harness import Writer, check, status, until
from servers import Server, clean_env

WITHIN_S = 120.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server with a broker of its own."""
    need_kafka()
    server = Server(tmp_path / "data", tmp_path / "config", arguments=("--with-kafka",))
    server.start()
    yield server
    server.stop()


def _up(server: Server, *arguments: str) -> dict[str, Any]:
    """What `icecore up` says when it cannot start."""
    command = [sys.executable, "-m", "icecore", "up", "--data", str(server.data), "--port", "0", *arguments]
    ran = subprocess.run(
        command, env=clean_env(server.config_dir), capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    return {"code": ran.returncode, "said": ran.stdout + ran.stderr}


def test_a_broker_that_is_killed_comes_back_and_nothing_is_lost(own: Server) -> None:
    """While clients write, kill -9 of the broker is named in status, waited out, and loses and doubles nothing."""
    before = status(own)["brokers"]
    assert len(before) == 1
    writers = [Writer(own, f"t/own-kafka/w{i}").start() for i in range(2)]
    until(lambda: status(own)["log"].get("ledger:0", 0) > 2, "some records", WITHIN_S)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: status(own).get("brokers") not in (None, [], before), "another broker", WITHIN_S)
    until(lambda: "log_trouble" not in status(own), "the log to be well again", WITHIN_S)
    for writer in writers:
        writer.finish()
    check(own, writers)


def test_a_broker_that_hangs_is_named_where_people_look(own: Server) -> None:
    """While the broker does not answer, /readyz and `icecore status` say log_away; then all is well by itself."""
    (broker,) = status(own)["brokers"]
    os.kill(broker, signal.SIGSTOP)
    try:
        ready = urllib3.request("GET", f"{own.url}/readyz", retries=False, timeout=30)
        assert (ready.status, ready.json()["parts"]["identities"]) == (503, "ok")
        assert ready.json()["parts"]["log"].startswith("log_away: ")
        said = own.cli("status", check=False)
        assert said.returncode == 1
        assert said.stderr.startswith("wrong: the log: log_away: ")
    finally:
        os.kill(broker, signal.SIGCONT)
    until(lambda: own.cli("status", check=False).returncode == 0, "a server without troubles")


def test_the_folder_is_served_with_its_broker_ever_after(own: Server) -> None:
    """Stopped and started without the flag, the folder's own broker is started again, with what it held."""
    writer = Writer(own, "t/own-kafka/again").start()
    until(lambda: status(own)["log"].get("ledger:0", 0) > 2, "some records", WITHIN_S)
    writer.finish()
    assert _up(own, "--log", "kafka://127.0.0.1:1")["code"] != 0, "the folder is taken"
    own.stop()
    own.arguments = ()
    own.start()
    assert len(status(own)["brokers"]) == 1
    check(own, [writer])


def test_a_folder_keeps_to_its_log(tmp_path: Path) -> None:
    """A folder with an embedded log refuses one on Kafka, and says what to do; both at once are refused too."""
    server = Server(tmp_path / "data", tmp_path / "config")
    server.start()
    server.stop()
    refused = _up(server, "--log", "kafka://127.0.0.1:1")
    assert refused["code"] != 0
    assert "icecore log copy" in refused["said"]
    both = _up(server, "--log", "kafka://127.0.0.1:1", "--with-kafka")
    assert "expected --log or --with-kafka" in both["said"]
    own_broker = _up(server, "--with-kafka")
    assert own_broker["code"] == 2
    assert "icecore log copy" in own_broker["said"]
    assert not (server.data / "kafka").exists()
    assert "Traceback" not in refused["said"] + both["said"] + own_broker["said"]
    server.start()  # as before
    server.stop()
