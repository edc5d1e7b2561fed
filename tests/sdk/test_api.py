"""Reading runs with `icecore.Api`, from a server that says what the contract says."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import icecore
from answering import AnsweringServer, Asked, Reply, answering
from icecore.api import Api, Run
from icecore.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    IcecoreError,
    Invalid,
    NotFound,
    NotYet,
    ServerFailed,
    ServerUnreachable,
    Unauthenticated,
    Unavailable,
    UsageError,
)
from icecore.http import error_of_answer, note_position, seen_position
from icecore.readout import NOT_FINITE, split_rows, thin
from icecore.settings import save_credentials

ROWS = [
    {"_step": 0, "_timestamp": 100.0, "_runtime": 0.0, "loss": 1.0, "phase": "warm"},
    {"_step": 1, "_timestamp": 101.0, "_runtime": 1.0, "loss": "NaN", "val/loss": 5},
    {"_step": 1, "_timestamp": 101.5, "_runtime": 1.5, "loss": "-Infinity"},
    {"_step": 7, "_timestamp": 99.0, "_runtime": 0.5, "val/loss": 2.5},
]


def document(number: int = 0, **changes: Any) -> dict[str, Any]:
    run_id = f"r{number}"
    return {
        "path": f"e/p/{run_id}",
        "entity": "e",
        "project": "p",
        "id": run_id,
        "name": f"calm-river-{number}",
        "group": "g",
        "job_type": "train",
        "tags": ["a"],
        "notes": "",
        "user": "ann",
        "state": "finished",
        "exit_code": 0,
        "error": None,
        "created_at": "2026-01-01T00:00:00Z",
        "heard_at": "2026-01-01T00:01:00Z",
        "config": {"lr": 0.1, "net": {"depth": 3}},
        "metadata": {"host": "h"},
        "last_step": 7,
        "url": "http://x/r",
        "summary": {"_step": 7, "_runtime": 9.5, "val/f1": 0.5, "worst": "NaN", "a.b": 1, "a.c": 2},
        **changes,
    }


def rows_of(asked: Asked) -> Reply:
    lines = [json.dumps(row).encode() + b"\n" for row in ROWS]
    return Reply(b"".join(lines), headers={"Icecore-Position": "metrics:0:4"})


@pytest.fixture
def said() -> Iterator[AnsweringServer]:
    with answering() as server:
        documents = [document(number) for number in range(7)]

        def page(asked: Asked) -> Reply:
            begin, size = int(asked.query.get("cursor", 0)), int(asked.query["limit"])
            more = begin + size < len(documents)
            cursor = str(begin + size) if more else None
            return Reply({"runs": documents[begin : begin + size], "cursor": cursor, "count": 7, "facets": {}})

        def patch(asked: Asked) -> Reply:
            return Reply(document(0, name=asked.body.get("name", "calm-river-0")))

        server.answers = {
            "GET viewer": lambda _: Reply({"user": "ann", "key_id": "k", "version": "1"}),
            "GET projects": lambda _: Reply({"projects": [{"entity": "e", "project": "p", "runs": 7, "last_ts": 5}]}),
            "GET runs/e/p": page,
            "GET runs/ann/p": page,
            "GET runs/e/p/r0": lambda _: Reply(documents[0]),
            "PATCH runs/e/p/r0": patch,
            "DELETE runs/e/p/r0": lambda _: Reply({"path": "e/p/r0", "deleted": True}),
            "GET runs/e/p/r0/history": rows_of,
        }
        yield server


@pytest.fixture
def api(said: AnsweringServer) -> Api:
    return Api(api_key="secret-key", overrides={"base_url": said.url})


def test_runs_are_fetched_page_by_page(api: Api, said: AnsweringServer) -> None:
    """Looking at the first run fetches one page; len needs no more; going through all fetches each page once."""
    runs = api.runs("e/p", filters={"state": "finished"}, per_page=3)
    assert said.asked == []

    assert runs[0].id == "r0"
    assert len(runs) == 7
    assert len(said.asked) == 1
    assert [run.id for run in runs] == [f"r{n}" for n in range(7)]
    assert len(said.asked) == 3
    assert [run.id for run in runs] == [f"r{n}" for n in range(7)]
    assert len(said.asked) == 3
    assert json.loads(said.asked[0].query["filters"]) == {"state": "finished"}
    assert said.asked[0].query["order"] == "+created_at"
    assert said.asked[0].headers["authorization"] == "Bearer secret-key"


def test_runs_are_a_sequence(api: Api) -> None:
    """Negative indexes and slices work as for a list, and too large an index is an IndexError."""
    runs = api.runs("e/p", per_page=2)

    assert runs[-1].id == "r6"
    assert [run.id for run in runs[1:4]] == ["r1", "r2", "r3"]
    assert [run.id for run in api.runs("e/p", per_page=2)[:0]] == []
    assert [run.id for run in api.runs("e/p", per_page=2)[-2:]] == ["r5", "r6"]
    with pytest.raises(IndexError):
        runs[7]


def test_a_run_has_the_names_people_know(api: Api) -> None:
    """config, summary, state and the rest read as in wandb's Api."""
    run = api.run("e/p/r0")

    assert (run.name, run.id, run.state, run.tags) == ("calm-river-0", "r0", "finished", ["a"])
    assert (run.group, run.job_type, run.notes, run.entity, run.project) == ("g", "train", "", "e", "p")
    assert (run.path, run.url, run.created_at) == ("e/p/r0", "http://x/r", "2026-01-01T00:00:00Z")
    assert (run.user, run.user.name, run.lastHistoryStep) == ("ann", "ann", 7)
    assert run.config.get("lr") == 0.1
    assert run.config.get("missing") is None
    assert run.config["net"]["depth"] == 3
    assert run.summary.get("val/f1") == 0.5
    assert run.summary["a"] == {"b": 1, "c": 2}
    assert run.summary.get("nothing", 4) == 4
    assert math.isnan(run.summary["worst"])
    assert run.metadata == {"host": "h"}


