"""The client: what `Run.log` costs the training thread, and points a second to durable on disk."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.results import Result
from benchmarks.server import serving

CALLS = 200_000

_LATENCY = """
import json, sys, time, icecore
calls = int(sys.argv[1])
run = icecore.init(project="bench")
row = {f"metric_{k}": 0.1 * k for k in range(10)}
clock = time.perf_counter_ns
taken = []
keep = taken.append
pause = calls // 200 or 1
for i in range(calls):
    began = clock()
    run.log(row)
    keep(clock() - began)
    if i % pause == 0:
        time.sleep(0.005)   # a training step now and then, so that the uploader runs beside it
run.finish()
taken.sort()
print(json.dumps({"p50": taken[len(taken) // 2] / 1000, "p99": taken[int(len(taken) * 0.99)] / 1000,
                  "most": taken[-1] / 1e6}))
"""

_THROUGHPUT = """
import json, sys, time, icecore
calls = int(sys.argv[1])
run = icecore.init(project="bench", mode="offline")
rows = [{f"metric_{k}": 0.1 * k + i for k in range(10)} for i in range(1000)]
began = time.perf_counter()
for i in range(calls):
    run.log(rows[i % 1000])
run.finish()
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


def child(code: str, calls: int, **env: str) -> dict[str, float]:
    """Run a script in a process of its own and return the JSON it ends with."""
    with tempfile.TemporaryDirectory(prefix="icecore-bench-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, str(calls)],
            env={**os.environ, "ICECORE_DIR": folder, "ICECORE_SILENT": "true", **env},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def run(scale: float) -> list[Result]:
    """Latency against a server that takes the data meanwhile; throughput to disk."""
    gc.collect()
    calls = max(int(CALLS * scale), 200)
    with serving() as served:
        log = child(_LATENCY, calls, ICECORE_URL=served.url, ICECORE_API_KEY=served.key)
    began = time.perf_counter()
    disk = child(_THROUGHPUT, calls)
    whole = time.perf_counter() - began
    return [
        Result("Run.log, 10 metrics, p50", log["p50"], "us", 1.5, "at most", "Python; the look at each value's type"),
        Result("Run.log, 10 metrics, p99", log["p99"], "us", 10, "at most", f"longest {log['most']:.1f} ms: the GIL"),
        Result(
            "Run.log to durable on disk at finish",
            calls * 10 / disk["seconds"] / 1e6,
            "M points/s",
            None,
            "report",
            f"the writer thread; the process took {whole:.1f} s in all",
        ),
    ]
