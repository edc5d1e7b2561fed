"""Registries over HTTP: collections, links, promotions, bundles and versions of several writers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from applications import PROJECT, Application, application, logged, started
from icecore import manifest
from icecore.manifest import Entry, decode_whole
from icecore_api.manifests import read_manifest
from icecore_api.retention.planning import _PARTS
from icecore_ingest.identity import new_key

NET: Final = f"{PROJECT}/net"
CHURN: Final = "registry/model/churn"
API: Final = "/api/v1"


async def ask(app: Application, method: str, path: str, body: Any = None, *, status: int = 200, **query: Any) -> Any:
    """The JSON of an answer of that status."""
    answer = await app.client.request(method, f"{API}/{path}", json=body, params=query)
    assert answer.status_code == status, answer.text
    return answer.json()


async def put(app: Application, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    assert (await app.client.put(f"{API}/blobs/{digest}", content=content)).status_code == 200
    return digest


async def manifest_of(app: Application, files: Mapping[str, bytes]) -> str:
    entries = {path: Entry(await put(app, content), len(content)) for path, content in files.items()}
    return await put(app, manifest.encode(entries))


async def commit(app: Application, files: Mapping[str, bytes], path: str = NET, **fields: Any) -> Any:
    body = {"type": "model", "manifest": await manifest_of(app, files), **fields}
    return await ask(app, "POST", f"artifacts/{path}", body)


async def second(app: Application) -> httpx.AsyncClient:
    """A client with another key of the same server."""
    secret, key = new_key("owner")
    token = await app.put(key)
    assert await app.context.identities.wait_for(max(token.as_dict().values()), 10)
    transport = httpx.ASGITransport(app.app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


def test_a_link_is_resolved_and_keeps_its_source(tmp_path: Path) -> None:
    """A version linked under an alias is found there with the source's files; the source cannot be deleted."""

    async def work() -> None:
        async with application(tmp_path) as app:
            made = await commit(app, {"m": b"1"}, metadata={"f1": 0.9}, aliases=["best"])
            linked = await ask(
                app, "POST", f"registry/{CHURN}/links", {"source": f"{NET}:best", "aliases": ["production"]}
            )
            assert (linked["path"], linked["version"], linked["digest"]) == (CHURN, "v0", made["digest"])
            assert (linked["sources"], linked["metadata"]) == ([f"{NET}:v0"], {"f1": 0.9})
            assert await ask(app, "GET", f"artifacts/{CHURN}/production") == linked
            refused = await ask(app, "DELETE", f"artifacts/{NET}/v0", with_aliases=True, status=409)
            assert CHURN in refused["error"]["message"]
            await ask(app, "DELETE", f"registry/{CHURN}/links", source=f"{NET}:v0", status=409)
            gone = await ask(app, "DELETE", f"registry/{CHURN}/links", source=f"{NET}:v0", with_aliases=True)
            assert gone["state"] == "deleted"
            await ask(app, "DELETE", f"artifacts/{NET}/v0", with_aliases=True)
            await ask(app, "POST", f"registry/{CHURN}/links", {"source": f"{NET}:v0"}, status=404)
            await ask(app, "POST", f"registry/{CHURN}/links", {"source": f"{NET}:v0:v0"}, status=422)
            await ask(app, "POST", f"registry/{CHURN}/links", {"source": "net"}, status=422)

    asyncio.run(work())


def test_a_collection_says_what_it_asks_and_renders_its_card(tmp_path: Path) -> None:
    """Settings stay where they are left out; a version without required metadata is refused, saying which."""

    async def work() -> None:
        async with application(tmp_path) as app:
            none = await ask(app, "PATCH", f"registry/{CHURN}", {"owner": "ann"}, status=404)
            assert "--type" in none["error"]["hint"]
            body = {
                "type": "model", "required": ["f1"], "stages": ["staging", "production"], "tags": ["x"],
                "template": "# {name} {version}\nF1 {metadata.f1}, by {owner}; {metadata.data.source} {nothing}",
            }  # fmt: skip
            await ask(app, "PATCH", f"registry/{CHURN}", body)
            told = await ask(app, "PATCH", f"registry/{CHURN}", {"owner": "ann", "description": "d"})
            assert (told["owner"], told["description"], told["required"], told["card"]) == ("ann", "d", ["f1"], None)
            await commit(app, {"m": b"1"})
            refused = await ask(app, "POST", f"registry/{CHURN}/links", {"source": f"{NET}:v0"}, status=409)
            assert "f1" in refused["error"]["message"]
            await ask(app, "PATCH", f"artifacts/{NET}/v0", {"metadata": {"f1": 0.9}})
            await ask(app, "POST", f"registry/{CHURN}/links", {"source": f"{NET}:v0", "aliases": ["best"]}, status=409)
            await ask(app, "POST", f"registry/{CHURN}/links", {"source": f"{NET}:v0", "aliases": ["staging"]})
            shown = await ask(app, "GET", f"registry/{CHURN}", ref="staging")
            assert shown["card"] == "# churn v0\nF1 0.9, by ann; — —"
            assert [one["path"] for one in (await ask(app, "GET", "registry"))["collections"]] == [CHURN]
            for bad in ({"checks": {"production": ["nonsense"]}}, {"stages": ["v3"]}, {"stages": ["a/b"]}):
                await ask(app, "PATCH", f"registry/{CHURN}", bad, status=422)

    asyncio.run(work())


