"""An upload in a thread of its own, and what came of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from icecore.errors import IcecoreError, UsageError
from icecore.progress_line import shown
from icecore.transfer import Progress


class Pending:
    """An artifact on its way to the server, in a thread of its own."""

    def __init__(self, work: Callable[[Progress], None]) -> None:
        self.progress = Progress()
        self.error: IcecoreError | None = None
        self.told = False
        """Whether somebody was given the error."""
        self._work = work
        self._thread = threading.Thread(target=self._run, name="icecore-artifact", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is ending, and takes no more threads
            self._run()

    def _run(self) -> None:
        try:
            self._work(self.progress)
        except IcecoreError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - a thread's error is told by wait()
            self.error = IcecoreError(f"expected to log an artifact, got {error!r}")

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def ended(self, within: float) -> bool:
        """Whether it ends within so many seconds."""
        if self._thread.ident is not None:
            self._thread.join(within)
        return self.done

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end, and raise what went wrong; on a terminal a line says how far it is, and what is left."""
        if self._thread.ident is not None:
            with shown(self.progress, "sending", silent=bool(os.environ.get("ICECORE_SILENT"))):
                self._thread.join(timeout)
        if not self.done:
            raise UsageError(f"expected the upload to end within {timeout} s, got {self.progress}")
        if self.error is not None:
            self.told = True
            raise self.error
