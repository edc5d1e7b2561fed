"""Puts blobs into a folder until it is killed, and says of each that it was told to be there.

python blob_writer.py FOLDER SEED
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import frame
from icecore_api.blobs.store import Parts


def large(number: int) -> bytes:
    """A large blob, by its number."""
    return random.Random(number).randbytes(200_000 + number % 100_000)


async def _sent(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _say(*words: object) -> None:
    print(*words, ".", flush=True)


async def packs(blobs: LocalBlobs, seed: int) -> None:
    """Small ones, together."""
    for turn in itertools.count():
        contents = [f"{seed} {turn} {i}".encode() * 20 for i in range(50)]
        await blobs.put_small(_sent(b"".join(map(frame, contents))))
        for content in contents:
            _say("blob", hashlib.sha256(content).hexdigest())


async def alone(blobs: LocalBlobs, seed: int) -> None:
    """One after another."""
    for turn in itertools.count():
        content = random.Random(f"{seed} {turn}").randbytes(300_000)
        digest = hashlib.sha256(content).hexdigest()
        await blobs.put(digest, _sent(content))
        _say("blob", digest)


async def by_parts(blobs: LocalBlobs, seed: int) -> None:
    """In parts."""
    for number in range(seed * 1000, seed * 1000 + 500):
        content = large(number)
        parts = Parts(hashlib.sha256(content).hexdigest(), len(content), 70_000)
        for part in range(parts.number):
            await blobs.put_part(parts, part, _sent(content[part * 70_000 : (part + 1) * 70_000]))
            _say("part", parts.digest, parts.size, parts.part_size, part)
        await blobs.complete(parts)
        _say("blob", parts.digest)


async def main(folder: Path, seed: int) -> None:
    """All at once."""
    blobs = LocalBlobs(folder)
    await asyncio.gather(packs(blobs, seed), alone(blobs, seed), by_parts(blobs, seed))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
