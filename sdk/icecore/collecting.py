"""Python's collector of circles of objects, held back while many objects are made that are in none.

It looks through all objects again and again as they become more: of 100,000 files that is a third of the time. What is
no longer used is freed without it.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator


class _Held:
    """Who holds it back now."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.was_on = False


_held = _Held()


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Hold the collector back for the length of a block, in all threads; as it was after the last of them."""
    with _held.lock:
        if not _held.count:
            _held.was_on = gc.isenabled()
            gc.disable()
        _held.count += 1
    try:
        yield
    finally:
        with _held.lock:
            _held.count -= 1
            if not _held.count and _held.was_on:
                gc.enable()
