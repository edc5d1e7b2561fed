"""What artifacts weigh, what is erased, and what is kept, over HTTP: compared with the disk and with plain counting."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from applications import Application, application
from icecore import manifest
from icecore.manifest import Entry
from icecore.retention_events import ArtifactErased, BlobErasing
from icecore_api.retention.clock import GAP_S, SETTLE_S, RetentionClock
from icecore_api.retention.contents import Contents
from icecore_api.retention.planning import make_plan

ROOT = "/api/v1/artifacts"
BIG = 300_000
"""Bytes of a blob that is a file of its own."""


def content(name: str) -> bytes:
    """Bytes of a file by its name: a few bytes, or a large blob where the name is upper case."""
    return name.encode() * (BIG if name.isupper() else 7)


def entries(files: Sequence[str]) -> dict[str, Entry]:
    return {f"f{i}": Entry(hashlib.sha256(content(f)).hexdigest(), len(content(f))) for i, f in enumerate(files)}


async def version(app: Application, path: str, files: Sequence[str], **fields: Any) -> str:
    """Send files and commit them; answers the version."""
    data = manifest.encode(entries(files))
    for blob in {*map(content, files), data}:
        digest = hashlib.sha256(blob).hexdigest()
        assert (await app.client.put(f"/api/v1/blobs/{digest}", content=blob)).status_code == 200
    body = {"type": "model", "manifest": hashlib.sha256(data).hexdigest(), **fields}
    answer = await app.client.post(f"{ROOT}/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["version"])


async def ask(app: Application, method: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = await app.client.request(method, f"/api/v1/{path}", json=body or None)
    assert answer.status_code == status, answer.text
    return answer.json()


async def job(app: Application, grace_s: float, *, dry_run: bool = False) -> dict[str, Any]:
    """Plan, or erase, and wait for how it ends."""
    await ask(app, "POST", "gc", 202, grace_s=grace_s, dry_run=dry_run)
    while (found := await ask(app, "GET", "gc"))["state"] == "running":  # noqa: ASYNC110 - over HTTP
        await asyncio.sleep(0.01)
    return dict(found)


async def gc(app: Application, grace_s: float = 0, *, dry_run: bool = False) -> dict[str, Any]:
    """The plan, and what it freed."""
    found = await job(app, grace_s, dry_run=dry_run)
    assert found["state"] == "done", found
    return dict(found["result"])


def du(folder: Path) -> int:
    """Bytes of all files that hold blobs."""
    files = [file for name in ("packs", "whole") for file in (folder / "blobs" / name).rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


# ------------------------------------------------------------------------------------------------------- what it weighs

VERSIONS = st.lists(
    st.tuples(
        st.sampled_from(["team/a/x", "team/a/y", "team/b/x", "other/b/z"]),
        st.lists(st.sampled_from(["a", "b", "c", "A", "B"]), min_size=1, max_size=4),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


def naive(made: Mapping[tuple[str, str], tuple[Sequence[str], bool]], group: str) -> dict[str, int]:
    """What a project weighs, counted one by one."""

    def blobs(files: Sequence[str]) -> dict[str, int]:
        data = manifest.encode(entries(files))
        return {entry.digest: entry.size or 0 for entry in entries(files).values()} | {
            hashlib.sha256(data).hexdigest(): len(data)
        }

    def sizes(*, inside: bool | None, deleted: bool) -> dict[str, int]:
        chosen: dict[str, int] = {}
        for (path, _), (files, gone) in made.items():
            if gone == deleted and (inside is None or (path.rpartition("/")[0] == group) == inside):
                chosen |= blobs(files)
        return chosen

    mine, others, live = (sizes(inside=inside, deleted=False) for inside in (True, False, None))
    hidden = sizes(inside=True, deleted=True)
    in_group = [(files, gone) for (path, _), (files, gone) in made.items() if path.rpartition("/")[0] == group]
    return {
        "versions": sum(not gone for _, gone in in_group),
        "deleted": sum(gone for _, gone in in_group),
        "logical": sum(len(content(file)) for files, gone in in_group if not gone for file in files),
        "unique": sum(mine.values()),
        "shared": sum(size for digest, size in mine.items() if digest in others),
        "reclaimable": sum(size for digest, size in hidden.items() if digest not in live),
        "growth": sum((mine | hidden).values()),
    }


@settings(max_examples=3, deadline=None)
@given(steps=VERSIONS)
def test_storage_is_exact(steps: list[tuple[str, list[str], bool]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every number is what counting one by one gives; and what a plan promises is what it and the disk give back."""
    folder = tmp_path_factory.mktemp("data")

    async def work() -> None:
        async with application(folder) as app:
            made: dict[tuple[str, str], tuple[Sequence[str], bool]] = {}
            for path, files, gone in steps:
                name = await version(app, path, files)
                if gone:
                    await ask(app, "DELETE", f"artifacts/{path}/{name}")
                made[path, name] = (files, gone)
            found = await ask(app, "GET", "storage?by=project")
            for row in found["rows"]:
                expected = naive(made, row["group"])
                assert {name: row[name] for name in expected} == expected
            assert {row["group"] for row in found["rows"]} == {path.rpartition("/")[0] for path, _ in made}
            total = found["total"]
            assert total["stored"] == total["unique"] + total["reclaimable"] + total["uncommitted"]
            assert (total["disk"], total["uncommitted"]) == (du(folder), 0)

            plan = await gc(app, dry_run=True)
            assert plan["bytes"] == total["disk_reclaimable"]
            before = du(folder)
            done = await gc(app)
            assert plan["bytes"] == done["freed"] == before - du(folder)
            assert (await gc(app))["bytes"] == 0
            left = await ask(app, "GET", "storage?by=collection")
            assert (left["total"]["reclaimable"], left["total"]["disk"]) == (0, du(folder))
            assert left["total"]["unique"] == total["unique"]
            for (path, name), (kept, gone) in made.items():
                answer = await app.client.get(f"{ROOT}/{path}/{name}")
                assert answer.status_code == (404 if gone else 200)
                for file in kept if not gone else ():
                    digest = hashlib.sha256(content(file)).hexdigest()
                    assert (await app.client.get(f"/api/v1/blobs/{digest}")).content == content(file)

    asyncio.run(work())


