"""System metrics every few seconds: CPU, memory, disk, network, this process, NVIDIA GPUs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

from icecore.capture.gpu import Gpus
from icecore.events import SystemLogged, now_ms

FIRST_SAMPLE_S: Final = 2.0

SYSTEM_METRICS: Final[dict[str, str]] = {
    "system.cpu": "% of all cores",
    "system.memory": "% of the machine's memory",
    "system.disk": "% used of the working folder's disk",
    "system.disk.read_bytes": "read by the machine since the run's start",
    "system.disk.write_bytes": "written by the machine since the run's start",
    "system.net.sent_bytes": "sent by the machine since the run's start",
    "system.net.received_bytes": "received by the machine since the run's start",
    "process.cpu": "% of one core, this process and its threads",
    "process.memory": "% of the machine's memory",
    "process.rss_bytes": "resident memory",
    "process.threads": "threads",
    "gpu.N.util": "% busy",
    "gpu.N.memory": "% used",
    "gpu.N.memory_bytes": "used",
    "gpu.N.temperature": "degrees Celsius",
    "gpu.N.power": "W",
}
"""Every name that may be logged, and its unit."""


class SystemSampler(threading.Thread):
    """Emits one `system.logged` event each `interval_s`, the first after 2 s, the last when stopped."""

    def __init__(self, run: str, emit: Callable[[SystemLogged], object], interval_s: float, folder: str = ".") -> None:
        super().__init__(name="icecore-system", daemon=True)
        self._run = run
        self._emit = emit
        self._interval_s = interval_s
        self._folder = folder
        self._stopped = threading.Event()
        self._samples = 0

    def run(self) -> None:
        """Sample until stopped."""
        with contextlib.suppress(Exception):  # a sample is never worth a training
            sources = _Sources(self._folder)
            pause = min(FIRST_SAMPLE_S, self._interval_s)
            while not self._stopped.wait(pause):
                self._log(sources.sample())
                pause = self._interval_s
            self._log(sources.sample())
            sources.close()

    def stop(self, within_s: float = 2.0) -> None:
        """Take the final sample and end."""
        self._stopped.set()
        if self.is_alive():
            self.join(within_s)

    def _log(self, values: dict[str, float]) -> None:
        columns = {name: [value] for name, value in values.items()}
        block: dict[str, Any] = {"step": [self._samples], "ts": [now_ms()], "cols": columns}
        self._samples += 1
        self._emit(SystemLogged(run=self._run, blocks=[block]))


class _Sources:
    """Where samples come from, and the counters at the start."""

    def __init__(self, folder: str) -> None:
        import psutil

        self._psutil = psutil
        self._folder = folder
        self._process = psutil.Process()
        self._gpus = Gpus()
        self._counters_first = self._counters()
        psutil.cpu_percent()  # the first call only starts the measurement
        self._process.cpu_percent()

    def sample(self) -> dict[str, float]:
        """What can be measured now; a source that fails is left out."""
        psutil, process = self._psutil, self._process
        values: dict[str, float] = {}
        with contextlib.suppress(Exception):
            values["system.cpu"] = float(psutil.cpu_percent())
            values["system.memory"] = float(psutil.virtual_memory().percent)
        with contextlib.suppress(Exception):
            values["system.disk"] = float(psutil.disk_usage(self._folder).percent)
        with contextlib.suppress(Exception):
            values["process.cpu"] = float(process.cpu_percent())
            values["process.memory"] = float(process.memory_percent())
            values["process.rss_bytes"] = float(process.memory_info().rss)
            values["process.threads"] = float(process.num_threads())
        for name, value in self._counters().items():
            values[name] = value - self._counters_first.get(name, 0.0)
        values |= self._gpus.sample()
        return values

    def _counters(self) -> dict[str, float]:
        values: dict[str, float] = {}
        with contextlib.suppress(Exception):
            disk = self._psutil.disk_io_counters()
            if disk is not None:
                values["system.disk.read_bytes"] = float(disk.read_bytes)
                values["system.disk.write_bytes"] = float(disk.write_bytes)
        with contextlib.suppress(Exception):
            net = self._psutil.net_io_counters()
            values["system.net.sent_bytes"] = float(net.bytes_sent)
            values["system.net.received_bytes"] = float(net.bytes_recv)
        return values

    def close(self) -> None:
        self._gpus.close()
