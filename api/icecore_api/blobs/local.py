"""Blobs in a folder of this machine.

    DATA/blobs/packs/NAME.pack      small blobs that came together (`packs`), and large ones in chunks (`chunking`)
    DATA/blobs/whole/ab/abcd…       every other blob, a file of its own
    DATA/blobs/index.db             where the packed ones lie (`index`); made again where it is not there
    DATA/blobs/drafts/              what is being written (`drafts`)
    DATA/blobs/uploads/             large blobs that come in parts (`uploads`)

One process has the folder. A file gets its name only once its bytes are checked and durable, and whoever gives a name
holds the lock, so that a blob that comes twice at once is kept once.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from icecore.errors import Conflict, IcecoreError, NotFound
from icecore_api.blobs.chunk_reading import ChunkedBlob
from icecore_api.blobs.chunking import CHUNKED_FROM, Chunking, Cut
from icecore_api.blobs.drafts import Draft, fill, make_folder, publish, trouble
from icecore_api.blobs.erasing import Packs
from icecore_api.blobs.index import Index, Place
from icecore_api.blobs.orphans import find_orphans, remove_orphans
from icecore_api.blobs.packs import BLOB, HEAD, MAGIC, Entry, checked, entries, frame_head, mismatch
from icecore_api.blobs.reading import LocalBlob, Pulled, damaged, frames_of
from icecore_api.blobs.refusals import blobs_missing, small
from icecore_api.blobs.scrubbing import scrub
from icecore_api.blobs.shrinking import Shrinking
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
from icecore_api.blobs.uploads import PartComing, Uploads, check_parts
from icecore_api.blobs.whole import Whole

T = TypeVar("T")
_THREADS: Final = 16
_FOLDERS: Final = ("packs", "whole", "drafts", "uploads")


class LocalBlobs:
    """A `BlobStore` in a folder.

    Args:
        folder: DATA/blobs; made where it is not there.
        refuse: makes the error for whatever would change the folder; None lets it be changed.
        chunked: whether large blobs that come are kept in chunks; those that are there are read either way.
        compressed: whether chunks are compressed where that saves.

    Raises:
        BlobError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        refuse: Callable[[], IcecoreError] | None = None,
        *,
        chunked: bool = False,
        compressed: bool = True,
    ) -> None:
        self.folder = folder
        self._refuse = refuse
        self._packs, self._drafts = folder / "packs", folder / "drafts"
        self._whole = Whole(folder / "whole")
        self._naming = threading.Lock()
        self._active: set[str] = set()
        self._threads = ThreadPoolExecutor(_THREADS, "blobs")
        with trouble(f"open the blobs in {folder}"):
            if refuse is None:
                for name in _FOLDERS:
                    make_folder(folder / name)
            self.index = Index(folder / "index.db" if refuse is None else None, self._packs)
            self._files = Packs(self._packs, self.index, self._own_draft)
            if refuse is None:
                self._files.tidy()
        self._shrinking = Shrinking(self.index, self._files, self._whole, self._naming)
        self._chunking = (
            Chunking(self.index.chunks, self._files, self._own_draft, compress=compressed) if chunked else None
        )
        self._hurt = self.index.hurt()
        """Damaged blobs that a scrub has found: they are not there, until they come again."""
        self._uploads = Uploads(folder / "uploads")

    def close(self) -> None:
        """Wait for what is being written, and let go of the index."""
        self._threads.shutdown()
        self.index.close()

    def _in_thread(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """In a thread of the blobs' own: what hashes for long keeps nothing else waiting."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    # -------------------------------------------------------------------------------------------------- what is there

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are not there, in their order, each once."""
        found = await self.sizes(digests)
        return [digest for digest in dict.fromkeys(digests) if digest not in found]

    async def sizes(self, digests: Sequence[str]) -> dict[str, int]:
        """Bytes of those of `digests` that are there."""
        for digest in digests:
            check_digest(digest)
        with trouble("look for blobs"):
            return await self._in_thread(self._sizes if self._refuse else self._touch, digests)

    async def hurt(self) -> int:
        """How many blobs are known to be damaged or missing."""
        lost = await self._in_thread(self.index.lost)
        return len(self._hurt.union(bytes.fromhex(digest) for digest, _, _ in lost))

    def _sizes(self, digests: Sequence[str]) -> dict[str, int]:
        found = {digest: place.size for digest, place in self.index.find(digests).items()}
        found |= {digest: place.size for digest, place in self.index.chunks.find(digests).items()}
        return found | self._whole.sizes(digest for digest in digests if digest not in found)

    def _touch(self, digests: Sequence[str]) -> dict[str, int]:
        """`_sizes`, of blobs that are touched."""
        now = time.time()
        found = self.index.touch(digests, now)
        found |= self._whole.touch([digest for digest in digests if digest not in found], now)
        if self._hurt:
            found = {digest: size for digest, size in found.items() if bytes.fromhex(digest) not in self._hurt}
        return found

    # -------------------------------------------------------------------------------------------------------- writing

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> int:
        """Make one blob of what comes; durable on return. Answers its size."""
        check_digest(digest)
        self._may_write()
        with trouble(f"keep blob {digest}"):
            async with self._draft() as draft:
                await fill(chunks, draft.write, "blob_bytes", self._threads)
                await self._in_thread(self._name, draft, digest)
                return draft.size

    async def put_small(self, chunks: AsyncIterator[bytes]) -> int:
        """Make blobs of frames, all or none; durable on return. Answers how many there were."""
        self._may_write()
        with trouble("keep small blobs"):
            async with self._draft(hashed=False) as draft:
                draft.write([MAGIC])
                await fill(chunks, draft.write, "blob_pack_bytes", self._threads)
                return await self._in_thread(self._name_pack, draft)

    def _name(self, draft: Draft, digest: str) -> None:
        if draft.digest != digest:
            raise mismatch(digest, draft.digest)
        if self._touch([digest]):
            return
        if self._chunking and draft.size >= CHUNKED_FROM:
            self._keep_in_chunks(self._chunking, draft.path, digest, draft.size)
            return
        draft.sync()
        with self._naming:
            if not self._touch([digest]):
                with self._healing([digest]):
                    draft.become(self._whole.path(digest))
                self._touch([digest])  # the clock of files lags behind

    def _keep_in_chunks(self, chunking: Chunking, file: Path, digest: str, size: int) -> None:
        """Keep what is in a file, which has the digest. It is cut again, alone, where chunks of it went meanwhile."""
        name = bytes.fromhex(digest)
        made: Cut | None = None
        with contextlib.ExitStack() as drafts:
            if name not in self._hurt:
                made = chunking.cut(file, name, drafts, self._hurt)
            drafts.enter_context(self._naming)
            if self._touch([digest]):
                return
            with self._healing([digest]):
                if made is None or not chunking.whole(made):
                    made = chunking.cut(file, name, drafts, self._hurt)
                healed = {chunk for chunk, _ in made.recipe} & self._hurt
                chunking.keep(made, size, healed)
                self.index.set_hurt([], healed)
                self._hurt -= healed

    def _name_pack(self, draft: Draft) -> int:
        if draft.size == len(MAGIC):
            return 0
        with draft.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            found = {entry.digest: entry for entry in checked(buffer, small(entries(buffer, len(MAGIC), draft.size)))}
            with self._naming:
                there = self._touch([digest.hex() for digest in found])
                new = [entry for digest, entry in found.items() if digest.hex() not in there]
                if not new:
                    return len(found)
                with self._healing([entry.digest.hex() for entry in new]):
                    if sum(HEAD.size + entry.size for entry in new) + len(MAGIC) == draft.size:
                        self._seal(draft, new)
                    else:
                        self._seal_again(buffer, new)
        return len(found)

    def _seal_again(self, buffer: mmap.mmap, new: Sequence[Entry]) -> None:
        """A pack of only those frames that are new."""
        moved, at = [], len(MAGIC)
        with self._own_draft() as draft:
            draft.write([MAGIC])
            for entry in new:
                head = frame_head(entry.digest, entry.size)
                draft.write([head, buffer[entry.offset : entry.offset + entry.size]])
                moved.append(Entry(entry.digest, at + len(head), entry.size))
                at += len(head) + entry.size
            self._seal(draft, moved)

    def _seal(self, draft: Draft, found: Sequence[Entry]) -> None:
        """Make a pack of a draft and take its rows; what has no rows is no pack."""
        name = self._files.seal(draft, found)
        try:
            self.index.add(name, found)
        except BaseException:
            (self._packs / name).unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def _healing(self, digests: Sequence[str]) -> Iterator[None]:
        """Blobs come, of which some may be there already and damaged: those go first."""
        healed = {bytes.fromhex(digest) for digest in digests} & self._hurt
        if healed:
            self._shrinking.forget([digest.hex() for digest in healed])
        yield
        if healed:
            self.index.set_hurt([], healed)
            self._hurt -= healed

    @contextlib.contextmanager
    def _own_draft(self) -> Iterator[Draft]:
        """A draft of what is there already; thrown away at the end unless it got its name."""
        draft = Draft(self._drafts, hashed=False)
        self._active.add(draft.path.name)
        try:
            yield draft
        finally:
            self._discard(draft)

    @contextlib.asynccontextmanager
    async def _draft(self, *, hashed: bool = True) -> AsyncIterator[Draft]:
        """A draft that is thrown away at the end unless it got its name."""
        draft = Draft(self._drafts, hashed=hashed)
        self._active.add(draft.path.name)
        try:
            yield draft
        finally:  # shielded: a client that has gone cancels this, and the file must go all the same
            await asyncio.shield(self._in_thread(self._discard, draft))

    def _discard(self, draft: Draft) -> None:
        draft.discard()
        self._active.discard(draft.path.name)

    def _may_write(self) -> None:
        if self._refuse is not None:
            raise self._refuse()

    # -------------------------------------------------------------------------------------------------------- reading

    async def open(self, digest: str) -> LocalBlob:
        """A blob to read from."""
        check_digest(digest)
        with trouble(f"read blob {digest}"):
            return await self._in_thread(self._opened, digest)

    def _opened(self, digest: str) -> LocalBlob:
        if blob := self._in_chunks(digest):
            return blob
        place = self.index.find([digest]).get(digest)
        path = self._packs / place.pack if place else self._whole.path(digest)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if place != self.index.find([digest]).get(digest):  # its pack was written again meanwhile
                return self._opened(digest)
            if place is None:
                raise NotFound(f"no such blob: {digest}", hint="POST blobs/missing says which are not there") from error
            raise damaged(digest, "its pack is not there") from error
        return LocalBlob(digest, handle, place or Place("", 0, os.fstat(handle).st_size))

    def _in_chunks(self, digest: str) -> LocalBlob | None:
        chunks = self.index.chunks
        if not chunks.any():
            return None
        give_back = self._shrinking.take(digest)
        try:
            recipe = chunks.recipe(digest)
        except BaseException:
            give_back()
            raise
        if recipe is not None:
            return ChunkedBlob(digest, recipe, chunks, self._packs, give_back)
        give_back()
        if chunks.find([digest]):
            raise damaged(digest, "nothing says any more which chunks it is made of")
        return None

    async def read(self, digest: str) -> bytes:
        """All bytes of a blob, checked."""
        blob = await self.open(digest)
        try:
            with trouble(f"read blob {digest}"):
                return await self._in_thread(blob.whole)
        finally:
            blob.close()

    async def read_many(self, digests: Sequence[str]) -> AsyncIterator[bytes]:
        """Frames of blobs, in the order asked, in pieces; each is checked."""
        for digest in digests:
            check_digest(digest)
        with trouble("look for blobs"):
            packed = await self._in_thread(self.index.find, digests)
            alone = [digest for digest in dict.fromkeys(digests) if digest not in packed]
            whole = await self._in_thread(self._sizes, alone)
        if missing := [digest for digest in alone if digest not in whole]:
            raise blobs_missing(missing)
        return Pulled(frames_of(digests, packed, self._packs, self._opened)).pieces()

    # -------------------------------------------------------------------------------------------------------- by parts

    async def put_part(self, parts: Parts, part: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep a part of a large blob; durable on return."""
        expected = check_parts(parts).size_of(part)
        self._may_write()
        with trouble(f"keep part {part} of blob {parts.digest}"):
            upload = await _not_lost(self._in_thread(self._uploads.take, parts), self._uploads.give_back)
            try:
                coming = PartComing(upload, part, expected)
                await fill(chunks, coming.take, "upload_part_bytes", self._threads)
                coming.check()
                keeping = self._in_thread(upload.keep, part)
                try:
                    await asyncio.shield(keeping)
                finally:
                    await asyncio.wait((keeping,))  # also where it is cancelled: what is given back may be closed
            finally:
                self._uploads.give_back(upload)

    async def under_way(self, digest: str) -> list[UnderWay]:
        """The uploads of a blob that are not finished, the one last written to first."""
        check_digest(digest)
        with trouble("look for uploads"):
            return await self._in_thread(self._uploads.under_way, digest)

    async def complete(self, parts: Parts) -> int:
        """Check all bytes and make them a blob. Answers its size; also where it is a blob already."""
        check_parts(parts)
        self._may_write()
        with trouble(f"complete blob {parts.digest}"):
            return await self._in_thread(self._complete, parts)

    def _complete(self, parts: Parts) -> int:
        if size := self._touch([parts.digest]):
            self._uploads.remove(parts)
            return size[parts.digest]
        upload = self._uploads.take(parts)
        try:
            upload.complete(lambda file: self._publish(file, parts.digest))
        except Conflict:
            if size := self._touch([parts.digest]):  # another request was first
                return size[parts.digest]
            raise
        finally:
            self._uploads.give_back(upload)
        return parts.size

    def _publish(self, file: Path, digest: str) -> None:
        if self._chunking and (size := file.stat().st_size) >= CHUNKED_FROM:
            self._keep_in_chunks(self._chunking, file, digest, size)
            return
        with self._naming:
            if not self._touch([digest]):
                with self._healing([digest]):
                    publish(file, self._whole.path(digest))
                self._touch([digest])

    # ------------------------------------------------------------------------------------------------- size, and less

    async def all_blobs(self) -> AsyncIterator[list[Kept]]:
        """Every blob, some thousands at a time."""
        with trouble("look for blobs"):
            source = self._shrinking.each()
            while found := await self._in_thread(lambda: next(source, [])):
                yield found

    async def usage(self) -> Usage:
        """What is there in all."""
        with trouble("look for blobs"):
            return await self._in_thread(self._shrinking.usage)

    async def weigh(self, digests: Collection[str]) -> Weight:
        """What these blobs weigh together, and how many bytes would be free without them."""
        named = list(dict.fromkeys(map(check_digest, digests)))
        with trouble("weigh blobs"):
            return await self._in_thread(self._shrinking.weigh, named)

    async def erase(self, digests: Collection[str], *, not_touched_since: float) -> AsyncGenerator[list[Erased]]:
        """Remove blobs for good, some at a time; what is given is durably gone, and its bytes are free."""
        named = list(dict.fromkeys(map(check_digest, digests)))
        self._may_write()
        with trouble("erase blobs"):
            steps = self._shrinking.erase(named, not_touched_since)
            while (erased := await asyncio.shield(self._in_thread(lambda: next(steps, None)))) is not None:
                if erased:
                    yield erased

    # ------------------------------------------------------------------------------------------------------- upkeep

    async def orphans(self) -> list[Orphan]:
        """What interrupted uploads have left; what is being written now is not among it."""
        with trouble("look for what interrupted uploads left"):
            return await self._in_thread(find_orphans, self._drafts, self._uploads, self._active)

    async def remove_orphans(self, older_than_s: float) -> list[Orphan]:
        """Remove those not written to for so long. Answers which."""
        self._may_write()
        with trouble("remove what interrupted uploads left"):
            return await self._in_thread(remove_orphans, self._drafts, self._uploads, self._active, older_than_s)

    def scrub(self, progress: Progress = lambda _done, _total: None) -> Iterator[Hurt]:
        """Read every blob again; those that are damaged or missing. Until they come again they are not there."""
        before, hurt = set(self._hurt), set()

        def note(digest: bytes) -> None:
            hurt.add(digest)
            if self._refuse is None:
                self.index.set_hurt([digest], [])
                self._hurt.add(digest)

        for found in scrub(self.index, self._packs, self._whole.folder, progress, note):
            note(bytes.fromhex(found.digest))
            yield found
        if self._refuse is None:  # whoever brought a file back has healed it too
            self.index.set_hurt([], before - hurt)
            self._hurt -= before - hurt

    def each(self) -> Iterator[tuple[str, int, str]]:
        """Digest, size and file of every blob."""
        for pack in self.index.packs():
            for entry in self.index.of_pack(pack):
                if entry.kind == BLOB:
                    yield entry.digest.hex(), entry.size, f"packs/{pack}"
        for digest, place in self.index.chunks.all():
            yield digest, place.size, f"packs/{place.pack}"
        for path in self._whole.names():
            yield path.name, path.stat().st_size, f"whole/{path.parent.name}/{path.name}"


async def _not_lost(taking: asyncio.Future[T], give_back: Callable[[T], Any]) -> T:
    """What is taken in a thread; given back where nobody waits for it any more."""
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(lambda done: None if done.exception() else give_back(done.result()))
        raise
