"""The oracle of the drills notices what it must, and the lines do what they are told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults_harness import Served, Writer, check_log
from icecore.log import StoredRecord
from icecore.position import METRICS, Position
from icecore.testing.appender import make_record
from lines import ELSE, Lines
from wrong_clock import WrongClock, library


def stored(offset: int, seq: int, producer: str = "p") -> StoredRecord:
    """A record of a producer's, at an offset."""
    made = make_record("run", seq, producer=producer)
    return StoredRecord(Position(METRICS, 0, offset), made.key, made.envelope, made.payload)


def writer(server: Served, acknowledged: dict[int, int]) -> Writer:
    """A writer who was told an offset for each of its numbers."""
    made = Writer(server, "t/p/run", producer="p")
    made.positions = {seq: Position(METRICS, 0, offset) for seq, offset in acknowledged.items()}
    return made


GOOD = [stored(0, 0), stored(1, 1), stored(2, 1), stored(3, 2)]


def test_a_log_with_a_repeated_event_is_right(server: Served) -> None:
    """A retried event may lie in the log twice; where it was acknowledged does not matter."""
    check_log(GOOD, [writer(server, {0: 0, 1: 2, 2: 3})])


@pytest.mark.parametrize(
    ("records", "acknowledged", "words"),
    [
        (GOOD, {0: 0, 1: 1, 2: 3, 3: 4}, "not there"),
        (GOOD, {0: 0, 1: 3}, "another event"),
        ([stored(0, 0, "q")], {0: 0}, "another event"),
        ([stored(0, 1), stored(1, 0)], {0: 1, 1: 0}, "out of order"),
        ([stored(0, 0), stored(1, 2)], {0: 0, 2: 1}, "a hole"),
    ],
)
def test_a_wrong_log_is_noticed(
    server: Served, records: list[StoredRecord], acknowledged: dict[int, int], words: str
) -> None:
    """An acknowledged event that is lost, replaced, before its time, or behind a gap fails the drill."""
    with pytest.raises(AssertionError, match=words):
        check_log(records, [writer(server, acknowledged)])


# --------------------------------------------------------------------------------------------------------- lines


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(peer: socket.socket) -> None:
        with peer:
            try:
                while piece := peer.recv(1000):
                    peer.sendall(piece)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


@pytest.fixture
def dial(echo: int) -> Iterator[tuple[Lines, Callable[[], socket.socket]]]:
    """Lines, and a function that connects to the echo through one, as the process `me`."""
    lines = Lines(lambda: {"me": os.getpid()})
    line = lines.to("echo")
    line.upstream = echo
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", line.port), timeout=30))
        return opened[-1]

    yield lines, connect
    for one in opened:
        one.close()
    lines.close()


@pytest.mark.parametrize("how", ["silent", "deaf", "mute"])
def test_a_cut_holds_bytes_back_until_it_heals(dial: tuple[Lines, Callable[[], socket.socket]], how: str) -> None:
    """While a line is cut nothing comes back; after the heal what was on the way arrives, in order."""
    lines, connect = dial
    one = connect()
    one.sendall(b"before ")
    assert one.recv(100) == b"before "
    lines.cut("me", "echo", how)  # type: ignore[arg-type]
    one.sendall(b"during")
    one.settimeout(0.2)
    with pytest.raises(TimeoutError):
        one.recv(100)
    one.settimeout(30)
    lines.heal()

    assert one.recv(100) == b"during"


def ended(one: socket.socket) -> bool:
    """Whether nothing more comes from the other side."""
    try:
        one.sendall(b"x")
        return not one.recv(1)
    except ConnectionError:
        return True


def test_a_reset_ends_connections_and_refuses_new_ones(dial: tuple[Lines, Callable[[], socket.socket]]) -> None:
    """Old and new connections end at once, until the line heals."""
    lines, connect = dial
    old = connect()
    old.sendall(b"x")
    assert old.recv(1) == b"x"
    lines.cut("me", "echo", "reset")
    for one in (old, connect()):
        assert ended(one)
    lines.heal()
    new = connect()
    new.sendall(b"y")

    assert new.recv(1) == b"y"


def test_a_cut_between_others_does_not_concern_us(dial: tuple[Lines, Callable[[], socket.socket]]) -> None:
    """A line is cut for the two that were named only: connections are told apart by the process that opened them."""
    lines, connect = dial
    lines.cut(ELSE, "echo", "silent")
    one = connect()
    one.sendall(b"x")

    assert one.recv(1) == b"x"


def test_a_slow_line_takes_longer_both_ways(dial: tuple[Lines, Callable[[], socket.socket]]) -> None:
    """A round trip over a line that is slower by 0.1 s each way takes at least 0.2 s."""
    lines, connect = dial
    lines.slow("me", "echo", 0.1)
    one = connect()
    began = time.monotonic()
    one.sendall(b"x")

    assert one.recv(1) == b"x"
    assert time.monotonic() - began >= 0.2


# -------------------------------------------------------------------------------------------------------- clocks


def test_a_wrong_clock_is_wrong_for_one_process_only(tmp_path: Path) -> None:
    """A process with a moved clock is a day ahead at once, while it runs; its durations stay right."""
    if library() is None:
        pytest.skip("needs cc, to make a library that moves a clock")
    clock = WrongClock(tmp_path / "clock")
    program = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, **clock.env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> tuple[float, float]:
            process.stdin.write("\n")
            process.stdin.flush()
            wall, steady = process.stdout.readline().split()
            return float(wall) - time.time(), float(steady) - time.monotonic()

        right = ask()
        clock.jump(86_400)
        wrong = ask()
        process.stdin.close()

    assert abs(right[0]) < 60
    assert abs(wrong[0] - 86_400) < 60
    assert abs(wrong[1]) < 60
