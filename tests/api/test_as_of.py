"""Listings, runs, series and groups as they were."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from applications import PROJECT, Application, application, logged, started
from icecore.errors import BadRequest, Invalid
from icecore.events import Envelope, RunDeleted, RunFinished, RunHeartbeat, RunSummarised, RunUpdated, uuid7
from icecore.log import Record
from icecore.position import LEDGER, METRICS, Place
from icecore.testing.memory_log import MemoryLog
from icecore_api.queries.as_of import moment_of

NOON = 1_780_000_000_000
MINUTE = 60_000


def play(folder: Path, story: Callable[[Application], Awaitable[None]]) -> None:
    """Run a story against an application of its own."""

    async def main() -> None:
        async with application(folder) as made:
            await story(made)

    asyncio.run(main())


async def early(made: Application) -> str:
    """Two runs that have logged; the position then."""
    await made.put(
        started("r1", name="before", tags=["a"], config={"lr": 0.1, "flag": True}),
        started("r2", name="other", config={"lr": 0.5}),
        logged("r1", {"loss": [3.0, 1.0, 2.0]}, text={"note": ["x", "y", "z"]}),
        logged("r2", {"loss": [9.0]}),
        RunUpdated(run=f"{PROJECT}/r1", metrics={"loss": {"summary": "min"}}),
        RunSummarised(run=f"{PROJECT}/r1", set={"best": 7}),
        ts=NOON,
    )
    return str(made.store.token())


async def later(made: Application) -> None:
    """Everything changes."""
    await made.put(
        RunUpdated(run=f"{PROJECT}/r1", name="after", tags=["b"], config={"lr": 0.9}),
        RunSummarised(run=f"{PROJECT}/r1", set={"best": 8}),
        logged("r1", {"loss": [0.5], "new": [1.0]}, step=[10], ts=[NOON + 5], text={"note": ["late"]}),
        RunFinished(run=f"{PROJECT}/r1", state="finished", exit_code=0, finished_ts=NOON, runtime_ms=1500),
        started("r3", config={"lr": 0.1}),
        RunDeleted(run=f"{PROJECT}/r2"),
        ts=NOON + 10 * MINUTE,
    )


def test_a_run_is_shown_as_it_was(tmp_path: Path) -> None:
    """At an earlier position a run has the fields, the summary and the points it had, whatever came since."""

    async def story(made: Application) -> None:
        position = await early(made)
        before = {name: await made.get(f"runs/{PROJECT}/{name}") for name in ("r1", "r2")}
        await later(made)

        then = await made.get(f"runs/{PROJECT}/r1", as_of=position)
        now = await made.get(f"runs/{PROJECT}/r1")
        gone = await made.client.get(f"/api/v1/runs/{PROJECT}/r2")

        fields = ("name", "tags", "config", "exit_code", "points", "last_step", "finished_at", "metrics")
        assert {name: then[name] for name in fields} == {name: before["r1"][name] for name in fields}
        clocks = ("_timestamp", "_runtime")
        assert {k: v for k, v in then["summary"].items() if k not in clocks} == {
            "loss": 1.0, "note": "z", "best": 7, "_step": 2,
        }  # fmt: skip
        assert then["state"] == "running"
        assert (now["name"], now["summary"]["loss"], now["summary"]["best"]) == ("after", 0.5, 8)
        assert gone.status_code == 404
        assert (await made.get(f"runs/{PROJECT}/r2", as_of=position))["summary"]["loss"] == 9.0
        missing = await made.client.get(f"/api/v1/runs/{PROJECT}/r3", params={"as_of": position})
        assert missing.status_code == 404

    play(tmp_path, story)


def test_a_listing_is_found_and_ordered_as_it_was(tmp_path: Path) -> None:
    """Filters, orders, counts, facets and pages of an earlier position are over the values of then."""

    async def story(made: Application) -> None:
        position = await early(made)
        await later(made)

        async def ids(**query: Any) -> list[str]:
            answer = await made.get(f"runs/{PROJECT}", as_of=position, **query)
            assert answer["count"] == len(answer["runs"])
            return [run["id"] for run in answer["runs"]]

        assert await ids(order="name") == ["r1", "r2"]
        assert await made.names(order="name,id") == ["r3", "r1"]
        assert await ids(filters=json.dumps({"config.lr": 0.1})) == ["r1"]
        assert await ids(filters=json.dumps({"config.lr": 0.9})) == []
        assert await ids(filters=json.dumps({"config.flag": True, "tags": {"$in": ["a", "z"]}})) == ["r1"]
        assert await ids(order="-summary_metrics.loss") == ["r2", "r1"]
        assert await ids(filters=json.dumps({"summary_metrics.loss": 1.0})) == ["r1"]
        assert await ids(filters=json.dumps({"summary_metrics.best": 7})) == ["r1"]
        assert await ids(filters=json.dumps({"summary_metrics.new": {"$exists": True}})) == []
        assert await ids(filters=json.dumps({"state": "running"}), order="name") == ["r1", "r2"]
        page = await made.get(f"runs/{PROJECT}", as_of=position, order="name", limit=1, facets="tags")
        assert [run["id"] for run in page["runs"]] == ["r1"]
        assert {each["value"] for each in page["facets"]["tags"]} >= {"a"}
        rest = await made.get(f"runs/{PROJECT}", as_of=position, order="name", limit=1, cursor=page["cursor"])
        assert [run["id"] for run in rest["runs"]] == ["r2"]
        stolen = await made.client.get(f"/api/v1/runs/{PROJECT}", params={"order": "name", "cursor": page["cursor"]})
        assert stolen.status_code == 422

    play(tmp_path, story)


def test_a_time_is_everything_accepted_until_then(tmp_path: Path) -> None:
    """A time answers as the position of the last records accepted at or before it; silence is counted to that time."""

    async def story(made: Application) -> None:
        await early(made)
        await made.put(RunHeartbeat(run=f"{PROJECT}/r2"), ts=NOON + MINUTE)
        await later(made)

        def iso(ms: int) -> str:
            return datetime.fromtimestamp(ms / 1000, UTC).isoformat()

        for moment in (iso(NOON + 2 * MINUTE), str((NOON + 2 * MINUTE) / 1000), str(NOON + 2 * MINUTE)):
            then = await made.get(f"runs/{PROJECT}/r1", as_of=moment)
            assert (then["name"], then["state"], then["summary"]["loss"]) == ("before", "running", 1.0)
        crashed = await made.get(f"runs/{PROJECT}/r1", as_of=iso(NOON + 9 * MINUTE))
        assert (crashed["name"], crashed["state"]) == ("before", "crashed")
        assert (await made.get(f"runs/{PROJECT}/r1", as_of=iso(NOON + 10 * MINUTE)))["name"] == "after"
        assert (await made.get(f"runs/{PROJECT}", as_of=iso(NOON - 1)))["count"] == 0

    play(tmp_path, story)


def test_charts_and_histories_take_a_time(tmp_path: Path) -> None:
    """Series, groups, the runs a filter finds for them, and histories are of the moment asked for."""

    async def story(made: Application) -> None:
        await early(made)
        await later(made)
        at = datetime.fromtimestamp(NOON / 1000, UTC).isoformat()

        async def series(**body: Any) -> Any:
            answer = await made.client.post("/api/v1/series", json={"keys": ["loss"], "as_of": at, **body})
            assert answer.status_code == 200, answer.text
            return answer.json()["series"]

        one = await series(runs=[f"{PROJECT}/r1"])
        assert one[0]["last"] == [3.0, 1.0, 2.0]
        found = await series(path=PROJECT, filters={"config.lr": 0.1})
        assert [line["run"] for line in found] == [f"{PROJECT}/r1"]
        groups = await series(runs=[f"{PROJECT}/r1", f"{PROJECT}/r2"], group_by="summary.loss")
        assert [band["group"] for band in groups] == [1.0, 9.0]
        by_config = await series(path=PROJECT, group_by="config.lr")
        assert [band["group"] for band in by_config] == [0.1, 0.5]
        rows = await made.get(f"runs/{PROJECT}/r1/history", as_of=at, keys="loss")
        assert [row["loss"] for row in rows["rows"]] == [3.0, 1.0, 2.0]

    play(tmp_path, story)


def test_a_group_is_the_value_the_run_shows(tmp_path: Path) -> None:
    """Grouping by a summary value takes the one that the run's detail shows: by hand, else by define_metric."""

    async def story(made: Application) -> None:
        for name, rule in (("low", "min"), ("high", "max"), ("mean", "mean"), ("last", ""), ("both", "min,max")):
            await made.put(started(name), logged(name, {"loss": [4.0, 1.0, 8.0, 3.0]}))
            if rule:
                await made.put(RunUpdated(run=f"{PROJECT}/{name}", metrics={"loss": {"summary": rule}}))
        await made.put(started("hand"), logged("hand", {"loss": [5.0]}))
        await made.put(RunSummarised(run=f"{PROJECT}/hand", set={"loss": 77}))
        await made.put(started("none"), logged("none", {"loss": [6.0]}))
        await made.put(RunUpdated(run=f"{PROJECT}/none", metrics={"loss": {"summary": "none"}}))

        for name in ("low", "high", "mean", "last", "both", "hand", "none"):
            run = f"{PROJECT}/{name}"
            body = {"runs": [run], "keys": ["loss"], "group_by": "summary.loss"}
            answer = (await made.client.post("/api/v1/series", json=body)).json()
            shown = (await made.get(f"runs/{run}"))["summary"].get("loss")
            assert [band["group"] for band in answer["series"]] == [shown], name

    play(tmp_path, story)


