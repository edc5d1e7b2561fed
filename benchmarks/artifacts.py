"""Artifacts: folders of small files and a large one, logged and downloaded; aliases resolved and moved.

Every step runs in a client process of its own, and is timed from the first call to the last: interpreter and imports
are left out. `scale` 1 is 100,000 files of 1 KB, a file of 5 GB, and a version of 1,000,000 files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.aliases import embedded, moving, resolving
from benchmarks.results import Result
from benchmarks.server import Served, serving

FILES: Final = 100_000
MANY_FILES: Final = 1_000_000
FILE_BYTES: Final = 1024
LARGE_BYTES: Final = 5_000_000_000
SETTLED_S: Final = 2.2
"""The stat cache remembers files that were left alone for two seconds."""

_CLIENT = """
import json, resource, sys, time
import icecore
from icecore.api import Api
step, source, target = sys.argv[1:4]
if step == "log":
    run = icecore.init(entity="bench", project="bench", settings={"console": "off", "system_seconds": 0})
    run.log({"x": 1})
began, cpu = time.perf_counter(), time.process_time()
if step == "log":
    artifact = icecore.Artifact(target, type="dataset")
    from os.path import isdir
    artifact.add_dir(source) if isdir(source) else artifact.add_file(source)
    sent = run.log_artifact(artifact)
    sent.wait()
    told = {"version": sent.version, "bytes": sent._pending.progress.bytes}
else:
    told = {"path": Api().artifact(f"bench/bench/{source}:latest").download(target)}
wall, cpu = time.perf_counter() - began, time.process_time() - cpu
if step == "log":
    run.finish()
    from icecore.manifest import encode
    told["bytes"] -= len(encode(sent.manifest))
