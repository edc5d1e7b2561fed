"""Artifacts over HTTP: versions, aliases, lineage, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from applications import Application, application
from icecore import manifest
from icecore.errors import TooLarge
from icecore.manifest import Entry
from icecore_api.manifests import read_whole

NAME = "/api/v1/artifacts/team/project/net"


async def put(app: Application, content: bytes) -> str:
    """Keep a blob."""
    digest = hashlib.sha256(content).hexdigest()
    answer = await app.client.put(f"/api/v1/blobs/{digest}", content=content)
    assert answer.status_code == 200, answer.text
    return digest


async def manifest_of(app: Application, files: Mapping[str, bytes]) -> str:
    """The digest of a manifest that is kept with its files."""
    entries = {path: Entry(await put(app, content), len(content)) for path, content in files.items()}
    return await put(app, manifest.encode(entries))


async def commit(app: Application, content: bytes, name: str = NAME, **fields: Any) -> dict[str, Any]:
    """A version with one file."""
    digest = await manifest_of(app, {"model.bin": content})
    answer = await app.client.post(name, json={"type": "model", "manifest": digest, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def get(app: Application, path: str, **query: Any) -> dict[str, Any]:
    answer = await app.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def nested(levels: int) -> dict[str, Any]:
    """An object in an object, and so on."""
    return {"a": nested(levels - 1)} if levels else {}


def test_a_version_is_found_by_number_and_alias(tmp_path: Path) -> None:
    """What was committed is answered with its files' count and size, by v0, by latest and by each of its aliases."""

    async def work() -> None:
        async with application(tmp_path) as app:
            made = await commit(app, b"one", aliases=["best"], metadata={"f1": 0.5}, tags=["t"], description="d")
            assert (made["version"], made["files"], made["size"], made["type"]) == ("v0", 1, 3, "model")
            assert made["aliases"] == ["best", "latest"]
            for ref in ("v0", "latest", "best"):
                assert await get(app, f"{NAME}/{ref}") == made
            listed = await get(app, "/api/v1/artifacts/team/project")
            assert [a["path"] for a in listed["artifacts"]] == ["team/project/net"]
            assert (await get(app, "/api/v1/artifacts/team/project", type="dataset"))["artifacts"] == []

    asyncio.run(work())


