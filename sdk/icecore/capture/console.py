"""Console output of a run: heard once a process, assembled to lines, sent in pieces to every run that listens."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from typing import Final, Protocol

import msgspec

from icecore.capture.lines import Line, LineAssembler
from icecore.capture.taps import DescriptorTap, Piece, Pieces, StreamTap, descriptors_are_python_streams
from icecore.events import ConsoleLogged, RunDropped
from icecore.limits import most
from icecore.notes import warn

SEND_S: Final = 2.0
SEND_BYTES: Final = 64 * 1024
HINTS_MOST: Final = 10_000
POLL_S: Final = 0.1
PIECES_MOST: Final = 10_000
TIME_MS: Final = 10
"""Pieces of a stream within one such span are taken as one: the times of lines are as exact as that."""

Emit = Callable[[ConsoleLogged | RunDropped], object]


class Tap(Protocol):
    """Where pieces of output come from."""

    def start(self) -> None:
        """Listen from now on."""

    def sync(self) -> None:
        """Wait until everything printed before is queued."""

    def forget(self) -> None:
        """In a forked child: the parent's capture is not this process's."""

    def stop(self) -> None:
        """Put everything back as it was."""


class ConsoleCapture:
    """One run's share of what the process prints."""

    def __init__(self, run: str, emit: Emit, mode: str, *, bytes_most: int = most("console_bytes")) -> None:
        self._bytes_left = bytes_most
        self._over = RunDropped(run=run, reason=f"console output over the limit `console_bytes`: {bytes_most}")
        self._run = run
        self._emit = emit
        self._mode = mode
        self._lines: list[Line] = []
        self._bytes = 0
        self._sent = time.monotonic()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Listen from now on; says so once where that is not possible."""
        _join(self, self._mode)

    def stop(self) -> None:
        """Send what was printed before; the last one to stop puts stdout and stderr back."""
        _leave(self)
        self.send()
        if self._over.events:
            self._emit(self._over)

    def add(self, lines: list[Line]) -> None:
        """Take lines, and send when there are many, or the first has waited long enough."""
        with self._lock:
            for line in lines:
                size = len(line.text.encode())
                if self._over.events or size > self._bytes_left:
                    self._drop(line, size)
                else:
                    self._lines.append(line)
                    self._bytes += size
                    self._bytes_left -= size
            due = self._bytes >= SEND_BYTES or (self._lines and time.monotonic() - self._sent >= SEND_S)
        if due:
            self.send()

    def _drop(self, line: Line, size: int) -> None:
        """Count a line that is over the limit; the first one is marked in the output, and said."""
        if not self._over.events:
            self._lines.append(line._replace(text=f"… {self._over.reason}; what follows is not kept"))
            warn(f"{self._over.reason}. What is printed from now on is not kept with the run; metrics go on")
        over = self._over
        self._over = msgspec.structs.replace(over, events=over.events + 1, bytes=over.bytes + size)

    def send(self) -> None:
        """Emit what is waiting, in events of about 64 KB."""
        with self._lock:
            lines, self._lines, self._bytes = self._lines, [], 0
            self._sent = time.monotonic()
        while lines:
            size = end = 0
            while end < len(lines) and size < SEND_BYTES:
                size += len(lines[end].text) + 16
                end += 1
            piece, lines = lines[:end], lines[end:]
            streams = ["stderr" if line.stream == "stderr" else "stdout" for line in piece]
            texts = [line.text for line in piece]
            self._emit(ConsoleLogged(run=self._run, ts=[line.ts for line in piece], stream=streams, text=texts))  # type: ignore[arg-type]


class _Console:
    """The process's one listener: a tap, and a thread that assembles lines and hands them to the captures."""

    def __init__(self, mode: str) -> None:
        self.captures: list[ConsoleCapture] = []
        self._pieces: Pieces = queue.SimpleQueue()
        self._assemblers: dict[str, LineAssembler] = {}
        self._hints: Counter[str] = Counter()
        self._idle = threading.Event()
        self._wake = threading.Event()
        self.tap = self._start_tap(mode)
        self._thread = threading.Thread(target=self._pump, name="icecore-console", daemon=True)
        self._thread.start()

    def _start_tap(self, mode: str) -> Tap:
        if mode != "wrap" and descriptors_are_python_streams():
            tap: Tap = DescriptorTap(self._pieces)
            try:
                tap.start()
            except OSError:
                if mode == "redirect":
                    raise
            else:
                return tap
        tap = StreamTap(self._pieces, {"stdout": "stdout", "stderr": "stderr"})
        tap.start()
        return tap

    def _pump(self) -> None:
        """Assemble until told to end; an error ends the listening, never the output."""
        try:
            # a printing thread never wakes this one: that would cost it more than the printing
            while self._take_all():
                self._wake.wait(POLL_S)
                self._wake.clear()
        except Exception as error:  # noqa: BLE001 - whatever it is, the user's output matters more
            self.tap.stop()
            warn(f"console capture is off: {error!r}")

    def _take_all(self) -> bool:
        """Take what has been printed; whether there may be more."""
        waiting: list[Piece] = []
        more = True
        with contextlib.suppress(queue.Empty):
            while more and len(waiting) < PIECES_MOST:
                piece = self._pieces.get_nowait()
                more = piece is not None
                if piece is not None:
                    waiting.append(piece)
        marked = False
        for (stream, _), group in groupby(waiting, key=lambda piece: (piece.stream, piece.ts // TIME_MS)):
            pieces = list(group)
            marked = marked or stream == "mark"
            if stream != "mark":
                self._give(self._lines_of(Piece(stream, b"".join(p.data for p in pieces), pieces[-1].ts)))
        if not more:
            self._give([line for assembler in self._assemblers.values() for line in self._labelled(assembler.end())])
        else:
            self._give([])
        if marked or not more:
            self._idle.set()
        if len(waiting) == PIECES_MOST:
            self._wake.set()
        return more

    def _lines_of(self, piece: Piece) -> list[Line]:
        assembler = self._assemblers.get(piece.stream)
        if assembler is None:
            assembler = self._assemblers[piece.stream] = LineAssembler(piece.stream)
        return self._labelled(assembler.feed(piece.data, piece.ts))

    def _labelled(self, lines: list[Line]) -> list[Line]:
        """Lines of a shared channel under the stream that wrote them; hints are remembered and not shown."""
        shown = []
        for line in lines:
            if line.stream == "hint":
                if len(self._hints) >= HINTS_MOST:
                    self._hints.clear()
                self._hints[line.text] += 1
            elif line.stream == "both":
                shown.append(line._replace(stream="stderr" if self._was_hinted(line.text) else "stdout"))
            else:
                shown.append(line)
        return shown

    def _was_hinted(self, text: str) -> bool:
        count = self._hints.get(text, 0)
        if count > 1:
            self._hints[text] = count - 1
        elif count:
            del self._hints[text]
        return count > 0

    def _give(self, lines: list[Line]) -> None:
        for capture in list(self.captures):
            capture.add(lines)

    def settle(self) -> None:
        """Wait until everything printed before has reached the captures."""
        self.tap.sync()
        self._idle.clear()
        self._pieces.put(Piece("mark", b"", 0))
        self._wake.set()
        self._idle.wait(SEND_S)

    def end(self) -> None:
        """Put everything back, and hand out the last lines."""
        self.tap.stop()
        self._pieces.put(None)
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(SEND_S)


_lock = threading.RLock()  # a signal may finish a run while another one begins
_console: _Console | None = None


def _join(capture: ConsoleCapture, mode: str) -> None:
    global _console  # noqa: PLW0603 - a process has one stdout
    try:
        with _lock:
            if _console is None:
                _console = _Console(mode)
            _console.captures.append(capture)
    except Exception as error:  # noqa: BLE001 - a run without console output is better than no run
        warn(f"console capture is off: {error!r}")


def _leave(capture: ConsoleCapture) -> None:
    global _console  # noqa: PLW0603
    with _lock:
        console = _console
        if console is None or capture not in console.captures:
            return
        with contextlib.suppress(Exception):
            if len(console.captures) == 1:
                _console = None
                console.end()
            else:
                console.settle()
        console.captures.remove(capture)


def _after_fork_in_child() -> None:
    global _console, _lock
    if _console is not None:
        _console.tap.forget()
        _console.captures.clear()
    _console, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
