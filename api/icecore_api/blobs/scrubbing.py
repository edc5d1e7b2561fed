"""Reading every blob again, to find those that the disk has changed or lost."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from icecore_api.blobs.index import Index
from icecore_api.blobs.packs import HEAD, Entry
from icecore_api.blobs.reading import sha256_of_file
from icecore_api.blobs.store import Hurt, Progress

_NAME: Final = re.compile(r"[0-9a-f]{64}")


def scrub(index: Index, packs: Path, whole: Path, progress: Progress) -> Iterator[Hurt]:
    """Those that are damaged or missing. What comes or goes meanwhile is not hurt.

    Args:
        index: of the packs.
        packs: their folder.
        whole: the folder of the blobs that are files of their own.
        progress: told bytes done and bytes in all, after each file.
    """
    files = [path for path in sorted(whole.glob("??/*")) if _NAME.fullmatch(path.name)]
    sizes = [path.stat().st_size for path in files]
    done, total = 0, index.total()[1] + sum(sizes)
    for pack in index.packs():
        found = index.of_pack(pack)
        yield from _of_pack(packs / pack, found)
        done += sum(entry.size for entry in found)
        progress(done, total)
    for path, size in zip(files, sizes, strict=True):
        yield from _of_file(path, size)
        done += size
        progress(done, total)
    for digest, size, pack in index.lost():
        if not (whole / digest[:2] / digest).exists():
            yield Hurt(digest, size, "missing", f"packs/{pack}", "its pack is not there")


def _of_pack(path: Path, found: list[Entry]) -> Iterator[Hurt]:
    where = f"packs/{path.name}"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        for entry in found:
            yield Hurt(entry.digest.hex(), entry.size, "missing", where, f"its pack cannot be read: {error.strerror}")
        return
    try:
        for entry in found:
            if problem := _problem(handle, entry):
                yield Hurt(entry.digest.hex(), entry.size, "damaged", where, problem)
    finally:
        os.close(handle)


def _problem(handle: int, entry: Entry) -> str:
    """What is wrong with a packed blob, the head before it included; empty where nothing is."""
    try:
        got = os.pread(handle, HEAD.size + entry.size, entry.offset - HEAD.size)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if len(got) != HEAD.size + entry.size:
        return f"its pack ends {HEAD.size + entry.size - len(got)} bytes too early"
    digest = hashlib.sha256(memoryview(got)[HEAD.size :]).digest()
    if digest != entry.digest:
        return f"its bytes have the SHA-256 {digest.hex()}"
    return "" if got[: HEAD.size] == HEAD.pack(entry.digest, entry.size) else "its head in the pack has changed"


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
