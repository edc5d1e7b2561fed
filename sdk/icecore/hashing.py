# ruff: noqa: PTH112, PTH116 - a Path for each of 100,000 files costs more than the file
"""Local files: which there are below a folder, and their digests."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from icecore.errors import UsageError
from icecore.stat_cache import Known, Stamp, StatCache, inode_of
from icecore.target import STAGING
from icecore.transfer import parallel

_BATCH: Final = 256
_HELD_MOST: Final = 128 << 20
_HELD_FILE: Final = 256 * 1024
_CHUNK: Final = 1 << 20
_HASHERS: Final = min(os.cpu_count() or 1, 8)
_GONE: Final = Stamp(0, 0, 0, 0)


class Held:
    """Bytes of small files as they were hashed, within a bound, so that sending them need not read them again.

    Args:
        most: bytes in all.
    """

    def __init__(self, most: int = _HELD_MOST) -> None:
        self._left = most
        self._data: dict[str, bytes] = {}

    def keep(self, digest: str, data: bytes) -> None:
        """Keep a file's bytes, where there is room."""
        if len(data) <= min(self._left, _HELD_FILE):
            self._left -= len(data)  # threads may take a file or two more than there is room for
            self._data[digest] = data

    def take(self, digest: str) -> bytes | None:
        """The bytes of a digest, which are let go of; None where they are not here."""
        return self._data.pop(digest, None)

    def clear(self) -> None:
        """Let go of all."""
        self._data.clear()


