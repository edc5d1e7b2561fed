"""Versions of files that are nearly equal, kept whole, in chunks, and in compressed chunks; beside DVC.

Data is real or made by real work: checkpoints of a classifier of handwritten digits while it is trained (weights and
Adam's moments, float32), and while only its last layer is; tables that grow; the tokens of Python's own library.
`python -m benchmarks.chunking`; DVC where it is installed in .bench/peers/dvc.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.results import Result, machine
from icecore_api.blobs.local import LocalBlobs

DVC: Final = Path(__file__).parents[1] / ".bench" / "peers" / "dvc" / "bin" / "dvc"


class Way(NamedTuple):
    """How a folder keeps large files."""

    chunked: bool = False
    compressed: bool = False


WAYS: Final = {"whole": Way(), "chunks": Way(chunked=True), "chunks + zstd": Way(chunked=True, compressed=True)}
VERSIONS: Final = 10
_AT_ONCE: Final = 1 << 20


class Kept(NamedTuple):
    """Versions of one file, kept in one way."""

    given: int
    """Bytes of all versions."""
    disk: int
    """Bytes that hold them."""
    cpu_s: float
    """To take them in."""
    read_cpu_s: float
    """To read the last one, checked."""


# ------------------------------------------------------------------------------------------------------------- the data


def checkpoints(folder: Path, scale: float, *, frozen: bool = False) -> Iterator[Path]:
    """A classifier of handwritten digits after each of ten successive turns of 20 steps with Adam.

    Args:
        folder: for the files.
        scale: 1 has layers of 1,024.
        frozen: only the last layer learns, and has moments, as when a model is fine-tuned.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, rng = (images / 16).astype(np.float32), np.random.default_rng(7)
    width = max(int(1024 * scale**0.5), 32)
    sizes = [64, width, width, 10]
    weights = [rng.normal(0, np.sqrt(2 / a), (a, b)).astype(np.float32) for a, b in pairwise(sizes)]
    learning = range(len(weights))[-1:] if frozen else range(len(weights))
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for turn in range(VERSIONS):
        for step in range(1, 21):
            batch = rng.integers(0, len(x), 128)
            for i, gradient in enumerate(_gradients(weights, x[batch], labels[batch])):
                if i in learning:
                    first[i] += 0.1 * (gradient - first[i])
                    second[i] += 0.001 * (gradient**2 - second[i])
                    t = turn * 20 + step
                    scaled = first[i] / (1 - 0.9**t) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-8)
                    weights[i] -= (1e-3 * scaled).astype(np.float32)
        arrays = {f"w{i}": w for i, w in enumerate(weights)}
        arrays |= {f"{name}{i}": m[i] for name, m in (("m", first), ("v", second)) for i in learning}
        path = folder / f"checkpoint-{turn}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]  # names, not allow_pickle
        yield path


def _gradients(weights: Sequence[Any], x: Any, labels: Any) -> list[Any]:
    kept = [x]
    for w in weights[:-1]:
        kept.append(np.maximum(kept[-1] @ w, 0))
    scores = kept[-1] @ weights[-1]
    odds = np.exp(scores - scores.max(1, keepdims=True))
    delta = odds / odds.sum(1, keepdims=True)
    delta[np.arange(len(labels)), labels] -= 1
    delta /= len(labels)
    found = []
    for i in reversed(range(len(weights))):
        found.append(kept[i].T @ delta)
        delta = (delta @ weights[i].T) * (kept[i] > 0)
    return found[::-1]


def _rows(scale: float, version: int) -> dict[str, Any]:
    """Measurements of a machine: 400,000 rows, and 20,000 more with each version."""
    rng = np.random.default_rng(1)
    number = int((400_000 + VERSIONS * 20_000) * scale)
    upto = int((400_000 + version * 20_000) * scale)
    time_ms = 1_700_000_000_000 + np.cumsum(rng.integers(900, 1100, number))
    watts = np.round(200 + np.cumsum(rng.normal(0, 1, number)), 2)
    state = rng.choice(["idle", "train", "eval"], number, p=[0.2, 0.7, 0.1])
    host = rng.integers(0, 64, number)
    return {"time": time_ms[:upto], "host": host[:upto], "watts": watts[:upto], "state": state[:upto]}


def grown_csv(folder: Path, scale: float) -> Iterator[Path]:
    """A CSV file that rows are added to."""
    from pyarrow import csv

    for version in range(VERSIONS):
        path = folder / f"{version}.csv"
        csv.write_csv(pa.table(_rows(scale, version)), path)
        yield path


def grown_parquet(folder: Path, scale: float) -> Iterator[Path]:
    """The same as Parquet, in row groups of 50,000."""
    for version in range(VERSIONS):
        path = folder / f"{version}.parquet"
        pq.write_table(pa.table(_rows(scale, version)), path, row_group_size=max(int(50_000 * scale), 1))
        yield path


