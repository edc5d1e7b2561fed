"""Listing, looking at and changing runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from applications import PROJECT, Application, application, logged, started
from icecore.events import ConsoleLogged, RunDropped, RunFinished, RunSummarised, RunUpdated, now_ms

Story = Callable[[Application], Awaitable[None]]


def play(folder: Path, story: Story, **settings: Any) -> None:
    """Run a story against an application of its own."""

    async def main() -> None:
        async with application(folder, **settings) as made:
            await story(made)

    asyncio.run(main())


def test_a_run_is_answered_in_full(tmp_path: Path) -> None:
    """A run's answer joins what the ledger and the metrics say of it."""

    async def story(made: Application) -> None:
        await made.put(
            started("r1", name="calm lake", group="g", tags=["a", "b"], config={"lr": 0.1, "net": {"depth": 3}}),
            logged("r1", {"loss": [3.0, 1.0, 2.0], "acc": [0.1, 0.2, 0.3]}),
            RunUpdated(run=f"{PROJECT}/r1", metrics={"loss": {"summary": "min"}}),
            RunSummarised(run=f"{PROJECT}/r1", set={"best": {"epoch": 2}, "acc": 0.9}),
            RunDropped(run=f"{PROJECT}/r1", reason="spool full", points=7),
            RunFinished(
                run=f"{PROJECT}/r1", state="failed", exit_code=1, error_type="ValueError", error_message="no",
                finished_ts=now_ms(), runtime_ms=1500,
            ),
        )  # fmt: skip
        run = await made.get(f"runs/{PROJECT}/r1")
        assert run["config"] == {"lr": 0.1, "net": {"depth": 3}}
        assert run["summary"]["loss"] == 1.0
        assert run["summary"]["acc"] == 0.9
        assert run["summary"]["best"] == {"epoch": 2}
        assert (run["summary"]["_step"], run["summary"]["_runtime"]) == (2, 1.5)
        assert (run["state"], run["exit_code"], run["error"]) == ("failed", 1, {"type": "ValueError", "message": "no"})
        assert (run["name"], run["group"], run["tags"], run["points"]) == ("calm lake", "g", ["a", "b"], 6)
        assert run["dropped"][0]["points"] == 7
        assert run["gaps"] == []
        assert run["created_at"].endswith("Z")
        listed = await made.get(f"runs/{PROJECT}")
        assert listed["runs"] == [run]
        assert listed["count"] == 1

    play(tmp_path, story)


def test_define_metric_decides_the_summary_and_its_order(tmp_path: Path) -> None:
    """Filters and orders by a summary value use the aggregation each run asked for."""

    async def story(made: Application) -> None:
        for run_id, values, rule in (
            ("low", [5.0, 1.0, 9.0], "min"),
            ("high", [5.0, 1.0, 9.0], "max"),
            ("last", [5.0, 1.0, 4.0], ""),
            ("none", [5.0, 1.0, 2.0], "none"),
            ("both", [5.0, 1.0, 3.0], "min,max"),
            ("mean", [1.0, 2.0, float("nan")], "mean"),
        ):
            await made.put(started(run_id), logged(run_id, {"val/loss": values}))
            if rule:
                await made.put(RunUpdated(run=f"{PROJECT}/{run_id}", metrics={"val/*": {"summary": rule}}))
        order = await made.names(order="+summary_metrics.val/loss")
        assert order == ["low", "mean", "both", "last", "high", "none"]
        assert await made.names(filters=json.dumps({"summary_metrics.val/loss": {"$gte": 4}}), order="name,id") == [
            "high",
            "last",
        ]
        assert await made.names(filters=json.dumps({"summary.val/loss.max": 5})) == ["both"]
        assert await made.names(order="-summary.val/loss.min", limit=1) == ["both"]
        both = await made.get(f"runs/{PROJECT}/both")
        assert {key: both["summary"][f"val/loss{key}"] for key in ("", ".min", ".max")} == {"": 3, ".min": 1, ".max": 5}
        assert "val/loss" not in (await made.get(f"runs/{PROJECT}/none"))["summary"]

    play(tmp_path, story)


