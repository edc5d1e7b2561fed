"""Wakes tasks of any event loop from any thread: how a log tells its readers that there is more."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Bell:
    """Tasks listen, a thread rings; every listener of that moment wakes, those of one loop by one call into it."""

    __slots__ = ("_listeners", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[asyncio.Future[None], None] = {}  # in the order they came

    def listen(self) -> asyncio.Future[None]:
        """A future that is done at the next ring. Call `forget` with it in the end."""
        heard = asyncio.get_running_loop().create_future()
        with self._lock:
            self._listeners[heard] = None
        return heard

    def forget(self, heard: asyncio.Future[None]) -> None:
        """Stop listening."""
        with self._lock:
            self._listeners.pop(heard, None)
        heard.cancel()

    def ring(self) -> None:
        """Wake everyone who listens now. Safe from any thread."""
        if not self._listeners:
            return
        with self._lock:
            listeners, self._listeners = self._listeners, {}
        by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for heard in listeners:
            by_loop.setdefault(heard.get_loop(), []).append(heard)
        for loop, futures in by_loop.items():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for heard in futures:
        if not heard.done():
            heard.set_result(None)