class LocalFile(NamedTuple):
    """A file as it was when it was hashed."""

    path: str
    """Absolute, without links."""
    stamp: Stamp
    digest: str
    seen: bool = False
    """Whether it was hashed before and has not changed since: whoever it was sent to then is likely to have it."""
    held: Held | None = None
    """Where its bytes may be still."""

    def read_part(self, start: int, size: int) -> bytes:
        """`size` of its bytes, from `start`; whether they are those that were hashed is the caller's to check.

        Raises:
            UsageError: it is not as long as it was.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.changed(error.strerror or str(error)) from error
        try:
            found = os.fstat(descriptor).st_size
            if found != self.stamp.size:
                raise self.changed(f"{found} bytes instead of {self.stamp.size}")
            data = os.pread(descriptor, size, start)
            while len(data) < size:  # one call reads at most 2 GB, and signals cut it short
                more = os.pread(descriptor, size - len(data), start + len(data))
                if not more:
                    raise self.changed("a shorter file")
                data += more
            return data
        finally:
            os.close(descriptor)

    def changed(self, found: str) -> UsageError:
        """The error for a file that is not what it was."""
        return UsageError(
            f"expected {self.path} as it was when it was added, got {found}",
            hint="nothing was stored: add it again, and do not change it until wait() or finish() has returned",
        )


class Found(NamedTuple):
    """What lies below a folder."""

    files: list[tuple[str, str]]
    """(path in the artifact, absolute path)"""
    empty_folders: list[str]


def scan(root: str) -> Found:
    """All files below a folder, through links that stay inside of it.

    Raises:
        UsageError: a link leads outside or in a circle, something is neither file nor folder, or a name is not UTF-8.
    """
    found = Found([], [])
    real = os.path.realpath(root)
    todo: list[tuple[str, str, tuple[str, ...]]] = [("", real, (real,))]
    while todo:
        prefix, folder, above = todo.pop()
        count = 0
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(STAGING) and not prefix:
                    continue  # of a download into this folder that was killed
                count += 1
                name = _text(entry.name, folder)
                if entry.is_symlink():
                    target = _inside(entry.path, real)
                    if os.path.isdir(target):
                        if target in above:
                            raise UsageError(f"expected links that end, got {entry.path}, which leads back to {target}")
                        todo.append((f"{prefix}{name}/", target, (*above, target)))
                        continue
                elif entry.is_dir():
                    todo.append((f"{prefix}{name}/", entry.path, (*above, entry.path)))
                    continue
                else:
                    target = entry.path
                found.files.append((f"{prefix}{name}", target))
        if not count and prefix:
            found.empty_folders.append(prefix)
    return found


def _inside(link: str, root: str) -> str:
    target = os.path.realpath(link)
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        raise UsageError(
            f"expected links that stay inside {root}, got {link}, which leads to {target}",
            hint="copy the file into the folder, or add it by itself with add_file",
        )
    return target


def _text(name: str, folder: str) -> str:
    if name.isascii():
        return name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"expected file names in UTF-8, got {os.fsencode(name)!r} in {folder}") from error
    return unicodedata.normalize("NFC", name)


def hash_files(
    paths: Sequence[str], cache: StatCache, folder: str, held: Held | None = None, *, may_go: bool = False
) -> list[LocalFile]:
    """The digests of files, in the order given; files that have not changed since are not read.

    Args:
        paths: absolute paths, below `folder` or equal to it.
        cache: what is known from before, and is told what is found.
        folder: which part of the cache is looked at.
        held: keeps the bytes of small ones that are read.
        may_go: files that go or change meanwhile have an empty digest; else they are an error.

    Raises:
        UsageError: something is no file, cannot be read, or changes meanwhile.
    """
    known = cache.below(folder)
    files: list[LocalFile | None] = []
    changed: list[int] = []
    for path in paths:  # in one thread: these calls are too short to gain by another one
        row = known.get(path)
        file = None if row is None else _unchanged(path, row)
        if file is None:
            changed.append(len(files))
        files.append(file)
    known.clear()
    fresh: list[LocalFile] = []

    def work(batch: Sequence[int]) -> None:
        for number in batch:
            path = paths[number]
            try:
                stamp, digest, data = _read(path)
            except OSError as error:
                if not (may_go and isinstance(error, FileNotFoundError)):
                    raise UsageError(f"expected a file that can be read at {path}, got: {error.strerror}") from error
                stamp, digest, data = _GONE, "", b""
            if not digest:
                if not may_go:
                    raise _changed(path)
                files[number] = LocalFile(path, stamp, "")
                continue
            if held is not None and data:
                held.keep(digest, data)
            files[number] = file = LocalFile(path, stamp, digest, held=held)
            fresh.append(file)

    parallel(work, (changed[start : start + _BATCH] for start in range(0, len(changed), _BATCH)), _HASHERS)
    cache.remember(file[:3] for file in fresh)
    return cast("list[LocalFile]", files)


def _unchanged(path: str, row: Known) -> LocalFile | None:
    """A file that is as it was when it was hashed; None where it is not."""
    try:
        found = os.stat(path)
    except OSError:
        return None  # reading it says why
    _, size, mtime, ctime, inode, digest = row
    if (found.st_mtime_ns, found.st_size, found.st_ctime_ns) != (mtime, size, ctime) or inode_of(found) != inode:
        return None
    return LocalFile(path, Stamp(size, mtime, ctime, inode), digest.hex(), seen=True)


def _changed(path: str) -> UsageError:
    return UsageError(f"expected {path} to stay as it is while it is read, got changes to it")


def hash_file(path: str) -> tuple[Stamp, str]:
    """A file's stamp and hex SHA-256.

    Raises:
        UsageError: it is no file, or changes while it is read.
        OSError: it cannot be read.
    """
    stamp, digest, _ = _read(path)
    if not digest:
        raise _changed(path)
    return stamp, digest


def _read(path: str) -> tuple[Stamp, str, bytes]:
    """As `hash_file`, with its bytes where it is small; without a digest where it changes meanwhile."""
    # a pipe without a writer must not hold us up
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise UsageError(f"expected a file at {path}, got a {_kind(before.st_mode)}")
        size = before.st_size
        if size <= _HELD_FILE and len(data := os.pread(descriptor, size, 0)) == size:
            return Stamp.of(before), hashlib.sha256(data).hexdigest(), data
        digest = hash_descriptor(descriptor, size)
        if size > _CHUNK and Stamp.of(os.fstat(descriptor)) != Stamp.of(before):
            digest = ""
        return Stamp.of(before), digest, b""
    finally:
        os.close(descriptor)


def hash_descriptor(descriptor: int, size: int) -> str:
    """Hex SHA-256 of an open file of `size` bytes, from its beginning."""
    data = os.pread(descriptor, min(size, _CHUNK), 0) if size else b""
    hasher = hashlib.sha256(data)
    at = len(data)
    if at == size:
        return hasher.hexdigest()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := os.preadv(descriptor, [view], at):
        hasher.update(view[:count])
        at += count
    return hasher.hexdigest()


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"))
    return next((name for test, name in kinds if test(mode)), "special file")
