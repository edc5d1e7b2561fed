"""Every store of blobs passes the one contract: the folder, and a bucket of a real S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blob_folders import LARGE, digest_of, erased, everything, files, framed, noise, ranged, sent
from icecore.errors import (
    BlobDamaged,
    BlobsMissing,
    Conflict,
    DigestMismatch,
    Invalid,
    NotFound,
    ReadOnlyCopy,
    TooLarge,
)
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import frame, frame_head
from icecore_api.blobs.remote import RemoteBlobs
from icecore_api.blobs.remote_settings import Bucket as BucketOf
from icecore_api.blobs.store import SMALL_BYTES, BlobStore, Parts, Usage
from s3_servers import Bucket

Story = Callable[[Any], Coroutine[Any, Any, None]]


@dataclass
class Place:
    """Where a store keeps its blobs, to be opened again and again."""

    folder: Path
    bucket: Bucket | None

    @contextmanager
    def opened(self, **settings: Any) -> Iterator[BlobStore]:
        if self.bucket is None:
            blobs: Any = LocalBlobs(self.folder, **settings)
        else:
            blobs = RemoteBlobs(BucketOf.parse(self.bucket.address), self.folder, **settings)
        try:
            yield blobs
        finally:
            blobs.close()

    def play(self, *stories: Story, **settings: Any) -> None:
        """Each story with the store opened anew."""
        for story in stories:
            with self.opened(**settings) as blobs:
                asyncio.run(story(blobs))

    def objects(self) -> list[str]:
        """What is kept, the index left out."""
        found = files(self.folder) if self.bucket is None else [*self.bucket.files()]
        return sorted(name for name in found if not name.startswith("bucket.db"))

    def held(self) -> int:
        """Bytes of it."""
        if self.bucket is not None:
            return sum(self.bucket.files().values())
        return sum((self.folder / name).stat().st_size for name in files(self.folder))

    def hurt(self) -> None:
        """Change a bit in the middle of every file or object."""
        root = self.folder if self.bucket is None else self.bucket.server.objects(self.bucket.prefix)
        for name in self.objects():
            if not name.endswith(".parts"):
                data = bytearray((root / name).read_bytes())
                data[len(data) // 2] ^= 1
                (root / name).write_bytes(data)

    def forget_index(self) -> None:
        """Lose what is only a copy."""
        for path in self.folder.glob("*.db*"):
            path.unlink()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder, and a bucket of a real S3 server."""
    bucket = request.getfixturevalue("bucket") if request.param == "bucket" else None
    return Place(tmp_path / "blobs", bucket)


def test_blobs_are_kept_and_found(place: Place) -> None:
    """Small and large blobs are there after they were put, with all bytes, also reopened, and with a new index."""
    small = [noise(i, size) for i, size in enumerate((0, 1, 40, 1000, SMALL_BYTES))]
    large, single = noise(9, LARGE), noise(10, 77)
    digests = [digest_of(one) for one in (*small, large, single)]
    absent = digest_of(b"absent")

    async def story(blobs: BlobStore) -> None:
        assert await blobs.missing([*digests, absent, absent]) == [*digests, absent]
        assert await blobs.put_small(framed([*small, small[2]])) == len(small)
        assert await blobs.put(digests[-2], sent(large)) == LARGE
        assert await blobs.put(digests[-1], sent(single)) == 77
        assert await blobs.put_small(framed([])) == 0

    async def again(blobs: BlobStore) -> None:
        assert await blobs.missing([absent, *digests]) == [absent]
        assert await blobs.sizes([*digests, absent]) == {
            digest: len(one) for digest, one in zip(digests, (*small, large, single), strict=True)
        }
        assert await everything(blobs, digests[::-1]) == [single, large, *small[::-1]]
        assert await blobs.read(digests[-2]) == large
        assert await ranged(blobs, digests[-2], 1_000_000, 2_500_000) == large[1_000_000:2_500_000]
        assert await ranged(blobs, digests[3], 10, 20) == small[3][10:20]
        assert await ranged(blobs, digests[0]) == b""
        assert list(blobs.scrub()) == []
        with pytest.raises(NotFound):
            await blobs.open(absent)
        with pytest.raises(BlobsMissing) as missing:
            await blobs.read_many([digests[0], absent])
        assert missing.value.facts["missing"] == [absent]

    place.play(story, again)
    place.forget_index()
    place.play(again)
    assert len([name for name in place.objects() if name.endswith(".pack")]) == 1


