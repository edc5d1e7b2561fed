"""What is captured of a run without being asked: its code, command, machine, system metrics and console output.

Nothing here is waited for by `init`, and nothing here may end a training: what cannot be captured is left out.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any, Protocol

from icecore.events import Event, RunUpdated
from icecore.settings import Settings


class CapturedRun(Protocol):
    """What capture needs of a run."""

    @property
    def path(self) -> str:
        """The path `entity/project/run_id`."""
        ...

    def _emit(self, event: Event) -> object:
        """Queue an event of this run; from any thread."""
        ...


class Capture:
    """The captures of one run that are running."""

    def __init__(self, run: CapturedRun, settings: Settings) -> None:
        self._run = run
        self._settings = settings
        self._pid = os.getpid()
        self._facts: threading.Thread | None = None
        self._system: Any = None
        self._console: Any = None

    def start(self) -> Capture:
        """Begin; returns at once, facts follow as `run.updated`."""
        settings, run = self._settings, self._run
        if settings.console != "off":
            from icecore.capture.console import ConsoleCapture

            self._console = ConsoleCapture(run.path, run._emit, settings.console)  # noqa: SLF001 - made for this
            self._console.start()
        if settings.metadata or settings.git or settings.packages:
            self._facts = threading.Thread(target=self._send_facts, name="icecore-facts", daemon=True)
            self._facts.start()
        if settings.system_seconds > 0:
            from icecore.capture.system import SystemSampler

            self._system = SystemSampler(run.path, run._emit, settings.system_seconds)  # noqa: SLF001
            self._system.start()
        return self

    def stop(self) -> None:
        """End all of it: the last sample, the last lines, stdout and stderr as they were. Twice is fine."""
        if os.getpid() != self._pid:
            return  # a forked child: the threads are the parent's
        if self._facts is not None:
            self._facts.join(20.0)  # on a busy machine looking at packages takes long; the facts are lost else
        if self._system is not None:
            self._system.stop()
        if self._console is not None:
            self._console.stop()
        self._facts = self._system = self._console = None

    def _send_facts(self) -> None:
        with contextlib.suppress(Exception):  # facts are never worth a training
            facts = collect_facts(self._settings)
            if facts:
                self._run._emit(RunUpdated(run=self._run.path, metadata=facts))  # noqa: SLF001


def collect_facts(settings: Settings) -> dict[str, Any]:
    """All facts that the settings allow: `git`, `packages`, and those of `host_facts` and `Gpus.facts`."""
    facts: dict[str, Any] = {}
    if settings.metadata:
        from icecore.capture.gpu import Gpus
        from icecore.capture.host import host_facts

        with contextlib.suppress(Exception):
            facts |= host_facts()
        gpus = Gpus()
        facts |= gpus.facts()
        gpus.close()
    if settings.git:
        from icecore.capture.git import git_facts

        with contextlib.suppress(Exception):
            found = git_facts(Path.cwd(), settings.git_diff_max)
            if found:
                facts["git"] = found
    if settings.packages:
        from icecore.capture.packages import packages

        with contextlib.suppress(Exception):
            facts["packages"] = packages()
    return facts


def start(run: CapturedRun, settings: Settings) -> Capture:
    """Begin to capture `run` as `settings` say."""
    return Capture(run, settings).start()