@pytest.mark.parametrize("by", ["team", "project", "collection", "type", "user"])
def test_storage_is_told_by(tmp_path: Path, by: str) -> None:
    """Groups are teams, projects, artifacts, types or users; a price is that of the bytes."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await version(app, "team/a/x", ["A"])
            await version(app, "other/b/z", ["A"], type="dataset")
            found = await ask(app, "GET", f"storage?by={by}&price=1000")
            groups = {
                "team": {"team", "other"}, "project": {"team/a", "other/b"}, "collection": {"team/a/x", "other/b/z"},
                "type": {"model", "dataset"}, "user": {"owner"},
            }  # fmt: skip
            assert {row["group"] for row in found["rows"]} == groups[by]
            assert [row["shared"] >= BIG for row in found["rows"]] == [by != "user"] * len(groups[by])
            assert found["total"]["price"] == pytest.approx(du(tmp_path) / 1e6)

    asyncio.run(work())


# --------------------------------------------------------------------------------------------------------- what is kept


def test_what_is_kept_says_so_and_stays(tmp_path: Path) -> None:
    """A hold and a protected alias keep a version from deletion and from being erased, and are named."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for file in "ABC":
                await version(app, "t/p/x", [file])
            await ask(app, "PUT", "retention/protected", artifact="t/p/x", protected=["production"])
            await ask(app, "PUT", "artifacts/t/p/x/aliases/production", version="v0")
            await ask(app, "DELETE", "artifacts/t/p/x/v1")
            held = await ask(app, "POST", "holds", scope="t/p/x:v1", reason="case 7", hold="h")
            assert (held["user"], held["scope"]) == ("owner", "t/p/x:v1")
            refused = await ask(app, "DELETE", "artifacts/t/p/x/v0?with_aliases=true", 409)
            assert "the protected alias production" in refused["error"]["message"]
            standing = await ask(app, "GET", "artifacts/t/p/x/v1/retention")
            assert standing["kept_by"] == [{"kind": "hold", "by": "h", "why": "case 7"}]
            plan = await gc(app)
            assert (plan["bytes"], plan["kept"], plan["versions"]) == (0, 1, [])
            assert (await ask(app, "DELETE", "holds/h"))["holds"] == []
            await ask(app, "DELETE", "holds/h", 404)
            assert (await gc(app))["versions"] == ["t/p/x:v1"]

    asyncio.run(work())


