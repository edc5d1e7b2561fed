# ruff: noqa: PTH103, PTH104, PTH108, PTH120 - a Path for each of 100,000 files costs more than the file
"""Files of artifacts kept on this machine by content, so that the next download needs no network.

Shared by processes: a file appears by rename, whole, and is read-only. It is checked whenever it is used, as disks
and people change files. What was not used for longest goes when the cache is over its size. Files are handed out as
copies (or reflinks, which cost nothing until they are changed), never as hard links: who may write to the file that
was downloaded could write through a link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_USED_S: Final = 3600
"""A use is noted in the file's time when the last note is older."""
_TRIM_TO: Final = 0.9
_STALE_S: Final = 7 * 86400
"""How long the beginning of a file waits for its download to go on."""


class CacheStat(NamedTuple):
    """What the cache holds."""

    files: int
    bytes: int
    most: int


class BlobCache:
    """A folder of blobs by digest.

    Args:
        folder: where they are; made when needed.
        most: bytes that they may take together; 0 keeps none.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most
        self._lock = threading.Lock()
        self._added = 0
        self._made: set[str] = set()
        self._number = 0
        self._mark = uuid.uuid4().hex[:12]

    def path(self, digest: str) -> str:
        """Where a blob is or would be."""
        return f"{self.folder}/blobs/{digest[:2]}/{digest}"

    def takes(self, size: int) -> bool:
        """Whether a blob of that size is worth keeping: one that would push out most others is not."""
        return size <= self.most // 4

    def open(self, digest: str) -> int | None:
        """A descriptor of the blob, not yet checked; None where it is not here."""
        path = self.path(digest)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        if time.time() - os.fstat(descriptor).st_mtime > _USED_S:
            with contextlib.suppress(OSError):
                os.utime(path)
        return descriptor

    def has(self, digest: str) -> bool:
        """Whether there is a file of that name; its bytes are not looked at."""
        return os.path.lexists(self.path(digest))

    def drop(self, digest: str) -> None:
        """Forget a blob whose bytes are not its digest's."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(digest))

    def add(self, digest: str, data: bytes) -> None:
        """Keep a blob that was checked. A cache that cannot be written keeps nothing."""
        if not self.takes(len(data)):
            return
        target = self.path(digest)
        with self._lock:
            self._number += 1
            # all in one folder: file systems find room for a new file fastest beside the last one
            draft = self._home(f"{self.folder}/drafts/{self._mark}-{self._number}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                os.write(descriptor, data) if len(data) < 1 << 20 else _write_all(descriptor, data)
            finally:
                os.close(descriptor)
            os.rename(draft, self._home(target))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            return
        self._count(len(data))

    def adopt(self, digest: str, draft: Path, size: int) -> bool:
        """Take a file over that was checked, by rename; whether it did."""
        if not self.takes(size):
            return False
        try:
            draft.chmod(0o400)
            draft.rename(self._home(self.path(digest)))
        except OSError:
            return False
        self._count(size)
        return True

    def partial(self, digest: str) -> Path:
        """Where the beginning of a large blob waits for the rest."""
        folder = self.folder / "partial"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder / digest

    def _home(self, target: str) -> str:
        folder = os.path.dirname(target)
        if folder not in self._made:
            with contextlib.suppress(OSError):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            self._made.add(folder)
        return target

    def _count(self, size: int) -> None:
        with self._lock:
            self._added += size

    # ---- the size of it all

    def settle(self) -> None:
        """Note what was added since, and make room where it is due. Call it at the end of a download."""
        with self._lock:
            added, self._added = self._added, 0
        if not added:
            return
        with contextlib.suppress(OSError), self._locked() as descriptor:
            noted = os.pread(descriptor, 32, 0).strip()
            total = added + (int(noted) if noted.isdigit() else 0)
            if total * 50 >= self.most:
                self._trim()
                total = 0
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d" % total, 0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "added", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _trim(self) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= self.most:
            return
        for _, size, path in files:
            if total <= self.most * _TRIM_TO:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(last used, bytes, path) of all files; beginnings that nobody came back for are deleted."""
        for home, _, names in os.walk(self.folder / "blobs"):
            for name in names:
                with contextlib.suppress(OSError):
                    stat = os.lstat(f"{home}/{name}")
                    yield stat.st_mtime, stat.st_size, f"{home}/{name}"
        with contextlib.suppress(OSError):
            for found in [*(self.folder / "partial").glob("*"), *(self.folder / "drafts").glob("*")]:
                if time.time() - found.lstat().st_mtime > _STALE_S:
                    found.unlink()

    def stat(self) -> CacheStat:
        """What it holds now."""
        sizes = [size for _, size, _ in self._files()]
        return CacheStat(len(sizes), sum(sizes), self.most)

    def clear(self) -> CacheStat:
        """Delete everything; what it held. Downloads under way by others fetch again what they miss."""
        before = self.stat()
        for _, _, path in self._files():
            with contextlib.suppress(OSError):
                os.unlink(path)
        return before


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
