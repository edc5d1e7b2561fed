"""The SHA-256 of an upload's first parts, made while the others still come.

A large blob's digest is known only once all of it was read. What is durable does not change any more, so it is read as
soon as everything before it is there, and little is left to do at the end. It is in memory only: a process that starts
begins with the first part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from typing import Final

from icecore_api.blobs.store import Parts

_AT_ONCE: Final = 1 << 20


class Prefix:
    """How far an upload has been hashed. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._hash = hashlib.sha256()
        self._next = 0

    def reset(self) -> None:
        """The upload begins anew."""
        with self._lock:
            self._begin()

    def go_on(self, handle: int, parts: Parts, settled: Callable[[int], bool]) -> None:
        """Hash the next parts, as far as they are there and nobody writes to them; not where another thread does so."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(OSError):  # whoever completes it finds out
                while self._next < parts.number and settled(self._next):
                    self._take(handle, parts)
        finally:
            self._lock.release()

    def finish(self, handle: int, parts: Parts) -> str:
        """The digest of all bytes, all of which are there.

        Raises:
            OSError: they cannot be read.
        """
        with self._lock:
            while self._next < parts.number:
                self._take(handle, parts)
            return self._hash.hexdigest()

    def _take(self, handle: int, parts: Parts) -> None:
        at = self._next * parts.part_size
        stop = at + parts.size_of(self._next)
        buffer = memoryview(bytearray(min(_AT_ONCE, stop - at)))
        try:
            while at < stop:
                count = os.preadv(handle, [buffer[: stop - at]], at)
                if not count:
                    raise OSError(f"expected {stop - at} more bytes of an upload, got the end")
                self._hash.update(buffer[:count])
                at += count
        except BaseException:
            self._begin()
            raise
        self._next += 1
