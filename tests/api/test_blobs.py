"""The folder of blobs: whole and durable or not there, found again, and read as they were."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob_folders import LARGE, digest_of, everything, files, framed, noise, opened, play, ranged, sent
from icecore.errors import (
    BlobsMissing,
    Conflict,
    DigestMismatch,
    Invalid,
    NotFound,
    ReadOnlyCopy,
    TooLarge,
)
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import MAGIC, entries, frame, frame_head, read_entries, table
from icecore_api.blobs.store import SMALL_BYTES, Parts


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_frames_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]) -> None:
    """A pack file gives its entries by its table, and the same ones by walking its frames."""
    path = tmp_path_factory.mktemp("pack") / "one.pack"
    body = MAGIC + b"".join(map(frame, contents))
    found = list(entries(body, len(MAGIC), len(body)))
    path.write_bytes(body + table(found, len(body)))
    assert [body[e.offset : e.offset + e.size] for e in found] == contents
    assert read_entries(path) == found
    path.write_bytes(body + table(found, len(body))[:-1] + b"?")
    first = {entry.digest: entry for entry in reversed(found)}
    assert read_entries(path) == [entry for entry in found if first[entry.digest] == entry]


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=8), st.data())
def test_a_cut_frame_is_refused(contents: list[bytes], data: st.DataObject) -> None:
    """Frames that end in the middle of one are refused, wherever that is."""
    body = b"".join(map(frame, contents))
    whole = {0, *(sum(40 + len(one) for one in contents[: i + 1]) for i in range(len(contents)))}
    cut = data.draw(st.integers(0, len(body)).filter(lambda at: at not in whole))
    with pytest.raises(Invalid, match="expected"):
        list(entries(body[:cut], 0, cut))


def test_blobs_are_kept_and_found(tmp_path: Path) -> None:
    """Small and large blobs are there after they were put, with all their bytes, now and when opened again."""
    small = [noise(i, size) for i, size in enumerate((0, 1, 40, 1000, SMALL_BYTES))]
    large, single = noise(9, LARGE), noise(10, 77)
    digests = [digest_of(one) for one in (*small, large, single)]
    absent = digest_of(b"absent")

    async def story(blobs: LocalBlobs) -> None:
        assert await blobs.missing([*digests, absent, absent]) == [*digests, absent]
        assert await blobs.put_small(framed([*small, small[2]])) == len(small)
        assert await blobs.put(digests[-2], sent(large)) == LARGE
        assert await blobs.put(digests[-1], sent(single)) == 77
        assert await blobs.put_small(framed([])) == 0

    async def again(blobs: LocalBlobs) -> None:
        assert await blobs.missing([absent, *digests]) == [absent]
        assert await blobs.sizes([*digests, absent]) == {
            digest: len(one) for digest, one in zip(digests, (*small, large, single), strict=True)
        }
        assert await everything(blobs, digests[::-1]) == [single, large, *small[::-1]]
        assert await blobs.read(digests[-2]) == large
        assert await ranged(blobs, digests[-2], 1_000_000, 2_500_000) == large[1_000_000:2_500_000]
        assert await ranged(blobs, digests[3], 10, 20) == small[3][10:20]
        assert list(blobs.scrub()) == []
        assert sorted((digest, size) for digest, size, _ in blobs.each()) == sorted(
            (await blobs.sizes(digests)).items()
        )
        with pytest.raises(NotFound):
            await blobs.open(absent)
        with pytest.raises(BlobsMissing) as missing:
            await blobs.read_many([digests[0], absent])
        assert missing.value.facts["missing"] == [absent]

    play(tmp_path, story)
    play(tmp_path, again)
    assert len([name for name in files(tmp_path) if name.endswith(".pack")]) == 1


def test_other_bytes_than_the_digest_says_are_not_kept(tmp_path: Path) -> None:
    """A blob or a pack with one wrong byte is refused, and no file of it is left."""

    async def story(blobs: LocalBlobs) -> None:
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

    play(tmp_path, story)
    assert files(tmp_path) == []


def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    """A request that ends or is cancelled in the middle of a blob leaves no file."""

    async def story(blobs: LocalBlobs) -> None:
        begun = asyncio.Event()

        async def coming() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield bytes(65536)
            begun.set()
            await asyncio.Event().wait()

        async def breaking() -> AsyncIterator[bytes]:
            yield b"some"
            raise ConnectionResetError

        for put in (lambda it: blobs.put(digest_of(b"x"), it), blobs.put_small):
            begun.clear()
            task = asyncio.create_task(put(coming()))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(Exception, match="expected"):
                await put(breaking())

    play(tmp_path, story)
    assert files(tmp_path) == []


def test_a_blob_that_comes_twice_at_once_is_kept_once(tmp_path: Path) -> None:
    """Concurrent uploads of the same blobs, alone, in packs and by parts, all succeed; one copy is kept."""
    content = [noise(i, 2000) for i in range(50)]
    large = noise(99, LARGE)
    parts = Parts(digest_of(large), LARGE, 1 << 20)

    async def story(blobs: LocalBlobs) -> None:
        for part in range(parts.number):
            await blobs.put_part(parts, part, sent(large[part << 20 : (part + 1) << 20]))
        puts: list[Coroutine[Any, Any, int]] = [blobs.put_small(framed(content)) for _ in range(4)]
        puts += [blobs.put_small(framed([*content[:10], noise(500 + i, 10)])) for i in range(4)]
        puts += [blobs.put(digest_of(one), sent(one)) for one in content[:5] for _ in range(3)]
        puts += [blobs.put(parts.digest, sent(large)) for _ in range(3)]
        puts += [blobs.complete(parts) for _ in range(2)]
        assert (await asyncio.gather(*puts))[-1] == LARGE
        each = list(blobs.each())
        assert len(each) == len({digest for digest, _, _ in each}) == 50 + 4 + 1
        packed = sum(len(read_entries(path)) for path in (tmp_path / "packs").iterdir())
        whole = len(list((tmp_path / "whole").glob("??/*")))
        assert packed + whole == 55
        assert await everything(blobs, [digest_of(one) for one in content]) == content
        assert await blobs.orphans() == []

    play(tmp_path, story)


@pytest.mark.parametrize("damage", ["gone", "cut", "noise", "empty", "stale"])
def test_an_index_that_is_lost_or_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    """Whatever happens to the index, opening the folder finds every blob again."""
    content = [noise(i, 700) for i in range(300)]
    index = tmp_path / "index.db"

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed(content[:200]))
        if damage == "stale":
            with opened(tmp_path / "other") as other:
                await other.put_small(framed(content[200:]))
        else:
            await blobs.put_small(framed(content[200:]))

    async def again(blobs: LocalBlobs) -> None:
        assert await blobs.missing([digest_of(one) for one in content]) == []
        assert await everything(blobs, [digest_of(one) for one in content]) == content
        blobs.index.remake()
        assert await blobs.missing([digest_of(one) for one in content]) == []

    play(tmp_path, story)
    if damage == "stale":
        for path in (tmp_path / "other" / "packs").iterdir():
            shutil.move(path, tmp_path / "packs")
    elif damage == "gone":
        index.unlink()
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "cut":
        os.truncate(index, index.stat().st_size // 2)
    else:
        whole = bytearray(index.read_bytes())
        whole[4096 : len(whole) - 100] = noise(1, len(whole) - 4196)
        index.write_bytes(whole)
    play(tmp_path, again)


def test_a_folder_that_is_only_read_answers_and_is_not_changed(tmp_path: Path) -> None:
    """Opened to be read, the folder answers for every blob, takes none, and stays as it is; so does an empty one."""
    small, large = noise(1, 100), noise(2, LARGE)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_small(framed([small]))
        await blobs.put(digest_of(large), sent(large))

    async def reads(blobs: LocalBlobs) -> None:
        assert await everything(blobs, [digest_of(large), digest_of(small)]) == [large, small]
        parts = Parts(digest_of(b"x"), 10, 5)
        for refused in (
            blobs.put(digest_of(b"x"), sent(b"x")), blobs.put_small(framed([b"x"])),
            blobs.put_part(parts, 0, sent(b"12345")), blobs.complete(parts), blobs.remove_orphans(0),
        ):  # fmt: skip
            with pytest.raises(ReadOnlyCopy):
                await refused
        assert (await blobs.orphans(), await blobs.under_way(parts.digest)) == ([], [])

    play(tmp_path, story)
    before = files(tmp_path, all_of_them=True)
    with opened(tmp_path, refuse=lambda: ReadOnlyCopy("no")) as blobs:
        asyncio.run(reads(blobs))
    assert files(tmp_path, all_of_them=True) == before
    with opened(tmp_path / "none", refuse=lambda: ReadOnlyCopy("no")) as blobs:
        assert asyncio.run(blobs.missing([digest_of(small)])) == [digest_of(small)]
    assert not (tmp_path / "none").exists()


def test_a_large_blob_comes_in_parts(tmp_path: Path) -> None:
    """Parts come in any order, twice and beside each other; what is durable is told, also when opened again."""
    content = noise(5, LARGE)
    parts = Parts(digest_of(content), LARGE, 1 << 20)

    def part(i: int) -> AsyncIterator[bytes]:
        return sent(content[i << 20 : (i + 1) << 20])

    async def begin(blobs: LocalBlobs) -> None:
        assert await blobs.under_way(parts.digest) == []
        await asyncio.gather(blobs.put_part(parts, 3, part(3)), blobs.put_part(parts, 1, part(1)))
        await blobs.put_part(parts, 1, sent(bytes(1 << 20)))
        for wrong, why in ((part(3), "expected 1048576 bytes"), (sent(bytes((1 << 20) + 1)), "got 1048577")):
            with pytest.raises(Invalid, match=why):
                await blobs.put_part(parts, 0, wrong)
        with pytest.raises(Invalid, match="expected a part from 0 to 3"):
            await blobs.put_part(parts, 4, part(3))
        with pytest.raises(Conflict) as early:
            await blobs.complete(parts)
        assert early.value.facts["parts"] == [0, 2]

    async def finish(blobs: LocalBlobs) -> None:
        assert [(one.parts, one.there) for one in await blobs.under_way(parts.digest)] == [(parts, (1, 3))]
        assert await blobs.missing([parts.digest]) == [parts.digest]
        await blobs.put_part(parts, 2, part(2))
        await blobs.put_part(parts, 0, part(0))
        assert await blobs.complete(parts) == LARGE
        assert await blobs.complete(parts) == LARGE
        assert await blobs.read(parts.digest) == content
        assert (await blobs.under_way(parts.digest), await blobs.orphans()) == ([], [])

    play(tmp_path, begin)
    play(tmp_path, finish)
    assert files(tmp_path) == [f"whole/{parts.digest[:2]}/{parts.digest}"]


def test_parts_of_other_bytes_are_forgotten(tmp_path: Path) -> None:
    """Completing parts that are not the blob refuses them and keeps none; the right ones may come then."""
    content = noise(6, 1000)
    parts = Parts(digest_of(content), 1000, 600)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_part(parts, 0, sent(bytes(600)))
        await blobs.put_part(parts, 1, sent(content[600:]))
        with pytest.raises(DigestMismatch):
            await blobs.complete(parts)
        assert (await blobs.under_way(parts.digest), await blobs.missing([parts.digest])) == ([], [parts.digest])
        await blobs.put_part(parts, 0, sent(content[:600]))
        await blobs.put_part(parts, 1, sent(content[600:]))
        assert await blobs.complete(parts) == 1000
        for size, part_size in ((0, 1), (1, 0), (10_001, 1), ((5 << 40) + 1, 1 << 30), (1 << 40, (1 << 30) + 1)):
            with pytest.raises((Invalid, TooLarge)):
                await blobs.put_part(Parts(parts.digest, size, part_size), 0, sent(b""))

    play(tmp_path, story)


def test_nobody_writes_into_a_blob_that_is_complete(tmp_path: Path) -> None:
    """A part still coming when its upload is completed is refused, and changes nothing of the blob."""
    content = noise(7, LARGE)
    parts = Parts(digest_of(content), LARGE, LARGE)

    async def story(blobs: LocalBlobs) -> None:
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

    play(tmp_path, story)


def test_what_interrupted_uploads_left_is_listed_and_removed(tmp_path: Path) -> None:
    """Drafts of killed processes and unfinished uploads are told with their bytes and age, and removed by age."""
    content = noise(8, LARGE)
    parts = Parts(digest_of(content), LARGE, 1 << 20)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_part(parts, 0, sent(content[: 1 << 20]))
        draft = tmp_path / "drafts" / "left.draft"
        draft.write_bytes(bytes(10_000))
        os.utime(draft, (time.time() - 5000,) * 2)
        found = {orphan.kind: orphan for orphan in await blobs.orphans()}
        assert found.keys() == {"draft", "upload"}
        assert 10_000 <= found["draft"].bytes < 20_000
        assert 5000 <= found["draft"].age_s < 5100
        assert 1 << 20 <= found["upload"].bytes < LARGE
        assert [orphan.kind for orphan in await blobs.remove_orphans(1000)] == ["draft"]
        assert [orphan.kind for orphan in await blobs.remove_orphans(0)] == ["upload"]
        assert (await blobs.orphans(), await blobs.under_way(parts.digest)) == ([], [])

    play(tmp_path, story)
    assert files(tmp_path) == []


def test_what_is_no_digest_is_refused(tmp_path: Path) -> None:
    """Nothing but 64 lower-case hex digits becomes part of a path."""

    async def story(blobs: LocalBlobs) -> None:
        good = digest_of(b"x")
        for name in (
            "",
            good[:-1],
            good + "0",
            good.upper(),
            "../" + good[3:],
            good + "\n",
            "\u0660" * 64,
            "/" + good[1:],
        ):
            for asked in (
                blobs.missing([name]), blobs.put(name, sent(b"x")), blobs.open(name), blobs.read(name),
                blobs.put_part(Parts(name, 1, 1), 0, sent(b"x")), blobs.under_way(name),
                blobs.complete(Parts(name, 1, 1)), blobs.read_many([name]),
            ):  # fmt: skip
                with pytest.raises(Invalid, match="expected a SHA-256"):
                    await asked

    play(tmp_path, story)
    assert files(tmp_path) == []


def test_folders_can_be_entered_whatever_the_umask(tmp_path: Path) -> None:
    """Folders that are made while the process has a narrow umask are this user's own, and can be entered."""

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put(digest_of(b"x"), sent(b"x"))
        await blobs.put_part(Parts(digest_of(b"y"), 2, 1), 0, sent(b"y"))

    before = os.umask(0o177)
    try:
        play(tmp_path / "blobs", story)
    finally:
        os.umask(before)
    below = [path for path in (tmp_path / "blobs").rglob("*") if path.is_dir()]
    assert len(below) == 4 + 1 + 1
    assert {path.stat().st_mode & 0o777 for path in below} == {0o700}
