"""What must hold of a manifest before it may become a version."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from icecore import manifest
from icecore.errors import BlobsMissing, Invalid, NotFound, TooLarge
from icecore.limits import most
from icecore.manifest import Entry, Pinned
from icecore_api.blobs.store import BlobStore

BYTES_MOST: Final = most("artifact_files") << 10
"""Of a manifest: as many files as a version may have, each with a long path. It is read whole."""
SOURCES_MOST: Final = 100
_SOURCE_MOST: Final = 500
_DEPTH_MOST: Final = 12
_HOST: Final = 3
"""Slashes of scheme://host/"""
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
    size = (await blobs.sizes([digest])).get(digest, 0)
    if size > bytes_most:
        raise TooLarge(
            f"expected a manifest of at most {bytes_most} bytes, got a blob of {size}",
            limit="artifact_files",
            most=bytes_most,
            value=size,
        )
    try:
        data = await blobs.read(digest)
    except NotFound as error:
        raise BlobsMissing(
            f"expected the manifest {digest} as a blob, got none",
            hint="send it by PUT blobs/{digest} first",
            missing=[digest],
        ) from error
    return await asyncio.to_thread(_checked, data)


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


async def check_manifest(blobs: BlobStore, digest: str) -> Content:
    """See that a manifest is one, and that every blob it names is there with the size it says.

    Raises:
        BlobsMissing: `missing` has the first digests of those that are not there.
        Invalid: a size is another one; or as `read_manifest`.
    """
    entries, parts = await read_whole(blobs, digest)
    wanted = await asyncio.to_thread(manifest.blob_sizes, entries)
    found = await blobs.sizes(list(wanted))
    missing = [blob for blob in wanted if blob not in found]
    if missing:
        raise BlobsMissing(
            f"expected all {len(wanted)} blobs of a manifest, got {len(missing)} that are not there",
            hint="POST blobs/missing says which; send them first",
            missing=missing[:_NAMED],
        )
    for blob, size in wanted.items():
        if found[blob] != size:
            raise Invalid(f"expected {size} bytes of {blob}, as the manifest says, got {found[blob]}", digest=blob)
    files = sum(not path.endswith("/") for path in entries)
    size = sum(entry.size or 0 for entry in entries.values() if entry.is_blob)
    return Content(files, size, await asyncio.to_thread(sources, entries), parts)


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


def _checked(data: bytes) -> tuple[dict[str, Entry], dict[str, Pinned]]:
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
