"""What the client says to the person at the terminal: one prefix, on stderr, never an error for the training."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Print a line that may be silenced; the caller decides."""
    with contextlib.suppress(Exception):
        stream = sys.__stderr__ or sys.stderr
        stream.write(f"icecore: {text}\n")
        stream.flush()


def warn(text: str) -> None:
    """Print a warning; always shown."""
    say(f"warning: {text}")