@pytest.mark.parametrize("hold", ["1 O 12/26", "a/../b", "/x/", "case #7", "50% ?"])
def test_a_hold_that_is_placed_can_be_released(tmp_path: Path, hold: str) -> None:
    """Whatever its id is; one that no address may end in is refused at once."""

    async def work() -> None:
        async with application(tmp_path) as app:
            assert (await ask(app, "POST", "holds", scope="t", hold=hold))["hold"] == hold
            assert (await ask(app, "DELETE", f"holds/{quote(hold, safe='')}"))["holds"] == []
            await ask(app, "POST", "holds", 422, scope="t", hold="..")

    asyncio.run(work())


def test_the_grace_is_waited_for(tmp_path: Path) -> None:
    """A deleted version can be restored until the grace is over and it is erased; then it is told by whom."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await version(app, "t/p/x", ["A"])
            await ask(app, "DELETE", "artifacts/t/p/x/v0")
            plan = await gc(app, 3600)
            assert (plan["bytes"], plan["waiting"]) == (0, 1)
            await ask(app, "POST", "artifacts/t/p/x/v0/restore")
            await ask(app, "DELETE", "artifacts/t/p/x/v0")
            app.clock["ahead"] = 3_700_000
            assert "jumped" in (await job(app, 3600))["error"]
            app.clock["ahead"] = 0
            assert (await gc(app))["freed"] == (await gc(app, dry_run=True))["bytes"] + BIG + len(
                manifest.encode(entries(["A"]))
            )
            refused = await ask(app, "POST", "artifacts/t/p/x/v0/restore", 409)
            assert "is erased" in refused["error"]["message"]
            gone = await ask(app, "GET", "artifacts/t/p/x/v0", 404)
            assert gone["error"]["erased"]["user"] == "owner"
            assert await version(app, "t/p/x", ["A"]) == "v0"
            assert (await ask(app, "GET", "artifacts/t/p/x/v0"))["state"] == "committed"

    asyncio.run(work())


# ----------------------------------------------------------------------------------------------------------- what goes


def test_what_is_under_way_is_left_alone(tmp_path: Path) -> None:
    """Blobs sent lately, and those of parts that nobody finished yet, stay; those of uploads that never ended go."""

    async def work() -> None:
        async with application(tmp_path) as app:
            blob = content("A")
            digest = hashlib.sha256(blob).hexdigest()
            await app.client.put(f"/api/v1/blobs/{digest}", content=blob)
            part = f"/api/v1/uploads/{'0' * 64}/0?size=8000000&part_size=4194304"
            assert (await app.client.put(part, content=b"x" * 4194304)).status_code == 200
            shared = {
                hashlib.sha256(data).hexdigest(): data for data in (content("C"), manifest.encode(entries(["C"])))
            }
            for name, data in shared.items():
                await app.client.put(f"/api/v1/blobs/{name}", content=data)
            await ask(app, "POST", "parts/t/p/many/epoch-1", manifest=list(shared)[1])
            plan = await gc(app)
            assert (plan["bytes"], plan["under_way"], plan["orphans"]) == (0, 1, 0)
            long_ago = time.time() - 7200
            for file in (tmp_path / "blobs").rglob("*"):
                os.utime(file, (long_ago, long_ago))
            plan = await gc(app, 3600, dry_run=True)
            assert (plan["blobs"], plan["uncommitted"], plan["orphans"]) == (1, 1, 1)
            assert plan["blob_bytes"] == BIG
            assert plan["orphan_bytes"] >= 4194304
            assert (await gc(app, 3600))["freed"] == plan["bytes"]
            assert du(tmp_path) == sum(map(len, shared.values()))
            assert (await ask(app, "POST", "parts/t/p/many/epoch-1/finish", type="model"))["files"] == 1
            assert not list((tmp_path / "blobs" / "uploads").iterdir())

    asyncio.run(work())


def test_what_is_deleted_while_versions_are_said_to_be_erased_waits(tmp_path: Path) -> None:
    """A version that the log does not call erased can be restored, so the plan that is carried out leaves its bytes."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for number, files in enumerate((["A"], ["B"])):
                await version(app, "t/p/x", files)
                await ask(app, "DELETE", f"artifacts/t/p/x/v{number}")
            await app.put(ArtifactErased(artifact="t/p/x", version=0, plan="gc-1"))
            contents = Contents(app.context.blobs)
            plan = await make_plan(
                app.context, contents, (), plan="gc-1", now_ms=app.context.clock_ms(), grace_s=0, said=True
            )
            gone = hashlib.sha256(manifest.encode(entries(["A"]))).hexdigest()
            assert {*plan.digests} == {gone, hashlib.sha256(content("A")).hexdigest()}
            assert (plan.versions.due, plan.versions.waiting) == ((), 1)
            await ask(app, "POST", "artifacts/t/p/x/v1/restore")

    asyncio.run(work())


