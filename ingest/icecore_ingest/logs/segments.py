"""One segment of the log: a SQLite file that holds the records of a partition from its first offset on.

    DATA/log/ledger-0/00000000000000000000.db      sealed: never written again
    DATA/log/ledger-0/00000000000000052113.db      the tail

A segment is made whole under another name and linked into place, so there is never half a segment, and of two
processes that make the same one the first wins. Only the tail is written. `sealed` is set in the transaction of the
last records; whoever finds it set goes on to the next segment, and makes it if the one who sealed died first.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import struct
import uuid
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from icecore.errors import LogFull, LogReadOnly, LogTooNew
from icecore.position import Place
from icecore_ingest.logs import failures

APPLICATION_ID: Final = 0x1CEC04E0
FORMAT: Final = 1
PAGE_SIZE: Final = 16384

_NAME: Final = re.compile(r"(\d{20})\.db")
_BUSY_S: Final = 10.0
"""For how long a reader or an opener waits while another process recovers or closes the file: milliseconds, mostly."""

TAIL: Final = "SELECT (SELECT max(off) FROM records), (SELECT value FROM meta WHERE key = 'sealed')"
"""The last offset (NULL in an empty segment) and whether it is sealed, of one moment."""

_LENGTHS: Final = struct.Struct("<II")
_OFFSET: Final = struct.Struct("<Q")
SCHEMA: Final = """
CREATE TABLE records(off INTEGER PRIMARY KEY, key TEXT NOT NULL, envelope BLOB NOT NULL, payload BLOB NOT NULL,
                     crc INTEGER NOT NULL);
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""


class Segment(NamedTuple):
    """A segment's file and the offset of its first record."""

    path: Path
    first: int


def content_checksum(key: str, envelope: bytes, payload: bytes) -> int:
    """CRC-32 of what is in a record; the lengths go in too, so that no byte can change sides."""
    name = key.encode()
    return zlib.crc32(payload, zlib.crc32(envelope, zlib.crc32(_LENGTHS.pack(len(name), len(envelope)) + name)))


def checksum(offset: int, content: int) -> int:
    """CRC-32 of a record at its offset, from its `content_checksum`."""
    return zlib.crc32(_OFFSET.pack(offset), content)


def segment_at(folder: Path, first: int) -> Segment:
    """The segment of a partition's folder that begins, or would begin, at offset `first`."""
    return Segment(folder / f"{first:020d}.db", first)


def side_file(segment: Segment, suffix: str) -> Path:
    """A file SQLite keeps beside a segment: its `-wal` or `-shm`."""
    return segment.path.with_name(segment.path.name + suffix)


def list_segments(folder: Path) -> list[Segment]:
    """The segments of a partition, in order."""
    names = (_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return [segment_at(folder, first) for first in sorted(int(match[1]) for match in names if match)]


def create_segment(segment: Segment, place: Place) -> None:
    """Make an empty segment, durably; done already is fine.

    Raises:
        LogFull, LogReadOnly, LogPoisoned: the segment is not there.
    """
    if segment.path.exists():
        return
    made = segment.path.with_name(f".{segment.path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _write_empty(made, segment, place)
        with contextlib.suppress(FileExistsError):  # another process was first: its segment is as good
            os.link(made, segment.path)
        sync_folder(segment.path.parent)
    except sqlite3.Error as error:
        raise failures.translate(error, segment.path) from error
    except OSError as error:
        raise failures.translate_os(error, segment.path) from error
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(OSError):
                Path(f"{made}{suffix}").unlink()


def _write_empty(made: Path, segment: Segment, place: Place) -> None:
    """A valid empty segment in the file `made`, closed and on disk."""
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA page_size={PAGE_SIZE}")
        db.execute("PRAGMA journal_mode=WAL").fetchall()
        db.executescript(
            f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; {SCHEMA} COMMIT"
        )
        rows = {"stream": place.stream, "partition": place.partition, "first_off": segment.first, "sealed": 0}
        db.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())


def open_writable(segment: Segment, place: Place) -> sqlite3.Connection:
    """A connection that may append. Once open it never waits for locks by itself: SQLite's waiting is not fair.

    Raises:
        LogError: any of its kinds; see `failures`.
    """
    db = _open(segment, place, "rw")
    db.execute("PRAGMA busy_timeout=0").fetchall()
    return db


def open_readable(segment: Segment, place: Place) -> sqlite3.Connection:
    """A connection that only reads.

    A segment with nothing in its WAL that nobody writes is read without any lock or side file: a sealed one, or one
    whose side files are not there and cannot be made, because the disk is read-only or full.

    Raises:
        LogError: any of its kinds; see `failures`.
    """
    if wal_size(segment) == 0:
        db = _open(segment, place, "ro&immutable=1")
        with contextlib.suppress(sqlite3.Error):  # a damaged file: who reads it will say so
            if is_sealed(db):
                return db
        db.close()
    try:
        return _open(segment, place, "ro")
    except (LogFull, LogReadOnly):
        if wal_size(segment):
            raise
        return _open(segment, place, "ro&immutable=1")


def _open(segment: Segment, place: Place, mode: str) -> sqlite3.Connection:
    db: sqlite3.Connection | None = None
    try:
        uri = f"{segment.path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
        check_identity(db, segment, place)
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA fullfsync=1")  # macOS: fsync alone stops at the drive's cache
        db.execute("PRAGMA checkpoint_fullfsync=1")
        db.execute("PRAGMA wal_autocheckpoint=0").fetchall()
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        raise failures.translate(error, segment.path) from error
    except Exception:
        if db is not None:
            db.close()
        raise
    return db


def check_identity(db: sqlite3.Connection, segment: Segment, place: Place) -> None:
    """Refuse a file that is not this segment.

    Raises:
        LogForeign: not an icecore log, or another segment of one.
        LogTooNew: a format this version does not know.
    """
    (application,), (version,) = db.execute("PRAGMA application_id").fetchall()[0], _user_version(db)
    if application != APPLICATION_ID:
        raise failures.foreign(segment.path, "an icecore log", f"a database of application {application:#x}")
    if version > FORMAT:
        raise LogTooNew(
            f"expected {segment.path} to have format {FORMAT} or older, got format {version}",
            hint="start the icecore version that wrote it, or a newer one",
        )
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    if meta.get("sealed") not in {0, 1}:
        raise failures.corrupt(segment.path, f"sealed = {meta.get('sealed')!r}")
    expected = (place.stream, place.partition, segment.first)
    got = (meta.get("stream"), meta.get("partition"), meta.get("first_off"))
    if got != expected:
        raise failures.foreign(
            segment.path, "{}-{} from offset {}".format(*expected), "{}-{} from offset {}".format(*got)
        )


def _user_version(db: sqlite3.Connection) -> tuple[int]:
    row: tuple[int] = db.execute("PRAGMA user_version").fetchall()[0]
    return row


def is_sealed(db: sqlite3.Connection) -> bool:
    """Whether the segment will never be written again."""
    return bool(db.execute(TAIL).fetchall()[0][1])


def wal_size(segment: Segment) -> int:
    """Bytes of a segment's WAL; 0 without one."""
    try:
        return side_file(segment, "-wal").stat().st_size
    except FileNotFoundError:
        return 0


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Make what is in a file durable. Never for a segment in use: closing a handle of it drops SQLite's locks."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
