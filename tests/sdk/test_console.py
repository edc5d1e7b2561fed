"""Console output is heard, and never changed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.capture.console import ConsoleCapture
from icecore.capture.lines import LineAssembler
from icecore.events import ConsoleLogged, RunDropped
from icecore.limits import most

START = """
import ctypes, json, os, signal, subprocess, sys, threading, time
from icecore.capture.console import ConsoleCapture
events = []
capture = ConsoleCapture("e/p/r", events.append, MODE)
capture.start()
"""
STOP = """
capture.stop()
with open(HEARD, "w") as file:
    json.dump([[s, t] for e in events for s, t in zip(e.stream, e.text)], file)
"""


def script(body: str, tmp_path: Path, mode: str = "auto") -> tuple[list[str], Path]:
    heard = tmp_path / "heard.json"
    text = START.replace("MODE", repr(mode)) + textwrap.dedent(body) + STOP.replace("HEARD", repr(str(heard)))
    return [sys.executable, "-c", text], heard


def heard_of(path: Path) -> list[list[str]]:
    found: list[list[str]] = json.loads(path.read_text())
    return found


SPEAK = """
print("one")
print("two", file=sys.stderr)
sys.stdout.buffer.write(b"raw\\n"); sys.stdout.flush()
libc = ctypes.CDLL(None); libc.puts(b"from C"); libc.fflush(None)
os.system("echo from a child")
for i in range(4): print(f"\\rbar {i}", end="", file=sys.stderr)
print(file=sys.stderr)
print("\\x1b[31mred\\x1b[0m")
print("not ended", end="")
"""


def test_descriptors_are_heard_and_output_is_unchanged(tmp_path: Path) -> None:
    """With separate stdout and stderr, C code and children are heard, and every byte arrives as without capture."""
    command, heard = script(SPEAK, tmp_path)
    done = subprocess.run(command, capture_output=True, check=True)
    lines = heard_of(heard)

    assert done.stdout == b"one\nraw\nfrom C\nfrom a child\n\x1b[31mred\x1b[0m\nnot ended"
    assert done.stderr == b"two\n\rbar 0\rbar 1\rbar 2\rbar 3\n"
    assert [text for stream, text in lines if stream == "stdout"] == [
        *("one", "raw", "from C", "from a child", "\x1b[31mred\x1b[0m", "not ended")
    ]
    assert [text for stream, text in lines if stream == "stderr"] == ["two", "bar 3"]


def test_one_channel_keeps_the_order(tmp_path: Path) -> None:
    """Where stdout and stderr go to one place, their order is kept, and lines are still told apart."""
    body = """
    for i in range(300):
        print("out", i, flush=True)
        print("err", i, file=sys.stderr)
    """
    command, heard = script(body, tmp_path)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    expected = [[stream, f"{stream[3:]} {i}"] for i in range(300) for stream in ("stdout", "stderr")]

    assert done.stdout.decode().split("\n")[:-1] == [text for _, text in expected]
    assert heard_of(heard) == expected


def test_a_terminal_stays_a_terminal(tmp_path: Path) -> None:
    """On a terminal, the script still sees one, of the same size, and line ends are not doubled."""
    command, heard = script(
        "print(sys.stdout.isatty(), os.get_terminal_size(1)); print('e', file=sys.stderr)", tmp_path
    )
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 77))
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(master)

    assert process.wait(10) == 0
    assert shown == b"True os.terminal_size(columns=77, lines=33)\r\ne\r\n"
    assert heard_of(heard) == [["stdout", "True os.terminal_size(columns=77, lines=33)"], ["stderr", "e"]]


def test_streams_are_heard_in_wrap_mode(tmp_path: Path) -> None:
    """In wrap mode what Python's streams write is heard, and the streams are as before afterwards."""
    body = """
    print("one"); print("two", file=sys.stderr)
    assert "write" in vars(sys.stdout)
    """
    command, heard = script(body, tmp_path, "wrap")
    command[-1] += "\nassert 'write' not in vars(sys.stdout)\nprint('after')\n"
    done = subprocess.run(command, capture_output=True, check=True)

    assert done.stdout == b"one\nafter\n"
    assert heard_of(heard) == [["stdout", "one"], ["stderr", "two"]]


