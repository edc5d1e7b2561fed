"""kill -9 of the store process while a running server rebuilds and switches."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from brokers import Kafka
from faults_harness import ROUNDS, Writer, check, get, seeded, until
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka_settings import KafkaSettings
from servers import Server


def store_pid(server: Server) -> int:
    answer = get(server, "status")
    return int(answer.json()["store"]) if answer.status == 200 else 0


def start_rebuild(server: Server) -> bool:
    """Ask for a rebuild; whether it began."""
    answer = urllib3.request(
        "POST",
        f"{server.url}/api/v1/rebuild",
        headers={"Authorization": f"Bearer {server.api_key}"},
        json={"verify": False},
        retries=False,
        timeout=30,
    )
    return answer.status < 300


@pytest.fixture(params=["embedded", "kafka"])
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, on either log."""
    server = Server(tmp_path / "data", tmp_path / "config")
    if request.param == "kafka":
        broker: Kafka = request.getfixturevalue("broker")
        prefix = f"rebuild-{uuid.uuid4().hex[:8]}"
        where = f"kafka://{broker.bootstrap}?prefix={prefix}&partitions=3&single_replica=1"
        asyncio.run(kafka_topics.create(KafkaSettings.parse(where)))
        server.arguments = ("--log", where)
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(3600)
def test_a_store_killed_while_it_rebuilds_loses_nothing(own_server: Server) -> None:
    """While clients write and rebuilds switch the store, kill -9 of it at random moments loses and doubles nothing."""
    chance = seeded("kill rebuild")
    writers = [Writer(own_server, f"t/rebuild/w{i}").start() for i in range(2)]
    for _ in range(max(5, ROUNDS // 5)):
        until(lambda: store_pid(own_server) > 0, "the store to be there")
        until(lambda: start_rebuild(own_server), "a rebuild to begin")
        time.sleep(chance.uniform(0.0, 0.8))
        pid = store_pid(own_server)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: store_pid(own_server) not in {0, pid}, "the store to be back", 20)
    for writer in writers:
        writer.finish()

    check(own_server, writers)
    until(lambda: start_rebuild(own_server), "a rebuild to begin")
    until(lambda: get(own_server, "rebuild").json()["state"] != "running", "the rebuild to end")
    assert get(own_server, "rebuild").json()["result"]["matches"]
    files = {path.name for path in (own_server.data / "store").iterdir() if path.suffix == ".duckdb"}
    assert len(files) == 1, "left-overs of killed rebuilds go when the store is opened"
