"""What a store can do whose bytes clients send and fetch by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from icecore_api.blobs.remote_signing import SignedRequest
from icecore_api.blobs.store import Parts

if TYPE_CHECKING:
    from icecore_api.blobs.remote_sources import Source  # a server without a bucket needs no library for one


@runtime_checkable
class Direct(Protocol):
    """A store in a bucket. Its signed requests are secrets for as long as they are valid: never in a log."""

    async def greet(self) -> None:
        """Ask whether the bucket is there, and take in what it has.

        Raises:
            Unavailable, BlobError: it does not answer, or refuses.
        """
        ...

    @property
    def direct(self) -> bool:
        """Whether clients send large blobs to the bucket by themselves."""
        ...

    async def sign_part(self, parts: Parts, part: int, sha256: str) -> SignedRequest | None:
        """The request that brings a part with these bytes; None where it must come through the server.

        Raises:
            Invalid: there is no such part.
        """
        ...

    async def source(self, digest: str, start: int, stop: int) -> Source | None:
        """Where a range of a blob is to be fetched; None where it must come through the server."""
        ...
