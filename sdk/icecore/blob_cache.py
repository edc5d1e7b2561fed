# ruff: noqa: PTH103, PTH104, PTH108, PTH119, PTH120 - a Path for each of 100,000 files costs more than the file
"""Files of artifacts kept on this machine by content, so that the next download needs no network.

Shared by processes: a file appears by rename, whole, and is read-only. Small ones lie together in packs. All bytes
that are taken from here are hashed while they are copied, and given out only as what their digest says: neither a
file's time nor its size would tell of a flipped bit. What was not used for longest goes when the cache is over its
size. Files are handed out as copies (or reflinks, which cost nothing until they are changed), never as hard links: who
may write to the file that was downloaded could write through a link.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from icecore.blob_packs import BlobPacks

_USED_S: Final = 3600
"""A use is noted in the file's time when the last note is older."""
_TRIM_TO: Final = 0.9
_PACK: Final = ".pack"
_STALE_S: Final = 7 * 86400
"""How long the beginning of a file waits for its download to go on."""


class CacheStat(NamedTuple):
    """What the cache holds."""

    files: int
    """Files of artifacts, of which many may lie in one pack."""
    bytes: int
    most: int
    hits: int = 0
    """Files that downloads took from here."""
    misses: int = 0
    """Files that downloads had to fetch."""


class BlobCache:
    """A folder of blobs by digest.

    Args:
        folder: where they are; made when needed.
        most: bytes that they may take together; 0 keeps none.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder = folder
        self.most = most
        self.packs = BlobPacks(folder)
        self._lock = threading.Lock()
        self._added = 0
        self._hits = 0
        self._misses = 0
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

    def add_small(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Keep small blobs that were checked, together."""
        if blobs and self.takes(sum(len(data) for _, data in blobs)):
            self._count(self.packs.add(blobs))

    def used(self, hits: int, misses: int) -> None:
        """So many files were here, so many were not."""
        with self._lock:
            self._hits += hits
            self._misses += misses

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
        """Note what was added and used since, and make room where it is due. Call it at the end of a download."""
        with self._lock:
            added, self._added = self._added, 0
            hits, self._hits = self._hits, 0
            misses, self._misses = self._misses, 0
        if not (added or hits or misses) or not self.most:
            return
        with contextlib.suppress(OSError), self._locked() as descriptor:
            noted = _Noted.read(descriptor)
            total = added + noted.added
            if total * 50 >= self.most:
                self._trim()
                total = 0
            _Noted(total, noted.hits + hits, noted.misses + misses).write(descriptor)

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
        packs: dict[str, str] = {}
        for _, size, path in files:
            if total <= self.most * _TRIM_TO:
                break
            if path.endswith(_PACK):
                packs[os.path.basename(path)] = path
                total -= size
                continue
            with contextlib.suppress(OSError):
                os.unlink(path)
                total -= size
        self.packs.remove(packs)

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(last used, bytes, path) of all files; beginnings that nobody came back for are deleted."""
        packs = [name for name in _names(self.packs.folder) if name.endswith(_PACK)]
        packed = ((str(self.packs.folder), (), packs),)
        for home, _, names in (*os.walk(self.folder / "blobs"), *packed):
            for name in names:
                with contextlib.suppress(OSError):
                    stat = os.lstat(f"{home}/{name}")
                    yield stat.st_mtime, stat.st_size, f"{home}/{name}"
        with contextlib.suppress(OSError):
            drafts = (*(self.folder / "drafts").glob("*"), *self.packs.folder.glob("*.draft"))
            for found in (*(self.folder / "partial").glob("*"), *drafts):
                if time.time() - found.lstat().st_mtime > _STALE_S:
                    found.unlink()

    def stat(self) -> CacheStat:
        """What it holds now."""
        found = [(size, path.endswith(_PACK)) for _, size, path in self._files()]
        alone = sum(not packed for _, packed in found)
        noted = _Noted(0, 0, 0)
        with contextlib.suppress(OSError), (self.folder / "added").open("rb") as file:
            noted = _Noted.read(file.fileno())
        size = sum(size for size, _ in found)
        return CacheStat(alone + self.packs.count(), size, self.most, noted.hits, noted.misses)

    def clear(self) -> CacheStat:
        """Delete everything; what it held. Downloads under way by others fetch again what they miss."""
        before = self.stat()
        if not self.folder.is_dir():
            return before
        with self._locked() as descriptor:
            packs = {}
            for _, _, path in self._files():
                if path.endswith(_PACK):
                    packs[os.path.basename(path)] = path
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(path)
            self.packs.remove(packs)
            _Noted(0, 0, 0).write(descriptor)
        return before


class _Noted(NamedTuple):
    """What processes tell each other in a file: bytes added since the last look at the size, and uses."""

    added: int
    hits: int
    misses: int

    @classmethod
    def read(cls, descriptor: int) -> _Noted:
        words = os.pread(descriptor, 64, 0).split()
        numbers = [int(word) for word in words if word.isdigit()]
        return cls(*[*numbers, 0, 0, 0][:3])

    def write(self, descriptor: int) -> None:
        data = b"%d %d %d" % self
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, data, 0)


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208 - as above
    return []


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
