"""Charts and exports over HTTP, against a running server."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3

from icecore.codec import frame
from icecore.events import Envelope, now_ms, uuid7
from servers import Server, running_server

ARROW = "application/vnd.apache.arrow.stream"
ROWS = 1000


@dataclass
class Client:
    """Requests to one server; reads wait for what was written."""

    server: Server
    pool: urllib3.PoolManager
    position: str = ""

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> urllib3.BaseHTTPResponse:
        sent = {"Authorization": f"Bearer {self.server.api_key}", "Icecore-Position": self.position, **headers}
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        return self.pool.request(method, f"{self.server.url}/api/v1/{path}", body=data, headers=sent)

    def series(self, **body: Any) -> Any:
        answer = self("POST", "series", body)
        assert answer.status == 200, answer.data
        return answer.json()["series"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with three runs of a thousand rows."""
    with running_server(Path(tmp_path_factory.mktemp("charts"))) as server:
        made = Client(server, urllib3.PoolManager())
        answer = made("POST", "events", b"".join(_events()))
        assert answer.status == 200, answer.data
        made.position = answer.headers["Icecore-Position"]
        yield made


def _events() -> Iterator[bytes]:
    producer = uuid7()
    began = now_ms()
    for run in range(3):

        def envelope(name: str, seq: int) -> Envelope:
            return Envelope(id=uuid7(), type=name, v=1, producer=producer, seq=seq, ts_client=began)

        path = f"e/p/r{run}"
        started = {"run": path, "started_ts": began, "config": {"lr": 0.1 * (run // 2)}}
        yield frame(envelope("run.started", run), orjson.dumps(started))
        block = {
            "step": list(range(ROWS)),
            "ts": [began + 10 * i for i in range(ROWS)],
            "cols": {"loss": [run + 1 / (i + 1) for i in range(ROWS)], "acc": [None] * 3 + [0.5] * (ROWS - 3)},
            "inf": {"acc": {"+": [1], "-": [2]}},
            "text": {"note": ["=x"] * ROWS},
        }
        yield frame(envelope("metrics.logged", run), orjson.dumps({"run": path, "blocks": [block]}))


def test_a_chart_has_buckets(client: Client) -> None:
    """Every run's series comes in buckets; what JSON has no number for is a string, no number is null."""
    found = client.series(runs=["e/p/r0", "e/p/r1"], keys=["loss", "acc"], buckets=500)

    assert {(one["run"], one["key"]) for one in found} == {(f"e/p/r{r}", k) for r in (0, 1) for k in ("loss", "acc")}
    acc = next(one for one in found if one["key"] == "acc")
    assert (acc["last"][:2], acc["max"][:2], acc["min"][:2]) == (
        ["Infinity", 0.5],
        ["Infinity", 0.5],
        ["Infinity", "-Infinity"],
    )
    assert acc["nans"][:2] == [1, 0]
    assert sum(acc["n"]) == ROWS
    assert acc["reduced"]
    one = client.series(runs=["e/p/r0"], keys=["acc"], buckets=None)[0]
    assert (one["min"][:3], one["last"][:3]) == ([None, "Infinity", "-Infinity"], ["NaN", "Infinity", "-Infinity"])


def test_a_chart_comes_as_arrow(client: Client) -> None:
    """By Accept the same numbers come as one table."""
    body = {"runs": ["e/p/r0", "e/p/r2"], "keys": ["loss"], "buckets": 7}

    answer = client("POST", "series", body, Accept=ARROW)

    table = pa.ipc.open_stream(answer.data).read_all()
    found = client.series(**body)
    assert table.column("mean").to_pylist() == [value for one in found for value in one["mean"]]
    assert set(table.column("run").to_pylist()) == {"e/p/r0", "e/p/r2"}


def test_a_chart_may_be_of_the_runs_that_match(client: Client) -> None:
    """Runs are chosen by a filter as in the listing, and grouped by their config."""
    chosen = client.series(path="e/p", filters={"config.lr": {"$lt": 0.05}}, keys=["loss"], buckets=2)
    groups = client.series(path="e/p", keys=["loss"], buckets=2, group_by="config.lr")

    assert sorted(one["run"] for one in chosen) == ["e/p/r0", "e/p/r1"]
    assert [(one["group"], one["runs"]) for one in groups] == [(0, [2, 2]), (0.1, [1, 1])]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"runs": ["e/p/r0", "e/p/no"], "keys": ["loss"]}, 404, "e/p/no"),
        ({"runs": ["no-path"], "keys": ["loss"]}, 422, "no-path"),
        ({"keys": ["loss"]}, 422, "path"),
        ({"runs": ["e/p/r0"], "keys": []}, 422, "keys"),
        ({"runs": ["e/p/r0"], "keys": ["loss"], "buckets": 0}, 422, "buckets"),
        ({"runs": ["e/p/r0"], "keys": ["loss"], "range": [2, 1]}, 422, "range"),
        ({"runs": ["e/p/r0"], "keys": ["loss"], "group_by": "what"}, 422, "group_by"),
        ({"runs": ["e/p/r0"], "keys": ["loss"], "nonsense": 1}, 422, "nonsense"),
        ({"runs": ["e/p/r0"], "keys": ["loss"], "as_of": "x"}, 400, "token"),
        ({"runs": ["e/p/r0"], "keys": ["loss"], "as_of": "ledger:0:99999"}, 503, "ledger:0:99999"),
    ],
)
def test_a_bad_chart_says_what_is_wrong(client: Client, body: dict[str, Any], status: int, said: str) -> None:
    """Errors name what was found."""
    answer = client("POST", "series", body)

    assert answer.status == status, answer.data
    assert said in answer.data.decode()