@pytest.mark.parametrize("path", ["e/p/r0", "/e/p/r0", "e/p/runs/r0"])
def test_run_paths(api: Api, path: str) -> None:
    """A run is found by its path, also as it stands in its URL."""
    assert api.run(path).path == "e/p/r0"


def test_short_paths_use_the_defaults(said: AnsweringServer, tmp_path: Path) -> None:
    """A path without an entity uses the setting, else the saved user of the key, else asks whose the key is."""
    assert Api("k", overrides={"url": said.url, "entity": "e"}).run("p/r0").path == "e/p/r0"
    assert Api("k", overrides={"url": said.url, "entity": "e", "project": "p"}).run("r0").path == "e/p/r0"
    assert Api("k", overrides={"url": said.url}).runs("p")[0].id == "r0"
    assert [asked.path for asked in said.asked[-2:]] == ["viewer", "runs/ann/p"]
    save_credentials(said.url, "saved-key", "e", tmp_path)
    saved = Api(overrides={"url": said.url, "config_dir": tmp_path})
    assert saved.default_entity == "e"
    saved.run("p/r0")
    assert said.asked[-1].headers["authorization"] == "Bearer saved-key"


@pytest.mark.parametrize("path", ["", "a/b/c/d", "a/b/c/d/e"])
def test_wrong_paths_are_usage_errors(api: Api, path: str) -> None:
    """What is no run's path is said to be none, before anything is asked."""
    with pytest.raises(UsageError, match="expected a run path"):
        api.run(path)


def test_history_as_a_frame(api: Api, said: AnsweringServer) -> None:
    """A DataFrame with _step, _timestamp, _runtime and the keys in their order; what is missing is NaN."""
    frame = api.run("e/p/r0").history(keys=["val/loss", "loss", "never"], samples=None)

    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == ["_step", "_timestamp", "_runtime", "val/loss", "loss", "never"]
    assert frame["_step"].tolist() == [0, 1, 1, 7]
    assert frame["loss"].dtype == float
    assert frame["val/loss"].dropna().tolist() == [5.0, 2.5]
    assert frame["loss"].tolist()[2] == -math.inf
    assert frame["never"].isna().all()
    assert json.loads(said.asked[-1].query["keys"]) == ["val/loss", "loss", "never"]
    assert "samples" not in said.asked[-1].query


def test_history_without_keys_has_all_of_them(api: Api, said: AnsweringServer) -> None:
    """Without keys every key is a column, texts too, and 500 samples are asked for."""
    frame = api.run("e/p/r0").history()

    assert list(frame.columns) == ["_step", "_timestamp", "_runtime", "loss", "phase", "val/loss"]
    assert frame["phase"].tolist()[0] == "warm"
    assert said.asked[-1].query["samples"] == "500"


def test_history_as_dicts(api: Api) -> None:
    """Without pandas the same rows come as dicts, with NaN and infinities as floats."""
    rows = api.run("e/p/r0").history(pandas=False, samples=None)

    assert rows[0] == ROWS[0]
    assert math.isnan(rows[1]["loss"])
    assert "val/loss" not in rows[0]


def test_history_by_another_axis(api: Api) -> None:
    """Ordered by time or by a metric, rows that lack it are left out."""
    run = api.run("e/p/r0")

    assert run.history(x_axis="_timestamp", samples=None)["_step"].tolist() == [7, 0, 1, 1]
    assert run.history(keys=["loss"], x_axis="val/loss", samples=None)["_step"].tolist() == [7, 1]


