"""Reading every blob of a bucket again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, Literal

from icecore.errors import BlobDamaged
from icecore_api.blobs.packs import HEAD, Entry
from icecore_api.blobs.remote_index import Place, RemoteIndex
from icecore_api.blobs.remote_objects import Objects, Span
from icecore_api.blobs.remote_reading import spans
from icecore_api.blobs.store import Hurt, Progress

_SOME: Final = 500


def scrub(objects: Objects, index: RemoteIndex, progress: Progress) -> Iterator[Hurt]:
    """Those that are damaged or missing. What comes or goes meanwhile is not hurt. Blocks.

    Args:
        objects: of the bucket.
        index: of its blobs.
        progress: told bytes done and bytes in all, after each object.
    """
    done, total = 0, index.usage().logical
    for pack, length in index.packs().items():
        found = index.of_pack(pack)
        yield from _of_pack(objects, index, Span(f"packs/{pack}", 0, length), found)
        done += sum(entry.size for entry in found)
        progress(done, total)
    large = index.large()
    for first in range(0, len(large), _SOME):
        for digest, place in index.find(large[first : first + _SOME]).items():
            if (hurt := _of_large(objects, place)) and digest in index.find([digest]):
                yield hurt
            done += place.size
            progress(done, total)
    yield from index.lost()


def _of_pack(objects: Objects, index: RemoteIndex, whole: Span, found: list[Entry]) -> Iterator[Hurt]:
    try:
        content = objects.get_now(whole)
    except (FileNotFoundError, BlobDamaged) as error:
        state, problem = _said(error)
        if whole.key.removeprefix("packs/") in index.packs():
            for entry in found:
                yield Hurt(entry.digest.hex(), entry.size, state, whole.key, problem)
        return
    for entry in found:
        digest = hashlib.sha256(memoryview(content)[entry.offset : entry.offset + entry.size]).digest()
        if digest != entry.digest:
            problem = f"its bytes have the SHA-256 {digest.hex()}"
        elif content[entry.offset - HEAD.size : entry.offset] != HEAD.pack(entry.digest, entry.size):
            problem = "its head in the pack has changed"
        else:
            continue
        yield Hurt(entry.digest.hex(), entry.size, "damaged", whole.key, problem)


def _of_large(objects: Objects, place: Place) -> Hurt | None:
    hashed = hashlib.sha256()
    try:
        for span in spans(place, 0, place.size):
            hashed.update(objects.get_now(span))
    except (FileNotFoundError, BlobDamaged) as error:
        state, problem = _said(error)
        return Hurt(place.digest, place.size, state, place.key, problem)
    if hashed.hexdigest() != place.digest:
        return Hurt(place.digest, place.size, "damaged", place.key, f"its bytes have the SHA-256 {hashed.hexdigest()}")
    return None


def _said(error: FileNotFoundError | BlobDamaged) -> tuple[Literal["damaged", "missing"], str]:
    if isinstance(error, FileNotFoundError):
        return "missing", "its object is not there"
    return "damaged", error.message