def test_a_question_keeps_what_it_read_while_the_next_begins_anew(tmp_path: Path) -> None:
    """A plan knows what versions need to its end, also where others ask meanwhile and too much was remembered."""

    async def work() -> None:
        async with application(tmp_path) as app:
            contents = Contents(app.context.blobs, remembered=0)
            manifests = []
            for number, files in enumerate((["A", "a"], ["B", "b"], ["C"])):
                await version(app, "t/p/x", files)
                manifests.append((await ask(app, "GET", f"artifacts/t/p/x/v{number}"))["digest"])
            first, *others = await asyncio.gather(*(contents.read([digest]) for digest in manifests))
            assert first.unread(manifests) == manifests[1:]
            named = {entry.digest for entry in entries(["A", "a"]).values()}
            assert {*first.digests(first.of(manifests[:1]).tolist())} == {*named, manifests[0]}
            assert all(other is not first for other in others)

    asyncio.run(work())


def test_a_version_whose_manifest_is_lost_stops_everything(tmp_path: Path) -> None:
    """Where nobody knows what a version needs, nothing is erased."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await version(app, "t/p/x", ["A"])
            await version(app, "t/p/y", ["B"])
            await ask(app, "DELETE", "artifacts/t/p/y/v0")
            lost = hashlib.sha256(manifest.encode(entries(["A"]))).hexdigest()
            (tmp_path / "blobs" / "whole" / lost[:2] / lost).unlink()
            before = du(tmp_path)
            ended = await job(app, 0)
            assert (ended["state"], lost in ended["error"], du(tmp_path)) == ("failed", True, before)

    asyncio.run(work())


def test_a_receipt_that_was_cut_off_is_written_by_the_next(tmp_path: Path) -> None:
    """Killed between the bytes and their receipt, the next one writes it: receipts name each blob that went, once."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for file in "ABCD":
                await version(app, f"t/p/{file}", [file])
            for file in "ABC":
                await ask(app, "DELETE", f"artifacts/t/p/{file}/v0")
            before = du(tmp_path)
            plan = await gc(app, dry_run=True)
            digests = [hashlib.sha256(content(file)).hexdigest() for file in "ABC"]
            digests += [hashlib.sha256(manifest.encode(entries([file]))).hexdigest() for file in "ABC"]
            # as a process leaves it that was killed while it erased: two blobs of six are gone, no receipt says so
            erased = [ArtifactErased(artifact=f"t/p/{file}", version=0, plan="gc-cut") for file in "ABC"]
            await app.put(*erased, BlobErasing(plan="gc-cut", part=0, bytes=plan["bytes"], digests=digests))
            async for _ in app.context.blobs.erase(digests[:2], not_touched_since=time.time() + 60):
                pass
            assert du(tmp_path) == before - 2 * BIG
            done = await gc(app)
            assert done["freed"] == plan["bytes"] - 2 * BIG
            assert du(tmp_path) == before - plan["bytes"]
            events = (await ask(app, "GET", "log?stream=ledger&limit=1000"))["events"]
            receipts = [one["payload"] for one in events if one["envelope"]["type"] == "blob.erased"]
            assert Counter(digest for one in receipts for digest in one.get("digests", ())) == Counter(digests)
            assert sum(one.get("bytes", 0) for one in receipts) == plan["bytes"]
            assert (await gc(app))["receipts"] == []

    asyncio.run(work())


