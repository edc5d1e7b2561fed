"""Reading every blob again, to find those that the disk has changed or lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from icecore_api.blobs.index import Index
from icecore_api.blobs.packs import BLOB, HEAD, Entry, frame_head, wrong_frame
from icecore_api.blobs.reading import sha256_of_file
from icecore_api.blobs.store import Hurt, Progress

State = Literal["damaged", "missing"]
_NAME: Final = re.compile(r"[0-9a-f]{64}")


def scrub(index: Index, packs: Path, whole: Path, progress: Progress, note: Callable[[bytes], None]) -> Iterator[Hurt]:
    """Those that are damaged or missing. What comes or goes meanwhile is not hurt.

    Args:
        index: of the packs.
        packs: their folder.
        whole: the folder of the blobs that are files of their own.
        progress: told bytes done and bytes in all, after each file.
        note: told the digest of each chunk that is damaged.
    """
    files = [path for path in sorted(whole.glob("??/*")) if _NAME.fullmatch(path.name)]
    sizes = [path.stat().st_size for path in files]
    done, total = 0, index.stored() + sum(sizes)
    parts: dict[bytes, tuple[str, str]] = {}
    seen: set[str] = set()
    while new := [pack for pack in index.packs() if pack not in seen]:  # packs may be written again meanwhile
        for pack in new:
            seen.add(pack)
            found = index.of_pack(pack)
            for entry, state, problem in _of_pack(packs / pack, found, index):
                if entry.kind == BLOB:
                    yield Hurt(entry.digest.hex(), entry.size, state, f"packs/{pack}", problem)
                else:
                    parts[entry.digest] = (f"packs/{pack}", problem)
                    note(entry.digest)
            done += sum(entry.size for entry in found)
            progress(done, max(done, total))
    for path, size in zip(files, sizes, strict=True):
        yield from _of_file(path, size)
        done += size
        progress(done, max(done, total))
    yield from _in_chunks(index, parts)
    for digest, size, pack in index.lost():
        if not (whole / digest[:2] / digest).exists():
            yield Hurt(digest, size, "missing", f"packs/{pack}", "its pack, or one that has chunks of it, is not there")


def _of_pack(path: Path, found: list[Entry], index: Index) -> Iterator[tuple[Entry, State, str]]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        for entry in index.of_pack(path.name):  # nothing where it was written again
            yield entry, "missing", f"its pack cannot be read: {error.strerror}"
        return
    try:
        for entry in found:
            if problem := _problem(handle, entry):
                yield entry, "damaged", problem
    finally:
        os.close(handle)


def _problem(handle: int, entry: Entry) -> str:
    """What is wrong with a frame, the head before it included; empty where nothing is."""
    try:
        got = os.pread(handle, HEAD.size + entry.size, entry.offset - HEAD.size)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if len(got) != HEAD.size + entry.size:
        return f"its pack ends {HEAD.size + entry.size - len(got)} bytes too early"
    if problem := wrong_frame(entry.digest, entry.kind, got[HEAD.size :]):
        return problem
    head = frame_head(entry.digest, entry.size, entry.kind)
    return "" if got[: HEAD.size] == head else "its head in the pack has changed"


def _in_chunks(index: Index, parts: Mapping[bytes, tuple[str, str]]) -> Iterator[Hurt]:
    """Blobs of which a chunk, or the list of them, is not well.

    Args:
        index: of the packs.
        parts: where those lie, and what is wrong with them.
    """
    for digest, place in index.chunks.all():
        if own := parts.get(bytes.fromhex(digest)):
            yield Hurt(digest, place.size, "damaged", *own)
            continue
        recipe, at = index.chunks.recipe(digest) or [], 0
        there = index.chunks.where({chunk for chunk, _ in recipe}) if recipe else {}
        for chunk, size in recipe:
            if wrong := parts.get(chunk):
                yield Hurt(digest, place.size, "damaged", wrong[0], f"of its chunk at byte {at} {wrong[1]}")
                break
            if chunk not in there and index.chunks.find([digest]):
                yield Hurt(digest, place.size, "missing", "", f"its chunk at byte {at} is not there")
                break
            at += size


def _of_file(path: Path, size: int) -> Iterator[Hurt]:
    where = f"whole/{path.parent.name}/{path.name}"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        got = sha256_of_file(handle)
    except OSError as error:
        yield Hurt(path.name, size, "damaged", where, f"it cannot be read: {error.strerror}")
        return
    finally:
        os.close(handle)
    if got != path.name:
        yield Hurt(path.name, size, "damaged", where, f"its bytes have the SHA-256 {got}")
