"""Large blobs that come to a bucket in parts: from their senders straight, by signed requests, or through the server.

    parts/DIGEST/SIZE-PARTSIZE/NNNNN-SHA256     a part; its name has the SHA-256 of its bytes
    whole/ab/DIGEST.parts                       once it is there, the blob is (`remote_index.Join`)

A bucket's own multipart upload is not used. It keeps no SHA-256 of the whole either, Azure and Google have others, and
what it leaves when it is interrupted is in no list. Parts as objects of their own can be listed, so a sender goes on
where it was, and are the blob once the last object is written: no byte is sent or copied again.

A sender is given a signed request for just the bytes whose SHA-256 it named: S3 itself refuses others, also later, so
what is checked stays what it is. Where the bucket cannot do that, parts are copied inside of the bucket, out of the
sender's reach, to `joined/…`, before they are checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import obstore

from icecore.errors import Conflict, Invalid
from icecore_api.blobs.packs import mismatch
from icecore_api.blobs.remote_index import Join, RemoteIndex, join_key, part_folder, part_key, whole_key
from icecore_api.blobs.remote_objects import Found, Objects, spans_of
from icecore_api.blobs.remote_settings import Signing, Verify
from icecore_api.blobs.remote_signing import EXPIRES_S, S3Signer, SignedRequest
from icecore_api.blobs.store import Orphan, Parts, UnderWay, check_digest

COMING: Final = "parts"
JOINED: Final = "joined"
_WHOLE: Final = re.compile(r"whole/[0-9a-f]{2}/([0-9a-f]{64})")
_KEY: Final = re.compile(
    r"(?P<folder>parts|joined)/(?P<digest>[0-9a-f]{64})/(?P<size>[0-9]{1,16})-(?P<step>[0-9]{1,16})/"
    r"(?P<part>[0-9]{5,})-(?P<sha>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part that is in the bucket."""

    folder: str
    parts: Parts
    part: int
    sha: str
    object: Found

    @classmethod
    def of(cls, found: Found) -> Piece | None:
        """What the name of an object says; None where it is no part, or not of its size."""
        name = _KEY.fullmatch(found.key)
        if name is None:
            return None
        parts = Parts(name["digest"], int(name["size"]), int(name["step"]))
        part = int(name["part"])
        if not parts.part_size or part >= parts.number or parts.size_of(part) != found.size:
            return None
        return cls(name["folder"], parts, part, name["sha"], found)