def test_a_rule_says_what_it_would_free(tmp_path: Path) -> None:
    """What a simulated rule promises is what deleting by it frees; what is kept or has an alias stays, and is named."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for file in "ABCDE":
                await version(app, "t/p/x", [file, "S"])
            await ask(app, "PUT", "artifacts/t/p/x/aliases/best", version="v0")
            await ask(app, "POST", "holds", scope="t/p/x:v1", hold="h")
            rule = {"keep_last": 2, "keep_aliased": True}
            said = await ask(app, "POST", "retention/policy", **rule)
            assert said["versions"] == ["t/p/x:v2"]
            assert said["kept"] == {"t/p/x:v1": ["the legal hold h"], "t/p/x:v0": ["the alias best"]}
            assert (await ask(app, "GET", "storage"))["total"]["deleted"] == 0
            assert (await ask(app, "POST", "retention/policy", **rule, simulate=False))["versions"] == said["versions"]
            assert (await gc(app))["freed"] == said["bytes"] > BIG
            for scope, status in (("t", 200), ("t/p", 200), ("t/p/x", 200), ("t/q", 404), ("t/p/y", 404), ("u", 404)):
                answer = await ask(app, "POST", "retention/policy", status, **rule, scope=scope)
                assert status == 200 or repr(scope) in answer["error"]["message"]

    asyncio.run(work())


# ------------------------------------------------------------------------------------------------------------- expiry


def test_versions_expire_by_the_narrowest_time(tmp_path: Path) -> None:
    """A version's time counts from its creation; what is kept does not expire, and a restored one does again."""

    async def work() -> None:
        async with application(tmp_path) as app:
            look = app.app.state.expiry.look
            await version(app, "t/p/x", ["A"], ttl=3600)
            await version(app, "t/p/x", ["B"])
            await version(app, "t/p/x", ["C"], ttl=0)
            await version(app, "t/p/x", ["D"])
            await ask(app, "PUT", "retention/ttl", scope="t/p", seconds=7200)
            await ask(app, "POST", "holds", scope="t/p/x:v3", hold="h")
            standing = await ask(app, "GET", "artifacts/t/p/x/v1/retention")
            assert (standing["ttl"], standing["lives"], standing["lives_by"]) == (None, 7200, "t/p")
            assert await look() == 0
            states = []
            for ahead in (3_600_000, 7_200_000):
                await _pass(app, ahead)
                await look()
                states.append([await _state(app, n) for n in range(4)])
            assert states == [
                ["expired", "committed", "committed", "committed"],
                ["expired", "expired", "committed", "committed"],
            ]
            log = await ask(app, "GET", "log?stream=ledger&limit=1000")
            expired = [one for one in log["events"] if one["envelope"]["type"] == "artifact.expired"]
            assert [(one["payload"]["version"], one["envelope"]["actor"]) for one in expired] == [
                (0, "system"),
                (1, "system"),
            ]
            await ask(app, "POST", "artifacts/t/p/x/v0/restore")
            assert await look() == 1

    asyncio.run(work())


async def _pass(app: Application, ahead_ms: int) -> None:
    """Let time pass: what it is now is believed, as by a clock that went evenly all the while."""
    app.clock["ahead"] = ahead_ms
    eraser_clock = RetentionClock(app.context.clock_ms, lambda: None)
    app.app.state.expiry.clock = eraser_clock


async def _state(app: Application, number: int) -> str:
    return str((await ask(app, "GET", f"artifacts/t/p/x/v{number}/retention"))["state"])


def test_a_clock_that_jumps_expires_nothing_early(tmp_path: Path) -> None:
    """A clock that is ahead for a while, and behind: nothing expires, and what was made meanwhile lives its time."""

    async def work() -> None:
        async with application(tmp_path) as app:
            look = app.app.state.expiry.look
            await version(app, "t/p/x", ["A"], ttl=1800)
            await look()
            app.clock["ahead"] = 3_600_000
            assert await look() == 0
            await version(app, "t/p/x", ["B"], ttl=1800)
            assert await look() == 0
            app.clock["ahead"] = -7_200_000
            await version(app, "t/p/x", ["C"], ttl=1800)
            app.clock["ahead"] = 0
            await version(app, "t/p/x", ["D"], ttl=1800)
            await _pass(app, 0)
            assert await look() == 0
            await _pass(app, 1_700_000)
            assert await look() == 0, "made by a clock that was two hours behind, it is still young"
            await _pass(app, 1_810_000)
            assert await look() == 4

    asyncio.run(work())


def test_a_clock_that_jumped_is_not_believed_for_a_while() -> None:
    """Ahead by more than a little, or long after the log's last record, it must go evenly first; back is believed."""
    time_ms, steady = [1_000_000_000], [0.0]
    clock = RetentionClock(lambda: time_ms[0], lambda: time_ms[0] - 1000, lambda: steady[0])

    def step(seconds: float, jump: float = 0) -> int | None:
        steady[0] += seconds
        time_ms[0] += round((seconds + jump) * 1000)
        return clock.now_ms()

    assert step(0) == time_ms[0]
    assert step(60, jump=3600) is None
    assert clock.believed_in_s == SETTLE_S
    assert step(SETTLE_S - 1) is None
    assert step(1) == time_ms[0]
    assert step(1, jump=-7200) == time_ms[0]
    late = RetentionClock(lambda: time_ms[0], lambda: round(time_ms[0] - GAP_S * 2000), lambda: steady[0])
    assert late.now_ms() is None