def test_checks_that_are_set_at_once_are_all_kept(tmp_path: Path) -> None:
    """Each names its alias; those of other aliases stay, an empty list takes them away, and `checks` is all of them."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await ask(app, "PATCH", f"registry/{CHURN}", {"type": "model"})
            both = [{"checks_of": {alias: ["metadata.f1 >= 0.5"]}} for alias in ("staging", "production", "canary")]
            await asyncio.gather(*(ask(app, "PATCH", f"registry/{CHURN}", body) for body in both))
            told = await ask(app, "PATCH", f"registry/{CHURN}", {"checks_of": {"canary": [], "staging": ["approved"]}})
            assert list(told["checks"]) == ["production", "staging"]
            assert "approved" in told["checks"]["staging"][0]
            assert (await ask(app, "PATCH", f"registry/{CHURN}", {"checks": {}}))["checks"] == {}
            many = {"checks_of": {f"a{n}": ["approved"] for n in range(101)}}
            await ask(app, "PATCH", f"registry/{CHURN}", many, status=422)
            most = {"checks_of": {f"a{n}": ["approved"] for n in range(100)}}
            assert len((await ask(app, "PATCH", f"registry/{CHURN}", most))["checks"]) == 100
            await ask(app, "PATCH", f"registry/{CHURN}", {"checks_of": {"b": ["approved"]}}, status=409)
            await ask(app, "PATCH", f"registry/{CHURN}", {"checks_of": {"a0": [], "b": ["approved"]}})

    asyncio.run(work())


def test_a_promotion_waits_for_another_credential(tmp_path: Path) -> None:
    """Checks are judged by metadata and by what evaluating runs say; then another key approves, and history says so."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await commit(app, {"m": b"1"}, metadata={"f1": 0.9})
            checks = ["metadata.f1 >= 0.85", "evaluated by eval with acc > 0.5", "approved"]
            await ask(app, "PATCH", f"registry/{NET}", {"checks": {"production": checks}})
            wish = {"version": "latest", "to": "production", "reason": "good"}
            refused = await ask(app, "POST", f"registry/{NET}/promotions", wish, status=409)
            assert "no run with job_type eval" in refused["error"]["message"]
            await app.put(started("e1", job_type="eval"), logged("e1", {"acc": [0.4, 0.7]}))
            await ask(app, "POST", f"artifacts/{NET}/v0/uses", {"run": f"{PROJECT}/e1"})
            dry = await ask(app, "POST", f"registry/{NET}/promotions", {**wish, "dry_run": True})
            assert [(one["ok"], one["found"]) for one in dry["checks"]] == [
                (True, "0.9"), (True, f"0.7 in {PROJECT}/e1"), (False, "no approval yet"),
            ]  # fmt: skip
            assert (dry["outcome"], dry["promotion"]) == ("waits", None)
            assert (await ask(app, "GET", "promotions"))["promotions"] == []

            await ask(app, "PUT", f"artifacts/{NET}/aliases/production", {"version": "v0"}, status=409)
            asked = await ask(app, "POST", f"registry/{NET}/promotions", wish)
            assert asked["outcome"] == "waits"
            name = asked["promotion"]["promotion"]
            twice = await ask(app, "POST", f"registry/{NET}/promotions", wish, status=409)
            assert f"promotion {name} by owner" in twice["error"]["message"]
            dry = await ask(app, "POST", f"registry/{NET}/promotions", {**wish, "dry_run": True})
            assert (dry["outcome"], dry["checks"][-1]["found"]) == ("refused", f"promotion {name} by owner")
            await ask(app, "POST", f"promotions/{name}/approve", {}, status=409)
            async with await second(app) as other:
                answer = await other.post(f"{API}/promotions/{name}/approve", json={"reason": "seen"})
            assert answer.status_code == 200, answer.text
            assert [step["step"] for step in answer.json()["steps"]] == ["requested", "approved", "applied"]
            assert (await ask(app, "GET", f"artifacts/{NET}/production"))["version"] == "v0"
            (move,) = (await ask(app, "GET", f"artifacts/{NET}/aliases/production"))["history"]
            assert move["reason"] == f"good; promotion {name}; asked by owner; approved by owner"
            await ask(app, "POST", f"promotions/{name}/reject", {}, status=409)
            await ask(app, "POST", "promotions/none/reject", {}, status=404)

    asyncio.run(work())


