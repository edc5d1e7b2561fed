"""The folder of blobs: whole and durable or not there, found again, and read as they were."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blob_folders import LARGE, digest_of, everything, files, framed, noise, opened, play, sent
from icecore.errors import (
    Invalid,
    ReadOnlyCopy,
)
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.packs import MAGIC, entries, frame, read_entries, table
from icecore_api.blobs.prefix import Prefix
from icecore_api.blobs.store import Parts


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


def test_what_interrupted_uploads_left_is_listed_and_removed(tmp_path: Path) -> None:
    """Drafts of killed processes and unfinished uploads are told with their bytes and age, and removed by age."""
    content = noise(8, LARGE)
    parts = Parts(digest_of(content), LARGE, 1 << 20)

    async def story(blobs: LocalBlobs) -> None:
        await blobs.put_part(parts, 0, sent(content[: 1 << 20]))
        draft = tmp_path / "drafts" / "left.draft"
        draft.write_bytes(bytes(10_000))
        then = time.time() - 5000
        os.utime(draft, (then, then))
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


def test_an_upload_is_hashed_as_far_as_it_is_there(tmp_path: Path) -> None:
    """Parts that are not settled are left for later; bytes that lack are an error, and it begins anew."""
    content = noise(3, 2_500_000)
    parts = Parts(digest_of(content), len(content), 1 << 20)
    path = tmp_path / "bytes"
    path.write_bytes(content[: 1 << 20] + b"?" * 1000)
    asked: list[int] = []

    def settled(part: int) -> bool:
        asked.append(part)
        return part == 0

    prefix = Prefix()
    with path.open("r+b") as file:
        prefix.go_on(file.fileno(), parts, settled)
        assert asked == [0, 1]
        with pytest.raises(OSError, match="got the end"):
            prefix.finish(file.fileno(), parts)
        path.write_bytes(content)
        prefix.go_on(file.fileno(), parts, settled)
        os.pwrite(file.fileno(), b"!", 0)  # was hashed
        assert prefix.finish(file.fileno(), parts) == parts.digest
        prefix.reset()
        assert prefix.finish(file.fileno(), parts) != parts.digest


def test_an_upload_stays_open_while_a_part_is_kept_whose_client_has_gone(tmp_path: Path) -> None:
    """The last part lets all of them be hashed: a request that is cancelled then leaves the others' work right."""
    step, number = 16 << 20, 8
    content = bytes(step * number)
    parts = Parts(digest_of(content), len(content), step)
    (tmp_path / "other").write_bytes(b"x" * len(content))

    async def story(blobs: LocalBlobs) -> None:
        for part in range(1, number):
            await blobs.put_part(parts, part, sent(content[:step]))
        last = asyncio.create_task(blobs.put_part(parts, 0, sent(content[:step])))
        while not last.done() and len((await blobs.under_way(parts.digest))[0].there) < number:
            pass
        last.cancel()
        await asyncio.wait((last,))
        others = [os.open(tmp_path / "other", os.O_RDONLY) for _ in range(8)]
        try:
            assert await blobs.complete(parts) == len(content)
        finally:
            for handle in others:
                os.close(handle)

    play(tmp_path / "blobs", story)
