"""How processes end: exceptions, exit codes, signals, forks; and what kill -9 leaves behind."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from icecore.codec import frames
from icecore.events import RunFinished, RunStarted
from icecore.segments import SpoolReader
from icecore.sync import orphans, sync

LOGGER = """
import sys, icecore
run = icecore.init(project="p", id=sys.argv[1], mode=sys.argv[2])
print("ready", flush=True)
i = 0
while True:
    run.log({"a": i, "b": i / 3})
    i += 1
    if i % 1000 == 0:
        run._recorder.writer.drain()
"""


def script(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("code", "exit_code", "state", "error"),
    [
        ("", 0, "finished", ""),
        ("raise ValueError('no luck')", 1, "failed", "ValueError"),
        ("import sys; sys.exit(3)", 3, "failed", ""),
        ("import sys; sys.exit(0)", 0, "finished", ""),
        ("import sys; sys.exit('words')", 1, "failed", ""),
        ("raise KeyboardInterrupt", 130, "killed", "KeyboardInterrupt"),
    ],
)
def test_a_script_that_never_calls_finish_is_finished_with_how_it_ended(server, code, exit_code, state, error):
    """The exit code, and an uncaught exception's type and message, are on the run."""
    script(f"import icecore\nrun = icecore.init(project='p')\nrun.log({{'a': 1}})\n{code}")

    (finished,) = server.events(RunFinished)
    assert (finished.exit_code, finished.state, finished.error_type) == (exit_code, state, error)
    assert len(server.rows()) == 1


def test_every_run_of_a_script_that_just_ends_is_finished(server):
    """Several runs that are open at once are all finished when the script ends."""
    script("import icecore\nruns = [icecore.init(project='p', reinit='create_new') for _ in range(5)]")

    assert len({finished.run for finished in server.events(RunFinished)}) == 5