def test_aliases_are_limited(tmp_path: Path) -> None:
    """A commit, a link or a bundle that gives more aliases than the limit is 422 and names it; nothing is made."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await commit(app, {"m": b"1"}, aliases=[f"a{n}" for n in range(100)])
            many = [f"a{n}" for n in range(101)]
            body = {"type": "model", "manifest": await manifest_of(app, {"m": b"2"}), "aliases": many}
            for path, more in (
                (f"artifacts/{NET}", body),
                (f"registry/{CHURN}/links", {"source": f"{NET}:v0", "aliases": many}),
                (f"bundles/{PROJECT}/b", {"type": "bundle", "parts": {"m": f"{NET}:v0"}, "aliases": many}),
                (f"parts/{PROJECT}/big/x/finish", {"type": "dataset", "aliases": many}),
            ):
                refused = (await ask(app, "POST", path, more, status=422))["error"]
                assert (refused["limit"], refused["most"], refused["value"]) == ("aliases", 100, 101)

    asyncio.run(work())


def test_a_promotion_is_rolled_back(tmp_path: Path) -> None:
    """The alias names what it named before, the promotion says so, and a second roll back finds none."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for n in range(2):
                await commit(app, {"m": b"%d" % n})
                done = await ask(app, "POST", f"registry/{NET}/promotions", {"version": f"v{n}", "to": "production"})
                assert done["outcome"] == "applied"
            back = await ask(app, "POST", f"registry/{NET}/rollback", {"to": "production", "reason": "bad"})
            assert back == {"alias": "production", "version": "v0", "before": "v1"}
            states = [one["state"] for one in (await ask(app, "GET", f"registry/{NET}/promotions"))["promotions"]]
            assert states == ["rolled_back", "applied"]
            await ask(app, "POST", f"registry/{NET}/rollback", {"to": "production"}, status=409)
            await ask(app, "POST", f"registry/{NET}/rollback", {"to": "other"}, status=404)

    asyncio.run(work())


