"""Files that are not blobs yet: written in a folder beside them, made durable, and then given their name.

Until it is renamed nobody reads a draft, so what a killed process leaves of one is an orphan and nothing worse.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

from icecore.errors import BlobError, BlobsFull, IcecoreError, TooLarge
from icecore.limits import LimitName, most
from icecore_ingest.logs.segments import sync_folder

AT_ONCE_BYTES: Final = 1 << 20
"""What is handed to a thread at once: fewer hand-overs than there are pieces from the network."""
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class Draft:
    """A file under way. One writer at a time; may be thrown away from any thread.

    Args:
        folder: where drafts are.
        hashed: whether a digest is made of what is written.
    """

    def __init__(self, folder: Path, *, hashed: bool = True) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.draft"
        self.size = 0
        self._lock = threading.Lock()
        self._hash = hashlib.sha256() if hashed else None
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._open = True

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append."""
        with self._lock:
            if not self._open:
                return
            for piece in pieces:
                if self._hash is not None:
                    self._hash.update(piece)
                self.size += len(piece)
            write_all(self._handle, pieces)

    @property
    def digest(self) -> str:
        """Of what was written."""
        assert self._hash is not None
        return self._hash.hexdigest()

    def sync(self) -> None:
        """Make what is in it durable."""
        with self._lock:
            self._check_open()
            os.fsync(self._handle)

    def become(self, path: Path) -> None:
        """Give it its name; the caller has synced it, and holds the right to the name."""
        with self._lock:
            self._check_open()
            publish(self.path, path)
            self._close()

    def discard(self) -> None:
        """Throw it away, unless it got its name."""
        with self._lock:
            if self._open:
                self._close()
                self.path.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if not self._open:
            raise OSError(errno.ECANCELED, "the request ended while its file was written")

    def _close(self) -> None:
        self._open = False
        os.close(self._handle)


def write_all(handle: int, pieces: Sequence[bytes]) -> None:
    """Write every byte, however few the disk takes at once."""
    for first in range(0, len(pieces), 256):
        left = [memoryview(piece) for piece in pieces[first : first + 256] if piece]
        while left:
            written = os.writev(handle, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left and written:
                left[0] = left[0][written:]


def publish(draft: Path, path: Path) -> None:
    """Give a synced file its name, durably or not at all.

    Raises:
        OSError: the disk does not take it.
    """
    if make_folder(path.parent):
        sync_folder(path.parent.parent)
    draft.replace(path)
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> bool:
    """Make a folder that only this user can enter, whatever the umask; False where it is there."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    folder.chmod(0o700)  # the store's own umask lets nobody enter, not even itself
    return True


async def fill(
    chunks: AsyncIterator[bytes], take: Callable[[Sequence[bytes]], Any], limit: LimitName, threads: Executor
) -> int:
    """Hand what comes to `take`, in one of `threads`, while more comes. Answers how many bytes it was.

    Raises:
        TooLarge: more than the limit.
    """
    loop = asyncio.get_running_loop()
    batch: list[bytes] = []
    waiting = total = 0
    taking: asyncio.Future[Any] | None = None
    try:
        async for chunk in chunks:
            batch.append(chunk)
            waiting += len(chunk)
            total += len(chunk)
            if total > most(limit):
                raise TooLarge(
                    f"expected at most {most(limit)} bytes, got more", limit=limit, most=most(limit), value=total
                )
            if waiting >= AT_ONCE_BYTES:
                if taking is not None:
                    await taking
                taking = loop.run_in_executor(threads, take, batch)
                batch, waiting = [], 0
        if taking is not None:
            await taking
        taking = loop.run_in_executor(threads, take, batch)
        await taking
    finally:
        if taking is not None:  # nothing may be written any more once this has returned
            await asyncio.wait((taking,))
    return total


@contextlib.contextmanager
def trouble(what: str) -> Iterator[None]:
    """Say in our words why the disk did not take or give something.

    Raises:
        BlobsFull, BlobError: no space left, or anything else.
    """
    try:
        yield
    except IcecoreError:
        raise
    except OSError as error:
        raise _told(what, error, full=error.errno in _FULL) from error
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
        raise _told(what, error, full=full) from error


def _told(what: str, error: Exception, *, full: bool) -> BlobError:
    if full:
        return BlobsFull(
            f"expected space to {what}, the disk is full",
            hint="nothing of it was kept; free space where the data folder is, then send it again",
            retry_after=10,
        )
    return BlobError(
        f"expected to {what}, got {error}", hint="look at the disk; a server that starts makes its index anew"
    )
