"""Large blobs in chunks: the same bytes come back, what files share is kept once, and goes when nobody needs it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from blob_folders import digest_of, disk, erased, everything, files, framed, noise, opened, play, ranged, sent
from icecore.errors import BlobDamaged
from icecore_api.blobs.chunking import CHUNKED_FROM
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import CHUNK, RECIPE, ZSTD, read_entries
from icecore_api.blobs.store import Parts, Usage

FIRST = noise(1, 3_000_000)
GROWN = FIRST + noise(2, 200_000)
EDITED = FIRST[:1_000_000] + b"an insertion" + FIRST[1_000_000:]
TEXT = b"".join(b"%d,%d\n" % (i, i * i % 97) for i in range(200_000))
OTHER = noise(3, 1_200_000)
EVERY = [FIRST, GROWN, EDITED, TEXT, OTHER]


def _digests(*contents: bytes) -> list[str]:
    return [digest_of(content) for content in contents]


async def _put(blobs: LocalBlobs, *contents: bytes) -> None:
    for content in contents:
        assert await blobs.put(digest_of(content), sent(content, 1 << 20)) == len(content)


async def _are_there(blobs: LocalBlobs, *contents: bytes) -> None:
    """All of them as they were, and the disk as it is told."""
    assert await blobs.missing(_digests(*contents)) == []
    assert await everything(blobs, _digests(*contents)) == list(contents)
    assert list(blobs.scrub()) == []
    assert sorted((digest, size) for digest, size, _ in blobs.each()) == sorted(
        zip(_digests(*contents), map(len, contents), strict=True)
    )
    told = [blob async for some in blobs.all_blobs() for blob in some]
    assert {blob.digest: blob.size for blob in told} == dict(zip(_digests(*contents), map(len, contents), strict=True))
    usage = await blobs.usage()
    assert usage == Usage(len(contents), sum(map(len, contents)), disk(blobs.folder))
    assert (await blobs.weigh(_digests(*contents))).reclaimable == usage.disk


def test_a_large_blob_is_read_as_it_was(tmp_path: Path) -> None:
    """What came whole or in parts is read whole and in ranges, now, reopened, and with no index left."""
    small = noise(9, 5000)

    async def story(blobs: LocalBlobs) -> None:
        await _put(blobs, FIRST, GROWN, EDITED)
        await blobs.put_small(framed([small]))
        for content in (TEXT, OTHER):
            parts = Parts(digest_of(content), len(content), 400_000)
            for part in range(parts.number):
                await blobs.put_part(parts, part, sent(content[part * 400_000 : (part + 1) * 400_000]))
            assert await blobs.complete(parts) == len(content)
        await _are_there(blobs, *EVERY, small)

    async def again(blobs: LocalBlobs) -> None:
        for content in EVERY:
            digest, size = digest_of(content), len(content)
            assert await blobs.read(digest) == content
            for start, stop in ((0, 1), (size - 1, size), (100_000, 900_000), (65_536, 65_537), (0, size), (5, 5)):
                assert await ranged(blobs, digest, start, stop) == content[start:stop]
        await _are_there(blobs, *EVERY, small)

    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(story(blobs))
    assert not list((tmp_path / "whole").glob("??/*"))
    kinds = {entry.kind for path in (tmp_path / "packs").iterdir() for entry in read_entries(path)}
    assert kinds == {0, CHUNK, ZSTD, RECIPE}
    play(tmp_path, again)
    for index in tmp_path.glob("index.db*"):
        index.unlink()
    play(tmp_path, again)
    with opened(tmp_path, refuse=lambda: BlobDamaged("no")) as blobs:
        assert asyncio.run(blobs.read(digest_of(EDITED))) == EDITED


def test_nearly_equal_blobs_cost_their_difference(tmp_path: Path) -> None:
    """What grew, or got an insertion, adds little; text is compressed; erasing frees what was promised, to the byte."""

    async def story(blobs: LocalBlobs) -> None:
        await _put(blobs, FIRST)
        one = (await blobs.usage()).disk
        assert len(FIRST) < one < 1.01 * len(FIRST)
        await _put(blobs, GROWN)
        two = (await blobs.usage()).disk
        assert two - one < 200_000 + 2 * 262_144 + 10_000
        await _put(blobs, EDITED)
        three = (await blobs.usage()).disk
        assert three - two < 2 * 262_144 + 10_000
        await _put(blobs, TEXT)
        assert (await blobs.usage()).disk - three < 0.6 * len(TEXT)
        left = [FIRST, GROWN, EDITED, TEXT]
        for gone in (FIRST, TEXT, GROWN, EDITED):
            before = await blobs.weigh(_digests(gone))
            held = disk(tmp_path)
            (receipt,) = await erased(blobs, _digests(gone))
            assert (receipt.size, receipt.freed) == (len(gone), before.reclaimable)
            assert held - disk(tmp_path) == before.reclaimable
            left.remove(gone)
            await _are_there(blobs, *left)

    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(story(blobs))
    assert files(tmp_path) == []


def test_several_that_share_go_together(tmp_path: Path) -> None:
    """Erasing some of those that share frees what only they need, however they are named; the others stay whole."""

    async def story(blobs: LocalBlobs) -> None:
        await _put(blobs, *EVERY)
        gone = _digests(GROWN, EDITED, OTHER)
        promised, held = await blobs.weigh(gone), disk(tmp_path)
        receipts = await erased(blobs, gone)
        assert sum(receipt.freed for receipt in receipts) == promised.reclaimable == held - disk(tmp_path)
        await _are_there(blobs, FIRST, TEXT)
        await _put(blobs, GROWN, OTHER)
        await _are_there(blobs, FIRST, TEXT, GROWN, OTHER)

    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(story(blobs))


def test_it_may_be_turned_on_and_off(tmp_path: Path) -> None:
    """Whole files and chunks lie beside each other, whatever the setting is now; small files are never cut."""
    short = noise(5, CHUNKED_FROM - 1)

    async def put(blobs: LocalBlobs, content: bytes) -> None:
        await _put(blobs, content)

    for chunked, content in ((False, FIRST), (True, GROWN), (True, short), (False, TEXT)):
        with opened(tmp_path, chunked=chunked) as blobs:
            asyncio.run(put(blobs, content))
    assert len(list((tmp_path / "whole").glob("??/*"))) == 3
    for chunked in (False, True):
        with opened(tmp_path, chunked=chunked) as blobs:
            asyncio.run(_are_there(blobs, FIRST, GROWN, short, TEXT))


def test_a_damaged_chunk_is_told_and_heals(tmp_path: Path) -> None:
    """A flipped bit hurts all files that share the chunk: scrub and reading say so, and each heals when sent again."""

    async def story(blobs: LocalBlobs) -> None:
        await _put(blobs, FIRST, GROWN, OTHER)
        recipe = blobs.index.chunks.recipe(digest_of(FIRST))
        assert recipe
        place = blobs.index.chunks.where([recipe[3][0]])[recipe[3][0]]
        pack = bytearray((tmp_path / "packs" / place.pack).read_bytes())
        pack[place.offset + 100] ^= 1
        (tmp_path / "packs" / place.pack).write_bytes(pack)
        hurt = _digests(FIRST, GROWN)
        assert await blobs.missing(hurt) == []
        for digest in hurt:
            with pytest.raises(BlobDamaged, match="chunk at byte"):
                await blobs.read(digest)
            assert await ranged(blobs, digest, 2_000_000, 2_100_000) == FIRST[2_000_000:2_100_000]
        found = {one.digest: one.state for one in blobs.scrub()}
        assert found == dict.fromkeys(hurt, "damaged")
        assert await blobs.missing([*hurt, digest_of(OTHER)]) == hurt
        await _put(blobs, FIRST)
        assert await blobs.read(digest_of(GROWN)) == GROWN
        assert await blobs.missing(hurt) == [digest_of(GROWN)]
        await _put(blobs, GROWN)
        await _are_there(blobs, FIRST, GROWN, OTHER)

    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(story(blobs))


@pytest.mark.parametrize("anew", [False, True])
def test_a_pack_that_has_gone_and_comes_back(tmp_path: Path, *, anew: bool) -> None:
    """Without the pack of its chunks a file is missing, and so is what shares them; with it both are there again."""

    async def fill(blobs: LocalBlobs) -> None:
        await _put(blobs, FIRST, GROWN, OTHER)
        recipe = blobs.index.chunks.recipe(digest_of(FIRST))
        assert recipe
        names.append(blobs.index.chunks.where([recipe[0][0]])[recipe[0][0]].pack)

    async def without(blobs: LocalBlobs) -> None:
        assert await blobs.missing(_digests(FIRST, GROWN, OTHER)) == _digests(FIRST, GROWN)
        assert {(one.digest, one.state) for one in blobs.scrub()} == {
            (one, "missing") for one in _digests(FIRST, GROWN)
        }

    async def without_index(blobs: LocalBlobs) -> None:
        assert await blobs.missing(_digests(FIRST, GROWN, OTHER)) == _digests(FIRST, GROWN)

    async def again(blobs: LocalBlobs) -> None:
        assert list(blobs.scrub()) == []
        await _put(blobs, GROWN)
        await _are_there(blobs, FIRST, GROWN, OTHER)

    names: list[str] = []
    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(fill(blobs))
    shutil.move(tmp_path / "packs" / names[0], tmp_path / "aside")
    play(tmp_path, without)
    for index in tmp_path.glob("index.db*") if anew else ():
        index.unlink()
    play(tmp_path, without_index)
    shutil.move(tmp_path / "aside", tmp_path / "packs" / names[0])
    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(again(blobs))


def test_reading_goes_on_while_packs_shrink(tmp_path: Path) -> None:
    """A file in chunks that is being read stays, and is read to its end while what shares its packs is erased."""

    async def story(blobs: LocalBlobs) -> None:
        await _put(blobs, EDITED, FIRST, GROWN)
        blob = await blobs.open(digest_of(FIRST))
        reading = blob.read()
        got = await anext(reading)
        gone = await erased(blobs, _digests(EDITED, FIRST, GROWN))
        assert {receipt.digest for receipt in gone} == set(_digests(EDITED, GROWN))
        got += b"".join([piece async for piece in reading])
        assert got == FIRST
        blob.close()
        await _are_there(blobs, FIRST)
        assert len(await erased(blobs, _digests(FIRST))) == 1
        assert disk(tmp_path) == 0

    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(story(blobs))


def test_alike_files_come_and_go_at_once(tmp_path: Path) -> None:
    """Files that share chunks are sent, sent again and erased at the same time: whatever is there is whole."""
    alike = [FIRST[: 1_500_000 + 100_000 * i] + noise(40 + i, 50_000) for i in range(8)]

    async def story(blobs: LocalBlobs) -> None:
        await _put(blobs, *alike[:4])
        erases = [erased(blobs, _digests(content)) for content in alike[:4]]
        puts = [_put(blobs, content) for content in (*alike[2:], *alike[2:6])]
        await asyncio.gather(
            *(job for pair in zip(puts, [*erases, *[asyncio.sleep(0)] * 6], strict=True) for job in pair)
        )
        there = [content for content in alike if not await blobs.missing(_digests(content))]
        assert set(_digests(*alike[4:])) <= set(_digests(*there))
        await _are_there(blobs, *there)

    with opened(tmp_path, chunked=True) as blobs:
        asyncio.run(story(blobs))
