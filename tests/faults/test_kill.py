"""kill -9 of every process at random moments; what was acknowledged is there once, and fsck agrees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults_harness import ROUNDS, Writer, check, get, logged_steps, seeded, until, wait_folded
from servers import Server


def pid_of(server: Server, name: str) -> int:
    """The process id of the gateway or the store, as `status` says it."""
    answer = get(server, "status")
    return int(answer.json()[name]) if answer.status == 200 else 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", ["gateway", "store"])
def test_a_killed_server_process_loses_nothing(own_server: Server, victim: str) -> None:
    """Kill -9 of the gateway or the store at random moments: acknowledged = present, nothing twice, fsck clean."""
    chance = seeded(f"kill {victim}")
    writers = [Writer(own_server, f"t/kill/w{i}").start() for i in range(3)]
    for _ in range(ROUNDS):
        time.sleep(chance.uniform(0.05, 0.4))
        until(lambda: pid_of(own_server, victim) > 0, f"the {victim} to be back", 60)
        pid = pid_of(own_server, victim)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: pid_of(own_server, victim) not in {0, pid}, f"the {victim} to be back", 60)
    for writer in writers:
        writer.finish()

    assert all(len(writer.acknowledged) > ROUNDS for writer in writers)
    check(own_server, writers)


_CLIENT = """
import sys, icecore
run = icecore.init(project="t/kill", id=sys.argv[1], settings={"finish_timeout": 30})
print("go", flush=True)
step = 0
while True:
    run.log({"x": float(step)}, step=step)
    step += 1
    if step % 50 == 0:
        print(step, flush=True)
    import time; time.sleep(0.0005)
"""


@pytest.mark.timeout(3600)
def test_a_killed_client_loses_nothing_that_was_on_disk(own_server: Server, tmp_path: Path) -> None:
    """Kill -9 of a training script at random moments: after `icecore sync` its steps are there, each once, no holes."""
    chance = seeded("kill client")
    for round_ in range(ROUNDS):
        run_id = f"c{round_}"
        child = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, run_id],
            env=own_server.env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=tmp_path,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
        time.sleep(chance.uniform(0.3, 1.0))
        child.kill()
        child.wait()
        child.stdout.close()
    own_server.cli("sync")
    wait_folded(own_server)

    for round_ in range(ROUNDS):
        steps = logged_steps(own_server, f"t/kill/c{round_}")
        assert set(steps.values()) <= {1}, "there more than once"
        assert sorted(steps) == list(range(len(steps))), "a hole before the last step that is there"
    assert sum(len(logged_steps(own_server, f"t/kill/c{r}")) > 0 for r in range(ROUNDS)) > ROUNDS // 2
    assert own_server.cli("fsck", "--json", check=False).returncode == 0
