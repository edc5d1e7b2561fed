"""Time, processes and chance of a simulation: an event loop in which nothing happens that a seed does not decide.

`SimLoop` never sleeps: where nothing is ready, its clock jumps to the next timer. What is ready runs in an order that
the seed chooses, and what is given to threads runs in the loop's own thread, at a moment that the seed chooses. Tasks
belong to `Process`es, which can be paused and killed at any await.

    loop = SimLoop(seed)
    server = loop.process("server")
    loop.run(main())

An order other than first in, first out is legal between tasks, as any real delay could have made it. A program that
relies on the order of two callbacks of its own finds out here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_SPINS_MOST: Final = 200_000
"""Rounds of the loop at one moment of its clock: more is a task that waits by asking again and again."""


class StuckError(AssertionError):
    """Nothing is ready and no timer is set, or time stands still: whoever waits would wait for ever."""


class Process:
    """Tasks that live and die together. What they were doing when they were killed is simply not gone on with.

    There is no `finally` and no cancellation in a kill, as there is none in a real one.
    """

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self._loop = loop
        self._frozen: list[asyncio.Handle] = []

    def spawn(self, work: Coroutine[Any, Any, T], name: str = "") -> asyncio.Task[T]:
        """Start a task in this process; the tasks it starts belong to it too."""
        context = contextvars.copy_context()
        context.run(_PROCESS.set, self)
        return self._loop.create_task(work, name=f"{self.name} {name}", context=context)

    def pause(self) -> None:
        """Let nothing of it run until `resume`; timers that end meanwhile are late."""
        self.paused = True

    def resume(self) -> None:
        """Go on where it was paused."""
        self.paused = False
        if self.alive:
            self.thaw()

    def kill(self) -> None:
        """End it at once, wherever it is."""
        self.alive = False

    def thaw(self) -> None:
        """Give what was held back to the loop."""
        frozen, self._frozen = self._frozen, []
        for handle in frozen:
            self._loop.put(handle)

    def holds_back(self, handle: asyncio.Handle) -> bool:
        """Whether a callback of this process may not run now; it is kept then."""
        if self.alive and not self.paused:
            return False
        self._frozen.append(handle)
        return True


_PROCESS: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("process", default=None)


class SimLoop(asyncio.BaseEventLoop):
    """An event loop with a clock of its own, for one thread.

    Args:
        seed: decides everything that is left to chance.
        jumble: whether ready callbacks run in an order that the seed chooses, or first in, first out.
        work_s: about how long what is given to a thread takes.
    """

    def __init__(self, seed: int | str, *, jumble: bool = True, work_s: float = 0.05) -> None:
        super().__init__()
        self._now = 0.0
        self._spins = 0
        self._work_s = work_s
        self._chance = random.Random(f"loop {seed}")  # noqa: S311 - to be repeated, not to be secret
        self._ready = _Ready(self, self._chance if jumble else None)
        self._selector = _Jump(self)
        self._processes: list[Process] = []
        self._ending = False
        self.failures: list[dict[str, Any]] = []
        """What the loop was told of as an error that nobody handled."""
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self._now

    def process(self, name: str) -> Process:
        """A new process."""
        process = Process(self, name)
        self._processes.append(process)
        return process

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end, then end everything else, and close the loop.

        Raises:
            StuckError: nothing can go on although `work` is not done.
        """
        asyncio.set_event_loop(self)
        try:
            return self.run_until_complete(work)
        finally:
            try:
                self._end_all()
            finally:
                asyncio.set_event_loop(None)
                self.close()

    def call_outside(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Call after `delay` seconds, for no process: what the network or a disk does, whoever is dead by then."""
        self.call_later(delay, callback, *args, context=contextvars.Context())

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Run `func` in this thread, after a while.

        As with a thread, cancelling the future before `func` has begun leaves it undone; after that `func` is done
        all the same. A kill between its being done and its answer leaves the effect without the knowledge of it.
        """
        del executor
        future: asyncio.Future[T] = self.create_future()
        self._later(self._begin, future, func, args)
        return future

    # ------------------------------------------------------------------------------------------------ threads

    def _begin(self, future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
        if not future.cancelled():
            self._later(self._work, future, func, args)

    def _work(self, future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
        if self._ending:  # it may be of a process that is dead
            future.cancel()
            return
        try:
            result = func(*args)
        except BaseException as error:  # noqa: BLE001 - handed to who waits, as a thread does
            self._later(_set, future, None, error)
        else:
            self._later(_set, future, result, None)

    def _later(self, callback: Callable[..., object], *args: Any) -> None:
        """Call soon, and in half of all cases only after a while."""
        if self._ending or self._chance.random() < 0.5:
            self.call_soon(callback, *args)
        else:
            self.call_later(self._work_s * self._chance.expovariate(1.0), callback, *args)

    # ------------------------------------------------------------------------------------ what BaseEventLoop asks for

    def put(self, handle: asyncio.Handle) -> None:
        """Make a callback ready."""
        self._ready.append(handle)

    def pass_time(self, seconds: float | None) -> None:
        """Move the clock on.

        Raises:
            StuckError: there is nothing to wait for.
        """
        if seconds is None:
            raise StuckError(f"expected somebody to go on at {self._now:.3f} s, but nothing is ready and no timer set")
        self._spins = 0 if seconds else self._spins + 1
        if self._spins > _SPINS_MOST:
            raise StuckError(f"expected time to pass at {self._now:.3f} s, but something is ready again and again")
        self._now += seconds

    def holds_back(self, handle: asyncio.Handle) -> bool:
        """Whether a callback may not run now, because its process is paused or dead."""
        if self._ending:
            return False
        process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]  # noqa: SLF001
        return process is not None and process.holds_back(handle)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no files to wait for."""

    def _write_to_self(self) -> None:
        """There is no other thread to wake this one."""

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        del loop
        if not self._ending:
            self.failures.append(context)

    def _end_all(self) -> None:
        """Cancel what is left, of the dead as well, so that nothing is found unfinished later."""
        self._ending = True
        for process in self._processes:
            process.thaw()
        for _ in range(100):
            tasks = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            with contextlib.suppress(StuckError):
                self.run_until_complete(asyncio.wait(tasks, timeout=1.0))


def current_process() -> Process | None:
    """The process that the running task belongs to; None outside of all."""
    return _PROCESS.get()


def _set(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class _Jump:
    """In a selector's place: waiting is moving the clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.pass_time(timeout)
        return []


class _Ready(deque[asyncio.Handle]):
    """The callbacks that are ready, given out in an order that chance decides."""

    def __init__(self, loop: SimLoop, chance: random.Random | None) -> None:
        super().__init__()
        self._loop = loop
        self._chance = chance
        self._nothing = asyncio.Handle(_nothing, (), loop)
        self._nothing.cancel()

    def popleft(self) -> asyncio.Handle:
        if self._chance is not None and len(self) > 1:
            self.rotate(-self._chance.randrange(len(self)))
        handle = super().popleft()
        return self._nothing if self._loop.holds_back(handle) else handle


def _nothing() -> None:
    """What runs in the place of a callback that is held back."""
