"""Child processes that append to a log, for tests that kill them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from icecore.position import LEDGER

DEADLINE_S: Final = 60.0
"""Everything a test waits for has come by then, or never will."""


class Acknowledged(NamedTuple):
    """A line of a child appender."""

    producer: str
    seq: int
    partition: int
    offset: int


class ChildAppender:
    """A child process that appends (`icecore.testing.appender`), and what it has said so far."""

    def __init__(self, source: str, stream: str, producer: str, tasks: int, size: int, count: int) -> None:
        program = f"{source}\nfrom icecore.testing.appender import main\nmain(open_log)\n"
        arguments = [stream, producer, *map(str, (tasks, size, count))]
        self.process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
        self.acknowledged: list[Acknowledged] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.decode().split()
            if words == ["ready"]:
                self._ready.set()
            elif line.endswith(b"\n"):
                self.acknowledged.append(Acknowledged(words[0], *map(int, words[1:])))
        self._ready.set()

    def wait_for(self, count: int) -> None:
        """Wait until that many records were acknowledged."""
        assert self._ready.wait(DEADLINE_S), "the child did not open the log"
        until(lambda: len(self.acknowledged) >= count or self.process.poll() is not None)
        assert len(self.acknowledged) >= count, f"the child ended with {self.process.returncode}"

    def finish(self, *, kill: bool = False) -> int:
        """Wait for its end, or kill it (-9); its exit status, and every line read."""
        if kill:
            self.process.kill()
        code = self.process.wait(DEADLINE_S)
        self._thread.join(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@contextmanager
def child_appender(
    source: str, stream: str = LEDGER, producer: str = "child", *, tasks: int = 4, size: int = 200, count: int = 0
) -> Iterator[ChildAppender]:
    """A child that appends, killed in the end if it still runs."""
    child = ChildAppender(source, stream, producer, tasks, size, count)
    try:
        yield child
    finally:
        child.finish(kill=child.process.poll() is None)


def until(condition: Callable[[], bool], within: float = DEADLINE_S) -> None:
    """Wait for a condition, and fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)
