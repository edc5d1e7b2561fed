"""How a process ends: an uncaught exception, sys.exit, SIGTERM, or the end of the script."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Literal, NoReturn, Protocol

SIGTERM_EXIT: Final = 128 + signal.SIGTERM
INTERRUPT_EXIT: Final = 128 + signal.SIGINT


class Ending:
    """What is known of how this process ends."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.state: Literal["finished", "failed", "killed"] = "finished"
        self.error_type = ""
        self.error_message = ""

    def by_exception(self, kind: type[BaseException], error: BaseException | None) -> None:
        """An exception ends it."""
        if issubclass(kind, SystemExit):
            self.by_exit(getattr(error, "code", 1))
            return
        if issubclass(kind, KeyboardInterrupt):
            self.exit_code, self.state = INTERRUPT_EXIT, "killed"
        else:
            self.exit_code, self.state = 1, "failed"
        self.error_type = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        self.error_message = str(error)[:4096].encode(errors="replace").decode()

    def by_exit(self, code: object) -> None:
        """`sys.exit(code)` ends it."""
        if code == SIGTERM_EXIT and self.state == "killed":
            return
        # as the operating system will see it: eight bits
        self.exit_code = code & 0xFF if isinstance(code, int) else int(code is not None)
        self.state = "failed" if self.exit_code else "finished"

    def by_code(self, code: int) -> None:
        """`finish(code)` was called."""
        if self.state != "killed":
            self.by_exit(code)

    def by_signal(self) -> None:
        """SIGTERM ends it."""
        self.exit_code, self.state = SIGTERM_EXIT, "killed"


class LiveRun(Protocol):
    """What the exits know of a run."""

    _ending: Ending

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        """End it."""
        ...

    def _forked(self) -> None:
        """This process is a fork of the one that began the run."""
        ...


_live: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_strong: Final[list[LiveRun]] = []
_previous: Final[dict[str, Any]] = {}


def _nothing() -> None:
    """Be called."""


_process: Final = Ending()
"""Lives as long as the process."""


def watch(run: LiveRun) -> None:
    """Finish `run` when the process ends, with what is known of why."""
    if not _previous:
        _previous["excepthook"] = sys.excepthook
        _previous["exit"] = sys.exit
        sys.excepthook = _excepthook
        sys.exit = _exit
        # Temporary folders are deleted at the end by weakref, whose turn comes after ours only if it registered before
        weakref.finalize(_process, _nothing)
        atexit.register(_finish_all)
        os.register_at_fork(after_in_child=_after_fork)
    _strong.append(run)
    _live.add(run)
    _catch_sigterm()
    watch_child()


def unwatch(run: LiveRun) -> None:
    """The run has ended."""
    with contextlib.suppress(ValueError):
        _strong.remove(run)
    _live.discard(run)
    if not _strong:
        _release_sigterm()


def watch_child() -> None:
    """In a process of multiprocessing, which ends without atexit: finish at its own end."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is None or util is None or process.parent_process() is None:
        return
    if _previous.get("finalizer_of") != os.getpid():
        _previous["finalizer_of"] = os.getpid()
        _previous["finalizer"] = util.Finalize(None, _finish_all, exitpriority=10)


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    for run in _strong:
        run._ending.by_exception(kind, error)  # noqa: SLF001 - the exits and the run are one mechanism
    hook: Callable[..., None] = _previous["excepthook"]
    hook(kind, error, trace)


def _exit(code: Any = None, /) -> NoReturn:
    for run in _strong:
        run._ending.by_exit(code)  # noqa: SLF001
    leave: Callable[[Any], NoReturn] = _previous["exit"]
    leave(code)


def _finish_all() -> None:
    for run in _strong.copy():  # each takes itself off the list
        run.finish()


def _after_fork() -> None:
    for run in list(_live):
        run._forked()  # noqa: SLF001


def _catch_sigterm() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler in {_on_sigterm, signal.SIG_IGN} or handler is None:
        return
    _previous["sigterm"] = handler
    signal.signal(signal.SIGTERM, _on_sigterm)


def _release_sigterm() -> None:
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, _previous.pop("sigterm", signal.SIG_DFL))


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """Note it and unwind the main thread: the runs are finished on the way out, outside of the handler."""
    for run in _strong:
        run._ending.by_signal()  # noqa: SLF001
    earlier = _previous.get("sigterm")
    if callable(earlier):
        earlier(number, frame)
    else:
        raise SystemExit(SIGTERM_EXIT)
