"""Appends to one partition: a thread that drains a queue and commits once for everything in it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from icecore.errors import IcecoreError, LogError, LogPoisoned
from icecore.position import Place, Position
from icecore_ingest.logs import failures
from icecore_ingest.logs.recovery import recover
from icecore_ingest.logs.segments import (
    PAGE_SIZE,
    TAIL,
    checksum,
    create_segment,
    list_segments,
    open_writable,
    segment_at,
    wal_size,
)
from icecore_ingest.logs.turn import Turn

_GROUP_BYTES: Final = 8 << 20
_CHECKPOINT_PAGES: Final = (16 << 20) // PAGE_SIZE
_WAL_PAGES_MOST: Final = 8 * _CHECKPOINT_PAGES
_ROWS_AT_ONCE: Final = (64, 16, 4, 1)
_ROW: Final = "(?,?,?,?,?)"
_INSERT: Final = {
    n: f"INSERT INTO records(off,key,envelope,payload,crc) VALUES {','.join([_ROW] * n)}"  # noqa: S608 - constants
    for n in _ROWS_AT_ONCE
}

Row = tuple[str, bytes, bytes, int]
"""Key, envelope, payload, and the checksum of the three."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """Rows on their way to the disk, and who waits for them."""

    rows: Sequence[Row]
    size: int
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Position]]


class Writer:
    """The writing side of one partition in this process.

    Args:
        folder: the partition's folder.
        place: which partition it is.
        first: the first offset of its last segment.
        segment_size: the tail is sealed when its file has grown to this, in bytes.
        lock_timeout: how long to wait for another process, in seconds.
        committed: called in the writer's thread after each commit.
    """

    def __init__(
        self,
        folder: Path,
        place: Place,
        first: int,
        *,
        segment_size: int,
        lock_timeout: float,
        committed: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._place = place
        self._tail = segment_at(folder, first)
        self._pages_most = max(1, segment_size // PAGE_SIZE)
        self._lock_timeout = lock_timeout
        self._committed = committed
        self._poison: LogPoisoned | None = None
        self._wal_pages = 0
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closed = False
        self._closing = threading.Lock()
        self._turn = Turn(folder, lock_timeout)
        try:
            with self._turn.held():
                self._db = self._open_tail()
        except BaseException:
            self._turn.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"log-{place.stream}-{place.partition}", daemon=True)
        self._thread.start()

    async def append(self, rows: Sequence[Row], size: int) -> list[Position]:
        """Queue rows of `size` bytes and wait until they are durable.

        Raises:
            LogError: they are not, or it is not known.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Position]] = loop.create_future()
        with self._closing:  # nothing may be queued behind the last word
            if self._closed:
                raise LogError("expected an open log, got a closed one")
            if self._poison is not None:
                raise self._still_poisoned()
            self._queue.put(_Waiting(rows, size, loop, done))
        return await done

    def close(self) -> None:
        """Commit what is queued, then let go of the file."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        with contextlib.suppress(sqlite3.Error):  # what was acknowledged is safe in the WAL too
            if self._poison is None:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._db.close()
        self._turn.close()

    # ------------------------------------------------------------------------------------- the writer's thread

    def _run(self) -> None:
        while True:
            group, last = self._next_group()
            if group:
                self._commit_group(group)
            if last:
                break

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        """Everything queued by now, waiting for the first; and whether it is the last group."""
        group: list[_Waiting] = []
        size = 0
        while size < _GROUP_BYTES and (not group or not self._queue.empty()):
            waiting = self._queue.get()
            if waiting is None:
                return group, True
            group.append(waiting)
            size += waiting.size
        return group, False

    def _commit_group(self, group: list[_Waiting]) -> None:
        """Commit a group and tell those who wait; then keep the file in order."""
        try:
            first, sealed = self._commit([row for waiting in group for row in waiting.rows])
            self._wal_pages += 2 + sum(waiting.size for waiting in group) // PAGE_SIZE
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._answer(group, self._failure(error))
            return
        self._answer(group, first)
        self._committed()
        try:
            if sealed:
                self._move_on()
            elif self._wal_pages >= _CHECKPOINT_PAGES:
                self._checkpoint()
        except Exception as error:  # noqa: BLE001 - was acknowledged before, and stays; what comes next hears of it
            self._failure(error)

    def _commit(self, rows: list[Row]) -> tuple[int, bool]:
        """One transaction: the offset of the first row, and whether the segment was sealed with it."""
        if self._poison is not None:
            raise self._still_poisoned()
        first = self._begin()
        db = self._db
        try:
            self._insert(rows, first)
            pages = db.execute("PRAGMA page_count").fetchall()[0][0]
            full = pages >= self._pages_most
            if full:
                db.execute("UPDATE meta SET value = 1 WHERE key = 'sealed'")
            db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return first, full

    def _begin(self) -> int:
        """Begin a transaction in the tail, wherever other processes have moved it; the next offset."""
        while True:
            self._turn.begin(self._db, self._tail.path)
            last, sealed = self._db.execute(TAIL).fetchall()[0]
            if not sealed:
                return self._tail.first if last is None else last + 1
            self._roll_back()
            self._move_on()

    def _insert(self, rows: list[Row], offset: int) -> None:
        """Insert rows, many per statement: each statement gives Python's lock away and may wait long for it."""
        values: list[object] = []
        for key, envelope, payload, content in rows:
            values += (offset, key, envelope, payload, checksum(offset, content))
            offset += 1
        at = 0
        for n in _ROWS_AT_ONCE:
            while len(values) - at >= 5 * n:
                self._db.execute(_INSERT[n], values[at : at + 5 * n])
                at += 5 * n

    def _roll_back(self) -> None:
        """Take back what was not committed; where that fails, nobody knows what is on disk."""
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._poison = failures.poisoned(self._tail.path, f"a failed rollback ({error})")

    def _move_on(self) -> None:
        """Go to the segment after a sealed one; make it if nobody has."""
        last = self._db.execute(TAIL).fetchall()[0][0]
        following = segment_at(self._folder, self._tail.first if last is None else last + 1)
        create_segment(following, self._place)
        sealed, self._db = self._db, open_writable(following, self._place)
        self._tail, self._wal_pages = following, 0
        with contextlib.closing(sealed), contextlib.suppress(sqlite3.OperationalError):
            # so that its file alone holds everything; if this fails, the next who opens the log does it
            sealed.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _open_tail(self) -> sqlite3.Connection:
        """Open the last segment, with everything in every WAL put into its file first: see `recover`."""
        for segment in list_segments(self._folder):
            if segment.first < self._tail.first and wal_size(segment):
                recover(segment, self._place, self._lock_timeout).close()
        while True:
            db = recover(self._tail, self._place, self._lock_timeout)
            try:
                last, sealed = db.execute(TAIL).fetchall()[0]
            except sqlite3.Error as error:
                db.close()
                raise failures.translate(error, self._tail.path, self._place) from error
            if not sealed:
                return db
            db.close()
            self._tail = segment_at(self._folder, last + 1)
            create_segment(self._tail, self._place)

    def _checkpoint(self) -> None:
        """Copy the WAL into the file. By hand, because SQLite ignores what goes wrong in one it starts itself."""
        mode = "TRUNCATE" if self._wal_pages > _WAL_PAGES_MOST else "PASSIVE"
        _busy, pages, done = self._db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()[0]
        self._wal_pages = max(0, pages - done)

    def _failure(self, error: Exception) -> IcecoreError:
        """What those who wait are told. A failed write poisons: the kernel may show pages that are not on disk."""
        if isinstance(error, sqlite3.Error):
            error = failures.translate(error, self._tail.path, self._place)
        if isinstance(error, LogPoisoned) and self._poison is None:
            self._poison = error
        if isinstance(error, IcecoreError):
            return error
        return LogError(f"expected to append to {self._tail.path}, got {type(error).__name__}: {error}")

    def _still_poisoned(self) -> LogPoisoned:
        assert self._poison is not None
        return LogPoisoned(self._poison.message, hint=self._poison.hint)

    def _answer(self, group: list[_Waiting], result: int | IcecoreError) -> None:
        """Wake everyone of a group, with one call into each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiting, int | IcecoreError]]] = {}
        for waiting in group:
            by_loop.setdefault(waiting.loop, []).append((waiting, result))
            if isinstance(result, int):
                result += len(waiting.rows)
        for loop, answers in by_loop.items():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, self._place, answers)


def _resolve(place: Place, answers: list[tuple[_Waiting, int | IcecoreError]]) -> None:
    """In the event loop: hand out positions, or the error."""
    stream, partition = place
    for waiting, result in answers:
        if waiting.done.done():  # whoever waited gave up
            continue
        if isinstance(result, int):
            waiting.done.set_result([Position(stream, partition, result + i) for i in range(len(waiting.rows))])
        else:
            waiting.done.set_exception(type(result)(result.message, hint=result.hint, **result.facts))