class RemoteUploads:
    """The uploads of one bucket.

    Args:
        objects: of the bucket.
        index: of its blobs.
        signing: signs for clients, by the endpoint they use; None where every byte goes through the server.
        verify: whether a blob of several parts is read once before it is there.
    """

    def __init__(self, objects: Objects, index: RemoteIndex, signing: Signing | None, verify: Verify) -> None:
        self._objects = objects
        self._index = index
        self._signing = signing
        self._verify = verify
        self._busy: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}
        self.signer: S3Signer | None = None
        """Signs the checksum, too; set once the bucket was seen to refuse other bytes."""

    async def sign(self, parts: Parts, part: int, sha: str) -> SignedRequest | None:
        """A request that brings a part whose bytes have this SHA-256; None where it must go through the server.

        Raises:
            Invalid: there is no such part, or it is all of a blob of another digest.
        """
        parts.size_of(part)
        check_digest(sha)
        if parts.number == 1 and sha != parts.digest:
            raise Invalid(f"expected the one part of blob {parts.digest} to have its digest, got {sha}", where="sha256")
        if self._signing is None:
            return None
        key = part_key(COMING, parts, part, sha)
        if self.signer is not None:
            return self.signer.put(whole_key(sha) if parts.number == 1 else key, bytes.fromhex(sha))
        with self._objects.asking("sign a request"):
            url = await obstore.sign_async(self._signing, "PUT", key, timedelta(seconds=EXPIRES_S))
        needed = {"x-ms-blob-type": "BlockBlob"} if type(self._signing).__name__ == "AzureStore" else {}
        return SignedRequest(url, needed)

    async def put(self, parts: Parts, part: int, content: bytes | bytearray) -> None:
        """Keep a part that came through the server."""
        sha = (await asyncio.to_thread(hashlib.sha256, content)).hexdigest()
        hurt = parts.digest in self._index.hurt()
        await (self._objects.replace if hurt else self._objects.create)(part_key(COMING, parts, part, sha), content)

    async def under_way(self, digest: str) -> list[UnderWay]:
        """The uploads of a blob that are not finished, the one last written to first."""
        if digest in self._index.hurt():
            return []  # nobody knows which of its parts are what they were
        found = await self._pieces(f"{COMING}/{digest}")
        written: dict[Parts, float] = {}
        for piece in found:
            written[piece.parts] = max(written.get(piece.parts, 0.0), piece.object.written)
        there = {parts: sorted({piece.part for piece in found if piece.parts == parts}) for parts in written}
        newest = sorted(written, key=lambda parts: written[parts], reverse=True)
        return [UnderWay(parts, tuple(there[parts])) for parts in newest if not self._is_blob(parts)]

    async def complete(self, parts: Parts) -> int:
        """Make the parts a blob. Whoever comes second waits for the first.

        Raises:
            Conflict: parts are not there.
            DigestMismatch: the bytes have another digest; the parts are forgotten.
        """
        async with self.alone(parts.digest):
            if size := self._index.sizes([parts.digest]):
                return size[parts.digest]
            if parts.number == 1 and await self._is_whole(parts):
                self._index.add_whole(parts.digest, parts.size)
                return parts.size
            join = await self._checked(parts, self._chosen(parts, await self._pieces(part_folder(COMING, parts))))
            # replaced: one that is there may name other parts
            await self._objects.replace(join_key(parts.digest), join.encoded())
            self._index.add_join(join)
            return parts.size

    async def _is_whole(self, parts: Parts) -> bool:
        """Whether the blob is there as one object. Only bytes of its digest can come there, but may change later."""
        key = whole_key(parts.digest)
        if await self._objects.size(key) != parts.size:
            return False
        return parts.digest not in self._index.hurt() or await self._hash([(key, parts.size)]) == parts.digest

    def _chosen(self, parts: Parts, found: Iterable[Piece]) -> list[Piece]:
        """One of each part: the one that came last.

        Raises:
            Conflict: some are not there.
        """
        newest = {piece.part: piece for piece in sorted(found, key=lambda piece: piece.object.written)}
        absent = [part for part in range(parts.number) if part not in newest]
        if absent:
            raise Conflict(
                f"expected all {parts.number} parts, {len(absent)} are not there, the first is {absent[0]}",
                hint="send them, then complete the upload",
                parts=absent[:1000],
            )
        return [newest[part] for part in range(parts.number)]

    async def _checked(self, parts: Parts, pieces: list[Piece]) -> Join:
        """The blob that these parts are, out of reach of who sent them."""
        out_of_reach = self._signing is None or self.signer is not None
        join = Join(parts, COMING if out_of_reach else JOINED, tuple(piece.sha for piece in pieces))
        if not out_of_reach:
            for piece in pieces:
                await self._objects.copy(piece.object.key, join.key(piece.part))
        known = (
            out_of_reach
            and parts.number == 1
            and pieces[0].sha == parts.digest
            and not self._index.find([parts.digest])
        )
        if not (known or (out_of_reach and self._verify == "parts")):
            got = await self._hash([(join.key(part), parts.size_of(part)) for part in range(parts.number)])
            if got != parts.digest:
                await self.forget(parts)
                raise mismatch(parts.digest, got)
        if not out_of_reach:
            await self._objects.remove([piece.object.key for piece in pieces])
        return join

    async def _hash(self, objects: Iterable[tuple[str, int]]) -> str:
        """The SHA-256 of objects, one after another, given their keys and sizes."""
        hashed = hashlib.sha256()
        spans = [span for key, size in objects for span in spans_of(key, 0, size)]
        async for piece in self._objects.stream(spans):
            await asyncio.to_thread(hashed.update, piece)
        return hashed.hexdigest()

    async def forget(self, parts: Parts) -> None:
        """Remove an upload, whatever there is of it."""
        for folder in (COMING, JOINED):
            keys = [found.key async for found in self._objects.list(part_folder(folder, parts))]
            await self._objects.remove(keys)

    async def orphans(self) -> list[Orphan]:
        """What interrupted uploads have left."""
        return [orphan for orphan, _ in await self._left()]

    async def remove_orphans(self, older_than_s: float) -> list[Orphan]:
        """Remove those not written to for so long."""
        removed = []
        for orphan, keys in await self._left():
            if orphan.age_s >= older_than_s:
                await self._objects.remove(keys)
                removed.append(orphan)
        return removed

    async def _left(self) -> list[tuple[Orphan, list[str]]]:
        found: dict[str, list[Found]] = {}
        for folder in (COMING, JOINED):
            async for one in self._objects.list(folder):
                found.setdefault(one.key.rpartition("/")[0], []).append(one)
        left = []
        for folder, objects in sorted(found.items()):
            digest = folder.split("/")[1]
            place = self._index.find([digest]).get(digest)
            used = set() if place is None or place.join is None else set(_keys(place.join))
            mine = [one for one in objects if one.key not in used]
            if mine and not self._busy[digest]:
                age = max(0.0, time.time() - max(one.written for one in mine))
                name = folder if folder.startswith(JOINED) else folder.removeprefix(f"{COMING}/")
                left.append((Orphan(name, "upload", sum(one.size for one in mine), age), [one.key for one in mine]))
        return left + [
            (Orphan(one.key, "upload", one.size, max(0.0, time.time() - one.written)), [one.key])
            for one in await self._unknown()
        ]

    async def _unknown(self) -> list[Found]:
        """Blobs that were sent whole, and which nobody has completed."""
        listed = {
            name[1]: found async for found in self._objects.list("whole") if (name := _WHOLE.fullmatch(found.key))
        }
        known = self._index.find(listed)
        return [found for digest, found in listed.items() if digest not in known and not self._busy[digest]]

    async def _pieces(self, prefix: str) -> list[Piece]:
        pieces = [Piece.of(found) async for found in self._objects.list(prefix)]
        return [piece for piece in pieces if piece is not None]

    def _is_blob(self, parts: Parts) -> bool:
        place = self._index.find([parts.digest]).get(parts.digest)
        return place is not None and place.join is not None and place.join.parts == parts

    def check_open(self, parts: Parts) -> None:
        """Whether parts of it may still come.

        Raises:
            Conflict: it is a blob already, or is being made one.
        """
        if self._busy[parts.digest] or self._index.sizes([parts.digest]):
            raise Conflict(
                "expected an upload that is under way, it is being completed",
                hint="ask for the blob: it may be there already",
            )

    @asynccontextmanager
    async def alone(self, digest: str) -> AsyncIterator[None]:
        """Nobody else completes this blob meanwhile, and its parts are no orphans."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        self._busy[digest] += 1
        try:
            async with lock:
                yield
        finally:
            self._busy[digest] -= 1
            if not self._busy[digest]:
                del self._busy[digest]
                self._locks.pop(digest, None)


def _keys(join: Join) -> list[str]:
    return [join.key(part) for part in range(join.parts.number)]


async def probe(signer: S3Signer, objects: Objects, send: Callable[[SignedRequest, bytes], int]) -> bool:
    """Whether the bucket refuses bytes whose SHA-256 is not the signed one, and takes those whose it is.

    Args:
        signer: for the bucket, by an endpoint that this server reaches.
        objects: of the bucket.
        send: sends a request and answers its status; blocks.
    """
    key, right = "probe", b"icecore"
    request = signer.put(key, hashlib.sha256(right).digest())
    statuses = [await asyncio.to_thread(send, request, content) for content in (b"ICECORE", right)]
    await objects.remove([key])
    return 400 <= statuses[0] < 500 and statuses[1] == 200