def tokens(folder: Path, scale: float) -> Iterator[Path]:
    """Python's library as numbers of words: again with 1 % of the files edited, with more words, and in lower case."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py"))
    sources = [path for path in sources if "site-packages" not in path.parts][: max(int(2000 * scale), 20)]
    texts = [path.read_text("utf-8", errors="replace") for path in sources]
    words = _vocabulary(texts, 20_000)
    edited = [text.replace("self", "this", 1) if i % 100 == 0 else text for i, text in enumerate(texts)]
    more = {
        **words,
        **{word: 20_000 + i for i, word in enumerate(w for w in _vocabulary(texts, 30_000) if w not in words)},
    }
    lower = [text.lower() for text in texts]
    versions = [(texts, words), (edited, words), (edited, more), (lower, _vocabulary(lower, 20_000))]
    for number, (some, known) in enumerate(versions):
        path = folder / f"{number}.bin"
        np.array([known.get(word, 65_535) for text in some for word in _split(text)], np.uint16).tofile(path)
        yield path


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    counted = Counter(word for text in texts for word in _split(text))
    return {word: i for i, (word, _) in enumerate(counted.most_common(size))}


DATA: Final[dict[str, Callable[[Path, float], Iterator[Path]]]] = {
    "ten checkpoints": checkpoints,
    "ten checkpoints, last layer only": lambda folder, scale: checkpoints(folder, scale, frozen=True),
    "a CSV that grows, 10 versions": grown_csv,
    "a Parquet file that grows, 10 versions": grown_parquet,
    "a dataset tokenised 4 times": tokens,
}

# ---------------------------------------------------------------------------------------------------------- measuring


async def _kept(files: Sequence[Path], folder: Path, way: Way) -> Kept:
    blobs = LocalBlobs(folder, chunked=way.chunked, compressed=way.compressed)
    given, cpu = 0, 0.0
    digest = ""
    for path in files:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        began = time.process_time()
        given += await blobs.put(digest, _sent(content))
        cpu += time.process_time() - began
    began = time.process_time()
    assert hashlib.sha256(await blobs.read(digest)).hexdigest() == digest
    read = time.process_time() - began
    usage = await blobs.usage()
    blobs.close()
    return Kept(given, usage.disk, cpu, read)


async def _sent(content: bytes) -> AsyncIterator[bytes]:
    for first in range(0, len(content), _AT_ONCE):
        yield content[first : first + _AT_ONCE]


def with_dvc(files: Sequence[Path], folder: Path) -> int | None:
    """Bytes in DVC's cache once each version was added; None where DVC is not installed."""
    if not DVC.exists():
        return None
    folder.mkdir()
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}

    def dvc(*words: str) -> None:
        subprocess.run([DVC, *words], cwd=folder, env=env, check=True, capture_output=True)

    dvc("init", "--no-scm")
    for path in files:
        shutil.copyfile(path, folder / "data")
        dvc("add", "data")
    return sum(path.stat().st_size for path in (folder / ".dvc" / "cache").rglob("*") if path.is_file())


def measured(scale: float, *, dvc: bool = True) -> dict[str, dict[str, Any]]:
    """Each data set in each way."""
    found: dict[str, dict[str, Any]] = {}
    for name, make in DATA.items():
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home) / "data"
            folder.mkdir()
            files = list(make(folder, scale))
            found[name] = {
                way: asyncio.run(_kept(files, Path(home) / way, options))._asdict() for way, options in WAYS.items()
            }
            if dvc:
                found[name]["dvc"] = with_dvc(files, Path(home) / "dvc")
    return found


def run(scale: float) -> list[Result]:
    """What chunks need of the bytes of whole files, and what taking them in costs."""
    results = []
    for name, ways in measured(scale, dvc=False).items():
        whole, chunked = ways["whole"], ways["chunks + zstd"]
        share, rate = chunked["disk"] / whole["disk"], chunked["given"] / chunked["cpu_s"] / 1e6
        target = 0.6 if name == "ten checkpoints" else None
        results += [
            Result(f"{name}: chunks, of whole files", share, "of the bytes", target, "at most", "what changes"),
            Result(f"{name}: taken in", rate, "MB/s of CPU", limit_by="SHA-256 twice, FastCDC, zstd"),
        ]
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunking", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 is the published size")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    found = measured(args.scale)
    if args.json:
        sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
        return 0
    shown = Table("data", "bytes given", "DVC", *WAYS, "MB/s of CPU in", "out", title=f"on {machine()}")
    for name, ways in found.items():
        given = ways["whole"]["given"]
        at_rest = [f"{ways[way]['disk'] / given:.1%}" for way in WAYS]
        rates = [" / ".join(f"{given / ways[way]['cpu_s'] / 1e6:.0f}" for way in WAYS)]
        last = given / (VERSIONS if "4 times" not in name else 4)
        rates.append(" / ".join(f"{last / ways[way]['read_cpu_s'] / 1e6:.0f}" for way in WAYS))
        dvc = "-" if ways["dvc"] is None else f"{ways['dvc'] / given:.1%}"
        shown.add_row(name, f"{given:,}", dvc, *at_rest, *rates)
    Console().print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