def test_other_bytes_than_the_digest_says_are_not_kept(place: Place) -> None:
    """A blob or a pack with one wrong byte is refused, and nothing of it is left."""

    async def story(blobs: BlobStore) -> None:
        good, large = noise(1, 500), noise(2, LARGE)
        with pytest.raises(DigestMismatch) as wrong:
            await blobs.put(digest_of(large), sent(large[:-1] + b"?"))
        assert wrong.value.facts["digest"] == digest_of(large)
        bad = frame(good) + frame_head(hashlib.sha256(b"x").digest(), 3) + b"abc"
        with pytest.raises(DigestMismatch):
            await blobs.put_small(sent(bad))
        with pytest.raises(Invalid, match="at most"):
            await blobs.put_small(framed([good, noise(3, SMALL_BYTES + 1)]))
        with pytest.raises(Invalid, match="too many"):
            await blobs.put_small(sent(frame(good) + b"x"))
        with pytest.raises(TooLarge):
            await blobs.put_small(sent(bytes(64 * 1024 * 1024 + 1), 1 << 20))
        assert await blobs.missing([digest_of(good), digest_of(large)]) == [digest_of(good), digest_of(large)]

    place.play(story)
    assert place.objects() == []


def test_a_client_that_goes_away_leaves_nothing(place: Place) -> None:
    """A request that ends or is cancelled in the middle of a blob leaves nothing."""

    async def story(blobs: BlobStore) -> None:
        begun = asyncio.Event()

        async def coming() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield bytes(65536)
            begun.set()
            await asyncio.Event().wait()

        async def breaking() -> AsyncIterator[bytes]:
            yield b"some"
            raise ConnectionResetError("expected more")

        await blobs.missing([digest_of(b"x")])
        for put in (lambda it: blobs.put(digest_of(b"x"), it), blobs.put_small):
            begun.clear()
            task = asyncio.create_task(put(coming()))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Exception, match="expected"):
                await put(breaking())

    place.play(story)
    assert place.objects() == []


def test_a_blob_that_comes_twice_at_once_is_kept_once(place: Place) -> None:
    """Concurrent uploads of one blob, alone, in packs and by parts, all succeed, and one copy is counted."""
    content = [noise(i, 2000) for i in range(50)]
    large = noise(99, LARGE)
    parts = Parts(digest_of(large), LARGE, 1 << 20)

    async def story(blobs: BlobStore) -> None:
        for part in range(parts.number):
            await blobs.put_part(parts, part, sent(large[part << 20 : (part + 1) << 20]))
        puts: list[Coroutine[Any, Any, int]] = [blobs.put_small(framed(content)) for _ in range(4)]
        puts += [blobs.put_small(framed([*content[:10], noise(500 + i, 10)])) for i in range(4)]
        puts += [blobs.put(digest_of(one), sent(one)) for one in content[:5] for _ in range(3)]
        puts += [blobs.put(parts.digest, sent(large)) for _ in range(3)]
        puts += [blobs.complete(parts) for _ in range(2)]
        assert (await asyncio.gather(*puts))[-1] == LARGE
        assert (await blobs.usage()).blobs == 55
        assert await everything(blobs, [*map(digest_of, content), parts.digest]) == [*content, large]

    async def later(blobs: BlobStore) -> None:
        assert (await blobs.usage()).blobs == 55
        assert await everything(blobs, [*map(digest_of, content), parts.digest]) == [*content, large]

    place.play(story, later)


