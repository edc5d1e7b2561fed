"""NVIDIA GPUs through NVML: what they are, and how busy. Silent where there are none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


class Gpus:
    """The machine's NVIDIA GPUs; none where the library, the driver or the devices are missing.

    Args:
        nvml: what speaks NVML; the module `pynvml` by default.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        with contextlib.suppress(Exception):  # NVML has its own errors, and a broken driver any other
            if nvml is None:
                import pynvml

                nvml = pynvml
            nvml.nvmlInit()
            self._nvml = nvml
            count = int(nvml.nvmlDeviceGetCount())
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def facts(self) -> dict[str, Any]:
        """`gpus` (name, memory_bytes, uuid each), `gpu_count`, `gpu_driver` and `cuda`; empty without a GPU."""
        if not self._handles:
            return {}
        nvml = self._nvml
        gpus = [
            {
                "name": _text(_ask(nvml.nvmlDeviceGetName, handle)),
                "memory_bytes": getattr(_ask(nvml.nvmlDeviceGetMemoryInfo, handle), "total", None),
                "uuid": _text(_ask(nvml.nvmlDeviceGetUUID, handle)),
            }
            for handle in self._handles
        ]
        facts: dict[str, Any] = {"gpu_count": len(gpus), "gpus": gpus}
        facts["gpu_driver"] = _text(_ask(nvml.nvmlSystemGetDriverVersion))
        cuda = _ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
        if cuda:
            facts["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
        return facts

    def sample(self) -> dict[str, float]:
        """`gpu.INDEX.util` %, `.memory` %, `.memory_bytes`, `.temperature` degrees C and `.power` W, as far as told."""
        values: dict[str, float] = {}
        nvml = self._nvml
        for index, handle in enumerate(self._handles):
            name = f"gpu.{index}"
            busy = _ask(nvml.nvmlDeviceGetUtilizationRates, handle)
            if busy is not None:
                values[f"{name}.util"] = float(busy.gpu)
            memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
            if memory is not None:
                values[f"{name}.memory_bytes"] = float(memory.used)
                values[f"{name}.memory"] = 100.0 * float(memory.used) / max(1.0, float(memory.total))
            degrees = _ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
            if degrees is not None:
                values[f"{name}.temperature"] = float(degrees)
            milliwatts = _ask(nvml.nvmlDeviceGetPowerUsage, handle)
            if milliwatts is not None:
                values[f"{name}.power"] = float(milliwatts) / 1000.0
        return values

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml is not None:
            _ask(self._nvml.nvmlShutdown)
        self._nvml, self._handles = None, []


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None: a device that does not support one question still answers the others."""
    try:
        return question(*arguments)
    except Exception:  # noqa: BLE001 - NVML raises its own kinds
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
