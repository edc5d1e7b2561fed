"""What SQLite and the operating system say, in the words of `icecore.errors`: which file, and the next step."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from icecore.errors import LogCorrupt, LogError, LogForeign, LogFull, LogLocked, LogPoisoned, LogReadOnly
from icecore.position import Place

_HINT_FULL = "free some space on that disk; nothing else is needed, appends go on by themselves"
_HINT_READ_ONLY = "make the folder and its files writable for this user, or mount the disk read-write"
_HINT_LOCKED = "close the program that holds it (such as a database browser), then try again"
_HINT_POISONED = "check the disk (dmesg, smartctl), then restart icecore; the log is checked when it opens"
_HINT_CORRUPT = "run `icecore fsck` to see what is damaged, and restore that file from a backup"
_HINT_FOREIGN = "move it out of the log's folder, or point --data at another one"
_SPACE_MIN = 64 * 1024
"""A disk with less than this is full: SQLite needs at least a page of shared memory and a few of the WAL."""

_CODE = 0xFF
"""The lower bits of an extended result code: its kind."""


def translate(
    error: sqlite3.Error, file: Path, place: Place | None = None, offset: int | None = None, *, reading: bool = False
) -> LogError:
    """The `LogError` for what SQLite raised about `file`.

    A disk that fails gives `LogPoisoned` to who writes, and a plain `LogError` to who is only `reading`.
    """
    full = getattr(error, "sqlite_errorcode", 0)
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    said = f"{error} [{name}]"
    match full & _CODE:
        case sqlite3.SQLITE_FULL:
            return no_space(file)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return read_only(file)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return locked(file, 0.0)
        case sqlite3.SQLITE_NOTADB:
            return foreign(file, "a SQLite database", "something else, or a damaged header")
        case sqlite3.SQLITE_CORRUPT:
            return corrupt(file, said, place, offset)
        case sqlite3.SQLITE_CANTOPEN:
            return _cannot_open(file, said)
        case sqlite3.SQLITE_IOERR:
            failed = _io_error(full, file, said, place, offset)
            unread = LogError(f"expected to read {file}, got {said}", hint=_HINT_POISONED)
            return unread if reading and isinstance(failed, LogPoisoned) else failed
        case 0:  # raised by Python's module itself: text that is not UTF-8
            return corrupt(file, said, place, offset)
        case _:
            return LogError(f"expected {file} to take or give records, got {said}", hint=_HINT_CORRUPT)


def is_busy(error: sqlite3.Error) -> bool:
    """Whether SQLite only says that somebody else holds a lock right now."""
    return getattr(error, "sqlite_errorcode", 0) & _CODE in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def translate_os(error: OSError, file: Path) -> LogError:
    """The `LogError` for what the operating system said about `file`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return no_space(file)
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        return read_only(file)
    if error.errno == errno.EIO:
        return poisoned(file, str(error))
    return LogError(f"expected {file} to be usable, got {error}", hint="check the path and its permissions")


def no_space(file: Path) -> LogFull:
    """No room for what was to be written: nothing of it is acknowledged."""
    return LogFull(f"expected room to write {file}, got a full disk or quota", hint=_HINT_FULL)


def read_only(file: Path) -> LogReadOnly:
    """The file or its folder cannot be written."""
    return LogReadOnly(f"expected to write {file}, got a read-only file or folder", hint=_HINT_READ_ONLY)


def locked(file: Path, seconds: float) -> LogLocked:
    """Somebody else wrote, or held a lock, for longer than we wait."""
    waited = f" for {seconds:g} s" if seconds else ""
    return LogLocked(f"expected to lock {file}, got another process holding it{waited}", hint=_HINT_LOCKED)


def poisoned(file: Path, said: str) -> LogPoisoned:
    """A write or an fsync failed: what is on disk is not known."""
    return LogPoisoned(f"expected {file} to reach the disk, got {said}", hint=_HINT_POISONED)


def foreign(file: Path, expected: str, got: str) -> LogForeign:
    """Not a segment, or not this one."""
    return LogForeign(f"expected {file} to be {expected}, got {got}", hint=_HINT_FOREIGN)


def corrupt(file: Path, got: str, place: Place | None = None, offset: int | None = None) -> LogCorrupt:
    """Bytes that are not what was written."""
    if place is None or offset is None:
        return LogCorrupt(f"expected {file} to be whole, got {got}", hint=_HINT_CORRUPT, file=str(file))
    where = f"{place.stream}:{place.partition}:{offset}"
    return LogCorrupt(
        f"expected a whole record at {where} in {file}, got {got}",
        hint=_HINT_CORRUPT,
        file=str(file),
        stream=place.stream,
        partition=place.partition,
        offset=offset,
    )


def _cannot_open(file: Path, said: str) -> LogError:
    """SQLite says the same for a full disk, a read-only one and a file that is away: ask the disk which it is."""
    if _has_no_space(file):
        return no_space(file)
    if not file.exists():
        return LogError(f"expected {file}, got no such file", hint=_HINT_CORRUPT)
    if not os.access(file.parent, os.W_OK) or not os.access(file, os.W_OK):
        return read_only(file)
    return LogError(f"expected to open {file}, got {said}", hint="check its permissions and the limit of open files")


def _io_error(full: int, file: Path, said: str, place: Place | None, offset: int | None) -> LogError:
    """A full disk can also stop the shared-memory file from growing; everything else is the disk failing."""
    if full in {sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP, sqlite3.SQLITE_IOERR_SHMOPEN}:
        if _has_no_space(file):
            return no_space(file)
        if not os.access(file.parent, os.W_OK):
            return read_only(file)
    if full == sqlite3.SQLITE_IOERR_SHORT_READ:
        return corrupt(file, f"a truncated file ({said})", place, offset)
    return poisoned(file, said)


def _has_no_space(file: Path) -> bool:
    disk = os.statvfs(file.parent)
    return disk.f_bavail * disk.f_frsize < _SPACE_MIN or (disk.f_files > 0 and disk.f_ffree == 0)
