"""Blobs in a bucket: S3, and by the same code Azure and Google.

    PREFIX/packs/NAME.pack               small blobs that came together (`packs`)
    PREFIX/whole/ab/abcd…                a larger blob, one object
    PREFIX/whole/ab/abcd….parts          a large one, in several objects (`remote_uploads`)
    PREFIX/parts/DIGEST/SIZE-STEP/…      those objects; also what has come of an upload
    PREFIX/owner                         the id of the log whose blobs these are
    DATA/blobs/bucket.db                 a copy of what these say (`remote_index`); made again where it is not there

Packs and whole blobs are laid out as in a folder (`local`), so that copying the folder's files makes them a bucket's.
An object is put whole or not at all, and only where there is none of its name. One process has the prefix.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import urllib3

from icecore.errors import BlobError, IcecoreError, NotFound, Unavailable
from icecore.events import uuid7
from icecore.limits import most
from icecore_api.blobs.drafts import Draft, fill, make_folder, trouble
from icecore_api.blobs.packs import MAGIC, Entry, checked, entries, frame_head, mismatch, table
from icecore_api.blobs.refusals import blobs_missing, small, wrong_size
from icecore_api.blobs.remote_catching import catch_up
from icecore_api.blobs.remote_index import Place, RemoteIndex, whole_key
from icecore_api.blobs.remote_objects import Objects, Span
from icecore_api.blobs.remote_reading import RemoteBlob, frames_of
from icecore_api.blobs.remote_scrubbing import scrub
from icecore_api.blobs.remote_settings import Bucket
from icecore_api.blobs.remote_shrinking import RemoteShrinking
from icecore_api.blobs.remote_signing import SignedRequest
from icecore_api.blobs.remote_sources import Source, source_of
from icecore_api.blobs.remote_uploads import RemoteUploads, probe
from icecore_api.blobs.store import (
    Erased,
    Hurt,
    Kept,
    Orphan,
    Parts,
    Progress,
    UnderWay,
    Usage,
    Weight,
    check_digest,
)
from icecore_api.blobs.uploads import check_parts

PART_BYTES: Final = 16 << 20
"""Larger blobs that come through the server lie in parts of this size."""
OWNER: Final = "owner"
"""The object that says whose the prefix is."""
_THREADS: Final = 8


class RemoteBlobs:
    """A `BlobStore` in a bucket.

    Nothing is asked of the bucket before the first call: a server starts while its bucket is away, and says so.

    Args:
        bucket: where.
        folder: DATA/blobs, for the index and for what is being written.
        refuse: makes the error for whatever would change the bucket; None lets it be changed.
        environment: has the keys.
        owner: whose blobs these are, in a word; a prefix that is another's is left alone. Empty: not asked.
        opened: called once the bucket has answered.
    """

    def __init__(
        self,
        bucket: Bucket,
        folder: Path,
        refuse: Callable[[], IcecoreError] | None = None,
        environment: Mapping[str, str] = os.environ,
        *,
        owner: str = "",
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        self.bucket = bucket
        self._owner = owner
        self._when_open = opened
        self._refuse = refuse
        self._environment = environment
        self._drafts = folder / "drafts"
        self._threads = ThreadPoolExecutor(_THREADS, "blobs")
        self._objects = Objects(bucket.open(), str(bucket))
        self._signing = bucket.signing()
        self._reading: Counter[str] = Counter()
        with trouble(f"open the index of the blobs in {folder}"):
            if refuse is None:
                make_folder(self._drafts)
                for left in self._drafts.glob("*.draft"):
                    left.unlink(missing_ok=True)
            self.index = RemoteIndex(folder / "bucket.db" if refuse is None else None)
        self._uploads = RemoteUploads(self._objects, self.index, self._signing, bucket.verify)
        self._shrinking = RemoteShrinking(self._objects, self.index, self._reading, self._uploads.alone)
        self._opening = asyncio.Lock()
        self._is_open = False

    def close(self) -> None:
        """Wait for what is being written, and let go of the index."""
        self._threads.shutdown()
        self.index.close()

    async def greet(self) -> None:
        """Ask whether the bucket is there, and take in what it has."""
        await self._ready()

    async def _ready(self) -> None:
        """Compare the index with the bucket, once.

        Raises:
            Unavailable, BlobError: the bucket does not answer, or refuses.
        """
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                await self._own()
                await catch_up(self._objects, self.index, may_remove=self._refuse is None)
                await self._choose_signer()
                self._when_open()
                self._is_open = True

    async def _own(self) -> None:
        """See that nobody else has the prefix: what one erases would be missing for the other."""
        if not self._owner or self._refuse is not None or await self._objects.create(OWNER, self._owner.encode()):
            return
        size = await self._objects.size(OWNER)
        found = (await self._objects.get(Span(OWNER, 0, size or 0))).decode("utf-8", "replace")
        if found != self._owner:
            raise BlobError(
                f"expected {self.bucket} to be of the log {self._owner}, it is of {found[:80]}",
                hint=f"give each server a prefix of its own; if the log was moved, remove the object {OWNER!r}",
                retry_after=60,
            )

    async def _choose_signer(self) -> None:
        if self._signing is None or self._refuse is not None:
            return
        own = self.bucket.signer(self._environment, public=False)
        if own is not None and await probe(own, self._objects, _send):
            self._uploads.signer = self.bucket.signer(self._environment)

    def _may_write(self) -> None:
        if self._refuse is not None:
            raise self._refuse()

    # -------------------------------------------------------------------------------------------------- what is there

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are not there, in their order, each once."""
        found = await self.sizes(digests)
        return [digest for digest in dict.fromkeys(digests) if digest not in found]

    async def sizes(self, digests: Sequence[str]) -> dict[str, int]:
        """Bytes of those of `digests` that are there."""
        for digest in digests:
            check_digest(digest)
        await self._ready()
        with trouble("look for blobs"):
            return self.index.sizes(digests)

    # -------------------------------------------------------------------------------------------------------- writing

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> int:
        """Make one blob of what comes; durable on return. Answers its size."""
        check_digest(digest)
        self._may_write()
        await self._ready()
        with trouble(f"keep blob {digest}"):
            draft = Draft(self._drafts)
            try:
                await fill(chunks, draft.write, "blob_bytes", self._threads)
                if draft.digest != digest:
                    raise mismatch(digest, draft.digest)
                await self._keep(draft, digest)
                return draft.size
            finally:
                draft.discard()

    async def _keep(self, draft: Draft, digest: str) -> None:
        if self.index.sizes([digest]):
            return
        if draft.size <= PART_BYTES:
            async with self._uploads.alone(digest):
                content = await asyncio.to_thread(draft.path.read_bytes)
                hurt = digest in self.index.hurt()
                await (self._objects.replace if hurt else self._objects.create)(whole_key(digest), content)
                self.index.add_whole(digest, draft.size)
            return
        parts = Parts(digest, draft.size, max(PART_BYTES, -(-draft.size // most("upload_parts"))))
        with draft.path.open("rb") as file:
            for part in range(parts.number):
                await self._uploads.put(parts, part, await asyncio.to_thread(file.read, parts.part_size))
        await self._uploads.complete(parts)

    async def put_small(self, chunks: AsyncIterator[bytes]) -> int:
        """Make blobs of frames, all or none; durable on return. Answers how many there were."""
        self._may_write()
        coming = bytearray()
        await fill(chunks, lambda pieces: coming.extend(b"".join(pieces)), "blob_pack_bytes", self._threads)
        await self._ready()
        buffer = memoryview(coming)
        found = await asyncio.to_thread(lambda: checked(buffer, small(entries(buffer, 0, len(buffer)))))
        by_digest = {entry.digest: entry for entry in found}
        there = self.index.sizes(digest.hex() for digest in by_digest)
        if new := [entry for digest, entry in by_digest.items() if digest.hex() not in there]:
            await self._put_pack(buffer, new)
        return len(by_digest)

    async def _put_pack(self, buffer: memoryview, new: Sequence[Entry]) -> None:
        content, moved = bytearray(MAGIC), []
        for entry in new:
            content += frame_head(entry.digest, entry.size)
            moved.append(Entry(entry.digest, len(content), entry.size))
            content += buffer[entry.offset : entry.offset + entry.size]
        content += table(moved, len(content))
        name = f"{uuid7()}.pack"
        await self._objects.create(f"packs/{name}", content)
        self.index.add_pack(name, len(content), moved)

    # -------------------------------------------------------------------------------------------------------- reading

    async def open(self, digest: str) -> RemoteBlob:
        """A blob to read from."""
        check_digest(digest)
        await self._ready()
        return self._opened(digest)

    def _opened(self, digest: str) -> RemoteBlob:
        place = self._find(digest)
        if place is None:
            raise NotFound(f"no such blob: {digest}", digest=digest)
        self._reading[digest] += 1
        return RemoteBlob(self._objects, place, self._find, lambda: self._read(digest))

    def _find(self, digest: str) -> Place | None:
        return self.index.find([digest]).get(digest)

    def _read(self, digest: str) -> None:
        self._reading[digest] -= 1
        if self._reading[digest] <= 0:
            del self._reading[digest]

    async def read(self, digest: str) -> bytes:
        """All bytes of a blob, checked."""
        blob = await self.open(digest)
        try:
            return b"".join([piece async for piece in blob.checked()])
        finally:
            blob.close()

    async def read_many(self, digests: Sequence[str]) -> AsyncIterator[bytes]:
        """Frames of blobs, in the order asked, in pieces; each is checked."""
        for digest in digests:
            check_digest(digest)
        await self._ready()
        places = self.index.find(digests)
        if missing := [digest for digest in dict.fromkeys(digests) if digest not in places]:
            raise blobs_missing(missing)
        return frames_of(digests, places, self._objects, self._opened)

    async def source(self, digest: str, start: int, stop: int) -> Source | None:
        """Where a client may fetch a range by itself; None where it must come through the server."""
        await self._ready()
        place = self._find(check_digest(digest))
        return await source_of(place, start, stop, self._objects, self._signing) if place else None

    # -------------------------------------------------------------------------------------------------------- by parts

    @property
    def direct(self) -> bool:
        """Whether clients send large blobs to the bucket by themselves."""
        return self._signing is not None and self._refuse is None

    async def sign_part(self, parts: Parts, part: int, sha256: str) -> SignedRequest | None:
        """The request that brings a part; None where it must come through the server.

        Args:
            parts: the upload.
            part: from 0.
            sha256: of the part's bytes, in hex.

        Raises:
            Invalid: there is no such part.
        """
        check_parts(parts).size_of(part)
        self._may_write()
        await self._ready()
        return await self._uploads.sign(parts, part, sha256)

    async def put_part(self, parts: Parts, part: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep a part of a large blob; durable on return."""
        expected = check_parts(parts).size_of(part)
        self._may_write()
        await self._ready()
        coming = bytearray()

        def take(pieces: Sequence[bytes]) -> None:
            coming.extend(b"".join(pieces))
            if len(coming) > expected:
                raise wrong_size(part, expected, len(coming))

        await fill(chunks, take, "upload_part_bytes", self._threads)
        if len(coming) != expected:
            raise wrong_size(part, expected, len(coming))
        self._uploads.check_open(parts)
        await self._uploads.put(parts, part, coming)

    async def under_way(self, digest: str) -> list[UnderWay]:
        """The uploads of a blob that are not finished, the one last written to first."""
        check_digest(digest)
        await self._ready()
        return await self._uploads.under_way(digest)

    async def complete(self, parts: Parts) -> int:
        """Check all bytes and make them a blob. Answers its size; also where it is a blob already."""
        check_parts(parts)
        self._may_write()
        await self._ready()
        return await self._uploads.complete(parts)

    # ------------------------------------------------------------------------------------------------------- upkeep

    async def orphans(self) -> list[Orphan]:
        """What interrupted uploads have left; what is being completed now is not among it."""
        await self._ready()
        return await self._uploads.orphans()

    async def remove_orphans(self, older_than_s: float) -> list[Orphan]:
        """Remove those not written to for so long. Answers which."""
        self._may_write()
        await self._ready()
        return await self._uploads.remove_orphans(older_than_s)

    async def all_blobs(self) -> AsyncIterator[list[Kept]]:
        """Every blob, in no order, some thousands at a time."""
        await self._ready()
        for some in self.index.each():
            yield some

    async def usage(self) -> Usage:
        """What is there in all."""
        await self._ready()
        return self.index.usage()

    async def weigh(self, digests: Collection[str]) -> Weight:
        """What these blobs weigh together, and how many bytes would be free without them."""
        await self._ready()
        return self._shrinking.weigh(digests)

    async def erase(self, digests: Collection[str], *, not_touched_since: float) -> AsyncGenerator[list[Erased]]:
        """Remove blobs for good, some at a time; what is given is durably gone."""
        self._may_write()
        await self._ready()
        async for gone in self._shrinking.erase(digests, not_touched_since):
            yield gone

    async def hurt(self) -> int:
        """How many blobs are known to be damaged or missing."""
        await self._ready()
        return len(self.index.hurt())

    def scrub(self, progress: Progress = lambda _done, _total: None) -> Iterator[Hurt]:
        """Read every blob again; those that are damaged or missing."""
        for hurt in scrub(self._objects, self.index, progress):
            self.index.mark_hurt(hurt.digest)
            yield hurt


def _send(request: SignedRequest, content: bytes) -> int:
    """Send a signed request as a client would; answers the status.

    Raises:
        Unavailable: the bucket does not answer, or only that it cannot.
    """
    patience = urllib3.Retry(5, allowed_methods=None, status_forcelist=range(500, 600), backoff_factor=0.1)
    try:
        with urllib3.PoolManager(retries=patience, timeout=10.0) as web:
            return int(web.request("PUT", request.url, body=content, headers=dict(request.headers)).status)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(
            f"expected the bucket to answer, got {type(error).__name__}", hint="look at the object store", retry_after=5
        ) from None  # the cause may have the signed address in it
