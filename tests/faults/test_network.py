"""Bad networks between client and gateway: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from chaos_proxy import Fault, chaos
from faults_harness import ROUNDS, Writer, check, logged_steps, seeded, until, wait_folded
from servers import Server

FAULTS: tuple[Fault, ...] = ("none", "lose_answer", "reset_mid_body", "trickle", "duplicate")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_event_arrives_once(server: Server, fault: Fault) -> None:
    """Lost answers, resets in the body, one byte at a time, duplicate delivery: each event is folded once."""
    run = f"t/network/{fault}"
    with chaos(server.port, ("none", fault), seeded(f"network {fault}")) as proxy:
        writer = Writer(server, run, url=proxy.url).start()
        until(
            lambda: proxy.done[fault] >= ROUNDS and len(writer.acknowledged) >= ROUNDS, f"{ROUNDS} times {fault}", 120
        )
        writer.finish()

    check(server, [writer])


def test_two_writers_of_one_run_keep_both_histories(server: Server) -> None:
    """A run resumed by two machines at once has every row of both: nothing of one hides what the other said."""
    writers = [Writer(server, "t/network/shared").start() for _ in range(2)]
    until(lambda: all(len(writer.acknowledged) >= ROUNDS for writer in writers), f"{ROUNDS} events of each")
    for writer in writers:
        writer.finish()
    wait_folded(server)

    said = Counter(first + i for writer in writers for first in writer.acknowledged for i in range(writer.rows))
    assert logged_steps(server, "t/network/shared") == said
    assert max(said.values()) == 2


_CLIENT = """
import icecore
run = icecore.init(project="t/network", id="client", settings={"finish_timeout": 60})
for step in range(3000):
    run.log({"x": float(step), "y": -float(step)})
    if step % 300 == 0:
        import time; time.sleep(0.05)
run.finish()
"""


def test_the_client_gets_through(server: Server, tmp_path: Path) -> None:
    """The real client sends a whole run through a network that does everything wrong, and finishes by itself."""
    with chaos(server.port, FAULTS, seeded("network client")) as proxy:
        done = subprocess.run(
            [sys.executable, "-c", _CLIENT],
            env={**server.env(), "ICECORE_URL": proxy.url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if "sync" in done.stderr:
            server.cli("sync")
    wait_folded(server)

    assert logged_steps(server, "t/network/client") == dict.fromkeys(range(3000), 1)
