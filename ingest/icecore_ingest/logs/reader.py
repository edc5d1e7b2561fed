"""Reads one partition: across its segments, from several threads, while any process appends."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from icecore.codec import decode_envelope
from icecore.errors import BadRequest, LogError
from icecore.log import Batch, StoredRecord
from icecore.position import Place, Position
from icecore_ingest.logs import failures
from icecore_ingest.logs.segments import (
    TAIL,
    Segment,
    checksum,
    content_checksum,
    list_segments,
    open_readable,
    segment_at,
)

_IDLE_CONNECTIONS: Final = 6
_CHUNK_BYTES: Final = 8 << 20
_CHUNK_ROWS: Final = 256
_SELECT: Final = "SELECT off, key, envelope, payload, crc FROM records WHERE off >= ? ORDER BY off LIMIT ?"

RawRow = tuple[Any, Any, Any, Any, Any]
"""Offset, key, envelope, payload, checksum: of any type, where a file is damaged."""
T = TypeVar("T")


class Reader:
    """The reading side of one partition in this process. Its calls block: shortly for `end`, else run them in a thread.

    Args:
        folder: the partition's folder.
        place: which partition it is.
    """

    def __init__(self, folder: Path, place: Place) -> None:
        self._folder = folder
        self._place = place
        self._lock = threading.Lock()
        self._idle: OrderedDict[sqlite3.Connection, Segment] = OrderedDict()
        self._segments = list_segments(folder)
        self._closed = False
        self._end_lock = threading.Lock()
        self._tail: Segment | None = None
        self._tail_db: sqlite3.Connection | None = None

    def start(self) -> int:
        """The first offset that is still there."""
        segments = list_segments(self._folder)
        return segments[0].first if segments else 0

    def end(self) -> int:
        """The next offset: one look into the tail, about 10 us.

        Raises:
            LogError: the tail cannot be read.
        """
        with self._end_lock:
            while True:
                db, tail = self._open_tail()
                if db is None:
                    return 0
                try:
                    last, sealed = db.execute(TAIL).fetchall()[0]
                except sqlite3.Error as error:
                    self._forget_tail()
                    raise failures.translate(error, tail.path, reading=True) from error
                if last is None:
                    return tail.first
                if not sealed or not segment_at(self._folder, last + 1).path.exists():
                    return int(last) + 1
                self._forget_tail()

    def read(self, start: int, records: int, size: int) -> Batch:
        """The records from offset `start` on; fewer than asked for where the next one is damaged.

        Raises:
            LogCorrupt: the record at `start` itself is damaged or missing.
        """
        found: list[StoredRecord] = []
        segment = self._segment_of(start)
        while segment is not None and len(found) < records and size > 0:
            offset = start + len(found)
            taken, whole = self._read_segment(segment, offset, records - len(found), size, fail=not found)
            found += taken
            size -= sum(len(record.payload) for record in taken)
            segment = self._following(segment, start + len(found), fail=not found) if whole else None
        return Batch(self._place, found, start + len(found))

    def close(self) -> None:
        """Let go of the files. Reads that are under way finish."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, OrderedDict()
        for db in idle:
            db.close()
        with self._end_lock:
            self._forget_tail()

    # ---------------------------------------------------------------------------------------------- segments

    def _segment_of(self, offset: int) -> Segment | None:
        """The segment that holds `offset`, or would."""
        if not self._segments or offset > self._segments[-1].first:
            self._segments = list_segments(self._folder)
        chosen = None
        for segment in reversed(self._segments):
            if segment.first <= offset:
                chosen = segment
                break
        if chosen is None and self._segments:
            raise LogError(
                f"expected an offset from {self._segments[0].first} on in {self._folder}, got {offset}",
                hint="older segments were archived: put them back, or read from the log's start",
            )
        return chosen

    def _following(self, segment: Segment, offset: int, *, fail: bool) -> Segment | None:
        """The segment after one that was read to its end, `offset`; None at the end of the log."""
        following = segment_at(self._folder, offset)
        if offset > segment.first and following.path.exists():
            return following
        if fail and segment.first < self._segments[-1].first:
            later = next(later for later in self._segments if later.first > segment.first)
            raise failures.corrupt(segment.path, f"nothing up to {later.path.name}", self._place, offset)
        return None

    def _open_tail(self) -> tuple[sqlite3.Connection | None, Segment]:
        if self._tail_db is None or self._tail is None:
            segments = list_segments(self._folder)
            if self._closed or not segments:
                return None, segment_at(self._folder, 0)
            self._tail = segments[-1]
            self._tail_db = open_readable(self._tail, self._place)
        return self._tail_db, self._tail

    def _forget_tail(self) -> None:
        if self._tail_db is not None:
            self._tail_db.close()
        self._tail_db = self._tail = None

    # --------------------------------------------------------------------------------------------- one segment

    def _read_segment(
        self, segment: Segment, offset: int, records: int, size: int, *, fail: bool
    ) -> tuple[list[StoredRecord], bool]:
        """Records of one segment, and whether it has no more. Damage ends it, or is raised if it comes first."""
        found: list[StoredRecord] = []

        def collect(db: sqlite3.Connection) -> bool:
            left = size
            with contextlib.closing(db.execute(_SELECT, (offset, records))) as rows:
                while chunk := rows.fetchmany(_CHUNK_ROWS):
                    for row in chunk:
                        found.append(self._stored(row, offset + len(found), segment))
                        left -= len(row[3])
                        if left <= 0:
                            return False
            return len(found) < records

        try:
            return found, self._with_connection(segment, collect)
        except sqlite3.Error as error:
            if found or not fail:
                return found, False
            raise failures.translate(error, segment.path, self._place, offset, reading=True) from error
        except LogError:
            if found or not fail:
                return found, False
            raise

    def _stored(self, row: RawRow, expected: int, segment: Segment) -> StoredRecord:
        """A row as a record, if it is the one expected and as it was written."""
        problem = check_row(row, expected)
        if problem:
            raise failures.corrupt(segment.path, problem, self._place, expected)
        _, key, envelope, payload, _ = row
        try:
            decoded = decode_envelope(envelope)
        except BadRequest as error:
            raise failures.corrupt(segment.path, error.message, self._place, expected) from error
        return StoredRecord(Position(*self._place, expected), key, decoded, payload)

    def _with_connection(self, segment: Segment, use: Callable[[sqlite3.Connection], T]) -> T:
        """Use a connection that no other thread uses; keep it for the next who reads this segment."""
        with self._lock:
            if self._closed:
                raise LogError("expected an open log, got a closed one")
            db = next((db for db, of in reversed(self._idle.items()) if of == segment), None)
            if db is not None:
                del self._idle[db]
        if db is None:
            db = open_readable(segment, self._place)
        try:
            result = use(db)
        except BaseException:
            db.close()
            raise
        with self._lock:
            self._idle[db] = segment
            spare = None
            if self._closed or len(self._idle) > _IDLE_CONNECTIONS:
                spare, _ = self._idle.popitem(last=False)
        if spare is not None:
            spare.close()
        return result


def check_row(row: RawRow, expected: int) -> str:
    """What is wrong with a row that should have offset `expected`; empty if nothing."""
    offset, key, envelope, payload, crc = row
    if offset != expected:
        return f"a hole up to {offset}"
    types = (type(key), type(envelope), type(payload), type(crc))
    if types != (str, bytes, bytes, int):
        return "fields of other types"
    got = checksum(offset, content_checksum(key, envelope, payload))
    return "" if got == crc else f"checksum {got:#010x} instead of {crc:#010x}"