def test_pages_are_stable_while_runs_arrive(tmp_path: Path) -> None:
    """Paging shows every run that was there at the first page exactly once, and none that came later."""

    async def story(made: Application) -> None:
        await made.put(*(started(f"r{i:02d}", config={"x": i % 3} if i % 4 else {}) for i in range(13)))
        for turn, order in enumerate(
            ("-created_at", "config.x", "-config.x", "name", "-runtime,config.x", "tags", "heartbeat_at")
        ):
            seen: list[str] = []
            cursor, page = None, 0
            while True:
                query = {"order": order, "limit": 5, **({"cursor": cursor} if cursor else {})}
                answer = await made.get(f"runs/{PROJECT}", **query)
                seen += [run["id"] for run in answer["runs"]]
                await made.put(started(f"late-{turn}-{page}", config={"x": page}))
                cursor, page = answer["cursor"], page + 1
                if cursor is None:
                    break
            assert len(seen) == len(set(seen)), order
            assert {run for run in seen if not run.startswith("late")} == {f"r{i:02d}" for i in range(13)}
            assert not [run for run in seen if run.startswith(f"late-{turn}")], order

    play(tmp_path, story)


def test_a_cursor_belongs_to_its_question(tmp_path: Path) -> None:
    """A cursor of another filter or order, or one that was made up, is the caller's error."""

    async def story(made: Application) -> None:
        await made.put(started("a"), started("b"))
        cursor = (await made.get(f"runs/{PROJECT}", limit=1))["cursor"]
        for query in ({"order": "name", "cursor": cursor}, {"cursor": "x"}, {"cursor": "e30"}, {"cursor": "é"}):
            answer = await made.client.get(f"/api/v1/runs/{PROJECT}", params={"limit": 1, **query})
            assert (answer.status_code, answer.json()["error"]["where"]) == (422, "cursor")

    play(tmp_path, story)


def test_a_silent_run_reads_as_crashed(tmp_path: Path) -> None:
    """A running run nothing was heard of for five minutes is crashed, in answers, filters, orders and facets."""

    async def story(made: Application) -> None:
        await made.put(started("lost"), started("done"))
        await made.put(RunFinished(run=f"{PROJECT}/done", finished_ts=now_ms(), runtime_ms=10))
        assert (await made.get(f"runs/{PROJECT}/lost"))["state"] == "running"
        made.clock["ahead"] = 301_000
        assert (await made.get(f"runs/{PROJECT}/lost"))["state"] == "crashed"
        assert await made.names(filters='{"state": "crashed"}') == ["lost"]
        assert await made.names(filters='{"state": {"$ne": "crashed"}}') == ["done"]
        assert await made.names(order="state") == ["lost", "done"]
        facets = (await made.get(f"runs/{PROJECT}", facets="state", limit=0))["facets"]
        assert facets["state"] == [{"value": "crashed", "count": 1}, {"value": "finished", "count": 1}]

    play(tmp_path, story)


def test_facets_count_the_matching_runs(tmp_path: Path) -> None:
    """Facets count values of the runs that match, tags one by one and missing values as null."""

    async def story(made: Application) -> None:
        await made.put(
            started("a", group="g1", tags=["x", "y"], config={"opt": "adam", "flag": True}),
            started("b", group="g1", tags=["x"], config={"opt": "sgd", "flag": False}),
            started("c", group="g2", config={"opt": "adam", "n": 3}),
            started("d", group="g3", tags=["x"]),
        )
        answer = await made.get(
            f"runs/{PROJECT}", facets="group,tags,config.opt,config.flag", filters='{"group": {"$ne": "g3"}}'
        )
        assert answer["count"] == 3
        assert answer["facets"] == {
            "group": [{"value": "g1", "count": 2}, {"value": "g2", "count": 1}],
            "tags": [
                {"value": "x", "count": 2},
                {"value": "y", "count": 1},
                {"value": None, "count": 1},
            ],
            "config.opt": [{"value": "adam", "count": 2}, {"value": "sgd", "count": 1}],
            "config.flag": [
                {"value": False, "count": 1},
                {"value": True, "count": 1},
                {"value": None, "count": 1},
            ],
        }

    play(tmp_path, story)


