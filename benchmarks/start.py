"""How long things take to start, and what an idle server holds."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.results import Result
from benchmarks.server import serving

_IMPORT = "import time; t=time.perf_counter(); import icecore; print(time.perf_counter()-t)"
IDLE_S = 3.0


def run(scale: float) -> list[Result]:
    """Import time (best of several), cold start, idle memory."""
    rounds = max(int(10 * scale), 3)
    imports = [
        float(subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True).stdout)
        for _ in range(rounds)
    ]
    with serving() as served:
        ready = served.ready_s
        time.sleep(IDLE_S)
        memory = served.memory()
    return [
        Result("import icecore", sorted(imports)[len(imports) // 2] * 1000, "ms", 50, "at most", "reading modules"),
        Result("cold start of `icecore up` to ready", ready, "s", 2, "at most", "importing DuckDB, Arrow, FastAPI"),
        Result("idle memory of all its processes", memory / 2**20, "MB", 250, "at most", "PSS of three processes"),
    ]