def test_system_history(api: Api, said: AnsweringServer) -> None:
    """stream="system" asks for the machine's metrics; an unknown stream or a text for keys is a usage error."""
    run = api.run("e/p/r0")
    run.history(stream="system")

    assert said.asked[-1].query["kind"] == "system"
    with pytest.raises(UsageError, match="default or system"):
        run.history(stream="nothing")
    with pytest.raises(UsageError, match="expected keys as a list"):
        run.history(keys="loss")
    with pytest.raises(UsageError, match="samples"):
        run.history(samples=0)


def test_scan_history(api: Api, said: AnsweringServer) -> None:
    """Every row as a dict; with keys each row has them all; max_step is the step to stop before."""
    run = api.run("e/p/r0")
    rows = list(run.scan_history(keys=["loss", "val/loss"], min_step=1, max_step=8))

    assert [row["val/loss"] for row in rows] == [None, 5, None, 2.5]
    assert (said.asked[-1].query["min_step"], said.asked[-1].query["max_step"]) == ("1", "7")
    assert next(iter(run.scan_history())) == ROWS[0]


def test_update_sends_what_was_changed(api: Api, said: AnsweringServer) -> None:
    """Only changed fields are sent; afterwards the run is as the server answered, and nothing is left to send."""
    run = api.run("e/p/r0")
    run.tags.append("best")
    run.name = "new"
    run.config["x"] = {"y": 1}
    run.config["net"]["depth"] = 4
    del run.config["lr"]
    run.summary["best"] = 1.0
    run.update()

    assert said.asked[-1].body == {
        "name": "new",
        "tags": ["a", "best"],
        "config": {"x": {"y": 1}, "net": {"depth": 4}},
        "config_removed": ["lr"],
        "summary": {"best": 1.0},
    }
    assert run.name == "new"
    asked = len(said.asked)
    run.update()
    assert len(said.asked) == asked


def test_summary_update_sends_the_summary(api: Api, said: AnsweringServer) -> None:
    """summary.update() sends what was set, once."""
    run = api.run("e/p/r0")
    run.summary["y"] = 2
    run.summary.update({"z": 3})
    run.summary.update()

    assert [asked.body for asked in said.asked if asked.method == "PATCH"] == [{"summary": {"y": 2, "z": 3}}]


def test_delete_and_load(api: Api, said: AnsweringServer) -> None:
    """Delete asks for it; load(force=True) reads again."""
    run = api.run("e/p/r0")
    run.delete()
    run.load(force=True)
    run.load()

    assert [asked.method for asked in said.asked] == ["GET", "DELETE", "GET"]


def test_projects_and_viewer(api: Api) -> None:
    """Projects have an entity, a name and a count; the viewer is the key's user."""
    (project,) = api.projects()

    assert (project.path, project.runs) == ("e/p", 7)
    assert api.projects("other") == []
    assert api.viewer.username == "ann"


def test_reads_wait_for_what_this_process_knows(api: Api, said: AnsweringServer) -> None:
    """The furthest position seen in answers or in uploads is sent with every read."""
    run = api.run("e/p/r0")
    list(run.scan_history())
    note_position(said.url, "ledger:0:9,metrics:0:2")
    run.load(force=True)

    assert said.asked[-1].headers["icecore-position"] == "ledger:0:9,metrics:0:4"
    assert seen_position(said.url) == "ledger:0:9,metrics:0:4"


def test_not_yet_is_asked_again(said: AnsweringServer) -> None:
    """An answer "not yet" is asked again until the server has caught up, or the time is over."""
    times = []

    def later(asked: Asked) -> Reply:
        times.append(asked)
        if len(times) < 3:
            return Reply({"error": {"code": "not_yet", "message": "m", "hint": ""}}, 503, {"Retry-After": "0"})
        return Reply(document())

    said.answers["GET runs/e/p/r0"] = later
    assert Api("k", {"url": said.url}).run("e/p/r0").id == "r0"
    times[:] = []
    said.answers["GET runs/e/p/r0"] = lambda _: Reply({"error": {"code": "not_yet", "message": "m"}}, 503)
    with pytest.raises(NotYet):
        Api("k", {"url": said.url}, timeout=0.2).run("e/p/r0")