print(json.dumps({"wall": wall, "cpu": cpu, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **told}))
"""


class Client:
    """Runs steps against a server, with one cache.

    Args:
        served: the server.
        home: the client's folder.
    """

    def __init__(self, served: Served, home: Path) -> None:
        self._served = served
        self._home = home

    def do(self, step: str, source: str | Path, target: str | Path) -> dict[str, Any]:
        """`log` a file or folder as an artifact, or `get` an artifact into a folder; wall, cpu (s), rss (bytes)."""
        before = self._served.cpu_seconds()
        answer = child(
            _CLIENT,
            step,
            str(source),
            str(target),
            ICECORE_URL=self._served.url,
            ICECORE_API_KEY=self._served.key,
            ICECORE_DIR=str(self._home),
            ICECORE_ARTIFACT_CACHE=str(self._home / "cache"),
        )
        after = self._served.cpu_seconds()
        answer["server_cpu"] = sum(after.values()) - sum(before.get(pid, 0.0) for pid in after)
        return answer

    def clear(self) -> None:
        """Forget all downloads."""
        for name in ("blobs", "drafts", "partial", "added"):
            where = self._home / "cache" / name
            shutil.rmtree(where) if where.is_dir() else where.unlink(missing_ok=True)


def child(code: str, *words: str, **env: str) -> dict[str, Any]:
    """Run a script in a process of its own, and return the JSON it ends with."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "ICECORE_SILENT": "true", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one measurement, removed at the end."""
    made = Path(tempfile.mkdtemp(prefix="icecore-bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def small_files(root: Path, count: int, size: int = FILE_BYTES) -> None:
    """`count` files with different bytes, 1,000 in each folder."""
    for first in range(0, count, 1000):
        home = root / f"part-{first // 1000:04d}"
        home.mkdir(parents=True)
        data = os.urandom(size * min(1000, count - first))
        for number in range(len(data) // size):
            (home / f"sample-{first + number:07d}.bin").write_bytes(data[number * size : (number + 1) * size])


def large_file(path: Path, size: int) -> None:
    """A file of random bytes."""
    with path.open("wb") as file:
        for start in range(0, size, 1 << 24):
            file.write(os.urandom(min(1 << 24, size - start)))


def run(scale: float) -> list[Result]:
    """All of it."""
    results = small(max(200, round(FILES * scale)))
    results += large(max(20_000_000, round(LARGE_BYTES * scale)))
    results += aliases(max(100, round(10_000 * scale)))
    return results + many(max(2_000, round(MANY_FILES * scale)))


def small(count: int) -> list[Result]:
    """Small files: logged, logged again, with one changed, downloaded."""
    with folder() as home, serving(home / "server") as served:
        source, client = home / "files", Client(served, home / "client")
        small_files(source, count)
        time.sleep(SETTLED_S)
        first = client.do("log", source, "files")
        again = client.do("log", source, "files")
        (source / "part-0000" / "sample-0000000.bin").write_bytes(os.urandom(FILE_BYTES))
        changed = client.do("log", source, "files")
        if (first["version"], again["version"], changed["version"]) != ("v0", "v0", "v1"):
            raise RuntimeError(f"expected v0, v0 and v1, got {first}, {again}, {changed}")
        cold = client.do("get", "files", home / "cold")
        cached = client.do("get", "files", home / "cached")
        there = client.do("get", "files", home / "cached")
    files = f"{count:,} files of {FILE_BYTES} B"
    return [
        _took(f"log {files}, for the first time", first),
        _took("log them again, unchanged", again, 3),
        _took("log them again, one changed", changed, 3),
        Result("… bytes sent for the one that changed, without the manifest", float(changed["bytes"]), "B"),
        _took(f"download {files}, cold", cold),
        _took("download them from the cache", cached, 5),
        _took("download them where they are already", there),
    ]


def _took(name: str, answer: dict[str, Any], target: float | None = None) -> Result:
    note = (
        f"CPU: client {answer['cpu']:.1f} s, server {answer['server_cpu']:.1f} s; client {answer['rss'] / 1e6:.0f} MB"
    )
    return Result(name, answer["wall"], "s", target, "at most" if target else "report", note)


def large(size: int) -> list[Result]:
    """One large file, beside what `sha256sum` and `cp` take for it at the same time."""
    with folder() as home, serving(home / "server") as served:
        source = home / "large.bin"
        large_file(source, size)
        client = Client(served, home / "client")
        tools, ours = [], []
        for turn in range(2 if size < 1e9 else 3):
            tools.append(_by_tools(source, home / "copy.bin"))
            with source.open("r+b") as file:  # other bytes each time
                file.write(turn.to_bytes(8))
            ours.append(client.do("log", source, "large"))
        down = client.do("get", "large", home / "down")
    best = min(ours, key=lambda answer: float(answer["wall"]))
    gigabytes = f"{size / 1e9:.3g} GB"
    return [
        Result(f"`sha256sum` and `cp` of {gigabytes} at once, then synced", min(tools), "s"),
        _took(f"log a file of {gigabytes}", best),
        Result("… as a share of their speed", min(tools) / best["wall"], "times", 0.8, "at least", "disk and SHA-256"),
        _took("download it", down),
    ]


def _by_tools(source: Path, copy: Path) -> float:
    began = time.perf_counter()
    hashing = subprocess.Popen(["sha256sum", source], stdout=subprocess.DEVNULL)
    subprocess.run(["cp", source, copy], check=True)
    subprocess.run(["sync", copy], check=True)
    hashing.wait()
    took = time.perf_counter() - began
    copy.unlink()
    return took


def aliases(moves: int) -> list[Result]:
    """Names resolved, and aliases moved by 50 clients at once."""
    with folder() as home, serving(home / "server") as served:
        client = Client(served, home / "client")
        (home / "file").write_bytes(b"1")
        client.do("log", home / "file", "model")
        (home / "file").write_bytes(b"2")
        client.do("log", home / "file", "model")
        return [*resolving(served, "model", moves // 10), *moving(served, "model", moves), *embedded(moves)]


def many(count: int) -> list[Result]:
    """A version of very many files: time, and what client and server take of memory."""
    with folder() as home, serving(home / "server") as served:
        source, client = home / "files", Client(served, home / "client")
        small_files(source, count, 16)
        time.sleep(SETTLED_S)
        before = served.memory()
        first = client.do("log", source, "many")
        memory = served.memory() - before
        again = client.do("log", source, "many")
    name = f"{count:,} files in one version"
    return [
        _took(f"log {name}", first),
        _took(f"log {name} again, unchanged", again),
        Result(f"… memory of the client with {name}", max(first["rss"], again["rss"]) / 1e6, "MB"),
        Result("… memory that the server kept afterwards", max(memory, 1) / 1e6, "MB"),
    ]
