"""What every store of blobs refuses, and in which words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from icecore.errors import BlobsMissing, Invalid
from icecore_api.blobs.packs import Entry
from icecore_api.blobs.store import SMALL_BYTES


def blobs_missing(digests: Sequence[str]) -> BlobsMissing:
    """The error for blobs that are named and not there."""
    return BlobsMissing(
        f"expected {len(digests)} more blobs, the first is {digests[0]}",
        hint="send them (PUT blobs/DIGEST, POST blobs/pack), then ask again",
        missing=list(digests),
    )


def small(found: Iterator[Entry]) -> Iterator[Entry]:
    """Frames, as long as each may be in a pack.

    Raises:
        Invalid: one is too large.
    """
    for entry in found:
        if entry.size > SMALL_BYTES:
            raise Invalid(
                f"expected blobs of at most {SMALL_BYTES} bytes in a pack, {entry.digest.hex()} has {entry.size}",
                hint="send it alone: PUT blobs/DIGEST",
                most=SMALL_BYTES,
                value=entry.size,
            )
        yield entry


def wrong_size(part: int, expected: int, got: int) -> Invalid:
    """The error for a part of another size."""
    return Invalid(
        f"expected {expected} bytes of part {part}, got {got}",
        where="part",
        hint="parts are of `part_size` bytes each; only the last one is shorter",
    )
