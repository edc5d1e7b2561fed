"""One process's part in one run: a spool, the thread that writes it, and the thread that sends it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from icecore.events import Event
from icecore.notes import say, warn
from icecore.segments import spool_home
from icecore.settings import Settings
from icecore.spool import Spool
from icecore.summary import Summary
from icecore.sync import Uploader
from icecore.transport import Transport
from icecore.writer import Writer


@dataclass(frozen=True, slots=True)
class Left:
    """What `finish` leaves behind."""

    bytes: int
    trouble: str
    folder: str
    online: bool

    def tell(self, name: str, url: str, *, silent: bool) -> None:
        """Say where the run is, and what stays here."""
        if self.online and self.bytes:
            why = f" ({self.trouble})" if self.trouble else ""
            warn(f"{self.bytes} bytes of run {name} stay in {self.folder}{why}. `icecore sync` sends them")
        elif self.online and not silent:
            say(f"run {name} is at {url}")
        elif self.bytes and not silent:
            say(f"run {name} is kept in {self.folder}. Next: icecore sync")


class Recorder:
    """Takes events and rows of one run from one process, keeps them, and sends them."""

    def __init__(
        self,
        run: str,
        settings: Settings,
        summary: Summary,
        changes: Callable[[], list[Event]],
        transport: Transport | None = None,
    ) -> None:
        from icecore import __version__

        online = settings.mode == "online"
        self.spool = Spool(
            spool_home(settings.dir),
            run,
            settings.mode,
            size_max=settings.spool_max,
            version=__version__,
            url=settings.url,
        )
        self.writer = Writer(run, self.spool, summary, changes)
        self.uploader: Uploader | None = None
        if online:
            self.uploader = Uploader(transport or Transport(settings.url, settings.key), self.spool, settings.dir)

    def start(self, first: Event) -> None:
        """Put the first event on disk and start the threads."""
        self.writer.emit(first)
        self.spool.sync()
        self.writer.start()
        if self.uploader:
            self.uploader.start()

    def finish(self, timeout: float, *, progress: bool) -> Left:
        """Save everything, wait until the server has it, and let go.

        Args:
            timeout: seconds to wait for the server.
            progress: show a line while waiting.
        """
        self.writer.stop()
        if self.uploader:
            self.uploader.finishing = True
            deadline = time.monotonic() + timeout
            self._wait(deadline, progress=progress)
            self.uploader.stop(readable_within=max(deadline - time.monotonic(), 0.0))
        unsent = self.spool.unsent
        if self.uploader is None or self.uploader.stopped:
            self.spool.close()
        else:
            self.spool.sync()
            self.spool.abandon()
        lost, lost_bytes = self.spool.unwritten
        if lost:
            warn(
                f"{lost} events ({lost_bytes} bytes) of run {self.writer.run} were neither sent nor written to "
                f"{self.spool.folder} ({self.spool.trouble}): they are lost"
            )
        return Left(max(unsent - lost_bytes, 0), self._trouble(), str(self.spool.folder), self.uploader is not None)

    def _wait(self, deadline: float, *, progress: bool) -> None:
        began = time.monotonic()
        shown = False
        whole = self.spool.unsent
        while (left := self.spool.unsent) > 0 and time.monotonic() < deadline:
            if progress and time.monotonic() - began > 0.5:
                shown = True
                why = f" ({self._trouble()})" if self._trouble() else ""
                _line(f"icecore: sending {(whole - left) / 1e6:.1f} of {whole / 1e6:.1f} MB{why}")
            time.sleep(0.02)
        if shown:
            _line("")

    def _trouble(self) -> str:
        return self.uploader.sender.sent.trouble if self.uploader else ""

    def abandon(self) -> None:
        """Let go of the files without a word: they are the parent's, and this is a forked child."""
        self.spool.abandon()


def _line(text: str) -> None:
    """Write over the terminal's current line."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(f"\r\x1b[2K{text}")
        stream.flush()