def test_sigterm_ends_the_run_as_killed(server):
    """SIGTERM: everything logged arrives, the run says killed, and the process's exit code is 143."""
    child = subprocess.Popen([sys.executable, "-c", LOGGER, "r", "online"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 143
    child.stdout.close()

    (finished,) = server.events(RunFinished)
    assert (finished.state, finished.exit_code) == ("killed", 143)
    assert server.gaps() == {}


def test_a_handler_of_the_scripts_own_still_has_its_say(server):
    """A SIGTERM handler installed before init is called, and what it decides is done."""
    done = script(
        "import os, signal, sys, icecore\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('mine'), sys.exit(7)))\n"
        "icecore.init(project='p')\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "import time; time.sleep(30)"
    )

    assert (done.returncode, done.stdout) == (7, "mine\n")
    assert len(server.events(RunFinished)) == 1


def test_a_forked_child_writes_its_own_part(server):
    """Parent and forked child log into one run: nothing is lost, nothing doubled, each has its own numbers."""
    done = script(
        "import os, icecore\n"
        "run = icecore.init(project='p', id='r')\n"
        "for i in range(100): run.log({'parent': i})\n"
        "pid = os.fork()\n"
        "for i in range(100): run.log({'child' if pid == 0 else 'parent': 100 + i})\n"
        "if pid: os.waitpid(pid, 0)\n"
    )

    assert done.returncode == 0, done.stderr
    rows = server.rows("ada/p/r")
    assert sorted(v["parent"] for _, v in rows if "parent" in v) == list(range(200))
    assert sorted(v["child"] for _, v in rows if "child" in v) == list(range(100, 200))
    assert len(server.events(RunStarted)) == len(server.events(RunFinished)) == 2
    assert server.gaps() == {}
    assert server.conflicts == []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_write_to_one_run(server, tmp_path, method):
    """Several processes with one run id, however they are started."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, sys, icecore\n"
        "def work(n):\n"
        "    run = icecore.run or icecore.init(project='p', id='shared')\n"
        "    for i in range(50): run.log({f'w{n}': i})\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    run = icecore.init(project='p', id='shared')\n"
        "    workers = [context.Process(target=work, args=(n,)) for n in range(4)]\n"
        "    [w.start() for w in workers]; [w.join() for w in workers]\n"
        "    run.log({'main': 1})\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stderr
    rows = server.rows("ada/p/shared")
    for n in range(4):
        assert sorted(v[f"w{n}"] for _, v in rows if f"w{n}" in v) == list(range(50))
    assert server.gaps() == {}
    assert len(server.events(RunFinished)) == 5


def kept(folder: Path) -> list[tuple[str, int, bytes]]:
    """(stream type, number, payload) of every sound frame of a spool."""
    pairs = [pair for frame in SpoolReader(folder).read(None, 10**9, 1 << 40).frames for pair in frames(frame)]
    return [(orjson.loads(e)["type"], orjson.loads(e).get("seq", 0), p) for e, p in pairs]


def test_kill_9_loses_nothing_that_was_on_disk_and_doubles_nothing(server, home):
    """25 times: kill -9 a logging process at a random moment; `sync` brings all that its spool holds, once."""
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    expected: dict[str, set[int]] = {}
    for round_ in range(25):
        run_id = f"r{round_}"
        mode = "online" if round_ % 2 else "offline"
        child = subprocess.Popen([sys.executable, "-c", LOGGER, run_id, mode], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.5))
        child.kill()
        child.wait()
        child.stdout.close()
        left = orphans(home, server.url, f"ada/p/{run_id}")
        steps: set[int] = set()
        for folder in left:
            for type_, _, payload in kept(folder):
                if type_ == "metrics.logged":
                    steps.update(s for block in orjson.loads(payload)["blocks"] for s in block["step"])
        expected[f"ada/p/{run_id}"] = steps
    results = sync(home, server.url, server.key)

    assert all(result.done for result in results), f"seed {seed}"
    for path, steps in expected.items():
        arrived = [step for step, _ in server.rows(path)]
        assert len(arrived) == len(set(arrived)), f"seed {seed}: doubled in {path}"
        assert steps <= set(arrived), f"seed {seed}: lost in {path}"
        assert arrived == list(range(len(arrived))), f"seed {seed}: hole in {path}"
    assert server.gaps() == {}, f"seed {seed}"
    assert server.conflicts == []
    assert list((home / "spool").iterdir()) == []


def test_the_next_process_takes_up_what_a_killed_one_left(server, home):
    """An orphan is sent by whoever comes next, without being asked; an offline run waits for `sync`."""
    for run_id, mode in (("killed", "online"), ("kept", "offline")):
        child = subprocess.Popen([sys.executable, "-c", LOGGER, run_id, mode], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        child.kill()
        child.wait()
        child.stdout.close()
    done = script(
        "import time, icecore\n"
        "from icecore.sync import orphans\n"
        "run = icecore.init(project='p', id='next')\n"
        "deadline = time.monotonic() + 30\n"
        "while orphans(run.settings.dir, run.settings.url, 'ada/p/killed'):\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.02)\n"
    )

    assert done.returncode == 0, done.stderr
    assert [event.run for event in server.events(RunStarted, "ada/p/killed")] == ["ada/p/killed"]
    assert server.events(RunStarted, "ada/p/kept") == []
    sync(home, server.url, server.key)
    assert len(server.events(RunStarted, "ada/p/kept")) == 1


def test_a_killed_run_is_resumed_after_its_last_step(server, home):
    """The orphan of the same run goes first, so counting goes on where the killed process was."""
    child = subprocess.Popen([sys.executable, "-c", LOGGER, "r", "offline"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.3)
    child.kill()
    child.wait()
    child.stdout.close()
    done = script(
        "import icecore\n"
        "with icecore.init(project='p', id='r', resume='allow') as run:\n"
        "    assert run.resumed\n"
        "    print(run.step)\n"
        "    run.log({'a': -1})\n"
    )

    assert done.returncode == 0, done.stderr
    rows = server.rows("ada/p/r")
    assert [step for step, _ in rows] == list(range(int(done.stdout) + 1))
    assert rows[-1][1] == {"a": -1}
    assert int(done.stdout) > 0


def test_a_spool_of_a_living_process_is_left_alone(server, home):
    """`sync` takes up only what nobody holds."""
    child = subprocess.Popen([sys.executable, "-c", LOGGER, "r", "offline"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    try:
        assert sync(home, server.url, server.key) == []
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert len(sync(home, server.url, server.key)) == 1
    assert list((home / "spool").iterdir()) == []