def test_the_same_content_is_the_same_version(tmp_path: Path) -> None:
    """Committed again it keeps its number; many committing at once get one number for each content."""

    async def work() -> None:
        async with application(tmp_path) as app:
            made = await asyncio.gather(*(commit(app, b"%d" % (n % 5)) for n in range(20)))
            by_digest = {one["digest"]: one["version"] for one in made}
            assert sorted(by_digest.values()) == ["v0", "v1", "v2", "v3", "v4"]
            assert all(by_digest[one["digest"]] == one["version"] for one in made)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"type": "model", "manifest": "0" * 64}, 422, "as a blob"),
        ({"type": "model", "manifest": "../../etc/passwd"}, 422, "pattern"),
        ({"type": "", "manifest": "0" * 64}, 422, "type"),
        ({"type": "model", "manifest": "0" * 64, "aliases": ["latest"]}, 422, "latest"),
        ({"type": "model", "manifest": "0" * 64, "aliases": ["v3"]}, 422, "names a version"),
        ({"type": "model", "manifest": "0" * 64, "aliases": ["a/b"]}, 422, "alias"),
        ({"type": "model", "manifest": "0" * 64, "run": "x"}, 422, "run path"),
        ({"type": "model", "manifest": "0" * 64, "description": "x" * 300_000}, 422, "description"),
        ({"type": "model", "manifest": "0" * 64, "metadata": nested(64)}, 422, "json_depth"),
        ({"type": "model", "manifest": "0" * 64, "metadata": nested(900)}, 422, "json_depth"),
    ],
)
def test_what_cannot_be_a_version_is_refused(tmp_path: Path, body: dict[str, Any], status: int, words: str) -> None:
    """A commit that breaks a rule says which, and makes nothing."""

    async def work() -> None:
        async with application(tmp_path) as app:
            answer = await app.client.post(NAME, json=body)
            assert (answer.status_code, words in answer.text) == (status, True), answer.text
            assert (await get(app, "/api/v1/artifacts/team/project"))["artifacts"] == []

    asyncio.run(work())


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b'{"entries":{},"version":2}',
        b'{"entries":{"../x":{"digest":"%s","size":0}},"version":1}' % manifest.EMPTY_DIGEST.encode(),
        b'{"version":1,"entries":{}}',
        b'{"entries":{"x":{"digest":"%s","size":7}},"version":1}' % manifest.EMPTY_DIGEST.encode(),
        b'{"entries":{"x":{"digest":"%s","size":1}},"version":1}' % (b"1" * 64),
    ],
)
def test_a_manifest_is_checked(tmp_path: Path, content: bytes) -> None:
    """A manifest that is none, names files outside, or blobs that are not there or of another size, is refused."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await put(app, b"")
            digest = await put(app, content)
            answer = await app.client.post(NAME, json={"type": "model", "manifest": digest})
            assert answer.status_code == 422, answer.text
            assert (await app.client.get(f"{NAME}/v0")).status_code == 404

    asyncio.run(work())


def test_a_blob_that_is_too_long_for_a_manifest_is_not_read(tmp_path: Path) -> None:
    """A manifest is read whole: a blob that cannot be one is refused by its size."""

    async def work() -> None:
        async with application(tmp_path) as app:
            digest = await put(app, b'{"entries":{},"version":1}')
            assert await read_whole(app.context.blobs, digest, bytes_most=26) == ({}, {})
            with pytest.raises(TooLarge, match="at most 25 bytes, got a blob of 26"):
                await read_whole(app.context.blobs, digest, bytes_most=25)

    asyncio.run(work())


def test_an_alias_moves_with_its_history(tmp_path: Path) -> None:
    """Moves are conditional where that is asked for; the history says from, to, who and why, the last first."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for content in (b"0", b"1"):
                await commit(app, content)
            at = f"{NAME}/aliases/production"
            moved = await app.client.put(at, json={"version": "v0", "expected": None, "reason": "first"})
            assert moved.json() == {"alias": "production", "version": "v0", "before": None}
            moved = await app.client.put(at, json={"version": "v1", "expected": "v0", "reason": "better"})
            assert moved.json()["before"] == "v0"
            late = await app.client.put(at, json={"version": "v0", "expected": "v0"})
            assert (late.status_code, "found v1" in late.text) == (409, True)
            assert "alias history" in late.json()["error"]["hint"]
            unknown = await app.client.put(at, json={"version": "v9"})
            assert (unknown.status_code, "artifact versions" in unknown.json()["error"]["hint"]) == (404, True)
            then = (await get(app, at))["history"]
            assert [(m["before"], m["version"], m["reason"]) for m in then] == [
                ("v0", "v1", "better"),
                (None, "v0", "first"),
            ]
            assert {m["user"] for m in then} == {"owner"}
            first = then[-1]["position"].rpartition(":")
            before = f"{first[0]}:{int(first[2]) + 1}"
            assert (await get(app, f"{NAME}/production", as_of=before))["version"] == "v0"
            assert (await get(app, f"{NAME}/production"))["version"] == "v1"
            assert (await app.client.put(at, json={"version": None})).json()["before"] == "v1"
            assert (await app.client.get(f"{NAME}/production")).status_code == 404

    asyncio.run(work())