def test_capture_works_inside_pytest(capsys: pytest.CaptureFixture[str]) -> None:
    """Where sys.stdout is no file descriptor, as in a notebook or under pytest, capture still hears it."""
    events: list[Any] = []
    capture = ConsoleCapture("e/p/r", events.append, "auto")
    capture.start()
    print("inside")
    capture.stop()
    print("after")

    assert [event.text for event in events] == [["inside"]]
    assert capsys.readouterr().out == "inside\nafter\n"


def test_descriptors_are_restored_exactly(tmp_path: Path) -> None:
    """After stop, descriptors 1 and 2 are the same open files as before, and no descriptor is left over."""
    body = "print('x')"
    command, _ = script(body, tmp_path)
    before = "import os\nbefore = [os.fstat(n)[:3] for n in (1, 2)], os.listdir('/proc/self/fd')\n"
    after = "\nassert ([os.fstat(n)[:3] for n in (1, 2)], os.listdir('/proc/self/fd')) == before\n"
    command[-1] = before + command[-1] + after
    done = subprocess.run(command, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr


def test_c_code_that_holds_the_lock_does_not_deadlock(tmp_path: Path) -> None:
    """A megabyte printed by code that never lets go of Python's lock arrives whole."""
    body = """
    libc = ctypes.PyDLL(None)  # keeps the lock during the call
    libc.write(1, b"x" * 999_999 + b"\\n", 1_000_000) == 1_000_000 or sys.exit(3)
    """
    command, _ = script(body, tmp_path)
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)

    assert len(done.stdout) == 1_000_000