def test_a_bundle_is_one_version_of_others(tmp_path: Path) -> None:
    """Its manifest has its parts' files in folders and names what it pins; no blob but the manifest is new."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await commit(app, {"a.png": b"1", "deep/b.png": b"2"}, "other/vision/imgs", type="dataset", aliases=["x"])
            await commit(app, {"m": b"3"})
            await commit(app, {}, f"{PROJECT}/none", type="dataset")
            parts = {"images": "other/vision/imgs:x", "model": f"{NET}:v0", "none": f"{PROJECT}/none:latest"}
            body = {"type": "bundle", "parts": parts, "aliases": ["prod"]}
            made = await ask(app, "POST", f"bundles/{PROJECT}/vqa", body)
            assert (made["version"], made["files"], made["size"]) == ("v0", 3, 3)
            pins = {"images": "other/vision/imgs:v0", "model": f"{NET}:v0", "none": f"{PROJECT}/none:v0"}
            assert made["parts"] == pins
            assert (await ask(app, "POST", f"bundles/{PROJECT}/vqa", body))["version"] == "v0"
            entries, pinned = decode_whole(await app.context.blobs.read(made["digest"]))
            assert sorted(entries) == ["images/a.png", "images/deep/b.png", "model/m", "none/"]
            assert {key: f"{pin.artifact}:v{pin.version}" for key, pin in pinned.items()} == pins
            kept = await ask(app, "DELETE", f"artifacts/{NET}/v0", status=409)
            assert f"{PROJECT}/vqa:v0" in kept["error"]["message"]
            await ask(app, "DELETE", f"artifacts/{PROJECT}/vqa/v0", with_aliases=True)
            await ask(app, "DELETE", f"artifacts/{NET}/v0")
            refused = await ask(
                app, "POST", f"bundles/{PROJECT}/vqa", {**body, "parts": {"m": f"{NET}:v0"}}, status=409
            )
            assert f"{NET}:v0 is deleted" in refused["error"]["message"]
            for key in ("a/b", "..", "con", ""):
                await ask(app, "POST", f"bundles/{PROJECT}/vqa", {"type": "t", "parts": {key: f"{NET}:v0"}}, status=422)
            own = {"type": "bundle", "parts": {"x": f"{PROJECT}/vqa:v0"}}
            await ask(app, "POST", f"bundles/{PROJECT}/vqa", own, status=422)

    asyncio.run(work())


def test_a_manifest_that_claims_parts_is_checked(tmp_path: Path) -> None:
    """A commit by hand cannot pass off a manifest with parts as a plain version, nor one with files beside them."""

    async def work() -> None:
        async with application(tmp_path) as app:
            entry = Entry(await put(app, b"1"), 1)
            pin = manifest.Pinned(NET, 0, "0" * 64)
            inside = await put(app, manifest.encode({"a/x": entry}, {"a": pin}))
            beside = await put(app, manifest.encode({"x": entry}, {"a": pin}))
            for digest in (inside, beside):
                await ask(app, "POST", f"artifacts/{NET}", {"type": "model", "manifest": digest}, status=422)

    asyncio.run(work())


def test_several_writers_make_one_version(tmp_path: Path) -> None:
    """Their files are merged when one finishes; a part sent twice counts once; finishing again gives the same."""

    async def work() -> None:
        async with application(tmp_path) as app:
            at, words = f"parts/{PROJECT}/big/epoch", {"type": "dataset", "aliases": ["done"]}
            await ask(app, "POST", f"{at}/finish", words, status=404)
            for n in (0, 1, 1, 2):
                part = {"manifest": await manifest_of(app, {f"{n}.bin": b"%d" % n}), "run": f"{PROJECT}/r{n}"}
                noted = await ask(app, "POST", at, part)
            assert noted["parts"] == 3
            made = await ask(app, "POST", f"{at}/finish", words)
            assert (made["version"], made["files"], made["aliases"]) == ("v0", 3, ["done", "latest"])
            assert await ask(app, "POST", f"{at}/finish", words) == made
            again = {"manifest": await manifest_of(app, {"0.bin": b"new"})}
            await ask(app, "POST", at, again)
            assert (await ask(app, "POST", f"{at}/finish", words))["version"] == "v1"

    asyncio.run(work())


def test_two_writers_of_one_path_are_a_conflict(tmp_path: Path) -> None:
    """Other bytes at one path are refused, naming both writers, until one of the parts is taken back."""

    async def work() -> None:
        async with application(tmp_path) as app:
            at = f"parts/{PROJECT}/big/x"
            for n in (0, 1):
                part = {"manifest": await manifest_of(app, {"same.bin": b"%d" % n}), "run": f"{PROJECT}/r{n}"}
                await ask(app, "POST", at, part)
            refused = await ask(app, "POST", f"{at}/finish", {"type": "dataset"}, status=409)
            assert all(f"{PROJECT}/r{n}" in refused["error"]["message"] for n in (0, 1))
            await ask(app, "GET", f"artifacts/{PROJECT}/big/latest", status=404)
            listed = await ask(app, "GET", at)
            assert [part["run"] for part in listed["parts"]] == [f"{PROJECT}/r0", f"{PROJECT}/r1"]
            wrong, kept = (part["manifest"] for part in listed["parts"])
            left = await ask(app, "DELETE", at, part=wrong, reason="an old run")
            assert (left["manifest"], left["parts"]) == (wrong, 1)
            await ask(app, "DELETE", at, part=wrong, status=404)
            with app.store.reading() as con:
                unfinished = con.execute(_PARTS, {"since": 0}).fetchall()
            assert unfinished == [(kept,)]
            await ask(app, "POST", at, {"manifest": wrong})
            await ask(app, "DELETE", at, part=wrong)
            made = await ask(app, "POST", f"{at}/finish", {"type": "dataset"})
            assert list(await read_manifest(app.context.blobs, made["digest"])) == ["same.bin"]
            assert (await ask(app, "GET", at))["parts"] == []
            await ask(app, "DELETE", at, part=kept, status=404)
            bad = {"manifest": "0" * 64}
            await ask(app, "POST", at, bad, status=422)

    asyncio.run(work())


def test_a_part_is_taken_back_or_in_the_version(tmp_path: Path) -> None:
    """Of a withdrawal and an end at once one is first: a part that was taken back is in no version."""

    async def work() -> None:
        async with application(tmp_path) as app:
            for turn in range(4):
                draft = f"parts/{NET}/{turn}"
                parts = [await manifest_of(app, {f"{turn}-{n}": b"%d %d" % (turn, n)}) for n in range(2)]
                for part in parts:
                    await ask(app, "POST", draft, {"manifest": part})
                ended, taken = await asyncio.gather(
                    app.client.post(f"{API}/{draft}/finish", json={"type": "model"}),
                    app.client.delete(f"{API}/{draft}", params={"part": parts[0]}),
                )
                assert (ended.status_code, ended.json()["files"], taken.status_code) in ((200, 2, 404), (200, 1, 200))

    asyncio.run(work())
