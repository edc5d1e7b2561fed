"""One line on a terminal that says how far a transfer is, and goes away with it."""

from __future__ import annotations

import os
import sys
from typing import Any

_AFTER_S = 0.5
"""What is done sooner needs no line."""


class ProgressLine:
    """A line on stderr, written over and over; nothing at all where stderr is no terminal, or all is to be silent.

    Args:
        what: stands before the figures.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._stream: Any = sys.__stderr__
        silent = os.environ.get("ICECORE_SILENT", "").lower() in {"1", "true", "yes", "on"}
        self._on = self._stream is not None and self._stream.isatty() and not silent
        self._shown = False

    def show(self, progress: object, waited_s: float) -> None:
        """Write how far it is, once it has taken a moment."""
        if self._on and waited_s > _AFTER_S:
            self._write(f"icecore: {self._what}: {progress}")
            self._shown = True

    def end(self) -> None:
        """Leave an empty line."""
        if self._shown:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[2K{text}")
        self._stream.flush()
