"""Checks a log on disk: every page, every checksum, every offset. It goes on after whatever it finds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from icecore.errors import LogError
from icecore.log import Finding
from icecore.position import STREAMS, Place
from icecore_ingest.logs import failures
from icecore_ingest.logs.reader import RawRow, check_row
from icecore_ingest.logs.recovery import damaged_wals, is_damaged
from icecore_ingest.logs.segments import Segment, is_sealed, list_segments, open_readable
from icecore_ingest.logs.sqlite import lane_of, read_id

Progress = Callable[[int, int], None]
"""Called with the number of records checked, and of all records."""

_CHUNK_ROWS: Final = 1_000
_PAGE_PROBLEMS_MOST: Final = 20
_LEAP_MOST: Final = 1 << 40
_SELECT: Final = "SELECT off, key, envelope, payload, crc FROM records WHERE off >= ? ORDER BY off LIMIT ?"


def verify(folder: Path, progress: Progress | None = None) -> Iterator[Finding]:
    """Check the log in `folder`, which may be in use: nothing is written.

    Args:
        folder: DATA/log.
        progress: called now and then with (records checked, records in all).

    Yields:
        What is wrong; nothing for a whole log.
    """
    try:
        read_id(folder)
    except LogError as error:
        yield Finding(str(folder / "LOG_ID"), None, None, error.message)
    lanes = [(Place(stream, 0), lane_of(folder, Place(stream, 0))) for stream in STREAMS]
    count = _Count(progress, sum(_records_in(place, segment) for place, lane in lanes for segment in _segments(lane)))
    for place, lane in lanes:
        if not lane.is_dir():
            yield Finding(str(lane), place, None, "expected a folder of segments, got none")
            continue
        yield from _verify_lane(place, lane, count)
    count.say()


class _Count:
    """How far the check is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, records: int) -> None:
        self._done += records
        self.say()

    def say(self) -> None:
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))


def _segments(lane: Path) -> list[Segment]:
    return list_segments(lane) if lane.is_dir() else []


def _records_in(place: Place, segment: Segment) -> int:
    """About how many records a segment has; 0 where it cannot be said."""
    try:
        with closing(open_readable(segment, place)) as db:
            last = db.execute("SELECT max(off) FROM records").fetchall()[0][0]
            return 0 if last is None else last + 1 - segment.first
    except (LogError, sqlite3.Error):
        return 0


def _verify_lane(place: Place, lane: Path, count: _Count) -> Iterator[Finding]:
    """Check the segments of one partition, and that each begins where the one before ends."""
    segments = list_segments(lane)
    if not segments:
        yield Finding(str(lane), place, None, "expected a segment, got none")
    expected: int | None = None
    for segment in segments:
        if expected is not None and segment.first != expected:
            problem = f"expected the segment from offset {expected}, got this one: records are missing or doubled"
            yield Finding(str(segment.path), place, expected, problem)
        for kept in damaged_wals(segment):
            yield Finding(str(kept), place, None, "acknowledged records in this WAL could not be read")
        if is_damaged(segment):
            yield Finding(f"{segment.path}-wal", place, None, "acknowledged records behind a damaged frame")
        expected = yield from _verify_segment(segment, place, count, last=segment is segments[-1])


def _verify_segment(
    segment: Segment, place: Place, count: _Count, *, last: bool
) -> Generator[Finding, None, int | None]:
    """Check one file; the offset the next one should begin with, if it can be said."""
    try:
        with closing(open_readable(segment, place)) as db:
            yield from _verify_pages(db, segment, place)
            expected = yield from _verify_records(db, segment, place, count)
            if not last and not is_sealed(db):
                yield Finding(
                    str(segment.path), place, None, "expected a sealed segment before the last, got an open one"
                )
            return expected
    except LogError as error:
        yield Finding(str(segment.path), place, None, error.message)
    except sqlite3.Error as error:
        yield Finding(str(segment.path), place, None, failures.translate(error, segment.path, reading=True).message)
    return None


def _verify_pages(db: sqlite3.Connection, segment: Segment, place: Place) -> Iterator[Finding]:
    """SQLite's own check of the file's structure."""
    try:
        for (said,) in db.execute(f"PRAGMA quick_check({_PAGE_PROBLEMS_MOST})").fetchall():
            if said != "ok":
                yield Finding(str(segment.path), place, None, f"damaged page: {' '.join(str(said).split())}")
    except sqlite3.Error as error:
        yield Finding(str(segment.path), place, None, f"damaged page: {error}")


def _verify_records(
    db: sqlite3.Connection, segment: Segment, place: Place, count: _Count
) -> Generator[Finding, None, int]:
    """Check every record of a segment, going round what cannot be read; the offset after the last."""
    expected, leap = segment.first, 0
    while True:
        rows, problem = _chunk(db, expected + leap)
        if problem and leap > _LEAP_MOST:
            yield Finding(str(segment.path), place, expected, f"{problem}; nothing after it can be read either")
            return expected
        if problem:
            leap = leap * 2 or 1
            continue
        if leap:
            yield Finding(str(segment.path), place, expected, f"unreadable records, the next is {_first_of(rows)}")
            expected, leap = (rows[0][0] if rows else expected), 0
        if not rows:
            return expected
        for row in rows:
            if wrong := check_row(row, expected):
                yield Finding(str(segment.path), place, expected, wrong)
            expected = row[0] + 1
        count.add(len(rows))


def _first_of(rows: list[RawRow]) -> str:
    return str(rows[0][0]) if rows else "the end"


def _chunk(db: sqlite3.Connection, start: int) -> tuple[list[RawRow], str]:
    """Some rows from an offset on, or why there are none. Few at a time: a long read keeps a WAL from ending."""
    rows: list[RawRow] = []
    try:
        with closing(db.execute(_SELECT, (start, _CHUNK_ROWS))) as cursor:
            rows.extend(cursor)
    except (sqlite3.Error, UnicodeError) as error:
        return rows, "" if rows else f"unreadable: {error}"
    return rows, ""
