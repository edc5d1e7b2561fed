"""Opens a tail for writing after whatever happened to it."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Final

from icecore.errors import LogCorrupt
from icecore.position import Place
from icecore_ingest.logs import failures
from icecore_ingest.logs.segments import Segment, open_writable, side_file, sync_file, sync_folder, wal_size
from icecore_ingest.logs.wal import WalState, read_wal

_PAUSE_S: Final = 0.002
_LOOKS: Final = 3
_LOOK_PAUSE_S: Final = 0.02
_TORN_MOST: Final = 1


def recover(segment: Segment, place: Place, timeout: float) -> sqlite3.Connection:
    """A writable connection to a segment whose WAL is empty: everything in it is in the file, and the file on disk.

    Why before the first acknowledgement: after a failed fsync the kernel may forget that the pages of a WAL are not
    on disk and still show them. Frames appended later are fsynced, but the ones in front of them, which recovery
    after a power cut must walk through, would be gone, and the later ones with them. A checkpoint writes what is
    shown into the file anew, and syncs that.

    A WAL with damage in the middle is kept aside first; what is before the damage goes into the file, and the log
    stays closed until somebody has decided about the rest.

    Raises:
        LogCorrupt: acknowledged records in the WAL cannot be read.
        LogLocked: another process kept reading or writing for `timeout` seconds.
        LogError: any other kind, when the file cannot be opened.
    """
    for kept in damaged_wals(segment):
        raise _damaged(segment, kept)
    kept_now = _keep(segment) if is_damaged(segment) else None
    db = open_writable(segment, place)
    try:
        _truncate_wal(db, segment, timeout)
    except sqlite3.Error as error:
        db.close()
        raise failures.translate(error, segment.path, place) from error
    except BaseException:
        db.close()
        raise
    if kept_now is not None:
        db.close()
        raise _damaged(segment, kept_now)
    return db


def damaged_wals(segment: Segment) -> list[Path]:
    """WALs that were kept aside because acknowledged records in them cannot be read."""
    return sorted(segment.path.parent.glob(f"{segment.path.name}-wal.damaged-*"))


def is_damaged(segment: Segment) -> bool:
    """Whether a segment's WAL has acknowledged commits behind a damaged frame.

    Another process may be writing it right now, and what is half written looks damaged: only what stays is.
    """
    if wal_size(segment) == 0:
        return False
    seen: set[WalState] = set()
    for look in range(_LOOKS):
        if look:
            time.sleep(_LOOK_PAUSE_S)
        state = read_wal(side_file(segment, "-wal"))
        seen.add(state)
        if state.lost_commits <= _TORN_MOST or len(seen) > 1:
            return False
    return True


def _keep(segment: Segment) -> Path:
    """Copy a damaged WAL aside, durably."""
    kept = side_file(segment, f"-wal.damaged-{time.time_ns()}")
    shutil.copyfile(side_file(segment, "-wal"), kept)
    kept.chmod(0o600)
    sync_file(kept)
    sync_folder(kept.parent)
    return kept


def _damaged(segment: Segment, kept: Path) -> LogCorrupt:
    return LogCorrupt(
        f"expected every commit in {segment.path}-wal to be whole, got a damaged one with acknowledged ones behind it",
        hint=f"restore {segment.path} from a backup; or, to go on without them, move {kept} out of the log's folder",
        file=str(kept),
    )


def _truncate_wal(db: sqlite3.Connection, segment: Segment, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _truncated(db):
        if time.monotonic() > deadline:
            raise failures.locked(segment.path, timeout)
        time.sleep(_PAUSE_S)


def _truncated(db: sqlite3.Connection) -> bool:
    try:
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0][0]
    except sqlite3.OperationalError as error:
        if failures.is_busy(error):
            return False
        raise
    return not busy
