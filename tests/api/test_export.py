"""Exports of a whole project, compared with the points that were logged."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from icecore.errors import NotFound
from icecore_api.queries.export import Export, runs_of_project
from icecore_api.queries.formats import encode
from icecore_api.queries.points import NOW, AsOf
from points_tables import STARTED, Point, Tables, random_tables


def export(tables: Tables, upto: AsOf = NOW, batch_rows: int = 2048, kind: Any = "metric") -> Export:
    paths, numbers = runs_of_project(tables.con, "e", "p", upto)
    return Export(tables.con, paths, numbers, kind, upto, batch_rows)


def cell(value: Any) -> Any:
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def rows_of(table: pa.Table) -> Counter[Any]:
    columns = [table.column(name).to_pylist() for name in ("run", "key", "step")]
    times = table.column("timestamp").cast(pa.int64()).to_pylist()
    return Counter(zip(*columns, times, map(cell, table.column("value").to_pylist()), strict=True))


def logged(tables: Tables, upto: float = math.inf, kind: str = "metric") -> Counter[Any]:
    return Counter(
        (p.run, p.key, p.step, p.ts, cell(p.value)) for p in tables.points if p.off < upto and p.kind == kind
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["metric", "system"])
def test_every_point_is_exported_once(seed: int, kind: str) -> None:
    """All points of all runs, each once, in every binary format."""
    tables = random_tables(seed, 6000, runs=5)

    def body(form: Any, compression: Any = "none") -> bytes:
        found = export(tables, kind=kind)
        return b"".join(encode(form, found.schema, found.batches(), compression))

    for compression in ("none", "lz4"):
        assert rows_of(pa.ipc.open_stream(body("arrow", compression)).read_all()) == logged(tables, kind=kind)
    assert rows_of(pq.read_table(io.BytesIO(body("parquet")))) == logged(tables, kind=kind)


def test_an_earlier_position_exports_the_points_of_then() -> None:
    """Only records and runs before the position count."""
    tables = random_tables(4, 3000)

    found = export(tables, AsOf(2, {0: 150}))
    table = pa.Table.from_batches(found.batches(), found.schema)

    then = Counter({row: n for row, n in logged(tables, 150).items() if row[0] in ("e/p/r0", "e/p/r1")})
    assert rows_of(table) == then
    assert 0 < then.total() < logged(tables).total()


def test_texts_have_a_column_of_their_own() -> None:
    """Where texts or booleans were logged there is a text column, with null values beside it."""
    tables = Tables()
    tables.run("e/p/=r")
    tables.log(
        [Point("e/p/=r", "metric", "loss", 0, STARTED, 0.5, 0), Point("e/p/=r", "text", "note", 1, STARTED, "=1", 1)]
    )
    tables.log([Point("e/p/=r", "bool", "ok", 2, STARTED + 1, True, 2)])
    tables.finish()

    def body(form: Any) -> bytes:
        found = export(tables)
        return b"".join(encode(form, found.schema, found.batches()))

    seconds = STARTED / 1000
    first = {"run": "e/p/=r", "key": "loss", "step": 0, "timestamp": seconds, "value": 0.5}
    answer = orjson.loads(body("json"))
    assert answer["columns"] == ["run", "key", "step", "timestamp", "value", "text"]
    assert answer["rows"][0] == first
    assert [(row["key"], row["text"]) for row in answer["rows"][1:]] == [("note", "=1"), ("ok", "true")]
    assert [orjson.loads(line) for line in body("ndjson").splitlines()] == answer["rows"]
    assert pa_csv.read_csv(io.BytesIO(body("csv"))).column("text").to_pylist() == ["", "'=1", "true"]


def test_deleted_runs_are_not_exported() -> None:
    """A project's export has the runs that are there; a project without any run is unknown."""
    tables = random_tables(1, 500)
    tables.run("e/p/r1", off=50, deleted=True)

    found = export(tables)

    assert set(pa.Table.from_batches(found.batches(), found.schema).column("run").to_pylist()) == {"e/p/r0", "e/p/r2"}
    with pytest.raises(NotFound):
        runs_of_project(tables.con, "e", "nothing")


def test_dictionaries_stay_the_same() -> None:
    """Every batch has the dictionaries of the first, so a stream carries each path and key once."""
    tables = random_tables(2, 6000)

    found = export(tables)
    batches = list(found.batches())

    assert len(batches) > 1
    assert all(batch.column("run").dictionary.equals(batches[0].column("run").dictionary) for batch in batches)
    body = b"".join(encode("arrow", found.schema, iter(batches)))
    assert body.count(b"e/p/r0") == 1
