"""What must hold of a manifest before it may become a version."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from icecore import manifest
from icecore.errors import BlobDamaged, BlobsMissing, Invalid, NotFound, TooLarge
from icecore.limits import most
from icecore.manifest import Entry, Pinned
from icecore_api.blobs.store import BlobStore
from icecore_api.manifest_rows import grown

BYTES_MOST: Final = most("artifact_files") << 10
"""Of a manifest: as many files as a version may have, each with a long path. It is read whole."""
SOURCES_MOST: Final = 100
_SOURCE_MOST: Final = 500
_DEPTH_MOST: Final = 12
_HOST: Final = 3
"""Slashes of scheme://host/"""
_COMPARED_FROM: Final = 64 << 10
"""Bytes of a manifest that is compared with the one before."""
_NAMED: Final = 100
"""Missing digests that an error lists, at most."""


async def read_manifest(blobs: BlobStore, digest: str) -> dict[str, Entry]:
    """The entries of a manifest that is a blob; raises as `read_whole`."""
    return (await read_whole(blobs, digest))[0]


async def read_whole(
    blobs: BlobStore, digest: str, bytes_most: int = BYTES_MOST
) -> tuple[dict[str, Entry], dict[str, Pinned]]:
    """The entries of a manifest that is a blob, and the parts of a bundle.

    Raises:
        BlobsMissing: there is no such blob. Invalid: it is no manifest. BlobDamaged: it is no longer what was sent.
        TooLarge: it names too many files, or is too long.
    """
    return await asyncio.to_thread(canonical, await _bytes(blobs, digest, bytes_most))


async def _bytes(blobs: BlobStore, digest: str, bytes_most: int = BYTES_MOST) -> bytes:
    size = (await blobs.sizes([digest])).get(digest, 0)
    if size > bytes_most:
        raise TooLarge(
            f"expected a manifest of at most {bytes_most} bytes, got a blob of {size}",
            limit="artifact_files",
            most=bytes_most,
            value=size,
        )
    try:
        return await blobs.read(digest)
    except NotFound as error:
        raise BlobsMissing(
            f"expected the manifest {digest} as a blob, got none",
            hint="send it by PUT blobs/{digest} first",
            missing=[digest],
        ) from error


class Content(NamedTuple):
    """What a version says of its manifest."""

    files: int
    """How many it names."""
    size: int
    """Bytes of those that are kept here."""
    references: list[str]
    """Where the others lie, as `sources` tells it."""
    parts: dict[str, Pinned]
    """Of a bundle: the versions it is made of."""


async def check_manifest(blobs: BlobStore, digest: str, base: str = "") -> Content:
    """See that a manifest is one, and that every blob it names is there with the size it says.

    Args:
        blobs: where it is.
        digest: its own.
        base: the manifest of a version that is there, is no bundle and has no references. Its files are needed, and so
            are there: what both have in common is not looked at again.

    Raises:
        BlobsMissing: `missing` has the first digests of those that are not there.
        Invalid: a size is another one; or as `read_manifest`.
    """
    data = await _bytes(blobs, digest)
    if base and len(data) >= _COMPARED_FROM and (content := await _compared(blobs, data, base)):
        return content
    entries, parts = await asyncio.to_thread(canonical, data)
    await _see_blobs(blobs, await asyncio.to_thread(manifest.blob_sizes, entries))
    files = sum(not path.endswith("/") for path in entries)
    size = sum(entry.size or 0 for entry in entries.values() if entry.is_blob)
    return Content(files, size, await asyncio.to_thread(sources, entries), parts)


async def _compared(blobs: BlobStore, data: bytes, base: str) -> Content | None:
    """`check_manifest`, of what is not in `base`; None where it has to be looked at as a whole."""
    try:
        known = await blobs.read(base)
    except (NotFound, BlobDamaged):
        return None
    found = await asyncio.to_thread(grown, data, known, lambda rows: canonical(rows)[0])
    if found is None or found.files > most("artifact_files"):
        return None
    await _see_blobs(blobs, manifest.blob_sizes(found.new))
    return Content(found.files, found.size, [], {})


async def _see_blobs(blobs: BlobStore, wanted: Mapping[str, int]) -> None:
    """See that blobs are there, each with its size; raises as `check_manifest`."""
    found = await blobs.sizes(list(wanted))
    if missing := [blob for blob in wanted if blob not in found]:
        raise BlobsMissing(
            f"expected all {len(wanted)} blobs of a manifest, got {len(missing)} that are not there",
            hint="POST blobs/missing says which; send them first",
            missing=missing[:_NAMED],
        )
    for blob, size in wanted.items():
        if found[blob] != size:
            raise Invalid(f"expected {size} bytes of {blob}, as the manifest says, got {found[blob]}", digest=blob)


def sources(entries: Mapping[str, Entry]) -> list[str]:
    """Where the references of a manifest point to, sorted: each URI, or the folders that many have in common.

    Users, passwords, queries and fragments are left out: signatures of pre-signed addresses are none of the graph's
    business. There are at most `SOURCES_MOST`.
    """
    found = {_without_secrets(entry.ref) for entry in entries.values() if not entry.is_blob}
    depth = min(max((uri.count("/") for uri in found), default=0), _DEPTH_MOST) + 1
    while len(found) > SOURCES_MOST and depth > _HOST:
        depth -= 1
        found = {_folder(uri, depth) for uri in found}
    return sorted(found)[:SOURCES_MOST]


def _without_secrets(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:  # a host that is none
        plain = f"{uri.partition('://')[0]}://"
    return plain[:_SOURCE_MOST]


def _folder(uri: str, slashes: int) -> str:
    """`uri` up to that many slashes; as it is where it has fewer."""
    return uri if uri.count("/") < slashes else "/".join(uri.split("/")[:slashes]) + "/"


def canonical(data: bytes) -> tuple[dict[str, Entry], dict[str, Pinned]]:
    """The entries of a manifest's bytes, and the parts of a bundle.

    Raises:
        Invalid: it is none, or the same content in other bytes. TooLarge: it names too many files.
    """
    entries, parts = manifest.decode_whole(data)
    if len(entries) > most("artifact_files"):
        raise TooLarge(
            f"expected at most {most('artifact_files')} files in a version, got {len(entries)}",
            limit="artifact_files",
            most=most("artifact_files"),
            value=len(entries),
        )
    if manifest.encode(entries, parts, checked=True) != data:
        raise Invalid(
            "expected a manifest with sorted keys and without spaces: the same files give the same bytes",
            hint="docs/decisions/0008-artifacts.md has the form",
        )
    return entries, parts
