"""Blobs that are erased: the disk gets what was promised, and nothing else is hurt."""

from __future__ import annotations

import asyncio
import math
import os
import time
from pathlib import Path

import pytest

from blob_folders import LARGE, digest_of, disk, erased, everything, files, framed, noise, opened, play, ranged, sent
from icecore.errors import BlobDamaged, Invalid, NotFound, ReadOnlyCopy
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.store import Usage

SMALL = [noise(i, 100 + 37 * i) for i in range(60)]
LARGES = [noise(100 + i, LARGE + i) for i in range(3)]


async def _filled(blobs: LocalBlobs) -> None:
    await blobs.put_small(framed(SMALL[:30]))
    await blobs.put_small(framed(SMALL[20:59]))
    await blobs.put_small(framed(SMALL[59:]))
    for content in LARGES:
        await blobs.put(digest_of(content), sent(content))


def _digests(*contents: bytes) -> list[str]:
    return [digest_of(content) for content in contents]


def test_the_disk_gets_exactly_what_was_promised(tmp_path: Path) -> None:
    """What `weigh` promises, the receipts of `erase` add up to, `usage` falls by, and `du` sees; the rest stays."""
    gone = _digests(*SMALL[3:35:2], SMALL[59], LARGES[1])
    left = [content for content in (*SMALL, *LARGES) if digest_of(content) not in gone]

    async def story(blobs: LocalBlobs) -> None:
        await _filled(blobs)
        before, held = await blobs.usage(), disk(tmp_path)
        assert before == Usage(63, sum(map(len, (*SMALL, *LARGES))), held)
        promised = await blobs.weigh([*gone, gone[0], digest_of(b"absent")])
        assert (promised.blobs, promised.logical) == (18, sum(map(len, (*SMALL[3:35:2], SMALL[59], LARGES[1]))))
        assert promised.reclaimable >= promised.disk >= promised.logical
        receipts = await erased(blobs, [*gone, digest_of(b"absent")])
        assert sorted(receipt.digest for receipt in receipts) == sorted(gone)
        assert sum(receipt.size for receipt in receipts) == promised.logical
        assert sum(receipt.freed for receipt in receipts) == promised.reclaimable == held - disk(tmp_path)
        assert await blobs.usage() == Usage(45, before.logical - promised.logical, held - promised.reclaimable)
        assert await erased(blobs, gone) == []

    async def again(blobs: LocalBlobs) -> None:
        assert await blobs.missing([*gone, *_digests(*left)]) == gone
        assert await everything(blobs, _digests(*left)) == left
        assert list(blobs.scrub()) == []
        with pytest.raises(NotFound):
            await blobs.open(gone[0])
        told = [blob async for some in blobs.all_blobs() for blob in some]
        assert {blob.digest: blob.size for blob in told} == {digest_of(content): len(content) for content in left}
        everybody = await blobs.weigh([blob.digest for blob in told])
        assert everybody.disk == sum(blob.at_rest for blob in told)
        assert everybody.reclaimable == (await blobs.usage()).disk == disk(tmp_path)
        await erased(blobs, [blob.digest for blob in told])
        assert await blobs.usage() == Usage(0, 0, 0)

    play(tmp_path, story)
    play(tmp_path, again)
    assert files(tmp_path) == []


def test_what_was_touched_is_kept(tmp_path: Path) -> None:
    """A blob that was stored, stored again, or said to be there since the time given is not erased, also reopened."""
    moments: list[float] = []
    every = _digests(*SMALL, *LARGES)
    touched = {digest_of(content) for content in (SMALL[0], SMALL[1], LARGES[0], SMALL[2], LARGES[1], LARGES[2])}

    async def story(blobs: LocalBlobs) -> None:
        await _filled(blobs)
        moments.append(time.time())
        assert await erased(blobs, every, moments[0] - 60) == []
        assert await blobs.missing(_digests(SMALL[0], b"absent", LARGES[0])) == [digest_of(b"absent")]
        await blobs.sizes(_digests(SMALL[1]))
        await blobs.put_small(framed([SMALL[2], noise(9, 9)]))
        for content in LARGES[1:]:
            await blobs.put(digest_of(content), sent(content))
        told = {blob.digest: blob.touched async for some in blobs.all_blobs() for blob in some}
        assert {digest for digest, at in told.items() if at >= moments[0]} == touched | {digest_of(noise(9, 9))}

    async def again(blobs: LocalBlobs) -> None:
        receipts = await erased(blobs, every, moments[0])
        assert {receipt.digest for receipt in receipts} == set(every) - touched
        assert set(await blobs.missing(every)) == set(every) - touched

    play(tmp_path, story)
    play(tmp_path, again)


