"""What a running server says about itself: numbers, lines and ids."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest

from applications import application, logged, started
from icecore.errors import LogAway
from icecore.position import Token
from icecore_api.context import Report
from icecore_api.jobs import Job
from icecore_api.metrics import render
from icecore_ingest.metric_defs import METRICS, MetricName
from servers import Server, running_server, wait_until

ROOT = Path(__file__).parents[2]


def _values(text: str) -> dict[str, float]:
    """Every sample of a page of metrics by its name and labels."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert len(found) == len(lines), "a sample is there twice"
    return found


def test_every_metric_is_documented_and_no_other() -> None:
    """docs/observability.md has a row for each name in the code, with its kind, and none besides."""
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(icecore_\w+)(?:\{(\w+)\})?` \| (\w+) \| (\w+) \|", page, re.MULTILINE)

    said = {name: (process, kind, label) for name, label, process, kind in rows}
    assert set(said) == set(get_args(MetricName))
    for name, definition in METRICS.items():
        assert said[name] == (definition.process, definition.kind, "".join(definition.labels)), name


def test_the_store_counts_what_it_folds(tmp_path: Path) -> None:
    """Lag is nothing when all is folded, and says records and seconds while nothing is."""

    async def test() -> None:
        async with application(tmp_path) as made:
            await made.put(started("r1"), logged("r1", {"loss": [1.0, 2.0]}))
            answer = await made.anonymous.get("/metrics")
            values = _values(answer.text)
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert values['icecore_fold_lag_records{stream="ledger"}'] == 0
            assert values['icecore_fold_lag_seconds{stream="metrics"}'] == 0
            assert values['icecore_runner_state{state="running"}'] == 1
            assert values['icecore_store_log_trouble{state="log_away"}'] == 0
            assert values["icecore_dead_letters"] == 0

    asyncio.run(test())


def test_lag_is_the_age_of_what_is_not_folded(tmp_path: Path) -> None:
    """Records that nobody folds show as lag of their stream, as old as the oldest of them."""
    from icecore_projections.store import Store

    async def test() -> None:
        async with application(tmp_path) as made:
            empty = Store.open(tmp_path / "empty.duckdb", log_id=made.log.log_id)
            behind = replace(made.context, current_store=lambda: empty)
            made.clock["ahead"] = 60_000
            await made.put(started("r1"), logged("r1", {"loss": [1.0]}), logged("r1", {"loss": [1.0]}, step=[7]))
            values = _values((await render(behind, Job("rebuild", behind.clock_ms))).decode())
            empty.close()
            assert values['icecore_fold_lag_records{stream="metrics"}'] == 2
            assert values['icecore_fold_lag_records{stream="ledger"}'] == 3
            assert 60 <= values['icecore_fold_lag_seconds{stream="metrics"}'] < 90

    asyncio.run(test())


class _Away:
    """A log whose brokers are away."""

    trouble = "log_away: expected a broker, got none"

    async def end(self) -> Token:
        raise LogAway("expected a broker, got none")


def test_trouble_has_a_name(tmp_path: Path) -> None:
    """While the log cannot be asked its trouble is 1 and the lag is not shown, rather than shown as nothing."""

    async def test() -> None:
        async with application(tmp_path) as made:
            away = replace(made.context, log=cast("Any", _Away()), processes=lambda: {"folding": {"state": "waiting"}})
            values = _values((await render(away, Job("rebuild", away.clock_ms))).decode())
            assert values['icecore_store_log_trouble{state="log_away"}'] == 1
            assert sum(value for name, value in values.items() if name.startswith("icecore_store_log_trouble")) == 1
            assert not [name for name in values if name.startswith("icecore_fold_lag")]
            assert values['icecore_runner_state{state="waiting"}'] == 1
            assert values['icecore_runner_state{state="running"}'] == 0

    asyncio.run(test())


def test_a_rebuild_shows_how_far_it_is(tmp_path: Path) -> None:
    """Progress is a part of the whole while a rebuild runs, and whole when it is done."""

    async def test() -> None:
        async with application(tmp_path) as made:
            may_end, job = asyncio.Event(), Job("rebuild", made.context.clock_ms)

            async def work(report: Report) -> dict[str, Any]:
                report({"stage": "fold", "done": 1, "total": 4, "rate": 1.0})
                await may_end.wait()
                return {}

            async def progress() -> tuple[float, float]:
                values = _values((await render(made.context, job)).decode())
                return values["icecore_rebuild_progress"], values["icecore_rebuild_running"]

            assert await progress() == (0, 0)
            job.start(work)
            await asyncio.sleep(0)  # the job has reported, as it does before it waits
            assert await progress() == (0.25, 1)
            may_end.set()
            async with asyncio.timeout(10):
                while job.running:  # noqa: ASYNC110 - a job has no event to wait for
                    await asyncio.sleep(0)
            assert await progress() == (1, 0)

    asyncio.run(test())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for these tests."""
    with running_server(tmp_path_factory.mktemp("watched")) as server:
        yield server


def _ask(server: Server, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {"Authorization": f"Bearer {server.api_key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, headers=named)) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def test_the_gateway_answers_for_the_store_too(running: Server) -> None:
    """One scrape of one machine has every name of both processes once, and batches as they were folded."""
    script = "import icecore\nwith icecore.init(project='p', mode='online') as run:\n    run.log({'loss': 1.0})\n"
    running.run("python", "-c", script)

    def folded() -> bool:
        values = _values(_ask(running, "/metrics")[2].decode())
        many = values.get("icecore_folded_records_total", 0) >= 3  # a busy machine's store may miss a scrape
        return many and values['icecore_fold_lag_records{stream="ledger"}'] == 0

    wait_until(folded, what="folded records in the metrics")
    text = _ask(running, "/metrics")[2].decode()
    assert sorted(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)) == sorted(METRICS)
    values = _values(text)
    assert values["icecore_store_up"] == 1
    assert values['icecore_fold_batch_records_bucket{le="+Inf"}'] == values["icecore_fold_batch_records_count"] > 0
    assert values["icecore_fold_batch_records_sum"] == values["icecore_folded_records_total"]
    assert values["icecore_fold_commit_seconds_sum"] > 0


def test_metrics_do_not_need_the_store(tmp_path: Path) -> None:
    """A gateway whose store is away still shows its own numbers, and that it is away."""
    from gateways import running_gateway

    with running_gateway(tmp_path) as gateway:
        answer = gateway.request("GET", "/metrics")

    values = _values(answer.body.decode())
    assert answer.status == 200
    assert values["icecore_store_up"] == 0
    assert "icecore_fold_batch_records_count" not in values


def test_a_request_has_an_id(running: Server) -> None:
    """A good X-Request-Id comes back, also through the store; a bad one is replaced; none is made up."""
    for path in ("/healthz", "/api/v1/viewer", "/api/v1/runs/a/b", "/nothing/here/at/all"):
        assert _ask(running, path, X_Request_Id="mine-1.a")[1]["x-request-id"] == "mine-1.a", path
        made = _ask(running, path)[1]["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{16}", made)
        assert _ask(running, path, X_Request_Id="no spaces, or <tags>")[1]["x-request-id"] != "no spaces, or <tags>"


def test_lines_have_one_shape(tmp_path: Path) -> None:
    """At level debug every line of every process is JSON of one shape, and those about a request have its id."""

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log_file.read_text().splitlines()]

    with running_server(tmp_path, ICECORE_LOG_LEVEL="debug") as server:
        _ask(server, "/api/v1/viewer", X_Request_Id="find-me")
        wait_until(lambda: sum(line.get("request") == "find-me" for line in said()) >= 2, what="lines of both")

    lines = said()
    assert all({"ts", "level", "process", "what"} <= set(line) for line in lines)
    mine = [line for line in lines if line.get("request") == "find-me"]
    assert {line["process"] for line in mine} == {"gateway", "store"}
    assert {(line["what"], line["path"], line["status"]) for line in mine} == {("request", "/api/v1/viewer", 200)}
    assert server.api_key not in server.log_file.read_text()
