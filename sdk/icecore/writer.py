"""The writer thread: takes rows from the training thread's queue, makes events of them, and puts these on disk."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from typing import Final

from icecore.codec import encode_event
from icecore.events import Event, MetricsLogged, RunDropped, RunHeartbeat
from icecore.lanes import VALUES_MOST, Lanes
from icecore.limits import most
from icecore.notes import warn
from icecore.rows import Packed, QueuedRow, chunks, nearest, pack, pack_lane
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
        self.lanes = Lanes()
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
        for lane in [*self.lanes.values()]:
            if len(lane.flat) > VALUES_MOST:
                del lane.flat[-lane.stride :]
                self.rows_dropped += 1
                self._points_dropped += len(lane.keys)

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
            # the lanes first: a step that the queue repeats was given to a lane before
            left = len(self.queue)
            for lane in [*self.lanes.values()]:
                for packed in pack_lane(self.run, lane):
                    self._write(packed)
            while (taken := min(left, len(self.queue), ROWS_AT_ONCE)) > 0:
                left -= taken
                # one step in C: no signal's handler gets in between
                for chunk in chunks([*starmap(self.queue.popleft, repeat((), taken))]):
                    self._write(pack(self.run, chunk))

    def _write(self, packed: Packed) -> None:
        self._summary.observe(packed.blocks)
        for key, value in packed.lossy.items():
            self._warn_lossy(key, value)
        for payload, points in packed.payloads:
            self.spool.append(MetricsLogged.TYPE, MetricsLogged.VERSION, MetricsLogged.STREAM, payload, points=points)
        self.spool.flush()
        self._emitted_at = time.monotonic()

    def _warn_lossy(self, key: str, value: int) -> None:
        digits = value if value.bit_length() <= 128 else f"an int of {value.bit_length()} bits"
        self._warn_once(
            f"int {key}",
            f"{key[:80]!r}: {digits} is kept as {nearest(value)!r}, as history holds float64. Log it as text to "
            "keep every digit",
        )

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