def test_what_is_being_read_is_read_to_its_end(tmp_path: Path) -> None:
    """An open blob, and an answer of many that is under way, go on while their packs are written again or go."""
    others = _digests(*SMALL[30:59])

    async def story(blobs: LocalBlobs) -> None:
        await _filled(blobs)
        packed, alone = await blobs.open(digest_of(SMALL[5])), await blobs.open(digest_of(LARGES[0]))
        slow = alone.read()
        first = await anext(slow)
        many = await blobs.read_many(others)
        await erased(blobs, _digests(*SMALL[:30:2], SMALL[5], LARGES[0]))
        await erased(blobs, _digests(*SMALL[1:30:2]))
        assert b"".join([piece async for piece in packed.read()]) == SMALL[5]
        assert first + b"".join([piece async for piece in slow]) == LARGES[0]
        assert b"".join([piece async for piece in many]).endswith(SMALL[58])
        packed.close()
        alone.close()
        with pytest.raises(NotFound):
            await blobs.open(digest_of(SMALL[5]))

    play(tmp_path, story)


def test_uploads_and_downloads_go_on_beside_erasing(tmp_path: Path) -> None:
    """While blobs are erased one by one, new ones come, the same ones come again, and the rest are read."""

    async def story(blobs: LocalBlobs) -> None:
        await _filled(blobs)
        stay = [*SMALL[1::2], LARGES[0]]
        new = [noise(1000 + i, 400) for i in range(200)]

        async def erases() -> None:
            for content in SMALL[::2]:
                await erased(blobs, _digests(content))

        async def puts() -> None:
            for i in range(0, 200, 10):
                await blobs.put_small(framed(new[i : i + 10]))

        async def puts_again() -> None:
            for content in SMALL[::2]:
                await blobs.put_small(framed([content]))

        async def reads() -> None:
            for _ in range(30):
                assert await everything(blobs, _digests(*stay)) == stay

        await asyncio.gather(erases(), puts(), puts_again(), reads())
        there = [content for content in SMALL[::2] if not await blobs.missing(_digests(content))]
        assert await everything(blobs, _digests(*new, *there)) == [*new, *there]
        assert list(blobs.scrub()) == []
        assert (await blobs.usage()).disk == disk(tmp_path)

    play(tmp_path, story)


def test_damage_stays_where_it_is(tmp_path: Path) -> None:
    """Of a pack with cut or lost bytes that is written again, what was whole stays so, and what was hurt stays hurt."""

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed(SMALL[:30]))
        (pack,) = (tmp_path / "packs").iterdir()
        place = blobs.index.find(_digests(SMALL[29]))[digest_of(SMALL[29])]
        os.truncate(pack, place.offset + 10)
        await erased(blobs, _digests(*SMALL[:10]))
        assert await everything(blobs, _digests(*SMALL[10:29])) == SMALL[10:29]
        with pytest.raises(BlobDamaged):
            await blobs.read(digest_of(SMALL[29]))
        assert [hurt.digest for hurt in blobs.scrub()] == _digests(SMALL[29])
        for path in (tmp_path / "packs").iterdir():
            path.unlink()
        receipts = await erased(blobs, _digests(*SMALL[:20]))
        assert {(receipt.digest, receipt.freed) for receipt in receipts} == {
            (one, 0) for one in _digests(*SMALL[10:20])
        }
        assert {hurt.state for hurt in blobs.scrub()} == {"missing"}

    play(tmp_path, story)


def test_a_copy_and_other_words_are_refused(tmp_path: Path) -> None:
    """A folder that is only read is not erased from, and what is no digest is refused before anything goes."""

    async def story(blobs: LocalBlobs) -> None:
        await _filled(blobs)
        with pytest.raises(Invalid):
            await erased(blobs, [digest_of(SMALL[0]), "../etc"])
        with pytest.raises(Invalid):
            await blobs.weigh(["x"])
        assert await blobs.missing(_digests(SMALL[0])) == []

    async def reads() -> None:
        with opened(tmp_path, refuse=lambda: ReadOnlyCopy("no")) as blobs:
            assert (await blobs.weigh(_digests(SMALL[0]))).blobs == 1
            assert await blobs.missing(_digests(SMALL[0], LARGES[0])) == []
            with pytest.raises(ReadOnlyCopy):
                await erased(blobs, _digests(SMALL[0]))

    play(tmp_path, story)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    asyncio.run(reads())
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)} == before


def test_erasing_that_is_not_waited_for_leaves_whole_blobs(tmp_path: Path) -> None:
    """Where whoever erases goes away in the middle, each blob is whole or gone, and the rest may be erased then."""

    async def story(blobs: LocalBlobs) -> None:
        await _filled(blobs)
        every = _digests(*SMALL, *LARGES)
        some = blobs.erase(every, not_touched_since=math.inf)
        await anext(some)
        await some.aclose()
        left = [content for content in (*SMALL, *LARGES) if not await blobs.missing(_digests(content))]
        assert 0 < len(left) < len(every)
        assert await everything(blobs, _digests(*left)) == left
        assert [await ranged(blobs, digest_of(content)) for content in left] == left
        assert {receipt.digest for receipt in await erased(blobs, every)} == set(_digests(*left))
        assert disk(tmp_path) == 0

    play(tmp_path, story)