def test_a_refused_delete_is_not_repeated(api: Api, said: AnsweringServer) -> None:
    """A delete that may have been decided is not sent twice."""
    run = api.run("e/p/r0")
    said.answers["DELETE runs/e/p/r0"] = lambda _: Reply({"error": {"code": "unavailable", "message": "m"}}, 503)
    with pytest.raises(Unavailable):
        run.delete()

    assert [asked.method for asked in said.asked].count("DELETE") == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", BadRequest),
        (401, "unauthenticated", Unauthenticated),
        (403, "forbidden", Forbidden),
        (404, "not_found", NotFound),
        (409, "conflict", Conflict),
        (422, "invalid", Invalid),
        (422, "a_new_code", Invalid),
        (503, "something", Unavailable),
        (500, "", ServerFailed),
        (500, "error", ServerFailed),
        (418, "", ServerFailed),
    ],
)
def test_errors_keep_their_words(status: int, code: str, kind: type[IcecoreError]) -> None:
    """An answer's error is the class of its code, else of its status, with the server's message, hint and facts."""
    body = json.dumps({"error": {"code": code, "message": "expected x, got y", "hint": "do z", "limit": "name_chars"}})
    error = error_of_answer(status, body.encode())

    assert type(error) is kind
    assert (error.message, error.hint, error.facts["limit"]) == ("expected x, got y", "do z", "name_chars")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 5}', b"\xff"])
def test_strange_errors_are_still_errors(body: bytes) -> None:
    """An answer that is no icecore error names its status."""
    assert "502" in error_of_answer(502, body).message


def test_no_server_says_what_to_do() -> None:
    """Where nothing listens, the error names the URL and the command that starts a server."""
    with answering() as gone:
        url = gone.url
    with pytest.raises(ServerUnreachable, match="icecore up") as caught:
        Api("k", {"url": url}).run("e/p/r")

    assert url in caught.value.message
    assert "refused" in caught.value.message


def test_history_without_pandas(tmp_path: Path) -> None:
    """Where pandas is not installed, rows are dicts, and asking for a DataFrame names the package."""
    # an environment without pandas: only what the client itself depends on is on the path
    needed = {"orjson", "msgspec", "urllib3"}
    for package in needed:
        (origin,) = importlib.import_module(package).__path__
        (tmp_path / package).symlink_to(origin)
    (tmp_path / "icecore").symlink_to(next(iter(icecore.__path__)))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import icecore.readout as r\n"
        "assert r.want_frame(None) is False\n"
        "try: r.want_frame(True)\n"
        "except r.UsageError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)

    assert "pip install pandas" in done.stdout


# the three texts that stand for numbers which JSON lacks are read as those numbers
CELLS = (
    st.none()
    | st.text(max_size=8).filter(lambda text: text not in NOT_FINITE)
    | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(st.dictionaries(st.text(max_size=5), CELLS)), st.data())
def test_rows_survive_any_cut(rows: list[dict[str, Any]], data: Any) -> None:
    """However the answer is cut into pieces, the rows are the same."""
    whole = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    assert list(split_rows(pieces)) == rows


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_thinning_keeps_the_ends(rows: list[int], samples: int) -> None:
    """At most so many rows in their order, the last always, the first too where there is room for two."""
    kept = thin(rows, samples)

    assert len(kept) == min(len(rows), samples)
    if rows:
        assert kept[-1] == rows[-1]
        assert samples == 1 or kept[0] == rows[0]
    assert thin(rows, None) == rows


def test_an_unknown_project_names_those_there_are(api: Api, said: AnsweringServer) -> None:
    """A typing error is no empty project: looking at its runs says what there is."""
    none = {"runs": [], "cursor": None, "count": 0, "facets": {}}
    said.answers["GET runs/e/pp"] = said.answers["GET runs/e/p"] = lambda _: Reply(none)

    with pytest.raises(NotFound, match=r"got e/pp \(there are e/p\)"):
        len(api.runs("e/pp"))
    with pytest.raises(NotFound, match="e/p"):
        list(api.runs("e/pp"))
    assert list(api.runs("e/p", filters={"tags": "nowhere"})) == []


def test_how_a_run_ended(api: Api, said: AnsweringServer) -> None:
    """The exit code, and of a run that failed the exception."""
    failed = document(0, state="failed", exit_code=1, error={"type": "ValueError", "message": "no data"})
    said.answers["GET runs/e/p/failed"] = lambda _: Reply(failed)
    said.answers["GET runs/e/p/running"] = lambda _: Reply(document(0, state="running", exit_code=None))
    ended = api.run("e/p/failed")

    assert (ended.exit_code, ended.error) == (1, ("ValueError", "no data"))
    assert ended.error is not None
    assert ended.error.type == "ValueError"
    assert (api.run("e/p/r0").exit_code, api.run("e/p/r0").error) == (0, None)
    assert api.run("e/p/running").exit_code is None


def test_a_run_shows_its_path() -> None:
    """A run's repr names it."""
    with answering() as server:
        assert repr(Run(Api("k", {"url": server.url}).client, document())) == "<Run e/p/r0 (finished)>"
