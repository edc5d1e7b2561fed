"""Blobs that the disk has changed: known once a scrub has found them, and whole again once they come again."""

from __future__ import annotations

from pathlib import Path

import pytest

from blob_folders import LARGE, digest_of, disk, everything, framed, noise, play, sent
from icecore.errors import BlobDamaged
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.store import Parts

SMALL = [noise(i, 900) for i in range(12)]
LARGES = [noise(50 + i, LARGE) for i in range(3)]


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


async def _send_again(blobs: LocalBlobs, hurt: list[bytes]) -> None:
    """Each by another way than it came."""
    await blobs.put_small(framed([*hurt[:2], SMALL[0]]))
    await blobs.put(digest_of(hurt[2]), sent(hurt[2]))
    await blobs.put(digest_of(hurt[3]), sent(hurt[3]))
    parts = Parts(digest_of(hurt[4]), len(hurt[4]), len(hurt[4]))
    await blobs.put_part(parts, 0, sent(hurt[4]))
    await blobs.complete(parts)


def test_a_damaged_blob_comes_again(tmp_path: Path) -> None:
    """Once scrubbed, damaged blobs are missing, also after a restart; sent again they are whole, and kept once."""
    hurt = [SMALL[3], SMALL[4], SMALL[5], LARGES[0], LARGES[1]]
    names = [digest_of(content) for content in hurt]

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed(SMALL))
        for content in LARGES:
            await blobs.put(digest_of(content), sent(content))
        (pack,) = (tmp_path / "packs").iterdir()
        for digest, place in blobs.index.find(names).items():
            assert digest in names
            _flip(pack, place.offset + 5)
        for digest in names[3:]:
            _flip(tmp_path / "whole" / digest[:2] / digest, 1_000_000)
        assert await blobs.missing(names) == []
        assert {one.digest for one in blobs.scrub()} == set(names)
        assert await blobs.missing([*names, digest_of(SMALL[0])]) == names

    async def heals(blobs: LocalBlobs) -> None:
        assert await blobs.missing(names) == names
        with pytest.raises(BlobDamaged):
            await blobs.read(names[0])
        await _send_again(blobs, hurt)
        assert await blobs.missing(names) == []
        every = [*SMALL, *LARGES]
        assert await everything(blobs, [digest_of(content) for content in every]) == every
        assert list(blobs.scrub()) == []
        usage = await blobs.usage()
        assert (usage.blobs, usage.logical, usage.disk) == (15, sum(map(len, every)), disk(tmp_path))

    play(tmp_path, story)
    play(tmp_path, heals)
    play(tmp_path, _is_well)


async def _is_well(blobs: LocalBlobs) -> None:
    assert list(blobs.scrub()) == []
    assert await blobs.missing([digest_of(content) for content in (*SMALL, *LARGES)]) == []


def test_a_file_that_is_brought_back_heals(tmp_path: Path) -> None:
    """A damaged file that is put right by hand is there again after the next scrub."""

    async def story(blobs: LocalBlobs) -> None:
        digest = digest_of(LARGES[0])
        await blobs.put(digest, sent(LARGES[0]))
        file = tmp_path / "whole" / digest[:2] / digest
        _flip(file, 7)
        assert [(one.digest, one.state) for one in blobs.scrub()] == [(digest, "damaged")]
        assert await blobs.missing([digest]) == [digest]
        _flip(file, 7)
        assert list(blobs.scrub()) == []
        assert await blobs.missing([digest]) == []

    play(tmp_path, story)
