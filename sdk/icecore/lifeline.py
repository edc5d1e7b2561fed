"""Children that end when their parent does, however it ended.

A child is started with a pipe as its standard input and keeps reading it: the end of the pipe means that the parent
is gone, even by kill -9, and the child stops as if it had been asked to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading


def end_with_parent() -> None:
    """Send this process SIGTERM once standard input ends. Call it once, in a process started with a pipe there."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
