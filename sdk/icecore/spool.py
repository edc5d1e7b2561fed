"""The spool: what a process has logged, on its disk, until the server has acknowledged it.

One folder a producer, `DIR/spool/PRODUCER/` (0700):

    meta.json      who writes: run path, mode, version; durable before the first frame
    lock           flock of the living writer, or of whoever adopts the folder
    000001.seg …   frames: u32 length, u32 CRC-32, then an event's two lines as they go over the wire
    acked          how far the server has acknowledged
    refused/       events that the server will never take, each with the server's words

A frame that fails its checksum is skipped and counted; reading goes on at the next one. What the disk does not take
waits in memory, up to a bound; beyond the bounds new metrics are dropped first, and counted. A gap in (producer,
seq) therefore means a damaged file and nothing else: what is dropped never got a number.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
import zlib
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from icecore.codec import frame as wire_frame
from icecore.events import Envelope, now_ms, uuid7
from icecore.position import METRICS
from icecore.segments import (
    HEAD,
    Batch,
    Mark,
    Scan,
    SpoolReader,
    open_lock,
    open_segment,
    refused,
    segment_path,
    segments,
    size_of,
    spool_home,
    spools,
    verify,
    write_acked,
    write_durably,
)

__all__ = ["Batch", "Dropped", "Mark", "Scan", "Spool", "spool_home", "spools", "verify"]

SEGMENT_BYTES: Final = 16 << 20
MEMORY_BYTES: Final = 32 << 20
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
LEDGER_RESERVE: Final = 16 << 20
"""Beyond the spool's size, for events that are few and matter most: starts, finishes, configs."""


@dataclass(slots=True)
class Dropped:
    """What could not be kept."""

    events: int = 0
    points: int = 0
    bytes: int = 0
    reason: str = ""

    def __bool__(self) -> bool:
        return self.events > 0


@dataclass(slots=True)
class _Pending:
    """Frames not yet on disk."""

    frames: deque[bytes] = field(default_factory=deque)
    bytes: int = 0