def test_a_patch_is_folded_before_it_is_answered(tmp_path: Path) -> None:
    """PATCH answers with the run as it is after the fold, and says who did it in the log."""

    async def story(made: Application) -> None:
        await made.put(started("r", config={"a": 1, "b": 2}), logged("r", {"loss": [1.0]}))
        url = f"/api/v1/runs/{PROJECT}/r"
        change = {
            "name": "new", "tags": ["t"], "config": {"c": [1, 2]}, "config_removed": ["a"],
            "summary": {"loss": 0.5}, "notes": "why",
        }  # fmt: skip
        answer = await made.client.patch(url, json=change)
        assert answer.status_code == 200, answer.text
        run = answer.json()
        assert (run["name"], run["tags"], run["config"]) == ("new", ["t"], {"b": 2, "c": [1, 2]})
        assert (run["summary"]["loss"], run["notes"]) == (0.5, "why")
        again = await made.client.patch(url, json={"summary_removed": ["loss"]})
        assert again.json()["summary"]["loss"] == 1.0
        events = (await made.get("log", stream="ledger", start=3))["events"]
        assert [event["envelope"]["type"] for event in events] == ["run.updated", "run.summarised", "run.summarised"]
        assert {event["envelope"]["actor"] for event in events} == {"owner"}
        assert [event["envelope"].get("seq", 0) for event in events] == [0, 1, 2]
        assert "Icecore-Position" in answer.headers

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"nmae": "x"}, 422),
        ({"name": 5}, 422),
        ({"name": "x" * 257}, 422),
        ({"name": "a\u0000b"}, 422),
        ({"tags": ["t"] * 300}, 422),
        ({"config": {"k" * 300: 1}}, 422),
        ({"config": {"k": "v" * (1 << 20)}}, 413),
        ([], 422),
        (b"{", 400),
        (b'{"name": "\xff"}', 400),
        (b'{"name": "\\ud800"}', 400),
        (b" " * (3 << 20), 413),
    ],
)
def test_a_bad_patch_appends_nothing(tmp_path: Path, body: Any, status: int) -> None:
    """A PATCH over a limit or of the wrong shape is refused before anything is appended."""

    async def story(made: Application) -> None:
        await made.put(started("r"))
        before = await made.log.end()
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await made.client.patch(f"/api/v1/runs/{PROJECT}/r", content=sent)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"].startswith("expected")
        assert await made.log.end() == before

    play(tmp_path, story)


def test_a_deleted_run_is_hidden_until_restored(tmp_path: Path) -> None:
    """DELETE hides, POST restore brings back, and doing either twice is the fold's 409."""

    async def story(made: Application) -> None:
        await made.put(started("r"))
        url = f"/api/v1/runs/{PROJECT}/r"
        assert (await made.client.delete(url)).json() == {"path": f"{PROJECT}/r", "deleted": True}
        assert (await made.client.get(url)).status_code == 404
        assert await made.names() == []
        again = await made.client.delete(url)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
        assert "already deleted" in again.json()["error"]["message"]
        assert (await made.client.patch(url, json={"name": "x"})).status_code == 404
        assert (await made.client.post(url + "/restore")).json()["deleted"] is False
        assert (await made.client.post(url + "/restore")).status_code == 409
        assert await made.names() == ["r"]
        assert (await made.client.delete(url + "-not-there")).status_code == 404

    play(tmp_path, story)


def test_a_read_answers_at_or_after_its_position(tmp_path: Path) -> None:
    """A read given a token sees what the token covers; one given a position not folded yet is told so."""

    async def story(made: Application) -> None:
        token = await made.put(started("r"), folded=False)
        url = f"/api/v1/runs/{PROJECT}/r"
        answer = await made.client.get(url, headers={"Icecore-Position": str(token)})
        assert answer.status_code == 200
        later = "ledger:0:999"
        answer = await made.client.get(url, headers={"Icecore-Position": later})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_yet")
        assert answer.json()["error"]["want"] == later
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await made.client.get(url, headers={"Icecore-Position": "junk"})).status_code == 400

    play(tmp_path, story, wait_within_s=0.5)


