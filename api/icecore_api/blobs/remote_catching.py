"""Comparing the index with a bucket's list, when the store is opened."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from icecore.errors import BlobDamaged
from icecore_api.blobs.packs import Entry, has_table, read_entries
from icecore_api.blobs.remote_index import Join, RemoteIndex, Seen, join_key
from icecore_api.blobs.remote_objects import Found, Objects, Span

_LARGE: Final = re.compile(r"whole/[0-9a-f]{2}/([0-9a-f]{64})(\.parts)?")
_PACK: Final = re.compile(r"packs/([0-9a-f-]{36}\.pack)")
_TAIL: Final = 256 * 1024
_AT_ONCE: Final = 16
T = TypeVar("T")
R = TypeVar("R")


async def catch_up(objects: Objects, index: RemoteIndex, *, may_remove: bool) -> None:
    """Take in what the bucket has and the index does not know, and note what has gone.

    Args:
        objects: of the bucket.
        index: of its blobs.
        may_remove: whether packs that hold nothing of their own any more may go.

    Raises:
        Unavailable, BlobError: the bucket does not answer, or refuses.
    """
    listed = [found async for found in objects.list("packs")]
    packs = {name[1]: found for found in listed if (name := _PACK.fullmatch(found.key))}
    whole: dict[str, int] = {}
    joined: list[str] = []
    async for found in objects.list("whole"):
        if name := _LARGE.fullmatch(found.key):
            if name[2]:
                joined.append(name[1])
            else:
                whole[name[1]] = found.size
    known, known_joins = index.packs(), index.joins()
    new = await _each((found for name, found in packs.items() if name not in known), lambda one: _entries(objects, one))
    joins = await _each((one for one in joined if one not in known_joins), lambda one: _join(objects, one))
    index.reconcile(
        Seen(
            packs={name: (found.size, new.get(found)) for name, found in packs.items()},
            whole=whole,
            joins={digest: joins.get(digest) for digest in joined},
        )
    )
    for empty in index.empty_packs() if may_remove else ():
        await objects.remove([f"packs/{empty}"])
        index.drop_pack(empty)


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[R]]) -> dict[T, R]:
    """The answers for items, several asked for at once."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> tuple[T, R]:
        async with room:
            return item, await work(item)

    return dict(await asyncio.gather(*(one(item) for item in items)))


async def _join(objects: Objects, digest: str) -> Join:
    key = join_key(digest)
    size = await objects.size(key)
    try:
        return Join.decoded(digest, await objects.get(Span(key, 0, size or 0)))
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise BlobDamaged(
            f"expected the parts of blob {digest} in {key}, got: {error}",
            hint="somebody changed the bucket's object: bring it back from a version of the bucket, or remove it",
            digest=digest,
        ) from error


async def _entries(objects: Objects, pack: Found) -> list[Entry]:
    """What a pack says is in it: by its end, which is asked for alone; where that does not do, by all of it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pack"
        tail = min(_TAIL, pack.size)
        for start in dict.fromkeys((pack.size - tail, 0)):
            content = await objects.get(Span(pack.key, start, pack.size))
            with file.open("wb") as writer:  # what was not asked for is a hole
                writer.truncate(pack.size)
                writer.seek(start)
                writer.write(content)
            if start == 0 or has_table(file):
                break
        return await asyncio.to_thread(read_entries, file)