class Spool:
    """The living writer of one spool. Safe from many threads; never raises for what the disk does."""

    def __init__(self, home: Path, run: str, mode: str, *, size_max: int, version: str = "", url: str = "") -> None:
        self.producer = uuid7()
        self.folder = home / self.producer
        self.dropped = Dropped()
        self.trouble = ""
        """What the disk last said, or empty while it works."""
        self._meta = {"run": run, "mode": mode, "url": url, "version": version, "created": now_ms(), "format": 1}
        self._size_max = size_max
        # small spools have small segments: a segment is freed as a whole
        self._segment_bytes = min(SEGMENT_BYTES, max(size_max // 4, 1 << 16))
        self._size = 0
        self._lock = threading.RLock()
        self._seq: Counter[str] = Counter()
        self._pending = _Pending()
        self._segment = 1
        self._offset = 0
        self._file = -1
        self._flock = -1
        self._unsynced = False
        self._reader = SpoolReader(self.folder)
        self._acked = Mark(0, 0)
        self._taken: deque[tuple[int, int]] = deque()
        self.arrived = threading.Event()
        """Set whenever there is something new to send."""
        self._open()

    # ---- making events

    def append(
        self, type_: str, version: int, stream: str, payload: bytes, *, points: int = 0, ts_ms: int | None = None
    ) -> bool:
        """Give an event its number and take it; False where it had to be dropped."""
        with self._lock:
            if self._full(stream, len(payload)):
                self.dropped.events += 1
                self.dropped.points += points
                self.dropped.bytes += len(payload)
                return False
            ts = now_ms() if ts_ms is None else ts_ms
            seq = self._seq[stream]
            self._seq[stream] += 1
            envelope = Envelope(uuid7(ts), type_, version, self.producer, seq, ts)
            self._pending.frames.append(wire_frame(envelope, payload))
            self._pending.bytes += len(self._pending.frames[-1])
        return True

    def _full(self, stream: str, size: int) -> bool:
        reserve = 0 if stream == METRICS else LEDGER_RESERVE
        if self._size + self._pending.bytes + size > self._size_max + reserve:
            self.dropped.reason = f"the spool is full: {self._size_max} bytes wait to be sent"
            return True
        if self.trouble and self._pending.bytes + size > MEMORY_BYTES + reserve:
            self.dropped.reason = f"the spool cannot be written: {self.trouble}"
            return True
        return False

    def drop(self, reason: str, size: int) -> None:
        """Count an event that cannot be kept at all."""
        with self._lock:
            self.dropped.events += 1
            self.dropped.bytes += size
            self.dropped.reason = reason

    def take_dropped(self) -> Dropped:
        """What was dropped since the last call."""
        with self._lock:
            dropped, self.dropped = self.dropped, Dropped()
            return dropped

    def untold(self, dropped: Dropped) -> None:
        """Count again what `take_dropped` gave and nobody could be told."""
        with self._lock:
            self.dropped = Dropped(
                self.dropped.events + dropped.events,
                self.dropped.points + dropped.points,
                self.dropped.bytes + dropped.bytes,
                self.dropped.reason or dropped.reason,
            )

    @property
    def next_seq(self) -> Mapping[str, int]:
        """How many events each stream has been given."""
        return dict(self._seq)

    # ---- to disk

    def flush(self) -> None:
        """Write what is pending to the file. It survives the process; `sync` makes it survive the machine."""
        with self._lock:
            if not self._pending.frames:
                return
            if self.trouble:
                self._open()
            if self._file >= 0:
                self._write()
        self.arrived.set()

    def _write(self) -> None:
        pending = self._pending
        while pending.frames:
            if self._offset >= self._segment_bytes and not self._roll():
                return
            data = bytearray()
            count = 0
            for frame in pending.frames:
                data += HEAD.pack(len(frame), zlib.crc32(frame))
                data += frame
                count += 1
                if self._offset + len(data) >= self._segment_bytes:
                    break
            try:
                written = os.pwrite(self._file, data, self._offset)
                if written < len(data):
                    raise OSError(28, "No space left on device")
            except OSError as error:
                # whatever was written of it lies after the end and is written over by the next try
                self.trouble = error.strerror or str(error)
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._offset)
                return
            self.trouble = ""
            self._offset += len(data)
            self._size += len(data)
            self._unsynced = True
            for _ in range(count):
                pending.bytes -= len(pending.frames.popleft())

    def sync(self) -> bool:
        """Flush, and make it durable; False where the disk does not take it."""
        self.flush()
        with self._lock:
            if self._file < 0 or self.trouble:
                return not self._pending.frames
            if self._unsynced:
                file, self._unsynced = os.dup(self._file), False
            else:
                return True
        try:
            os.fsync(file)  # outside the lock: a slow disk holds up nobody
        except OSError as error:
            self.trouble = error.strerror or str(error)
            return False
        finally:
            os.close(file)
        return True

    def _open(self) -> None:
        """Make the folder and its files, or note why it cannot be."""
        try:
            if self._file < 0:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._flock < 0:
                    self._flock = _hold(self.folder)
                write_durably(self.folder / "meta.json", self._meta)
                self._file = open_segment(self.folder, self._segment)
        except OSError as error:
            self.trouble = error.strerror or str(error)
        else:
            self.trouble = ""

    def _roll(self) -> bool:
        """Go on in a new segment."""
        try:
            os.fsync(self._file)
            fresh = open_segment(self.folder, self._segment + 1)
        except OSError as error:
            self.trouble = error.strerror or str(error)
            return False
        os.close(self._file)
        self._file, self._segment, self._offset = fresh, self._segment + 1, 0
        return True

    # ---- to the server

    def read(self, events: int, size: int) -> Batch:
        """The next frames to send: from the disk, or from memory while the disk takes nothing."""
        with self._lock:
            end = Mark(self._segment, self._offset)
        batch = self._reader.read(end, events, size)
        if batch.frames or not self.trouble:
            return batch
        with self._lock:
            frames: list[bytes] = []
            total = 0
            for frame in self._pending.frames:
                if frames and (len(frames) >= events or total + len(frame) > size):
                    break
                frames.append(frame)
                total += len(frame)
        return Batch(frames, batch.end, memory=True)

    def acknowledge(self, batch: Batch) -> None:
        """The server has these frames."""
        with self._lock:
            if batch.memory:
                # unless the disk took them meanwhile: then they go again, and the server knows them
                pending = self._pending
                for frame in batch.frames:
                    if not pending.frames or pending.frames[0] is not frame:
                        break
                    pending.bytes -= len(pending.frames.popleft())
                return
            self._acked = batch.end
        self.note_acked()

    def note_acked(self) -> None:
        """Write down how far the server has acknowledged, and free what it has."""
        with self._lock, contextlib.suppress(OSError):
            write_acked(self.folder, self._acked, keep_from=self._segment)
            self._size = sum(segment_path(self.folder, n).stat().st_size for n in segments(self.folder))

    @property
    def scan(self) -> Scan:
        """What reading it back has found so far."""
        return self._reader.scan

    @property
    def unsent(self) -> int:
        """How many bytes the server has not acknowledged."""
        with self._lock:
            total = self._pending.bytes
            for number in range(max(self._acked.segment, 1), self._segment + 1):
                size = self._offset if number == self._segment else size_of(segment_path(self.folder, number))
                total += size - (self._acked.offset if number == self._acked.segment else 0)
            return total

    @property
    def unwritten(self) -> tuple[int, int]:
        """How many events, and bytes, are in memory only: they end with the process."""
        with self._lock:
            return len(self._pending.frames), self._pending.bytes

    def close(self) -> bool:
        """Let the folder go, and remove it if all was acknowledged; whether it was."""
        self.sync()
        with self._lock:
            done = self.unsent == 0
            self.abandon()
            if done and not refused(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
            return done

    def abandon(self) -> None:
        """Close the files and leave them as they are: what a forked child does with its parent's."""
        for descriptor in (self._file, self._flock):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._file = self._flock = -1


def _hold(folder: Path) -> int:
    """Lock a new spool. Where the file system knows no locks nobody else can take it up either."""
    descriptor = open_lock(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    return descriptor
