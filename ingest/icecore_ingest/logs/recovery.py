"""Opens a tail for writing after whatever happened to it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import time
from pathlib import Path
from typing import Final

from icecore.errors import LogCorrupt
from icecore.position import Place
from icecore_ingest.logs import failures
from icecore_ingest.logs.segments import PAGE_SIZE, Segment, open_writable, side_file, sync_folder

_WAL_HEAD: Final = 32
_FRAME_HEAD: Final = 24
_PAUSE_S: Final = 0.002
_LOOKS: Final = 3


def recover(segment: Segment, place: Place, timeout: float) -> sqlite3.Connection:
    """A writable connection to a segment whose WAL is empty: everything in it is in the file, and the file on disk.

    Why before the first acknowledgement: after a failed fsync the kernel may forget that the pages of a WAL are not
    on disk and still show them. Frames appended later are fsynced, but the ones in front of them, which recovery
    after a power cut must walk through, would be gone, and the later ones with them. A checkpoint writes what is
    shown into the file anew, and syncs that.

    Raises:
        LogCorrupt: the WAL is damaged in the middle, so that acknowledged records cannot be read.
        LogLocked: another process kept reading or writing for `timeout` seconds.
        LogError: any other kind, when the file cannot be opened.
    """
    for kept in damaged_wals(segment):
        raise _damaged(segment, kept)
    commits = commits_in_wal(segment)
    db = open_writable(segment, place)
    try:
        _check_all_found(db, segment, commits)
        _truncate_wal(db, segment, timeout)
    except sqlite3.Error as error:
        db.close()
        raise failures.translate(error, segment.path, place) from error
    except BaseException:
        db.close()
        raise
    return db


def damaged_wals(segment: Segment) -> list[Path]:
    """WALs that were kept aside because acknowledged records in them cannot be read."""
    return sorted(segment.path.parent.glob(f"{segment.path.name}-wal.damaged-*"))


def commits_in_wal(segment: Segment) -> list[int]:
    """The numbers (from 1) of the commit frames of a segment's WAL, by their heads alone; [] without one.

    Frames left from before the WAL last began anew carry other salts and do not count.
    """
    try:
        with side_file(segment, "-wal").open("rb") as wal:
            return _commit_frames(wal.fileno())
    except FileNotFoundError:
        return []


def _commit_frames(wal: int) -> list[int]:
    head = os.pread(wal, _WAL_HEAD + _FRAME_HEAD, 0)
    if len(head) < _WAL_HEAD + _FRAME_HEAD:
        return []
    # a head that is damaged itself may have any salts: then the first frame says which
    salts = head[16:24] if _head_is_whole(head) else head[40:48]
    commits: list[int] = []
    step = _FRAME_HEAD + PAGE_SIZE
    for number in range(1, (os.fstat(wal).st_size - _WAL_HEAD) // step + 1):
        frame = os.pread(wal, _FRAME_HEAD, _WAL_HEAD + (number - 1) * step)
        if frame[8:16] == salts and frame[4:8] != b"\0\0\0\0":
            commits.append(number)
    return commits


def _head_is_whole(head: bytes) -> bool:
    """Whether a WAL's head has its checksum (https://www.sqlite.org/fileformat2.html#wal_file_format)."""
    order = ">" if head[3] & 1 else "<"
    s0 = s1 = 0
    words = struct.unpack(f"{order}6I", head[:24])
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & 0xFFFFFFFF
        s1 = (s1 + x1 + s0) & 0xFFFFFFFF
    return struct.unpack(">2I", head[24:32]) == (s0, s1)


def _check_all_found(db: sqlite3.Connection, segment: Segment, commits: list[int]) -> None:
    """Refuse a WAL in which recovery stopped before the last commits.

    SQLite takes the first frame with a wrong checksum for the end. At most one commit may lie behind the end it
    found: the one that was being written when the power went, never acknowledged. Two mean that a frame in the
    middle is damaged. The WAL is kept aside, and the log stays closed until somebody has decided.

    A process that writes right now may begin the WAL anew between our two looks; damage stays as it is.
    """
    for _ in range(_LOOKS):
        found = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0][1]
        if found < 0 or sum(number > found for number in commits) < 2:
            return
        time.sleep(_PAUSE_S)
        seen, commits = commits, commits_in_wal(segment)
        if commits != seen:
            return
    kept = side_file(segment, f"-wal.damaged-{time.time_ns()}")
    shutil.copyfile(side_file(segment, "-wal"), kept)
    kept.chmod(0o600)
    sync_folder(kept.parent)
    raise _damaged(segment, kept)


def _damaged(segment: Segment, kept: Path) -> LogCorrupt:
    return LogCorrupt(
        f"expected every commit in {segment.path}-wal to be whole, got a damaged one with acknowledged ones behind it",
        hint=f"restore {segment.path} from a backup; or, to go on without them, move {kept} out of the log's folder",
        file=str(kept),
    )


def _truncate_wal(db: sqlite3.Connection, segment: Segment, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]:
        if time.monotonic() > deadline:
            raise failures.locked(segment.path, timeout)
        time.sleep(_PAUSE_S)
