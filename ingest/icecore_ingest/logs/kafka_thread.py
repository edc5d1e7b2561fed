"""A thread with an event loop of its own: where a log's Kafka clients live.

aiokafka's clients belong to the loop they were made in, while a log serves callers of any loop and thread. It also
keeps heartbeats and answers on time while a caller's loop is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from icecore.errors import LogError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers of any event loop.

    Args:
        name: the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._lines: dict[int, asyncio.BaseTransport] = {}
        self._loop = _new_loop(self._lines)
        self._loop.set_exception_handler(_tell_unknown)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `work()` in the thread's loop; cancelled here, it is cancelled there.

        Raises:
            LogError: the thread has ended.
        """
        with self._lock:
            if self._closed:
                raise LogError("expected an open log, got a closed one")
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        return await asyncio.wrap_future(future)

    def post(self, call: Callable[[], object]) -> bool:
        """Call `call()` in the thread's loop, soon; False where the thread has ended."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(call)
            return not self._closed

    async def stop(self) -> None:
        """End the thread; what still runs in it is cancelled."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            for line in list(self._lines.values()):
                cast("asyncio.Transport", line).abort()
            self._loop.run_until_complete(asyncio.sleep(0))  # they end in the next turn
            self._loop.close()


def _tell_unknown(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say what nobody has heard of; our own errors were told to those who wait, also where aiokafka keeps a copy."""
    if not isinstance(context.get("exception"), LogError):
        loop.default_exception_handler(context)


class Mail:
    """Carries answers from one loop to futures of others, many at a time: a loop is woken once for all of them.

    Belongs to the loop it was made in.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}

    def send(self, future: asyncio.Future[Any], answer: Any) -> None:
        """Give `future` its result; an exception is raised where it is awaited."""
        if not self._ready:
            self._loop.call_soon(self.flush)
        self._ready.setdefault(future.get_loop(), []).append((future, answer))

    def flush(self) -> None:
        """Send what is ready now."""
        ready, self._ready = self._ready, {}
        for loop, answers in ready.items():
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_hand_over, answers)


def _hand_over(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in answers:
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class _Lines:
    """Of an event loop: the connections that it made and that have not ended.

    One over TLS ends only when the broker has said goodbye too, and closing the loop before that fails.
    """

    lines: dict[int, asyncio.BaseTransport]

    async def create_connection(self, *arguments: Any, **options: Any) -> tuple[asyncio.BaseTransport, Any]:
        """Connect, and remember the connection until it is lost."""
        line, protocol = await cast("Any", super()).create_connection(*arguments, **options)
        told = protocol.connection_lost

        def lost(error: Exception | None) -> None:
            self.lines.pop(id(protocol), None)
            told(error)

        protocol.connection_lost = lost
        self.lines[id(protocol)] = line
        return line, protocol


def _new_loop(lines: dict[int, asyncio.BaseTransport]) -> asyncio.AbstractEventLoop:
    """uvloop's, where there is one: it halves what a request costs. It keeps its connections in `lines`."""
    base: type[Any] = asyncio.SelectorEventLoop
    with contextlib.suppress(ImportError):
        import uvloop

        base = uvloop.Loop
    return cast("asyncio.AbstractEventLoop", type("Loop", (_Lines, base), {"lines": lines})())
