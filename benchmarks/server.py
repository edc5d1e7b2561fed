"""A server to measure: `icecore up` in a folder of its own, and what its processes use."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    key: str
    data: Path
    process: subprocess.Popen[bytes]
    ready_s: float

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.url.rsplit(":", 1)[1])

    def get(self, path: str) -> Any:
        """A JSON answer of the API."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def processes(self) -> list[psutil.Process]:
        """The supervisor and its children."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def memory(self) -> int:
        """Bytes of memory that belong to these processes alone or in part (PSS), summed."""
        return sum(process.memory_full_info().pss for process in self.processes())

    def cpu_seconds(self) -> dict[int, float]:
        """CPU time of each process so far."""
        return {p.pid: sum(p.cpu_times()[:2]) for p in self.processes()}

    def lag(self) -> int:
        """Records accepted but not folded."""
        return int(self.get("/api/v1/status")["lag"])

    def wait_folded(self, within: float = 300.0) -> float:
        """Seconds until everything accepted is folded."""
        began = time.monotonic()
        while self.lag() > 0:
            if time.monotonic() - began > within:
                raise TimeoutError(f"expected the store to catch up within {within:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - began


@contextlib.contextmanager
def serving(folder: Path | None = None, *, log: str = "") -> Iterator[Served]:
    """Start a server on `folder`/data; without a folder, in a new one that is removed at the end.

    Args:
        folder: where it keeps everything.
        log: the log's address, where it is not in that folder.
    """
    made = None if folder else Path(tempfile.mkdtemp(prefix="icecore-bench-"))
    folder = folder or made
    assert folder is not None
    env = {**os.environ, "ICECORE_CONFIG_DIR": str(folder / "config")}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "icecore", "up", "--data", str(folder / "data"), "--port", "0", "--json", "--log", log],
        stdout=subprocess.PIPE,
        env=env,
    )
    try:
        assert process.stdout is not None
        words = json.loads(process.stdout.readline())
        ready = time.monotonic() - began
        yield Served(words["url"], words["api_key"], folder / "data", process, ready)
    finally:
        process.terminate()
        process.wait(60)
        if process.stdout:
            process.stdout.close()
        if made:
            shutil.rmtree(made, ignore_errors=True)
