"""Long operations, one at a time, whose progress can be read while they run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from icecore.errors import Conflict, IcecoreError
from icecore_api.context import Report

Work = Callable[[Report], Awaitable[Mapping[str, Any]]]


class Job:
    """One kind of operation: running, or how its last run ended."""

    def __init__(self, name: str, clock_ms: Callable[[], int]) -> None:
        self.name = name
        self._clock_ms = clock_ms
        self._task: asyncio.Task[None] | None = None
        self._state: dict[str, Any] = {
            "state": "none",
            "started_ts": None,
            "finished_ts": None,
            "progress": {},
            "result": None,
            "error": None,
        }

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self._task is not None and not self._task.done()

    def start(self, work: Work) -> None:
        """Begin.

        Raises:
            Conflict: it is under way already.
        """
        if self.running:
            raise Conflict(f"expected no {self.name} under way, found one", hint=f"GET /api/v1/{self.name} shows it")
        self._state = {
            "state": "running",
            "started_ts": self._clock_ms(),
            "finished_ts": None,
            "progress": {},
            "result": None,
            "error": None,
        }
        self._task = asyncio.create_task(self._work(work))

    def as_json(self) -> dict[str, Any]:
        """How it is now."""
        return {"name": self.name, **self._state}

    async def stop(self) -> None:
        """Cancel what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _report(self, progress: Mapping[str, Any]) -> None:
        self._state["progress"] = dict(progress)  # one assignment: it may come from another thread

    async def _work(self, work: Work) -> None:
        ended: dict[str, Any]
        try:
            ended = {"state": "done", "result": dict(await work(self._report))}
        except IcecoreError as error:
            ended = {"state": "failed", "error": str(error)}
        except Exception as error:  # noqa: BLE001 - told to whoever asks, as nobody awaits this task
            ended = {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        self._state |= {**ended, "finished_ts": self._clock_ms()}
