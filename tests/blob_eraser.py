"""Puts blobs into a folder and erases some, until it is killed; says of each what it was told.

python blob_eraser.py FOLDER SEED
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import frame


async def _sent(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _say(word: str, digests: list[str]) -> None:
    for digest in digests:
        print(word, digest, ".", flush=True)


async def main(folder: Path, seed: int) -> None:
    """Small ones together, a whole one, and two large ones that share chunks; then half of them go."""
    chance = random.Random(seed)
    base = chance.randbytes(1_100_000)
    blobs = LocalBlobs(folder, chunked=True)
    there: list[str] = []
    for turn in itertools.count():
        small = [f"{seed} {turn} {i}".encode() * 30 for i in range(20)]
        large = [base + chance.randbytes(40_000), chance.randbytes(50_000) + base, chance.randbytes(300_000)]
        digests = [hashlib.sha256(content).hexdigest() for content in (*small, *large)]
        await blobs.put_small(_sent(b"".join(map(frame, small))))
        for content in large:
            await blobs.put(hashlib.sha256(content).hexdigest(), _sent(content))
        _say("put", digests)
        there += digests
        chance.shuffle(there)
        gone, there = there[::2], there[1::2]
        _say("erasing", gone)
        async for some in blobs.erase(gone, not_touched_since=math.inf):
            _say("erased", [one.digest for one in some])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