def test_what_is_only_read_answers_and_is_not_changed(place: Place) -> None:
    """Opened to be read, it answers for every blob, takes none, and stays as it is."""
    small, large = noise(1, 100), noise(2, LARGE)

    async def story(blobs: BlobStore) -> None:
        await blobs.put_small(framed([small]))
        await blobs.put(digest_of(large), sent(large))

    async def reads(blobs: BlobStore) -> None:
        assert await everything(blobs, [digest_of(large), digest_of(small)]) == [large, small]
        parts = Parts(digest_of(b"x"), 10, 5)
        for refused in (
            blobs.put(digest_of(b"x"), sent(b"x")), blobs.put_small(framed([b"x"])),
            blobs.put_part(parts, 0, sent(b"12345")), blobs.complete(parts), blobs.remove_orphans(0),
            erased(blobs, [digest_of(small)]),
        ):  # fmt: skip
            with pytest.raises(ReadOnlyCopy):
                await refused
        assert (await blobs.orphans(), await blobs.under_way(parts.digest)) == ([], [])

    place.play(story)
    before = place.objects()
    place.play(reads, refuse=lambda: ReadOnlyCopy("no"))
    assert place.objects() == before


def test_a_large_blob_comes_in_parts(place: Place) -> None:
    """Parts come in any order, twice and beside each other; what is durable is told, also when opened again."""
    content = noise(5, LARGE)
    parts = Parts(digest_of(content), LARGE, 1 << 20)

    def part(i: int) -> AsyncIterator[bytes]:
        return sent(content[i << 20 : (i + 1) << 20])

    async def begin(blobs: BlobStore) -> None:
        assert await blobs.under_way(parts.digest) == []
        await asyncio.gather(blobs.put_part(parts, 3, part(3)), blobs.put_part(parts, 1, part(1)))
        await blobs.put_part(parts, 1, part(1))
        for wrong, why in ((part(3), "expected 1048576 bytes"), (sent(bytes((1 << 20) + 1)), "got 1048577")):
            with pytest.raises(Invalid, match=why):
                await blobs.put_part(parts, 0, wrong)
        with pytest.raises(Invalid, match="expected a part from 0 to 3"):
            await blobs.put_part(parts, 4, part(3))
        with pytest.raises(Conflict) as early:
            await blobs.complete(parts)
        assert early.value.facts["parts"] == [0, 2]
        (orphan,) = await blobs.orphans()
        assert (orphan.kind, LARGE > orphan.bytes > 1 << 20) == ("upload", True)

    async def finish(blobs: BlobStore) -> None:
        assert [(one.parts, one.there) for one in await blobs.under_way(parts.digest)] == [(parts, (1, 3))]
        assert await blobs.missing([parts.digest]) == [parts.digest]
        await blobs.put_part(parts, 2, part(2))
        await blobs.put_part(parts, 0, part(0))
        assert await blobs.complete(parts) == LARGE
        assert await blobs.complete(parts) == LARGE
        assert (await blobs.under_way(parts.digest), await blobs.orphans()) == ([], [])

    async def read(blobs: BlobStore) -> None:
        assert await blobs.read(parts.digest) == content
        assert await ranged(blobs, parts.digest, 1_000_000, 3_000_000) == content[1_000_000:3_000_000]
        assert list(blobs.scrub()) == []

    place.play(begin, finish, read)
    place.forget_index()
    place.play(read)


def test_parts_of_other_bytes_are_forgotten(place: Place) -> None:
    """Completing parts that are not the blob refuses them and keeps none; the right ones may come then."""
    content = noise(6, 1000)
    parts = Parts(digest_of(content), 1000, 600)

    async def story(blobs: BlobStore) -> None:
        await blobs.put_part(parts, 0, sent(bytes(600)))
        await blobs.put_part(parts, 1, sent(content[600:]))
        with pytest.raises(DigestMismatch):
            await blobs.complete(parts)
        assert (await blobs.under_way(parts.digest), await blobs.missing([parts.digest])) == ([], [parts.digest])
        assert await blobs.orphans() == []
        await blobs.put_part(parts, 0, sent(content[:600]))
        await blobs.put_part(parts, 1, sent(content[600:]))
        assert await blobs.complete(parts) == 1000
        for size, part_size in ((0, 1), (1, 0), (10_001, 1), ((5 << 40) + 1, 1 << 30), (1 << 40, (1 << 30) + 1)):
            with pytest.raises((Invalid, TooLarge)):
                await blobs.put_part(Parts(parts.digest, size, part_size), 0, sent(b""))

    place.play(story)


