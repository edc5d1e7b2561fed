"""Whose turn it is to write: fairness between processes, which SQLite does not give.

A process that commits back to back leaves the lock free for microseconds only, and SQLite's busy handler sleeps up to
100 ms between tries: another process could starve. So a writer takes the turn, then SQLite's lock, then gives the
turn back. Who waits for the lock holds the turn, and the busy one cannot pass it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from icecore_ingest.logs import failures

_PAUSE_S: Final = 0.0003
_PAUSE_MOST_S: Final = 0.01


class Turn:
    """The turnstile in front of a partition's tail.

    Args:
        folder: the partition's folder; the turn is an flock on `.turn` in it.
        timeout: how long to wait for other processes, in seconds.
    """

    def __init__(self, folder: Path, timeout: float) -> None:
        self._file = folder / ".turn"
        self._timeout = timeout
        try:
            self._handle = os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise failures.translate_os(error, self._file) from error

    def begin(self, db: sqlite3.Connection, file: Path) -> None:
        """Begin a writing transaction, in turn.

        Raises:
            LogLocked: another process held the turn or the lock for too long.
            sqlite3.Error: anything else SQLite says.
        """
        with self.held():
            started, pause = time.monotonic(), _PAUSE_S
            while not _begin_now(db):
                pause = self._sleep(pause, started, file)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the turn: nobody else begins to write meanwhile.

        Raises:
            LogLocked: another process held it for too long.
        """
        started, pause = time.monotonic(), _PAUSE_S
        while not self._take():
            pause = self._sleep(pause, started, self._file)
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._handle)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _sleep(self, pause: float, started: float, file: Path) -> float:
        """Wait a little, and say for how long the next time."""
        if time.monotonic() - started > self._timeout:
            raise failures.locked(file, self._timeout)
        time.sleep(pause)
        return min(pause * 1.2, _PAUSE_MOST_S)


def _begin_now(db: sqlite3.Connection) -> bool:
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if failures.is_busy(error):
            return False
        raise
    return True