def test_a_query_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    """A read over its time limit is 503 with Retry-After, and the next one is answered."""

    async def story(made: Application) -> None:
        with contextlib.closing(made.store.cursor()) as cursor:
            cursor.execute(
                "INSERT INTO current_runs BY NAME SELECT i AS run, 0 AS off_first, 'team' AS entity, "
                "'project' AS project, false AS deleted, repeat('ab', 500) AS notes FROM range(200000) t(i)"
            )
        slow = {"$or": [{"notes": {"$regex": f"(a|b)*{'(a|b)*' * 20}c{i}"}} for i in range(20)]}
        answer = await made.client.get(f"/api/v1/runs/{PROJECT}", params={"filters": json.dumps(slow)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert "time limit" in answer.json()["error"]["message"]
        assert (await made.client.get("/api/v1/projects")).status_code == 200

    play(tmp_path, story, query_within_s=0.5)


def test_a_gap_shows_until_it_heals(tmp_path: Path) -> None:
    """Numbers missing from a writer's events are shown on its run, and no longer when they have come."""

    async def story(made: Application) -> None:
        await made.put(started("r"), logged("r", {"loss": [1.0]}))
        made.seqs["metrics"] = 3
        await made.put(logged("r", {"loss": [2.0]}))
        gap = {"stream": "metrics", "producer": made.writer, "first": 1, "last": 2}
        assert (await made.get(f"runs/{PROJECT}/r"))["gaps"] == [gap]
        made.seqs["metrics"] = 1
        await made.put(logged("r", {"loss": [3.0]}), logged("r", {"loss": [4.0]}))
        assert (await made.get(f"runs/{PROJECT}/r"))["gaps"] == []

    play(tmp_path, story)


def test_values_that_json_lacks_are_named(tmp_path: Path) -> None:
    """NaN and infinities of a summary are strings; in orders NaN is last, and it is neither more nor less."""

    async def story(made: Application) -> None:
        inf = {"x": {"+": [1], "-": []}}
        await made.put(started("nan"), logged("nan", {"x": [1.0, float("nan")]}))
        await made.put(started("inf"), logged("inf", {"x": [1.0, None]}, inf=inf))
        await made.put(started("one"), logged("one", {"x": [2.0, 1.0]}))
        found = {run["id"]: run["summary"]["x"] for run in (await made.get(f"runs/{PROJECT}"))["runs"]}
        assert found == {"nan": "NaN", "inf": "Infinity", "one": 1.0}
        assert await made.names(order="-summary.x") == ["inf", "one", "nan"]
        assert await made.names(filters='{"summary.x": {"$gt": 0}}', order="id") == ["inf", "one"]

    play(tmp_path, story)


def test_texts_and_booleans_are_summaries_too(tmp_path: Path) -> None:
    """The last text or boolean of a key is its summary, found and sorted as what it is."""

    async def story(made: Application) -> None:
        await made.put(started("a"), logged("a", {}, text={"phase": ["warm", "main"]}, bool={"ok": [False, True]}))
        await made.put(started("b"), logged("b", {}, text={"phase": ["warm"]}, bool={"ok": [False]}))
        await made.put(started("c"), logged("c", {"phase": [1.0]}))
        summary = (await made.get(f"runs/{PROJECT}/a"))["summary"]
        assert (summary["phase"], summary["ok"]) == ("main", True)
        assert await made.names(filters='{"summary.phase": "main"}') == ["a"]
        assert await made.names(filters='{"summary.ok": true}') == ["a"]
        assert await made.names(filters='{"summary.ok": {"$ne": true}}', order="id") == ["b", "c"]
        assert await made.names(order="summary.phase") == ["c", "a", "b"]

    play(tmp_path, story)


def test_the_console_is_paged_searched_and_tailed(tmp_path: Path) -> None:
    """Console lines come in order, page by page, from the end, or only those that hold a text."""

    async def story(made: Application) -> None:
        await made.put(started("r"))
        for batch in range(3):
            texts = [f"line {batch * 4 + i}" for i in range(4)]
            streams = ["stdout", "stderr", "stdout", "stdout"]
            await made.put(ConsoleLogged(run=f"{PROJECT}/r", ts=[1] * 4, stream=streams, text=texts))
        url = f"runs/{PROJECT}/r/console"
        lines: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = await made.get(url, limit=5, **after)
            if not page["lines"]:
                break
            lines += [line["text"] for line in page["lines"]]
            after = {"after": page["next"]}
        assert lines == [f"line {i}" for i in range(12)]
        assert [line["text"] for line in (await made.get(url, tail=2))["lines"]] == ["line 10", "line 11"]
        assert [line["text"] for line in (await made.get(url, search="LINE 1"))["lines"]] == [
            "line 1",
            "line 10",
            "line 11",
        ]
        assert [line["text"] for line in (await made.get(url, stream="stderr"))["lines"]] == [
            "line 1",
            "line 5",
            "line 9",
        ]
        assert (await made.client.get(f"/api/v1/{url}", params={"after": "x"})).status_code == 422

    play(tmp_path, story)


def test_very_wide_runs_come_in_smaller_pages(tmp_path: Path) -> None:
    """A page of runs with 100,000 keys each holds as many as fit, and paging still shows all of them."""

    async def story(made: Application) -> None:
        await made.put(*(started(f"wide{i}") for i in range(5)))
        with contextlib.closing(made.store.cursor()) as cursor:
            cursor.execute(
                "INSERT INTO series BY NAME SELECT run, 'metric' AS kind, 'key' || i AS key, i AS last "
                "FROM current_runs, range(100000) t(i)"
            )
        seen: list[str] = []
        page = await made.get(f"runs/{PROJECT}", order="id")
        while True:
            assert 1 <= len(page["runs"]) <= 2
            for run in page["runs"]:
                assert len(run["summary"]) == 100_002
                assert run["summary"]["key99999"] == 99_999
                seen.append(run["id"])
            if page["cursor"] is None:
                break
            page = await made.get(f"runs/{PROJECT}", order="id", cursor=page["cursor"])
        assert seen == [f"wide{i}" for i in range(5)]

    play(tmp_path, story)