def test_nobody_writes_into_a_blob_that_is_complete(place: Place) -> None:
    """A part still coming when its upload is completed is refused, and changes nothing of the blob."""
    content = noise(7, LARGE)
    parts = Parts(digest_of(content), LARGE, LARGE)

    async def story(blobs: BlobStore) -> None:
        may_go_on, begun = asyncio.Event(), asyncio.Event()

        async def late() -> AsyncIterator[bytes]:
            yield bytes(1 << 20)
            yield bytes(1 << 20)
            begun.set()
            await may_go_on.wait()
            yield bytes(LARGE - (2 << 20))

        slow = asyncio.create_task(blobs.put_part(parts, 0, late()))
        await begun.wait()
        await blobs.put_part(parts, 0, sent(content))
        await blobs.complete(parts)
        assert await blobs.read(parts.digest) == content
        may_go_on.set()
        with pytest.raises(Conflict):
            await slow
        assert await blobs.read(parts.digest) == content
        assert await blobs.orphans() == []

    place.play(story)


def test_what_interrupted_uploads_left_is_removed_by_age(place: Place) -> None:
    """An unfinished upload stays while it is young, and is removed once it is old enough."""
    parts = Parts(digest_of(b"never"), LARGE, 1 << 20)

    async def story(blobs: BlobStore) -> None:
        await blobs.put_part(parts, 0, sent(bytes(1 << 20)))
        assert await blobs.remove_orphans(1000) == []
        assert [orphan.kind for orphan in await blobs.remove_orphans(0)] == ["upload"]
        assert (await blobs.orphans(), await blobs.under_way(parts.digest)) == ([], [])

    place.play(story)
    assert place.objects() == []


def test_what_is_no_digest_is_refused(place: Place) -> None:
    """Nothing but 64 lower-case hex digits becomes part of a path."""

    async def story(blobs: BlobStore) -> None:
        good = digest_of(b"x")
        for name in ("", good[:-1], good + "0", good.upper(), "../" + good[3:], good + "\n", "\u0660" * 64):
            for asked in (
                blobs.missing([name]), blobs.put(name, sent(b"x")), blobs.open(name), blobs.read(name),
                blobs.put_part(Parts(name, 1, 1), 0, sent(b"x")), blobs.under_way(name),
                blobs.complete(Parts(name, 1, 1)), blobs.read_many([name]), blobs.weigh([name]),
                erased(blobs, [name]),
            ):  # fmt: skip
                with pytest.raises(Invalid, match="expected a SHA-256"):
                    await asked

    place.play(story)
    assert place.objects() == []


