"""Blobs on disks that change, lose or refuse bytes, and under processes that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blob_folders import LARGE, digest_of, disk, erased, everything, files, framed, noise, opened, play, ranged, sent
from disks import Disk
from icecore.errors import (
    BlobDamaged,
    BlobsFull,
)
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.store import Parts

WRITER = Path(__file__).parents[1] / "blob_writer.py"
ERASER = WRITER.with_name("blob_eraser.py")


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    """A flipped bit is told by reading and by scrubbing, which names each blob that is hurt, and lost packs too."""
    content = [noise(i, 500) for i in range(20)]
    large, small = noise(50, LARGE), noise(51, 100)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed(content[:10]))
        await blobs.put_small(framed(content[10:]))
        await blobs.put(digest_of(large), sent(large))
        await blobs.put(digest_of(small), sent(small))
        first, second = sorted((tmp_path / "packs").iterdir())
        whole = {one: tmp_path / "whole" / digest_of(one)[:2] / digest_of(one) for one in (large, small)}
        victim = blobs.index.find([digest_of(content[3])])[digest_of(content[3])]
        _flip(first, victim.offset + 77)
        _flip(whole[large], 2_000_000)
        _flip(whole[small], 5)
        for hurt in (content[3], small, large):
            with pytest.raises(BlobDamaged, match="SHA-256"):
                await blobs.read(digest_of(hurt))
        for hurt in (content[3], small):
            with pytest.raises(BlobDamaged):
                await ranged(blobs, digest_of(hurt))
        with pytest.raises(BlobDamaged):
            await everything(blobs, [digest_of(large)])
        assert await ranged(blobs, digest_of(large), 0, 100) == large[:100]
        told: list[tuple[int, int]] = []
        found = {hurt.digest: hurt for hurt in blobs.scrub(lambda *done: told.append(done))}
        assert found.keys() == {digest_of(one) for one in (content[3], small, large)}
        assert {hurt.state for hurt in found.values()} == {"damaged"}
        assert told[-1] == (20 * 500 + LARGE + 100,) * 2
        second.unlink()
        os.truncate(whole[large], 1000)
        found = {hurt.digest: hurt for hurt in blobs.scrub()}
        assert {d for d, hurt in found.items() if hurt.state == "missing"} == {digest_of(one) for one in content[10:]}
        with pytest.raises(BlobDamaged, match="not there"):
            await blobs.read(digest_of(content[15]))

    async def again(blobs: LocalBlobs) -> None:
        lost = [digest_of(one) for one in content[10:]]
        assert await blobs.missing(lost) == lost
        await blobs.put_small(framed(content[10:15]))
        assert {hurt.digest for hurt in blobs.scrub() if hurt.state == "missing"} == set(lost[5:])

    play(tmp_path, story)
    play(tmp_path, again)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 16]))


@pytest.mark.parametrize("size", [1, 7, 30])
def test_a_full_disk_is_told_and_nothing_is_kept(tmp_path: Path, size: int) -> None:
    """A disk that fills in the middle refuses the blob with a hint, loses nothing, and takes it once there is space."""
    disk = Disk(tmp_path / "disk")
    if not disk.mounted:
        disk.close(keep=False)
        pytest.skip("no right to mount a disk")
    before = [noise(i, 1000) for i in range(100)]
    large, many = noise(1000, 8 << 20), [noise(2000 + i, 5000) for i in range(1600)]
    parts = Parts(digest_of(large), len(large), 4 << 20)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed(before))
        ballast = disk.folder / "ballast"
        ballast.write_bytes(bytes(size << 18))
        disk.fill()
        ballast.unlink()
        for refused in (
            blobs.put(digest_of(large), sent(large)), blobs.put_small(framed(many)),
            blobs.put_part(parts, 0, sent(large[: 4 << 20])) if size < 16 else blobs.put(digest_of(large), sent(large)),
        ):  # fmt: skip
            with pytest.raises(BlobsFull) as full:
                await refused
            assert full.value.hint
            assert not [name for name in files(disk.folder) if name.endswith(".draft")]
        assert await everything(blobs, [digest_of(one) for one in before]) == before
        assert await blobs.missing([digest_of(large), digest_of(many[0])]) == [digest_of(large), digest_of(many[0])]
        disk.empty()
        await blobs.put(digest_of(large), sent(large))
        await blobs.put_small(framed(many))
        assert await everything(blobs, [digest_of(one) for one in many]) == many
        assert list(blobs.scrub()) == []

    try:
        play(disk.folder / "blobs", story)
    finally:
        disk.close(keep=False)


def test_a_full_disk_does_not_shrink_by_halves(tmp_path: Path) -> None:
    """Without space to write a pack again, what it held stays whole or is gone, and the rest follows later."""
    disk_ = Disk(tmp_path / "disk")
    if not disk_.mounted:
        disk_.close(keep=False)
        pytest.skip("no right to mount a disk")
    folder, ballast = disk_.folder / "blobs", disk_.folder / "ballast"
    small, base = [noise(i, 9000) for i in range(200)], noise(500, 2_000_000)
    grown, alone = base[:1_500_000] + noise(501, 500_000), noise(502, 1_500_000)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed(small))
        for content in (base, grown):
            await blobs.put(digest_of(content), sent(content))
        ballast.write_bytes(bytes(400_000))
        disk_.fill()
        with pytest.raises(BlobsFull):
            await blobs.put(digest_of(alone), sent(alone))
        with pytest.raises(BlobsFull):
            await erased(blobs, [digest_of(content) for content in small[::2]])
        assert await everything(blobs, [digest_of(one) for one in small]) == small
        ballast.unlink()  # enough for the index, and not for a pack
        with pytest.raises(BlobsFull):
            await erased(blobs, [digest_of(base)])
        assert await blobs.missing([digest_of(base), digest_of(grown)]) == [digest_of(base)]
        assert await blobs.read(digest_of(grown)) == grown

    async def again(blobs: LocalBlobs) -> None:
        assert await blobs.read(digest_of(grown)) == grown
        disk_.empty()
        await blobs.put(digest_of(alone), sent(alone))
        await erased(blobs, [digest_of(content) for content in (*small, alone)])
        assert await blobs.read(digest_of(grown)) == grown
        assert (await blobs.usage()).disk == disk(folder) < 2_100_000

    try:
        for play_one in (story, again):
            with opened(folder, chunked=True) as blobs:
                asyncio.run(play_one(blobs))
    finally:
        disk_.close(keep=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_a_kill_loses_nothing_that_was_answered(tmp_path: Path, seed: int) -> None:
    """After kill -9 at any moment every answered blob is whole, nothing half is there, and uploads go on."""
    chance = random.Random(seed)
    print("seed", seed)
    words = [sys.executable, str(WRITER), str(tmp_path / "blobs"), str(seed)]
    with (tmp_path / "said").open("wb") as said:
        writer = subprocess.Popen(words, stdout=said)
        try:
            deadline = time.monotonic() + 60
            wanted = chance.randrange(40)
            while (tmp_path / "said").read_bytes().count(b"\n") <= wanted:
                assert writer.poll() is None
                assert time.monotonic() < deadline
            time.sleep(chance.random() * 0.03)  # at any moment from here on
        finally:
            writer.kill()
            writer.wait()
    lines = [line.split() for line in (tmp_path / "said").read_text().splitlines() if line.endswith(".")]

    async def story(blobs: LocalBlobs) -> None:
        answered = [digest for kind, digest, *_ in lines if kind == "blob"]
        assert await blobs.missing(answered) == []
        for digest, size, _ in blobs.each():
            assert len(await blobs.read(digest)) == size
        assert list(blobs.scrub()) == []
        for kind, digest, size, part_size, part, *_ in (line for line in lines if line[0] == "part"):
            assert kind == "part"
            there = await blobs.under_way(digest)
            if await blobs.missing([digest]):
                assert there[0].parts == Parts(digest, int(size), int(part_size))
                assert int(part) in there[0].there
        for orphan in await blobs.orphans():
            if orphan.kind == "upload":
                await _finish(blobs, orphan.name, seed)
        await blobs.remove_orphans(0)
        assert await blobs.orphans() == []

    play(tmp_path / "blobs", story)


async def _finish(blobs: LocalBlobs, name: str, seed: int) -> None:
    """Send what is not there of an upload, as a client that goes on."""
    from blob_writer import large

    digest, size, part_size = name.split("-")
    parts = Parts(digest, int(size), int(part_size))
    content = next(one for one in map(large, range(seed * 1000, seed * 1000 + 500)) if digest_of(one) == digest)
    there = {part for one in await blobs.under_way(digest) for part in one.there}
    for part in set(range(parts.number)) - there:
        await blobs.put_part(parts, part, sent(content[part * parts.part_size : (part + 1) * parts.part_size]))
    assert await blobs.complete(parts) == len(content)
    assert await blobs.read(digest) == content


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_a_kill_while_erasing_leaves_each_blob_whole_or_gone(tmp_path: Path, seed: int) -> None:
    """After kill -9 what was said to be erased is gone, the rest is whole, and no byte is left that nobody needs."""
    chance = random.Random(seed)
    print("seed", seed)
    folder = tmp_path / "blobs"
    with (tmp_path / "said").open("wb") as said:
        eraser = subprocess.Popen([sys.executable, str(ERASER), str(folder), str(seed)], stdout=said)
        try:
            deadline = time.monotonic() + 60
            wanted = chance.randrange(1, 12)
            while (tmp_path / "said").read_bytes().count(b"erased") <= wanted * 10:
                assert eraser.poll() is None
                assert time.monotonic() < deadline
            time.sleep(chance.random() * 0.05)  # at any moment from here on
        finally:
            eraser.kill()
            eraser.wait()
    lines = [line.split() for line in (tmp_path / "said").read_text().splitlines() if line.endswith(".")]
    told = {word: {digest for said, digest, _ in lines if said == word} for word in ("put", "erasing", "erased")}
    assert told["erased"]

    async def story(blobs: LocalBlobs) -> None:
        assert set(await blobs.missing(sorted(told["erased"]))) == told["erased"]
        assert await blobs.missing(sorted(told["put"] - told["erasing"])) == []
        left = {blob.digest: blob.size async for some in blobs.all_blobs() for blob in some}
        for digest, size in left.items():
            assert len(await blobs.read(digest)) == size
        assert list(blobs.scrub()) == []
        usage = await blobs.usage()
        assert (usage.blobs, usage.logical, usage.disk) == (len(left), sum(left.values()), disk(folder))
        assert (await blobs.weigh(left)).reclaimable == usage.disk
        await erased(blobs, left)
        await blobs.remove_orphans(0)
        assert files(folder) == []

    play(folder, story)
