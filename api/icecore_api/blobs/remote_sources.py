"""Where a client may fetch a blob's bytes from by itself: one object of a bucket, by a signed request."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import obstore

from icecore_api.blobs.remote_index import Place
from icecore_api.blobs.remote_objects import Objects
from icecore_api.blobs.remote_reading import spans
from icecore_api.blobs.remote_settings import Signing
from icecore_api.blobs.remote_signing import EXPIRES_S
from icecore_api.blobs.store import SMALL_BYTES


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes of one object, for somebody else to get."""

    url: str = field(repr=False)
    start: int
    """Of the object, not of the blob."""
    stop: int
    """Before this one."""


async def source_of(place: Place, start: int, stop: int, objects: Objects, signing: Signing | None) -> Source | None:
    """Where a range of a blob is to be had; None where it lies in several objects, or is small, or is checked here.

    Args:
        place: where the blob lies.
        start: of the range.
        stop: before this one.
        objects: of the bucket.
        signing: signs for clients; None where every byte goes through the server.
    """
    if signing is None or place.packed or place.size <= SMALL_BYTES or start >= stop:
        return None
    found = list(spans(place, start, stop))
    if len({span.key for span in found}) != 1:
        return None
    with objects.asking("sign a request"):
        url = await obstore.sign_async(signing, "GET", found[0].key, timedelta(seconds=EXPIRES_S))
    return Source(url, found[0].start, found[-1].stop)
