"""Lineage over HTTP: walks, what is told of nodes, what is too much, impact, and what runs did."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from applications import Application, application
from icecore import manifest
from icecore.artifact_events import ArtifactCommitted, ArtifactUsed, BundlePart
from icecore.events import RunDeleted, RunStarted, now_ms
from icecore.manifest import Entry
from icecore.registry_events import ArtifactLinked

AT = "artifacts/team/project"


def committed(name: str, run: str = "", **fields: Any) -> ArtifactCommitted:
    """A version of an artifact of the project, of a content of its own."""
    digest = hashlib.sha256(f"{name} {run} {fields}".encode()).hexdigest()
    return ArtifactCommitted(
        artifact=f"team/project/{name}", type="model", digest=digest, files=1, size=7, run=_path(run), **fields
    )


def used(name: str, run: str, version: int = 0) -> ArtifactUsed:
    return ArtifactUsed(artifact=f"team/project/{name}", version=version, run=_path(run))


def started(run: str, **fields: Any) -> RunStarted:
    return RunStarted(run=_path(run), started_ts=now_ms(), **fields)


def _path(run: str) -> str:
    return f"team/project/{run}" if run else ""


async def chain(app: Application) -> None:
    """Raw data from a bucket, what `prepare` made of it, the net that `train` made of that, and an evaluation."""
    facts = {"git": {"commit": "c0ffee", "dirty": True}}
    await app.put(
        started("prepare", job_type="preprocess"),
        started("train", job_type="train", config={"lr": 0.1, "net": {"depth": 3}}, metadata=facts),
        started("test", job_type="eval"),
        committed("raw", references=["s3://bucket/raw/"]),
        used("raw", "prepare"),
        committed("clean", "prepare"),
        used("clean", "train"),
        committed("net", "train", aliases=["production"]),
        used("net", "test"),
    )


async def ids(app: Application, what: str, **query: Any) -> set[str]:
    graph = await app.get(f"{AT}/{what}/lineage", **query)
    return {node["id"].removeprefix("team/project/") for node in graph["nodes"]}


def test_lineage_goes_up_and_down(tmp_path: Path) -> None:
    """A version came from runs, versions and references, and was used by others: as deep as asked, as of any moment."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            above = {"net:v0", "train", "clean:v0", "prepare", "raw:v0"}
            assert await ids(app, "net/v0", direction="up", depth=4) == above
            assert await ids(app, "net/v0", direction="up") == above | {"s3://bucket/raw/"}
            assert await ids(app, "net/production", direction="up", depth=2) == {"net:v0", "train", "clean:v0"}
            assert await ids(app, "net/v0", direction="down") == {"net:v0", "test"}
            assert await ids(app, "raw/v0", direction="down", depth=1) == {"raw:v0", "prepare"}
            graph = await app.get(f"{AT}/clean/v0/lineage", depth=1)
            assert [(e["from"], e["to"], e["kind"]) for e in graph["edges"]] == [
                ("team/project/clean:v0", "team/project/train", "used"),
                ("team/project/prepare", "team/project/clean:v0", "logged"),
            ]
            end = await app.put(used("clean", "test"))
            before = f"ledger:0:{max(end.as_dict().values()) - 1}"
            assert "test" in await ids(app, "clean/v0", depth=1)
            assert "test" not in await ids(app, "clean/v0", depth=1, as_of=before)

    asyncio.run(work())


def test_nodes_say_what_made_them(tmp_path: Path) -> None:
    """A run's job type, user, commit, code state and config, and a version's type, aliases and size, now and then."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            now = await app.get(f"{AT}/net/v0/lineage", depth=1)
            position = str(app.store.token())
            await app.put(committed("net", "train", metadata={"n": 2}, aliases=["production"]))
            then = await app.get(f"{AT}/net/v0/lineage", depth=1, as_of=position)
            nodes = {node["id"]: node for node in now["nodes"]}
            run, version = nodes["team/project/train"], nodes["team/project/net:v0"]

            assert (run["job_type"], run["user"], run["commit"], run["dirty"]) == ("train", "owner", "c0ffee", True)
            assert (run["config"], run["state"], run["distance"]) == ({"lr": 0.1, "net.depth": 3}, "running", 1)
            assert (version["kind"], version["type"], version["size"]) == ("version", "model", 7)
            assert version["aliases"] == ["latest", "production"]
            assert {node["id"]: node for node in then["nodes"]} == nodes
            later = await app.get(f"{AT}/net/v0/lineage", depth=1)
            assert next(n for n in later["nodes"] if n["kind"] == "version")["aliases"] == []

    asyncio.run(work())


def test_a_hub_leaves_room_and_says_what_is_hidden(tmp_path: Path) -> None:
    """Where there are more nodes than asked for, every level keeps some, and those that are left out are counted."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            await app.put(*(used("clean", f"sweep-{n}") for n in range(50)))
            graph = await app.get(f"{AT}/clean/v0/lineage", direction="down", depth=5, limit=12)
            found = {node["id"] for node in graph["nodes"]}

            assert graph["truncated"] is True
            assert len(found) <= 12
            assert {"team/project/train", "team/project/net:v0", "team/project/test"} <= found
            (hidden,) = graph["hidden"]
            runs = sum(one["kind"] == "used" and one["from"].endswith("clean:v0") for one in graph["edges"])
            assert hidden == {"node": "team/project/clean:v0", "direction": "down", "count": 51 - runs}
            whole = await app.get(f"{AT}/clean/v0/lineage", direction="down", depth=5)
            assert (len(whole["nodes"]), whole["truncated"], whole["hidden"]) == (54, False, [])

    asyncio.run(work())


