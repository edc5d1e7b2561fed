"""Two ways to hear what a process prints: below its file descriptors, or at Python's own streams.

Both put pieces into a queue and do nothing else in the way of the output, and both put everything back as it was.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from icecore.capture import tee
from icecore.events import now_ms

SYNC_S: Final = 5.0


class Piece(NamedTuple):
    """Some output, as it came."""

    stream: str
    """`stdout`, `stderr`; `both` where the two share one channel; `hint` is a copy of what will come as `both`."""
    data: bytes
    ts: int


Pieces = queue.SimpleQueue[Piece | None]


class StreamTap:
    """Listens at `sys.stdout.write` and `sys.stderr.write`. Works where there is no file descriptor (notebooks)."""

    def __init__(self, pieces: Pieces, streams: dict[str, str]) -> None:
        self._pieces = pieces
        self._streams = streams
        self._undo: list[Callable[[], None]] = []
        self.active = False

    def start(self) -> None:
        """Listen from now on."""
        self.active = True
        for name, label in self._streams.items():
            stream = getattr(sys, name, None)
            if stream is not None:
                self._listen(stream, label)

    def _listen(self, stream: TextIO, label: str) -> None:
        had_own = "write" in getattr(stream, "__dict__", {})
        original = stream.write

        def write(text: str) -> int:
            if self.active and isinstance(text, str):
                self._pieces.put(Piece(label, text.encode("utf-8", "replace"), now_ms()))
            return original(text)

        def undo() -> None:
            if getattr(stream, "write", None) is not write:
                return  # somebody wrapped this wrapper: it stays, and passes on without listening
            if had_own:
                stream.write = original  # type: ignore[method-assign]
            else:
                del stream.write

        stream.write = write  # type: ignore[method-assign]
        self._undo.append(undo)

    def sync(self) -> None:
        """Nothing is on its way here: pieces are queued as they are written."""

    def forget(self) -> None:
        """In a forked child: listen no more."""
        self.active = False

    def stop(self) -> None:
        """Put the streams back."""
        self.active = False
        for undo in self._undo:
            with contextlib.suppress(Exception):
                undo()
        self._undo.clear()


class DescriptorTap:
    """Puts a process (`tee.py`) between file descriptors 1 and 2 and where they went. Hears C code and children too.

    Where both went to the same place they go through one channel, which keeps their order; what Python wrote to
    stderr is then told from the rest by a `StreamTap`.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._saved: dict[int, int] = {}
        self._reads: dict[int, int] = {}
        self._labels: dict[int, str] = {}
        self._hints: StreamTap | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control = -1
        self._synced = threading.Semaphore(0)
        self._ended = threading.Event()
        self._lock = threading.Lock()

    # ---- start

    def start(self) -> None:
        """Listen from now on.

        Raises:
            OSError: a descriptor, a pseudo-terminal or the process could not be made; everything is as before.
        """
        _flush()
        self._saved = {number: os.dup(number) for number in (1, 2)}
        opened: list[int] = []
        try:
            targets = self._open_channels(opened)
            control_read, self._control = os.pipe()
            frames_read, frames_write = os.pipe()
            opened += [control_read, frames_write]
            self._process = self._start_process(control_read, frames_write)
        except OSError:
            for number in [*self._saved.values(), *self._reads.values()]:
                os.close(number)
            raise
        else:
            for number, write_end in targets.items():
                os.dup2(write_end, number)
        finally:
            for number in opened:
                os.close(number)
        threading.Thread(target=self._listen, args=(frames_read,), name="icecore-console-in", daemon=True).start()
        if self._hints is not None:
            self._hints.start()

    def _open_channels(self, opened: list[int]) -> dict[int, int]:
        """One channel, or one for each of 1 and 2; returns the writing ends by descriptor."""
        if os.path.sameopenfile(self._saved[1], self._saved[2]):
            read_end, write_end = _channel(self._saved[1])
            self._reads, self._labels = {1: read_end}, {1: "both"}
            self._hints = StreamTap(self._pieces, {"stderr": "hint"})
            opened.append(write_end)
            return {1: write_end, 2: write_end}
        targets = {}
        for number, label in ((1, "stdout"), (2, "stderr")):
            self._reads[number], targets[number] = _channel(self._saved[number])
            self._labels[number] = label
            opened.append(targets[number])
        return targets

    def _start_process(self, control: int, frames: int) -> subprocess.Popen[bytes]:
        pairs = [descriptor for number in self._reads for descriptor in (self._reads[number], self._saved[number])]
        numbers = [control, frames, *pairs]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(tee.__file__)), *map(str, numbers)],
            pass_fds=numbers,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    # ---- while it runs

    def _listen(self, frames: int) -> None:
        """Queue what the process heard, until it ends."""
        with contextlib.suppress(OSError), os.fdopen(frames, "rb") as file:
            while header := file.read(tee.FRAME.size):
                if len(header) < tee.FRAME.size:
                    break
                channel, ts, length = tee.FRAME.unpack(header)
                self._take(channel, ts, file.read(length))
        if not self._ended.is_set():
            self._rescue()
        self._ended.set()
        self._synced.release()

    def _take(self, channel: int, ts: int, data: bytes) -> None:
        if channel == tee.SYNCED:
            self._synced.release()
        elif channel == tee.BROKEN:
            self._close_read(data[0])
        elif channel == tee.DROPPED:
            text = f"… [icecore: {data.decode()} bytes of output were not captured]\n".encode()
            self._pieces.put(Piece(next(iter(self._labels.values())), text, ts))
        else:
            self._pieces.put(Piece(self._labels[channel], data, ts))

    def _rescue(self) -> None:
        """The process died: output goes straight to where it went before, and what was on its way follows."""
        self._restore()
        for number in list(self._reads):
            with contextlib.suppress(OSError):
                os.set_blocking(self._reads[number], False)
                while data := os.read(self._reads[number], tee.CHUNK):
                    tee.write_all(self._saved[number], data)
                    self._pieces.put(Piece(self._labels[number], data, now_ms()))
            self._close_read(number)

    def _close_read(self, number: int) -> None:
        with self._lock:
            descriptor = self._reads.pop(number, -1)
        if descriptor >= 0:
            os.close(descriptor)

    def _restore(self) -> None:
        for number, saved in self._saved.items():
            with contextlib.suppress(OSError):
                os.dup2(saved, number)

    # ---- end

    def sync(self) -> None:
        """Wait until everything printed before is queued."""
        _flush()
        if self._ended.is_set():
            return
        with contextlib.suppress(OSError):
            os.write(self._control, b"s")
            self._synced.acquire(timeout=SYNC_S)

    def forget(self) -> None:
        """In a forked child: its output still passes through and is heard by the parent's capture."""
        if self._hints is not None:
            self._hints.forget()
        if self._process is not None:
            self._process.returncode = 0  # not this process's child: never waited for here
        self._ended.set()

    def stop(self) -> None:
        """Put the descriptors back, after everything printed before has been passed on."""
        _flush()
        if self._hints is not None:
            self._hints.stop()
        self._restore()
        self.sync()
        self._ended.set()
        for descriptor in [self._control, *self._saved.values()]:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        for number in list(self._reads):
            self._close_read(number)
        if self._process is not None:
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:  # a child of the run still prints through it
                self._process.returncode = 0


def descriptors_are_python_streams() -> bool:
    """Whether Python's streams write to descriptors 1 and 2, so that the descriptors carry everything."""
    try:
        streams = sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False
    return streams and os.name == "posix" and bool(sys.executable) and not getattr(sys, "frozen", False)


def _channel(target: int) -> tuple[int, int]:
    """Reading and writing end of what replaces `target`: a pseudo-terminal of its size for a terminal, else a pipe."""
    if not os.isatty(target):
        return os.pipe()
    import termios

    master, slave = os.openpty()
    modes = termios.tcgetattr(target)
    modes[1] &= ~termios.OPOST  # the terminal itself turns \n into \r\n: once is enough
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    tee.copy_window_size(target, master)
    return master, slave


def _flush() -> None:
    """Write out what Python and C keep in their buffers."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        import ctypes

        libc: Any = ctypes.CDLL(None)
        libc.fflush(None)