def test_a_run_that_logged_nothing_has_no_step(tmp_path: Path) -> None:
    """The summary of a run without history names no `_step`."""

    async def story(made: Application) -> None:
        await made.put(started("quiet"))

        run = await made.get(f"runs/{PROJECT}/quiet")

        assert set(run["summary"]) == {"_timestamp", "_runtime"}
        assert run["last_step"] is None

    play(tmp_path, story)


@pytest.mark.parametrize("text", ["99999999999999999999", "2026-13-01", "1e400", "20", "2026-03-03T25:00:00Z"])
def test_a_bad_time_is_refused(tmp_path: Path, text: str) -> None:
    """What begins like a time and is none is the caller's error; a time before everything is a position of nothing."""

    async def story() -> None:
        log = MemoryLog()
        if text == "20":
            assert (await moment_of(log, text)).token.as_dict() == {}
            return
        with pytest.raises(Invalid, match="as_of"):
            await moment_of(log, text)

    asyncio.run(story())


def test_a_time_is_a_position_in_every_partition() -> None:
    """Each partition's bound is after its own last record accepted at or before the time."""

    async def story() -> None:
        log = MemoryLog({LEDGER: 1, METRICS: 3})
        expected: dict[Place, int] = {}
        for minute in range(40):
            event = logged(f"r{minute % 7}", {"loss": [1.0]})
            envelope = started_envelope(NOON + minute * MINUTE)
            (position,) = await log.append(METRICS, [Record(event.key, envelope, b"{}")])
            if minute <= 25:
                expected[position.place] = position.next_offset

        found = await moment_of(log, str(NOON + 25 * MINUTE))
        again = await moment_of(log, str(found.token))

        assert found.token.as_dict() == expected
        assert len(found.upto.metrics or {}) == 3
        assert (again.token, again.ts) == (found.token, NOON + 25 * MINUTE)
        with pytest.raises(BadRequest, match="token or a time"):
            await moment_of(log, "yesterday")

    asyncio.run(story())


def started_envelope(ts: int) -> Envelope:
    """An envelope accepted at `ts`."""
    return Envelope(
        id=uuid7(), type="metrics.logged", v=1, producer="5f6f0d5c-0000-4000-8000-000000000000", seq=0,
        ts_client=ts, ts_server=ts,
    )  # fmt: skip
