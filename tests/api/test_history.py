"""The history of one run as rows, compared with plain Python, and in every format."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
from collections import defaultdict
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icecore.errors import Invalid
from icecore_api.queries.formats import encode_history
from icecore_api.queries.history import CELLS, History, Range, history
from icecore_api.queries.points import AsOf, find_runs
from icecore_api.routes.history import parse_keys
from points_tables import STARTED, Point, Tables, number

RUN = "e/p/r"
ALL = Range()
NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}
TEXTS = ["", "=1+1", "+x", "-x", "@x", "\tx", "\rx", "a,b", 'q"', "line\nbreak", "ü"]


def mixed_tables(seed: int, n: int = 600) -> Tables:
    """Numbers, texts, booleans and a key that is all of them, in pieces and hot, some of another run."""
    rng = random.Random(seed)
    tables = Tables()
    tables.run(RUN)
    tables.run("e/p/other")
    for piece in range(4):
        points = []
        for i in range(n // 4):
            key = rng.choice(["a", "b", "text", "flag", "mixed"])
            kind = {"text": "text", "flag": "bool"}.get(key, "metric")
            if key == "mixed":
                kind = rng.choice(["metric", "text", "bool"])
            value = {"text": rng.choice(TEXTS), "bool": rng.random() < 0.5}.get(kind, number(rng))
            step = rng.choice([piece * 40 + i // 4, rng.randrange(20), -rng.randrange(3)])
            run = RUN if rng.random() < 0.8 else "e/p/other"
            points.append(Point(run, kind, key, step, STARTED + step * 50 + rng.randrange(40), value, piece * n + i))
        tables.log(points)
        if piece < 3:
            tables.compact()
    return tables.finish()


def brute(points: list[Point]) -> list[dict[str, Any]]:
    """The rows as the docstring of the query says: (step, k-th value of a key at it)."""
    rows: dict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
    seen: dict[tuple[int, str], int] = defaultdict(int)
    for point in points:
        if point.run != RUN:
            continue
        nth = seen[point.step, point.key]
        seen[point.step, point.key] += 1
        row = rows[point.step, nth]
        row["_step"] = point.step
        row["_timestamp"] = max(row.get("_timestamp", -math.inf), point.ts / 1000)
        row["_runtime"] = max(row.get("_runtime", -math.inf), (point.ts - STARTED) / 1000)
        row[point.key] = point.value
    return [rows[name] for name in sorted(rows)]


def read(tables: Tables, rows: Range, cells: int = CELLS) -> History:
    (run,) = find_runs(tables.con, [RUN])
    return history(tables.con, run, rows, cells)


def named(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return NAMES.get(value, "NaN")
    return value


def objects(tables: Tables, rows: Range = ALL) -> list[dict[str, Any]]:
    return [row for block in read(tables, rows).objects() for row in block]


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_steps_and_nothing_is_lost(seed: int) -> None:
    """Keys of one step share rows, a step that comes again makes another; missing values are left out of JSON."""
    tables = mixed_tables(seed)

    rows = objects(tables)

    assert rows == [{key: named(value) for key, value in row.items()} for row in brute(tables.points)]


@pytest.mark.parametrize("cells", [1, 64, 1000, CELLS])
def test_batches_of_any_size_hold_the_same_rows(cells: int) -> None:
    """As Arrow a key has its own type, several kinds are JSON, missing is null, NaN stays NaN bit for bit."""
    tables = mixed_tables(9)

    found = read(tables, Range(), cells)
    batches = list(found.batches())
    table = pa.Table.from_batches(batches, found.schema)

    assert max(len(batch) for batch in batches) <= max(1, cells // 8)
    kinds = {"a": pa.float64(), "text": pa.string(), "flag": pa.bool_(), "mixed": pa.string()}
    assert {name: table.schema.field(name).type for name in kinds} == kinds
    expected = brute(tables.points)
    for name in table.schema.names:
        column = [row.get(name) for row in expected]
        if name == "mixed":
            column = [None if v is None else orjson.dumps(named(v)).decode() for v in column]
        assert str(table.column(name).to_pylist()) == str(column)


def test_keys_and_steps_choose_rows() -> None:
    """Only the keys named, in that order, and the steps from the first to the last one, both included."""
    tables = mixed_tables(2)

    found = read(tables, Range(["text", "a", "nope", "text"], min_step=3, max_step=60))
    table = pa.Table.from_batches(found.batches(), found.schema)

    chosen = [p for p in tables.points if p.key in ("a", "text") and 3 <= p.step <= 60]
    assert table.schema.names == ["_step", "_timestamp", "_runtime", "text", "a"]
    assert table.column("_step").to_pylist() == [row["_step"] for row in brute(chosen)]
    assert table.column("text").to_pylist() == [row.get("text") for row in brute(chosen)]


@pytest.mark.parametrize("samples", [1, 2, 3, 17, 100, 10_000])
def test_samples_are_rows_evenly_spread(samples: int) -> None:
    """At most so many of the very rows, always the same, the first and the last among them."""
    tables = mixed_tables(3)

    rows = objects(tables, Range(samples=samples))

    full = objects(tables)
    at = [full.index(row) for row in rows]
    assert len(rows) == min(samples, len(full))
    assert at[-1] == len(full) - 1
    if samples > 1:
        assert at[0] == 0
        gaps = [b - a for a, b in itertools.pairwise(at)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("cut", [0, 300, 1200])
def test_an_earlier_position_shows_the_history_of_then(cut: int) -> None:
    """Only records before the position count."""
    tables = mixed_tables(4)

    rows = objects(tables, Range(upto=AsOf(None, {0: cut})))

    then = brute([point for point in tables.points if point.off < cut])
    assert rows == [{key: named(value) for key, value in row.items()} for row in then]


def test_formats_agree() -> None:
    """Arrow, Parquet, JSON and lines of JSON hold the same rows."""
    tables = mixed_tables(5)
    found = read(tables, Range())
    want = pa.Table.from_batches(found.batches(), found.schema)

    def body(form: Any, compression: Any = "none") -> bytes:
        return b"".join(encode_history(read(tables, Range(), 400), form, compression))

    for compression in ("none", "lz4", "zstd"):
        assert str(pa.ipc.open_stream(body("arrow", compression)).read_all().to_pydict()) == str(want.to_pydict())
    assert str(pq.read_table(io.BytesIO(body("parquet"))).to_pydict()) == str(want.to_pydict())
    answer = orjson.loads(body("json"))
    assert answer == {"columns": want.schema.names, "rows": objects(tables)}
    assert [orjson.loads(line) for line in body("ndjson").splitlines()] == answer["rows"]


def test_csv_is_safe_to_open() -> None:
    """Cells and names that a spreadsheet would run get an apostrophe; numbers stay numbers, missing is empty."""
    tables = Tables()
    tables.run(RUN)
    tables.log([Point(RUN, "text", "=cmd", i, STARTED, text, i) for i, text in enumerate(TEXTS)])
    tables.log(
        [Point(RUN, "metric", "loss", 1, STARTED, -0.5, 50), Point(RUN, "metric", "loss", 2, STARTED, math.nan, 51)]
    )
    tables.finish()

    text = b"".join(encode_history(read(tables, Range()), "csv")).decode()

    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["'=cmd"] for row in rows] == [f"'{t}" if t[:1] in "=+-@\t\r" and t else t for t in TEXTS]
    assert [row["loss"] for row in rows[:3]] == ["", "-0.5", "nan"]


def test_a_run_of_50_000_keys_has_a_history() -> None:
    """Wide runs are pivoted in batches of bounded size."""
    tables = Tables()
    tables.run(RUN)
    keys = 50_000
    named_keys = pa.table({"series": pa.array(range(keys), pa.int32()), "key": [f"k{i:05}" for i in range(keys)]})
    (found,) = find_runs(tables.con, [RUN])
    columns = f"series, {found.number} AS run, 'metric' AS kind, key, 3 AS n"
    tables.con.execute(f"INSERT INTO series BY NAME SELECT {columns} FROM named_keys")
    points = f"series, step, {STARTED}, series + step, 0"
    tables.con.execute(f"INSERT INTO points_hot SELECT {points} FROM named_keys, range(3) t(step)")
    del named_keys

    wide = read(tables, Range())
    batches = list(wide.batches())
    table = pa.Table.from_batches(batches, wide.schema)

    assert (table.num_rows, table.num_columns) == (3, keys + 3)
    assert table.column("k00007").to_pylist() == [7, 8, 9]
    assert table.column("k49999").to_pylist() == [49999, 50000, 50001]
    (row, *_) = objects(tables, Range(samples=1))
    assert len(row) == keys + 3


def test_an_empty_history_has_clocks_only() -> None:
    """A run without points gives no rows, in every format."""
    tables = Tables()
    tables.run(RUN)

    assert orjson.loads(b"".join(encode_history(read(tables, Range(samples=5)), "json"))) == {
        "columns": ["_step", "_timestamp", "_runtime"],
        "rows": [],
    }
    for form in ("arrow", "parquet", "csv", "ndjson"):
        b"".join(encode_history(read(tables, Range()), form))


def test_system_metrics_have_a_history() -> None:
    """The machine's metrics are rows of their own."""
    tables = Tables()
    tables.run(RUN)
    tables.log([Point(RUN, "system", "cpu", i, STARTED + i * 15_000, float(i), i) for i in range(5)])
    tables.log([Point(RUN, "metric", "loss", i, STARTED, 1.0, i) for i in range(5)])
    tables.finish()

    rows = objects(tables, Range(kind="system"))

    assert [(row["_runtime"], row["cpu"]) for row in rows] == [(15 * i, i) for i in range(5)]
    assert "loss" not in rows[0]


def test_no_sample_is_refused() -> None:
    """A sample has at least one row."""
    with pytest.raises(Invalid, match="at least 1 sample"):
        read(mixed_tables(1, 40), Range(samples=0))


def test_keys_are_a_list() -> None:
    """Keys come with commas between them, or as JSON where they hold commas."""
    assert parse_keys(None) is None
    assert parse_keys("a,b/c") == ["a", "b/c"]
    assert parse_keys('["a,b", "c"]') == ["a,b", "c"]
    with pytest.raises(Invalid, match="JSON list"):
        parse_keys("[1]")