@pytest.mark.parametrize("death", ["os.abort()", "os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_last_words_are_not_lost(tmp_path: Path, death: str) -> None:
    """What a process printed just before it died reaches the user all the same."""
    command, _ = script(f"os.write(1, b'last words'); os.write(2, b'of mine'); {death}", tmp_path)
    done = subprocess.run(command, capture_output=True, check=False)

    assert done.returncode != 0
    assert (done.stdout, done.stderr) == (b"last words", b"of mine")


def test_killing_the_helper_loses_nothing(tmp_path: Path) -> None:
    """When the process in between is killed, output goes on as if it had never been there."""
    body = """
    from icecore.capture import console
    print("before", flush=True)
    capture._emit, helper = events.append, console._console.tap._process
    helper.kill(); helper.wait()
    for i in range(2000): print("line", i)
    sys.stdout.flush()
    """
    command, _ = script(body, tmp_path)
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split("\n")[-2:] == ["line 1999", ""]
    assert done.stdout.count(b"line") == 2000


def test_children_and_forks_keep_their_output(tmp_path: Path) -> None:
    """A fork prints through the same descriptors, and a child that outlives the capture keeps its output."""
    body = """
    if os.fork() == 0:
        print("from the fork", flush=True)
        os._exit(0)
    os.wait()
    child = subprocess.Popen(["sh", "-c", "read line; echo $line"], stdin=subprocess.PIPE)
    """
    command, heard = script(body, tmp_path)
    command[-1] += "\nchild.stdin.write(b'outlived\\n'); child.stdin.close(); assert child.wait(10) == 0\n"
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout == b"from the fork\noutlived\n"
    assert heard_of(heard) == [["stdout", "from the fork"]]


def test_a_closed_pipe_is_told(tmp_path: Path) -> None:
    """`script | head -1`: the script is told by a broken pipe, as without capture."""
    body = """
    try:
        for i in range(10_000_000): print("line", i)
    except BrokenPipeError:
        sys.stderr.write("told")
    """
    command, _ = script(body, tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    process.wait(30)

    assert said.startswith(b"told")


def test_ctrl_c_leaves_the_output_alone(tmp_path: Path) -> None:
    """An interrupt to the whole process group ends the script's way, and nothing of its output is lost."""
    body = """
    print("begun", flush=True)
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        print("interrupted")
    """
    command, heard = script(body, tmp_path)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stdout.read()
    process.stdout.close()

    assert process.wait(10) == 0
    assert rest == b"interrupted\n"
    assert heard_of(heard) == [["stdout", "begun"], ["stdout", "interrupted"]]


def test_two_runs_at_once_both_hear(tmp_path: Path) -> None:
    """Two runs of a process hear the same output, and the first to stop takes nothing from the second."""
    body = """
    more = []
    second = ConsoleCapture("e/p/s", more.append, "auto")
    second.start()
    print("both", flush=True)
    second.stop()
    print("one", flush=True)
    assert [t for e in more for t in e.text] == ["both"], more
    """
    command, heard = script(body, tmp_path)
    done = subprocess.run(command, capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    assert heard_of(heard) == [["stdout", "both"], ["stdout", "one"]]


def test_much_output_is_sent_in_small_events(capsys: pytest.CaptureFixture[str]) -> None:
    """However much is printed, one event stays far below the limit of an event, and no line is lost."""
    events: list[Any] = []
    capture = ConsoleCapture("e/p/r", events.append, "wrap")
    capture.start()
    for i in range(5000):
        print(f"{i:05d}", "x" * 94)
    capture.stop()
    capsys.readouterr()
    texts = [text for event in events for text in event.text]

    assert [int(text[:5]) for text in texts] == list(range(5000))
    assert max(sum(map(len, event.text)) for event in events) < 150_000


def test_output_beyond_the_limit_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept ends with a line that says so, and the run is told how much is missing."""
    events: list[Any] = []
    capture = ConsoleCapture("e/p/r", events.append, "wrap", bytes_most=1000)
    capture.start()
    for i in range(50):
        print(f"{i:02d}", "é" * 48)  # 99 bytes
    capture.stop()
    capsys.readouterr()
    texts = [text for event in events if isinstance(event, ConsoleLogged) for text in event.text]
    (dropped,) = [event for event in events if isinstance(event, RunDropped)]

    assert [text[:2] for text in texts[:-1]] == [f"{i:02d}" for i in range(10)]
    assert "console_bytes" in texts[-1]
    assert (dropped.events, dropped.bytes) == (40, 40 * 99)
    assert "`console_bytes`: 1000" in dropped.reason


def test_an_error_switches_capture_off_once(tmp_path: Path) -> None:
    """When events cannot be taken any more, the output goes on, and it is said once."""
    body = """
    from icecore.capture import console
    def refuse(_event): raise RuntimeError("no")
    capture._emit = refuse
    for _ in range(3): print("x" * 50_000, flush=True)
    console._console._thread.join(30)
    print("still here")
    capture._emit = events.append
    """
    command, _ = script(body, tmp_path)
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)

    assert b"still here" in done.stdout
    assert done.stderr.count(b"console capture is off") == 1


# ------------------------------------------------------------------------------------------------------ lines


def lines_of(*pieces: bytes) -> list[str]:
    assembler = LineAssembler("stdout")
    found = [line for ts, piece in enumerate(pieces) for line in assembler.feed(piece, ts)]
    return [line.text for line in [*found, *assembler.end()]]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ((b"a\nb", b"c\n"), ["a", "bc"]),
        ((b"a\r\nb\r\n",), ["a", "b"]),
        ((b"1%\r2%\r", b"3%\r\n", b"x"), ["3%", "x"]),
        ((b"50%\r", b"100%"), ["100%"]),
        ((b"\xc3", b"\xa9\n"), ["é"]),
        ((b"\xff\n",), ["\ufffd"]),
        ((b"\n\n",), ["", ""]),
        ((), []),
    ],
)
def test_lines(pieces: tuple[bytes, ...], lines: list[str]) -> None:
    """Lines are joined over pieces, a progress bar keeps its last state, and bad bytes are replaced."""
    assert lines_of(*pieces) == lines


def test_a_long_line_is_cut_with_a_mark() -> None:
    """A line beyond the limit is cut within it, and says how much is missing."""
    pieces = [b"z" * 50_000] * 20
    (text,) = lines_of(*pieces, b"\n")
    kept = text.index(" …")

    assert len(text.encode()) <= most("text_value_bytes")
    assert f"cut: {1_000_000 - kept} characters more" in text
    assert lines_of(*pieces, b"\nshort\n")[1] == "short"


@given(
    st.lists(st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=20)), st.data()
)
def test_any_cut_gives_the_same_lines(texts: list[str], data: Any) -> None:
    """However the bytes are cut into pieces, the lines are the same."""
    whole = "".join(f"{text}\n" for text in texts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    assert lines_of(*pieces) == texts
