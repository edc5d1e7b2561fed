"""A line on a person's terminal that says how far a transfer is."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from icecore.transfer import Progress

_AFTER_S: Final = 0.5
"""What is done sooner is not worth a line."""
_EVERY_S: Final = 0.1


@contextlib.contextmanager
def shown(progress: Progress, what: str, *, silent: bool) -> Iterator[None]:
    """Show `what` with bytes, rate and time left while the block runs; nothing where stderr is no terminal.

    Args:
        progress: what is told.
        what: is under way, as in `downloading bert:v3`.
        silent: show nothing.
    """
    stream: Any = sys.__stderr__
    if silent or stream is None or not stream.isatty():
        yield
        return
    done = threading.Event()

    def draw() -> None:
        if done.wait(_AFTER_S):
            return
        while not done.wait(_EVERY_S):
            stream.write(f"\r\x1b[2Kicecore: {what}: {progress}")
            stream.flush()
        stream.write("\r\x1b[2K")
        stream.flush()

    drawing = threading.Thread(target=draw, name="icecore-progress", daemon=True)
    drawing.start()
    try:
        yield
    finally:
        done.set()
        drawing.join()