def test_fifty_clients_lose_no_update(tmp_path: Path) -> None:
    """Of many that move an alias from one version at once, one gets through in each round."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for content in (b"0", b"1"):
                await commit(app, content)
            at = f"{NAME}/aliases/production"
            now: str | None = None
            for turn in range(4):
                to = f"v{turn % 2}"
                bodies = [{"version": to, "expected": now, "reason": str(n)} for n in range(50)]
                answers = await asyncio.gather(*(app.client.put(at, json=body) for body in bodies))
                assert sorted(answer.status_code for answer in answers) == [200] + [409] * 49
                now = to
            assert len((await get(app, at))["history"]) == 4

    asyncio.run(work())


def test_what_people_say_changes_and_is_filtered_by(tmp_path: Path) -> None:
    """Metadata, description and tags can be changed, and versions are found by them, newest first, page by page."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for n in range(5):
                await commit(app, b"%d" % n, metadata={"f1_score": n / 10, "net": {"depth": n}})
            patched = await app.client.patch(f"{NAME}/v0", json={"metadata": {"f1_score": 0.95}, "tags": ["x"]})
            assert patched.json()["metadata"] == {"f1_score": 0.95}

            async def found(filters: str, **query: Any) -> list[str]:
                page = await get(app, NAME, filters=filters, **query)
                return [version["version"] for version in page["versions"]]

            assert await found('{"metadata.f1_score": {"$gt": 0.25}}') == ["v4", "v3", "v0"]
            assert await found('{"metadata.net.depth": {"$in": [1, 4]}, "aliases": "latest"}') == ["v4"]
            assert await found('{"tags": "x"}') == ["v0"]
            assert await found('{"metadata.net.depth": {"$exists": false}}') == ["v0"]
            page = await get(app, NAME, limit=2)
            assert ([v["version"] for v in page["versions"]], page["cursor"]) == (["v4", "v3"], "v3")
            page = await get(app, NAME, limit=4, cursor="v3")
            assert ([v["version"] for v in page["versions"]], page["cursor"]) == (["v2", "v1", "v0"], None)
            for cursor in ("v3x", "xv3", "3"):
                assert (await app.client.get(NAME, params={"cursor": cursor})).status_code == 422
            bad = await app.client.get(NAME, params={"filters": '{"config.x": 1}'})
            assert (bad.status_code, "metadata" in bad.text) == (422, True)

    asyncio.run(work())


def test_a_deleted_version_is_gone_until_it_is_restored(tmp_path: Path) -> None:
    """It is found neither by number nor by alias; with an alias on it nothing is deleted unless asked for."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for content in (b"0", b"1"):
                await commit(app, content)
            await app.client.put(f"{NAME}/aliases/prod", json={"version": "v1"})
            assert (await app.client.delete(f"{NAME}/v1")).status_code == 409
            gone = await app.client.delete(f"{NAME}/prod", params={"with_aliases": True})
            assert (gone.status_code, gone.json()["state"]) == (200, "deleted")
            assert [(await app.client.get(f"{NAME}/{ref}")).status_code for ref in ("v1", "prod")] == [404, 404]
            said = [(await app.client.get(f"{NAME}/{ref}")).json()["error"]["hint"] for ref in ("v1", "v7")]
            assert "artifact restore" in said[0]
            assert said[1] == "its newest is v1, and its aliases are: latest"
            assert (await get(app, f"{NAME}/latest"))["version"] == "v0"
            back = await app.client.post(f"{NAME}/v1/restore")
            assert (back.json()["state"], back.json()["aliases"]) == ("committed", [])

    asyncio.run(work())


def test_the_next_version_of_many_files_is_checked_as_the_first_was(tmp_path: Path) -> None:
    """Of a thousand files one changes: a blob that lacks, a wrong size and a bad path are refused beside the others."""

    async def work() -> None:
        async with application(tmp_path) as app:
            one, other = await put(app, b"one"), await put(app, b"other")
            files = {f"f{number:04d}": Entry(one, 3) for number in range(1000)}

            async def log(changes: Mapping[str, Entry], *, checked: bool = False) -> Any:
                data = manifest.encode({**files, **changes}, checked=checked)
                body = {"type": "dataset", "manifest": await put(app, data)}
                return await app.client.post(NAME, json=body)

            assert (await log({})).json()["version"] == "v0"
            made = (await log({"f0500": Entry(other, 5), "more/": Entry(manifest.EMPTY_DIGEST, 0)})).json()
            assert made["error"]["missing"] == [manifest.EMPTY_DIGEST]
            made = (await log({"f0500": Entry(other, 5), "more": Entry(one, 3)})).json()
            assert (made["version"], made["files"], made["size"]) == ("v1", 1001, 3005)
            assert (await log({"f0500": Entry("0" * 64, 5)})).json()["error"]["missing"] == ["0" * 64]
            for refused in ({"f0500": Entry(other, 4)}, {"../x": Entry(one, 3)}, {"f0500/x": Entry(one, 3)}):
                assert (await log(refused, checked=True)).status_code == 422
            assert (await app.client.delete(f"{NAME}/v1")).status_code == 200
            assert (await log({"f0501": Entry(other, 5)})).json()["version"] == "v2"

    asyncio.run(work())
