"""The writer thread: takes rows from the training thread's queue, makes events of them, and puts these on disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from icecore.codec import Scalar, encode_event, rows_to_blocks
from icecore.events import Event, MetricsLogged, RunDropped, RunHeartbeat
from icecore.limits import most
from icecore.notes import warn
from icecore.rows import RowTuple, chunks, payloads
from icecore.spool import Spool
from icecore.summary import Summary

TICK_SECONDS: Final = 0.2
SYNC_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 60.0
TELL_SECONDS: Final = 10.0
ROWS_AT_ONCE: Final = 4_096
ROWS_HIGH: Final = 20_000
"""Above it a call of `log` gives the writer a millisecond."""
ROWS_MOST: Final = 200_000
"""Above it rows are dropped, and counted: the disk has been stuck for long."""

QueuedRow = tuple[int, int, dict[str, Scalar]]
"""Step, *nanoseconds* since 1970, values: what the training thread leaves behind."""


class Writer:
    """Owns the queue of one run in one process, and the spool it goes to."""

    def __init__(
        self,
        run: str,
        spool: Spool,
        summary: Summary,
        changes: Callable[[], list[Event]],
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self.run = run
        self.spool = spool
        self.queue: deque[QueuedRow] = deque()
        self.rows_dropped = 0
        self._points_dropped = 0
        self._summary = summary
        self._changes = changes
        self._draining = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._heartbeat_seconds = heartbeat_seconds
        self._emitted_at = time.monotonic()
        self._synced_at = time.monotonic()
        self._told_at = -TELL_SECONDS
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="icecore-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # ---- from any thread

    def relieve(self) -> None:
        """The queue is long: give the writer a moment, and drop the newest row where even that does not help."""
        self._wake.set()
        time.sleep(0.001)
        if len(self.queue) > ROWS_MOST:
            _, _, values = self.queue.pop()
            self.rows_dropped += 1
            self._points_dropped += len(values)

    def emit(self, event: Event) -> bool:
        """Queue an event for the spool; False where it had to be dropped."""
        payload = encode_event(event)
        if len(payload) > most("event_bytes"):
            self.spool.drop(f"an event is over the limit `event_bytes`: {event.TYPE}", len(payload))
            return False
        taken = self.spool.append(event.TYPE, event.VERSION, event.STREAM, payload)
        self._emitted_at = time.monotonic()
        return taken

    def drain(self) -> None:
        """Make events of every row that is queued now."""
        with self._draining:
            left = len(self.queue)
            while left > 0:
                taken = min(left, ROWS_AT_ONCE)
                left -= taken
                queue = self.queue
                taken_rows = [queue.popleft() for _ in range(taken)]
                self._write([(step, ns // 1_000_000, values) for step, ns, values in taken_rows])

    def _write(self, rows: list[RowTuple]) -> None:
        for chunk in chunks(rows):
            blocks = rows_to_blocks(chunk)
            self._summary.observe(blocks)
            for payload, points in payloads(self.run, chunk, blocks):
                self.spool.append(
                    MetricsLogged.TYPE, MetricsLogged.VERSION, MetricsLogged.STREAM, payload, points=points
                )
            self.spool.flush()
        self._emitted_at = time.monotonic()

    def save(self) -> bool:
        """Put everything there is on disk, durably; False where the disk does not take it."""
        self.drain()
        self._emit_changes(final=True)
        return self.spool.sync()

    # ---- the thread

    def stop(self) -> None:
        """End the thread and save what is left."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(30.0)
        self.save()

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
            try:
                self._tick()
            except Exception as error:  # noqa: BLE001 - nothing here may end a training, nor end silently
                self._warn_once(f"{type(error).__name__}: {error}", f"could not write what was logged: {error!r}")

    def _tick(self) -> None:
        self.drain()
        self._emit_changes()
        if time.monotonic() - self._emitted_at > self._heartbeat_seconds:
            self.emit(RunHeartbeat(run=self.run))
        if time.monotonic() - self._synced_at > SYNC_SECONDS:
            self._synced_at = time.monotonic()
            self.spool.sync()
            if self.spool.trouble:
                self._warn_once(
                    self.spool.trouble,
                    f"the spool {self.spool.folder} cannot be written ({self.spool.trouble}): unsent data is kept in "
                    "memory while there is room. Free some space, or set ICECORE_DIR to another disk",
                )
        else:
            self.spool.flush()

    def _emit_changes(self, *, final: bool = False) -> None:
        for event in self._changes():
            self.emit(event)
        if final or time.monotonic() - self._told_at > TELL_SECONDS:
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        """Say what was dropped, as an event: seldom, for the count goes on while the trouble lasts."""
        dropped = self.spool.take_dropped()
        if self.rows_dropped:
            dropped.points += self._points_dropped
            dropped.events += self.rows_dropped
            dropped.reason = dropped.reason or "the disk was too slow: rows could not be written"
            self.rows_dropped = self._points_dropped = 0
        if not dropped:
            return
        self._told_at = time.monotonic()
        self._warn_once(dropped.reason, f"{dropped.reason}. New metrics are dropped and counted until there is room")
        event = RunDropped(
            run=self.run, reason=dropped.reason, events=dropped.events, points=dropped.points, bytes=dropped.bytes
        )
        if not self.emit(event):
            self.spool.untold(dropped)

    def _warn_once(self, what: str, words: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warn(words)