def test_a_history_comes_in_every_format(client: Client) -> None:
    """The same rows as JSON, lines, Arrow, Parquet and CSV, by parameter or by Accept."""
    path = "runs/e/p/r1/history?keys=loss,note"
    rows = client("GET", path).json()["rows"]

    assert len(rows) == ROWS
    assert rows[0] == {"_step": 0, "_timestamp": rows[0]["_timestamp"], "_runtime": 0.0, "loss": 2.0, "note": "=x"}
    lines = client("GET", path, Accept="application/x-ndjson").data.splitlines()
    assert [orjson.loads(line) for line in lines] == rows
    table = pa.ipc.open_stream(client("GET", f"{path}&format=arrow&compression=lz4").data).read_all()
    assert table.to_pylist() == rows
    assert pq.read_table(io.BytesIO(client("GET", f"{path}&format=parquet").data)).to_pylist() == rows
    answer = client("GET", f"{path}&format=csv")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="r1-history.csv"'
    assert answer.data.decode().splitlines()[1].endswith(',2,"\'=x"')
    assert len(client("GET", f"{path}&samples=10").json()["rows"]) == 10


def test_a_project_is_exported_whole(client: Client) -> None:
    """Every point of every run, in long form."""
    table = pa.ipc.open_stream(client("GET", "projects/e/p/history?format=arrow").data).read_all()

    assert table.num_rows == 3 * 3 * ROWS
    assert set(table.column("key").to_pylist()) == {"loss", "acc", "note"}


def test_unknown_histories_are_not_found(client: Client) -> None:
    """A run or project that is not there is 404, before anything is sent."""
    assert client("GET", "runs/e/p/never/history").status == 404
    assert client("GET", "projects/e/never/history").status == 404


def test_a_client_that_goes_away_leaves_the_server_well(client: Client) -> None:
    """An answer that nobody reads to its end is given up; others are still served."""
    for _ in range(20):
        answer = client.pool.request(
            "GET",
            f"{client.server.url}/api/v1/projects/e/p/history?format=csv",
            headers={"Authorization": f"Bearer {client.server.api_key}"},
            preload_content=False,
        )
        assert answer.read(10)
        answer.close()

    assert len(client.series(path="e/p", keys=["loss"])) == 3
    assert "Traceback" not in client.server.log_file.read_text()