def test_edges_that_come_later_are_seen(tmp_path: Path) -> None:
    """What is in memory keeps up with the log, edge by edge."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            for number in range(5):
                name = f"late-{number}"
                await app.put(used("raw", name), committed(f"from-{number}", name))
                found = await ids(app, "raw/v0", direction="down", depth=2)
                assert {f"from-{n}:v0" for n in range(number + 1)} <= found

    asyncio.run(work())


def test_a_run_that_uses_what_it_logged_is_walked_through_both_ways(tmp_path: Path) -> None:
    """A circle ends no walk early, and does not go on for ever."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await app.put(committed("a", "loop"), used("a", "loop"), committed("b", "loop"), used("b", "next"))
            assert await ids(app, "a/v0", depth=50) == {"a:v0", "loop", "b:v0", "next"}

    asyncio.run(work())


def test_bundles_and_links_are_in_the_lineage(tmp_path: Path) -> None:
    """A bundle is one node made of its parts, what is linked into a registry came of it; and both the other way."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            net, clean = [await app.get(f"{AT}/{name}/v0") for name in ("net", "clean")]
            parts = [
                BundlePart(part["name"], part["path"], 0, part["digest"]) for part in (net, clean)
            ]  # fmt: skip
            linked = ArtifactLinked(
                artifact="registry/model/best", source=net["path"], source_version=0, digest=net["digest"]
            )
            await app.put(committed("both", parts=parts), linked, used("both", "serve"))
            graph = await app.get(f"{AT}/both/v0/lineage", direction="up", depth=1)
            below = await app.get(f"{AT}/net/v0/lineage", direction="down", depth=2)

            assert {node["id"]: node["kind"] for node in graph["nodes"]} == {
                "team/project/both:v0": "bundle",
                "team/project/net:v0": "version",
                "team/project/clean:v0": "version",
            }
            assert {edge["kind"] for edge in graph["edges"]} == {"part"}
            assert {node["id"].removeprefix("team/project/") for node in below["nodes"]} == {
                "net:v0", "test", "both:v0", "serve", "registry/model/best:v0",
            }  # fmt: skip
            above = await app.get("artifacts/registry/model/best/v0/lineage", direction="up", depth=1)
            assert [(e["from"], e["kind"]) for e in above["edges"]] == [("team/project/net:v0", "linked")]
            hurt = await app.get(f"{AT}/raw/v0/impact")
            assert hurt["versions_count"] == 4

    asyncio.run(work())


def test_impact_is_everything_below(tmp_path: Path) -> None:
    """Versions and runs downstream, the aliases that serve them, and whom to tell; a deleted run still counts."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            await app.put(RunDeleted(run="team/project/test"))
            found = await app.get(f"{AT}/raw/v0/impact")

            assert (found["start"], found["versions_count"], found["runs_count"]) == ("team/project/raw:v0", 2, 3)
            assert [version["id"].split("/")[2] for version in found["versions"]] == ["clean:v0", "net:v0"]
            assert [run["id"].split("/")[2] for run in found["runs"]] == ["prepare", "train", "test"]
            assert found["served_by"] == [
                {"alias": "production", "version": "team/project/net:v0", "type": "model", "distance": 4}
            ]
            assert found["tell"] == [{"user": "owner", "runs": 3, "versions": 2}]
            assert found["truncated"] is False
            own = await app.get(f"{AT}/net/v0/impact")
            assert [one["alias"] for one in own["served_by"]] == ["production"]

    asyncio.run(work())


def test_a_run_says_what_it_logged_and_used(tmp_path: Path) -> None:
    """Each version once, in order, without deleted ones; a run that did nothing has none."""

    async def work() -> None:
        async with application(tmp_path) as app:
            await chain(app)
            await app.put(used("raw", "train"), used("clean", "train"), committed("log", "train"))
            assert (await app.client.delete(f"/api/v1/{AT}/log/v0")).status_code == 200
            found = await app.get("runs/team/project/train/artifacts")
            nothing = await app.get("runs/team/project/nobody/artifacts")

            assert [version["name"] for version in found["logged"]] == ["net"]
            assert [version["name"] for version in found["used"]] == ["clean", "raw"]
            assert nothing == {"logged": [], "used": []}

    asyncio.run(work())


def test_references_are_noted_without_secrets(tmp_path: Path) -> None:
    """A committed manifest's URIs are nodes of its lineage: no users, no signatures, folders where there are many."""

    async def work() -> None:
        async with application(tmp_path) as app:
            many = {f"f{n}": Entry("", None, f"s3://bucket/a/b{n % 3}/f{n}?X-Amz-Signature=x") for n in range(200)}
            few = {"x": Entry("", None, "https://ann:secret@host/x.csv?token=t#f"), "y": Entry("", 1, "file:///d/y")}
            for name, entries in (("many", many), ("few", few)):
                data = manifest.encode(entries)
                digest = hashlib.sha256(data).hexdigest()
                assert (await app.client.put(f"/api/v1/blobs/{digest}", content=data)).status_code == 200
                answer = await app.client.post(f"/api/v1/{AT}/{name}", json={"type": "data", "manifest": digest})
                assert answer.status_code == 200, answer.text

            assert await ids(app, "few/v0") == {"few:v0", "https://host/x.csv", "file:///d/y"}
            assert await ids(app, "many/v0") == {"many:v0", *(f"s3://bucket/a/b{n}/" for n in range(3))}

    asyncio.run(work())
