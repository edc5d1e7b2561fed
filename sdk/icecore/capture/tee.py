"""The process between a run's stdout and stderr and where they went before: run as a script, imports only the library.

It passes every byte on at once and sends a copy to the run's process. It is a process of its own because a thread
could not do this safely: C code that prints while it holds Python's lock would wait for that thread for ever, and
what a crashing program says last would be lost.

    tee.py CONTROL FRAMES  IN OUT  [IN OUT]

File descriptors: CONTROL to read from (a byte means: pass on what is there, and say so in FRAMES; its end means: send
no more copies), FRAMES to write copies to (never waited for), and for each channel IN to read from and OUT to write to.
It ends when every IN has ended, so children of the run that outlive it keep their output.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import sys
import termios
import time
from typing import Any

FRAME = struct.Struct("<BQI")  # channel, ms since 1970, length; then that many bytes
SYNCED = 254  # channel of the frame that answers CONTROL
BROKEN = 253  # channel of the frame that says: nobody reads the OUT of the channel in its one byte
DROPPED = 252  # channel of the frame whose text is the number of bytes not copied
PENDING_MOST = 4 << 20
CHUNK = 1 << 16


class Copies:
    """Copies on their way to the run's process, which may be slow, or gone: then they are dropped, never waited for."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.pending = bytearray()
        self.dropped = 0
        self.open = True
        os.set_blocking(descriptor, False)

    def add(self, channel: int, data: bytes) -> None:
        """Queue one frame, unless too much is waiting already."""
        if not self.open:
            return
        if len(self.pending) + len(data) > PENDING_MOST and channel < DROPPED:
            self.dropped += len(data)
            return
        if self.dropped:
            said, self.dropped = str(self.dropped).encode(), 0
            self.add(DROPPED, said)
        self.pending += FRAME.pack(channel, time.time_ns() // 1_000_000, len(data)) + data
        self.push()

    def push(self) -> None:
        """Write what goes without waiting."""
        try:
            while self.pending:
                del self.pending[: os.write(self.descriptor, self.pending[:CHUNK])]
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def close(self) -> None:
        """The run's process needs no more copies."""
        self.open = False
        self.pending.clear()


def write_all(descriptor: int, data: bytes) -> bool:
    """Write everything, however long it takes; False when nobody can take it any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return False
    return True


def read_some(descriptor: int) -> bytes:
    """What is there; empty at the end (a terminal's other side says EIO)."""
    try:
        return os.read(descriptor, CHUNK)
    except OSError:
        return b""


def copy_window_size(source: int, target: int) -> None:
    """Give the terminal `target` the size of `source`; nothing where they are no terminals."""
    try:
        fcntl.ioctl(target, termios.TIOCSWINSZ, fcntl.ioctl(source, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return


def serve(control: int, copies: Copies, channels: dict[int, tuple[int, int]]) -> None:
    """Pass on until every channel has ended. `channels`: IN -> (number, OUT)."""
    while channels:
        listen = [*channels, *([control] if control >= 0 else [])]
        ready, _, _ = select.select(listen, [copies.descriptor] if copies.pending else [], [])
        copies.push()
        for descriptor in [d for d in ready if d in channels]:
            pass_on(descriptor, copies, channels)
        if control in ready:
            if os.read(control, 1):
                drain(copies, channels)
                copies.add(SYNCED, b"")
            else:
                os.close(copies.descriptor)
                copies.close()
                control = -1


def pass_on(descriptor: int, copies: Copies, channels: dict[int, tuple[int, int]]) -> None:
    """One piece of one channel."""
    number, out = channels[descriptor]
    data = read_some(descriptor)
    if not data:
        del channels[descriptor]
    elif write_all(out, data):
        copies.add(number, data)
    else:
        copies.add(BROKEN, bytes([number]))
        os.close(descriptor)  # so that the writer is told, as it would have been without this process
        del channels[descriptor]


def drain(copies: Copies, channels: dict[int, tuple[int, int]]) -> None:
    """Pass on all that is there now."""
    while channels:
        ready, _, _ = select.select(list(channels), [], [], 0)
        if not ready:
            return
        for descriptor in ready:
            pass_on(descriptor, copies, channels)


def main(arguments: list[str]) -> None:
    """Run it: see the top of the file."""
    control, frames, *pairs = map(int, arguments)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGPIPE,
        signal.SIGTSTP,
        signal.SIGTTOU,
    ):
        signal.signal(number, signal.SIG_IGN)  # meant for the run: this ends when the run's output does
    for number in (signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)  # a stopped run has nothing to say
    channels = {pairs[i]: (i // 2 + 1, pairs[i + 1]) for i in range(0, len(pairs), 2)}

    def resized(_number: int, _frame: Any) -> None:
        for descriptor, (_, out) in channels.items():
            copy_window_size(out, descriptor)

    signal.signal(signal.SIGWINCH, resized)
    serve(control, Copies(frames), channels)


if __name__ == "__main__":
    main(sys.argv[1:])