def test_what_is_erased_frees_what_was_promised(place: Place) -> None:
    """What `weigh` promises, the receipts of `erase` add up to, `usage` falls by, and the disk sees; the rest stays."""
    small = [noise(i, 100 + 37 * i) for i in range(40)]
    larges = [noise(100 + i, LARGE + i) for i in range(2)]
    parts = Parts(digest_of(larges[1]), LARGE + 1, 1 << 20)
    gone = [digest_of(one) for one in (*small[3:25:2], *small[30:], *larges)]
    left = [one for one in (*small, *larges) if digest_of(one) not in gone]

    async def story(blobs: BlobStore) -> None:
        await blobs.put_small(framed(small[:30]))
        await blobs.put_small(framed(small[30:]))
        await blobs.put(digest_of(larges[0]), sent(larges[0]))
        for part in range(parts.number):
            await blobs.put_part(parts, part, sent(larges[1][part << 20 : (part + 1) << 20]))
        await blobs.complete(parts)
        before = await blobs.usage()
        assert (before.blobs, before.disk) == (42, place.held())
        assert await erased(blobs, gone, time.time() - 60) == []
        promised = await blobs.weigh([*gone, gone[0], digest_of(b"absent")])
        assert promised.blobs == len(gone)
        receipts = await erased(blobs, [*gone, digest_of(b"absent")])
        assert sorted(receipt.digest for receipt in receipts) == sorted(gone)
        freed = sum(receipt.freed for receipt in receipts)
        assert freed == promised.reclaimable == before.disk - place.held()
        assert (await blobs.usage()).disk == place.held()
        assert await erased(blobs, gone) == []

    async def again(blobs: BlobStore) -> None:
        assert await blobs.missing([*gone, *map(digest_of, left)]) == gone
        assert await everything(blobs, [digest_of(one) for one in left]) == left
        assert list(blobs.scrub()) == []
        told = [blob async for some in blobs.all_blobs() for blob in some]
        assert {blob.digest: blob.size for blob in told} == {digest_of(one): len(one) for one in left}

    async def last(blobs: BlobStore) -> None:
        everybody = await blobs.weigh([digest_of(one) for one in left])
        assert everybody.reclaimable == (await blobs.usage()).disk == place.held()
        await erased(blobs, [digest_of(one) for one in left])
        assert await blobs.usage() == Usage(0, 0, 0)

    place.play(story, again)
    place.forget_index()
    place.play(again, last)
    assert place.objects() == []


def test_what_is_open_stays_readable_while_others_are_erased(place: Place) -> None:
    """A blob that is being read is read to its end, though it is erased, or its pack is written anew."""
    small, large = [noise(i, 300) for i in range(20)], noise(50, LARGE)

    async def story(blobs: BlobStore) -> None:
        await blobs.put_small(framed(small))
        await blobs.put(digest_of(large), sent(large))
        packed, alone = await blobs.open(digest_of(small[0])), await blobs.open(digest_of(large))
        slow = alone.read()
        first = await anext(slow)
        await erased(blobs, [digest_of(one) for one in (*small[1::2], large)], math.inf)
        assert b"".join([piece async for piece in packed.read()]) == small[0]
        assert first + b"".join([piece async for piece in slow]) == large
        packed.close()
        alone.close()
        await erased(blobs, [digest_of(large)], math.inf)
        assert await blobs.missing([digest_of(large)]) == [digest_of(large)]

    place.play(story)


def test_what_is_damaged_is_found_and_healed_by_coming_again(place: Place) -> None:
    """A scrub names blobs whose bytes have changed; then they are missing until they come again, by any way."""
    small, single, large = noise(1, 900), noise(2, LARGE), noise(3, LARGE)
    parts = Parts(digest_of(large), LARGE, 1 << 20)
    digests = [digest_of(one) for one in (small, single, large)]

    async def fill(blobs: BlobStore) -> None:
        await blobs.put_small(framed([small]))
        await blobs.put(digests[1], sent(single))
        for part in range(parts.number):
            await blobs.put_part(parts, part, sent(large[part << 20 : (part + 1) << 20]))
        await blobs.complete(parts)

    async def find(blobs: BlobStore) -> None:
        assert sorted(hurt.digest for hurt in blobs.scrub()) == sorted(digests)
        assert await blobs.hurt() == 3
        with pytest.raises(BlobDamaged):
            await blobs.read(digests[0])

    async def heal(blobs: BlobStore) -> None:
        assert await blobs.missing(digests) == digests
        await fill(blobs)
        assert await blobs.missing(digests) == []
        assert [await blobs.read(digest) for digest in digests] == [small, single, large]
        assert list(blobs.scrub()) == []
        assert await blobs.hurt() == 0

    async def later(blobs: BlobStore) -> None:
        assert [await blobs.read(digest) for digest in digests] == [small, single, large]

    place.play(fill)
    place.hurt()
    place.play(find, heal, later)
    place.forget_index()
    place.play(later)
