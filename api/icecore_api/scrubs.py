"""Scrub: every blob is read again, and what is damaged or missing is told with the versions that it hurts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from typing import Any, Final, NamedTuple

from icecore.errors import BlobDamaged, BlobsMissing, Invalid
from icecore.manifest import Entry
from icecore_api.blobs.store import BlobStore, Hurt
from icecore_api.context import Context, Report
from icecore_api.manifests import read_manifest

COMMITTED: Final = "committed"
FILES_TOLD: Final = 20
"""Files of one version that are named, at most."""

_VERSIONS: Final = """
SELECT c.entity || '/' || c.project || '/' || c.name, v.version, v.digest, v.deleted
FROM current_versions v JOIN current_collections c ON c.artifact = v.artifact ORDER BY 1, 2
"""


class _Named(NamedTuple):
    """A version that names a blob."""

    name: str
    state: str
    file: str
    """The path of a file; "" for the manifest itself."""


async def scrub(context: Context, report: Report) -> Mapping[str, Any]:
    """Read every blob again, and every version's manifest.

    Args:
        context: the process.
        report: told `stage`, and bytes, later versions, `done` and in all.

    Returns:
        `ok`, `blobs`, `bytes`, `versions`, `seconds`, and `hurt`: digest, size, state (damaged or missing), where,
        problem, and the `versions` that need it, each with `name`, `state`, `files` (at most 20) and `files_total`.
    """
    began = time.monotonic()
    blobs = context.blobs
    found = await asyncio.to_thread(_read_again, blobs, report)
    there = {bytes.fromhex(blob.digest) async for some in blobs.all_blobs() for blob in some}
    usage = await blobs.usage()
    named: dict[str, list[_Named]] = {}
    versions = 0
    async for of_version in _all_versions(context, report):
        versions += 1
        for digest, size, one in of_version:
            # of a deleted version, what is not there was erased
            if digest not in found and one.state == COMMITTED and bytes.fromhex(digest) not in there:
                found[digest] = Hurt(digest, size, "missing", "", "a version names it, and it is not there")
            if digest in found:
                named.setdefault(digest, []).append(one)
    hurt = [_told(one, named.get(digest, [])) for digest, one in sorted(found.items())]
    seconds = round(time.monotonic() - began, 3)
    return {"ok": not hurt, "blobs": usage.blobs, "bytes": usage.logical, "versions": versions, "seconds": seconds,
            "hurt": hurt}  # fmt: skip


def _read_again(blobs: BlobStore, report: Report) -> dict[str, Hurt]:
    def told(done: int, total: int) -> None:
        report({"stage": "read every blob", "done": done, "total": total})

    return {hurt.digest: hurt for hurt in blobs.scrub(told)}


async def _all_versions(context: Context, report: Report) -> AsyncIterator[list[tuple[str, int, _Named]]]:
    """Of each version the digest, size and place of every blob that it needs."""
    with closing(context.store.cursor()) as cursor:
        rows = await asyncio.to_thread(lambda: cursor.execute(_VERSIONS).fetchall())
    for number, (path, version, digest, deleted) in enumerate(rows, 1):
        name, state = f"{path}:v{version}", "deleted" if deleted else COMMITTED
        try:
            entries = await read_manifest(context.blobs, digest)
        except (BlobsMissing, BlobDamaged, Invalid):  # then what it names is not known any more
            entries = {}
        yield [(digest, 0, _Named(name, state, "")), *_of_files(entries, name, state)]
        report({"stage": "look at every version", "done": number, "total": len(rows)})


def _of_files(entries: Mapping[str, Entry], name: str, state: str) -> Iterator[tuple[str, int, _Named]]:
    for path, entry in entries.items():
        if entry.is_blob and entry.digest:
            yield entry.digest, entry.size or 0, _Named(name, state, path)


def _told(hurt: Hurt, named: list[_Named]) -> dict[str, Any]:
    versions: dict[tuple[str, str], list[str]] = {}
    for one in named:
        versions.setdefault((one.name, one.state), []).append(one.file or "the manifest")
    return {
        "digest": hurt.digest,
        "size": hurt.size,
        "state": hurt.state,
        "where": hurt.where,
        "problem": hurt.problem,
        "versions": [
            {"name": name, "state": state, "files": files[:FILES_TOLD], "files_total": len(files)}
            for (name, state), files in versions.items()
        ],
    }
