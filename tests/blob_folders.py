"""A folder of blobs in this process, and what goes into it."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import subprocess
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import entries, frame
from icecore_api.blobs.store import BlobStore, Erased

LARGE = 3 * 1024 * 1024 + 17


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def sent(content: bytes, at_once: int = 65536) -> AsyncIterator[bytes]:
    """Bytes as they come from the network."""
    for first in range(0, len(content), at_once):
        await asyncio.sleep(0)
        yield content[first : first + at_once]


def framed(contents: Sequence[bytes]) -> AsyncIterator[bytes]:
    return sent(b"".join(map(frame, contents)))


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[LocalBlobs]:
    blobs = LocalBlobs(folder, **settings)
    try:
        yield blobs
    finally:
        blobs.close()


def play(folder: Path, story: Callable[[LocalBlobs], Coroutine[Any, Any, None]]) -> None:
    with opened(folder) as blobs:
        asyncio.run(story(blobs))


def files(folder: Path, *, all_of_them: bool = False) -> list[str]:
    """Files of the folder, the index left out."""
    found = (path for path in folder.rglob("*") if path.is_file() and (all_of_them or "index.db" not in path.name))
    return sorted(str(path.relative_to(folder)) for path in found)


async def everything(blobs: BlobStore, digests: Sequence[str]) -> list[bytes]:
    whole = b"".join([piece async for piece in await blobs.read_many(digests)])
    return [whole[entry.offset : entry.offset + entry.size] for entry in entries(whole, 0, len(whole))]


async def ranged(blobs: BlobStore, digest: str, start: int = 0, stop: int | None = None) -> bytes:
    blob = await blobs.open(digest)
    try:
        return b"".join([piece async for piece in blob.read(start, stop)])
    finally:
        blob.close()


async def erased(blobs: BlobStore, digests: Collection[str], not_touched_since: float = math.inf) -> list[Erased]:
    """The receipts of erasing blobs, however lately they were touched."""
    return [one async for some in blobs.erase(digests, not_touched_since=not_touched_since) for one in some]


def disk(folder: Path) -> int:
    """Bytes of the files that hold blobs, as `du` counts them."""
    held = [str(path) for name in ("packs", "whole") for path in (folder / name).rglob("*") if path.is_file()]
    if not held:
        return 0
    told = subprocess.run(["du", "--bytes", "--total", *held], capture_output=True, text=True, check=True)
    return int(told.stdout.splitlines()[-1].split()[0])
