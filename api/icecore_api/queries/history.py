"""A run's whole history as rows: `_step`, `_timestamp`, `_runtime` and a column for each key, ordered by step.

A row is (step, k-th value of a key at that step): keys logged at one step share rows, and a step that comes again
makes another row, so nothing is lost or merged. Rows are made in batches of bounded size, from a sort that DuckDB
spills to disk where it must; a batch of a run with 50,000 keys has few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import orjson
import pyarrow as pa

from icecore.errors import Invalid
from icecore_api.queries.buckets import Array
from icecore_api.queries.points import NOW, AsOf, Run, find_series
from icecore_api.queries.series import RUNTIME, STEP, TIMESTAMP

CELLS: Final = 2_000_000
"""Cells (rows times keys) of one batch: what bounds the memory of an export."""
_READ_ROWS: Final = 131_072
_TOGETHER: Final = 500_000
"""Points that are pivoted at once, at least: batches of a wide run would have few rows otherwise."""
_FIXED: Final = (STEP, TIMESTAMP, RUNTIME)

ColumnKind = Literal["number", "text", "bool", "json"]
_ARROW: Final[Mapping[ColumnKind, pa.DataType]] = {
    "number": pa.float64(),
    "text": pa.string(),
    "bool": pa.bool_(),
    "json": pa.string(),
}


@dataclass(frozen=True, slots=True)
class Range:
    """Which rows: of some keys (None for all), between two steps, and at most `samples` of them, evenly spread."""

    keys: Sequence[str] | None = None
    kind: Literal["metric", "system"] = "metric"
    min_step: int | None = None
    max_step: int | None = None
    samples: int | None = None
    upto: AsOf = NOW


@dataclass(frozen=True, slots=True)
class Column:
    """A key of the run, and what its values are; `json` where they are of several kinds."""

    key: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True)
class History:
    """A run's history, ready to be read once."""

    columns: list[Column]
    blocks: Iterator[Rows]
    cells: int

    @property
    def schema(self) -> pa.Schema:
        """The schema of every batch."""
        return _schema(self.columns)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows with a column for every key, null where a row has no value."""
        for block in self.blocks:
            yield from block.dense(self.columns, self.schema, self.cells)

    def objects(self) -> Iterator[list[dict[str, Any]]]:
        """The rows as JSON objects of what they have: NaN and infinities by their names, missing values left out."""
        for block in self.blocks:
            yield block.objects(self.columns)


def history(cursor: Any, run: Run, rows: Range, cells: int = CELLS) -> History:
    """The history of one run.

    Args:
        cursor: within a snapshot that lasts until the last batch is read.
        run: whose.
        rows: which.
        cells: how many cells a batch may have.

    Raises:
        Invalid: `samples` is below 1.
    """
    if rows.samples is not None and rows.samples < 1:
        raise Invalid(f"expected at least 1 sample, got {rows.samples}")
    kinds = ("system",) if rows.kind == "system" else ("metric", "text", "bool")
    series = find_series(cursor, [run.number], kinds, rows.keys)
    by_key: dict[str, set[str]] = {}
    for one in series:
        by_key.setdefault(one.key, set()).add(one.kind)
    keys = sorted(by_key) if rows.keys is None else [key for key in dict.fromkeys(rows.keys) if key in by_key]
    columns = [Column(key, _kind_of(by_key[key])) for key in keys]
    place = {key: index for index, key in enumerate(keys)}
    places = np.array([(one.number, place[one.key]) for one in series], np.int64).reshape(-1, 2)
    source = _Source(cursor, rows, places, {one.number: one.kind for one in series})
    chosen = None if rows.samples is None else _sampled(source, rows.samples)
    return History(columns, _rows(source, run, chosen), cells)


def _kind_of(kinds: set[str]) -> ColumnKind:
    if len(kinds) > 1:
        return "json"
    return {"metric": "number", "system": "number", "text": "text", "bool": "bool"}[kinds.pop()]  # type: ignore[return-value]


def _schema(columns: Sequence[Column]) -> pa.Schema:
    """_step int64, _timestamp and _runtime float64 seconds, then the keys; JSON columns say so in their metadata."""
    fields: list[pa.Field[Any]] = [
        pa.field(STEP, pa.int64()),
        pa.field(TIMESTAMP, pa.float64()),
        pa.field(RUNTIME, pa.float64()),
    ]
    for column in columns:
        metadata = {"icecore.kind": "json"} if column.kind == "json" else None
        fields.append(pa.field(column.key, _ARROW[column.kind], metadata=metadata))
    return pa.schema(fields)


# ------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class _Source:
    """The points of one run in the tables. `places` is (series number, column) pairs ordered by number."""

    cursor: Any
    rows: Range
    places: Array
    kind_of: Mapping[int, str]

    @property
    def numbers(self) -> list[int]:
        """The series' numbers."""
        return list(self.kind_of)

    def union(self) -> str:
        """Every point as (series, step, ts, value, text, off, ord): ord is the order of arrival within a record."""
        low, high = (min(self.numbers), max(self.numbers)) if self.numbers else (0, -1)
        where = f"series BETWEEN {low} AND {high} AND series IN (SELECT unnest($1)){self.rows.upto.sql()}"
        if self.rows.min_step is not None:
            where += f" AND step >= {int(self.rows.min_step)}"
        if self.rows.max_step is not None:
            where += f" AND step <= {int(self.rows.max_step)}"
        parts = []
        kinds = set(self.kind_of.values())
        for kind, table in (("metric", "points"), ("system", "system")):
            if kind in kinds:
                number = "series, step, ts, value, NULL::VARCHAR AS text, off"
                parts.append(f"SELECT {number}, rowid AS ord FROM {table}_cold WHERE {where}")  # noqa: S608
                parts.append(f"SELECT {number}, rowid + {1 << 60} FROM {table}_hot WHERE {where}")  # noqa: S608
        if kinds & {"text", "bool"}:
            text = "series, step, ts, NULL::DOUBLE AS value, text, off"
            parts.append(f"SELECT {text}, rowid AS ord FROM texts WHERE {where}")  # noqa: S608
        return " UNION ALL ".join(parts)

    def columns_sql(self) -> str:
        """A table of (series, col)."""
        return "(SELECT unnest($1)::INTEGER AS series, unnest($2)::BIGINT AS col)"

    def parameters(self) -> list[Any]:
        """The series numbers ($1) and their columns ($2)."""
        return [self.places[:, 0].tolist(), self.places[:, 1].tolist()]


def _sampled(source: _Source, samples: int) -> tuple[Array, Array]:
    """The rows that stand for all: (steps, k), evenly spread over the rows, always the first and the last."""
    if not source.numbers:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    table = source.cursor.execute(
        "SELECT step, max(c) AS c FROM (SELECT step, col, count(*) AS c "  # noqa: S608 - numbers only
        f"FROM ({source.union()}) JOIN {source.columns_sql()} USING (series) GROUP BY step, col) "
        "GROUP BY step ORDER BY step",
        source.parameters(),
    ).to_arrow_table()
    steps = table.column("step").to_numpy()
    ends = np.cumsum(table.column("c").to_numpy())
    total = int(ends[-1]) if len(ends) else 0
    if total <= samples:
        picked = np.arange(total)
    elif samples == 1:
        picked = np.array([total - 1])
    else:
        picked = np.arange(samples) * (total - 1) // (samples - 1)
    at = np.searchsorted(ends, picked, side="right")
    before = np.concatenate([[0], ends])[at] if total else np.zeros(0, np.int64)
    return steps[at], picked - before


@dataclass(frozen=True, slots=True)
class _Block:
    """Points of whole steps, ordered by step and, within one, by arrival."""

    step: Array
    ts: Array
    col: Array
    number: Array
    value: Array
    text: pa.Array[Any]

    def cut(self, begin: int, end: int) -> _Block:
        return _Block(
            self.step[begin:end],
            self.ts[begin:end],
            self.col[begin:end],
            self.number[begin:end],
            self.value[begin:end],
            self.text.slice(begin, end - begin),
        )

    @classmethod
    def joined(cls, blocks: Sequence[_Block]) -> _Block:
        if len(blocks) == 1:
            return blocks[0]
        step, ts, col, number, value = (
            np.concatenate([getattr(block, name) for block in blocks])
            for name in ("step", "ts", "col", "number", "value")
        )
        return cls(step, ts, col, number, value, pa.concat_arrays([block.text for block in blocks]))


def _blocks(source: _Source, chosen: tuple[Array, Array] | None) -> Iterator[_Block]:
    """All points, in blocks that end where a step ends."""
    if not source.numbers:
        return
    union = source.union()
    parameters: list[Any] = [source.numbers]
    if chosen is not None:
        union = f"SELECT * FROM ({union}) WHERE step IN (SELECT unnest($2))"  # noqa: S608 - numbers only
        parameters.append(np.unique(chosen[0]).tolist())
    reader = source.cursor.execute(
        f"SELECT series, step, ts, value, text FROM ({union}) ORDER BY step, off, ord",  # noqa: S608 - numbers only
        parameters,
    ).to_arrow_reader(_READ_ROWS)
    order = np.argsort(source.places[:, 0])
    numbers, cols = source.places[order, 0], source.places[order, 1]
    kept: list[_Block] = []
    waiting = 0
    for batch in reader:
        number = batch.column(0).to_numpy()
        block = _Block(
            batch.column(1).to_numpy(),
            batch.column(2).to_numpy(),
            cols[np.searchsorted(numbers, number)],
            number,
            batch.column(3).to_numpy(zero_copy_only=False),
            batch.column(4),
        )
        end = int(np.searchsorted(block.step, block.step[-1])) if len(block.step) else 0
        waiting += len(block.step)
        if end and waiting >= _TOGETHER:
            yield _Block.joined([*kept, block.cut(0, end)])
            kept = []
            waiting, block = len(block.step) - end, block.cut(end, len(block.step))
        kept.append(block)
    if kept:
        yield _Block.joined(kept)


# ------------------------------------------------------------------------------------------------------ pivoting


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows, sparse: points ordered by row and column, and the clocks of each row in seconds."""

    at: Array
    """of each point, its row"""
    col: Array
    points: Array
    """of each point, where it is in the block"""
    block: _Block
    kind_of: Mapping[int, str]
    step: Array
    timestamp: Array
    runtime: Array

    def dense(self, columns: Sequence[Column], schema: pa.Schema, cells: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most `cells` cells, or of one row."""
        most = max(1, cells // len(schema))
        for first in range(0, len(self.step), most):
            rows = slice(first, min(first + most, len(self.step)))
            begin, end = np.searchsorted(self.at, [rows.start, rows.stop])
            by_column = np.argsort(self.col[begin:end], kind="stable") + begin
            at, points = self.at[by_column] - first, self.points[by_column]
            bounds = np.searchsorted(self.col[by_column], np.arange(len(columns) + 1))
            arrays: list[pa.Array[Any]] = [
                pa.array(self.step[rows]),
                pa.array(self.timestamp[rows]),
                pa.array(self.runtime[rows]),
            ]
            numbers, missing = self._numbers(points, at, self.col[by_column], (len(columns), rows.stop - first))
            lacking = np.asarray(missing.any(axis=1)).tolist()
            for index, column in enumerate(columns):
                if column.kind == "number":
                    arrays.append(pa.array(numbers[index], mask=missing[index] if lacking[index] else None))
                else:
                    mine = slice(bounds[index], bounds[index + 1])
                    arrays.append(self._column(points[mine], at[mine], rows.stop - first, column.kind))
            yield pa.record_batch(arrays, schema=schema)

    def objects(self, columns: Sequence[Column]) -> list[dict[str, Any]]:
        """The rows as JSON objects."""
        names = [column.key for column in columns]
        keys = [names[col] for col in self.col.tolist()]
        values = self._json_values()
        bounds = np.searchsorted(self.at, np.arange(len(self.step) + 1)).tolist()
        clocks = zip(self.step.tolist(), self.timestamp.tolist(), self.runtime.tolist(), strict=True)
        rows: list[dict[str, Any]] = []
        for index, clock in enumerate(clocks):
            begin, end = bounds[index], bounds[index + 1]
            row: dict[str, Any] = dict(zip(_FIXED, clock, strict=True))
            row.update(zip(keys[begin:end], values[begin:end], strict=True))
            rows.append(row)
        return rows

    def _json_values(self) -> list[Any]:
        numbers = self.block.value[self.points]
        values: list[Any] = numbers.tolist()
        for index in np.flatnonzero(~np.isfinite(numbers)).tolist():
            values[index] = json_number(values[index])
        if self.block.text.null_count < len(self.block.text):
            texts = self.block.text.take(self.points).to_pylist()
            kinds = self.kind_of
            for index, (text, number) in enumerate(zip(texts, self.block.number[self.points].tolist(), strict=True)):
                if text is not None:
                    values[index] = text == "true" if kinds[number] == "bool" else text
        return values

    def _numbers(self, points: Array, at: Array, col: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
        """Values by (column, row), and where there is none."""
        values, missing = np.zeros(shape), np.ones(shape, np.bool_)
        values[col, at] = self.block.value[points]
        missing[col, at] = False
        return values, missing

    def _column(self, points: Array, at: Array, rows: int, kind: ColumnKind) -> pa.Array[Any]:
        """One column of a batch that has not numbers alone."""
        cells: list[Any] = [None] * rows
        texts = self.block.text.take(points).to_pylist()
        if kind == "text":
            found: Sequence[Any] = texts
        elif kind == "bool":
            found = [text == "true" for text in texts]
        else:
            numbers, values = self.block.number[points].tolist(), self.block.value[points].tolist()
            each = zip(numbers, values, texts, strict=True)
            found = [_json(self.kind_of[number], value, text) for number, value, text in each]
        for row, cell in zip(at.tolist(), found, strict=True):
            cells[row] = cell
        return pa.array(cells, _ARROW[kind])


def _rows(source: _Source, run: Run, chosen: tuple[Array, Array] | None) -> Iterator[Rows]:
    """All rows, or those chosen, block by block."""
    wanted = None if chosen is None else set(zip(chosen[0].tolist(), chosen[1].tolist(), strict=True))
    for block in _blocks(source, chosen):
        at, step, nth, ts = _placed(block)
        points = np.lexsort((block.col, at))
        if wanted is not None:
            keep = np.array([(s, k) in wanted for s, k in zip(step.tolist(), nth.tolist(), strict=True)], np.bool_)
            points = points[keep[at[points]]]
            at = np.cumsum(keep)[at] - 1
            step, ts = step[keep], ts[keep]
        runtime = (ts - (run.started_ts or 0)) / 1000
        yield Rows(at[points], block.col[points], points, block, source.kind_of, step, ts / 1000, runtime)


def _placed(block: _Block) -> tuple[Array, Array, Array, Array]:
    """For each point the row it is in; for each row its step, which of that step it is, and its time (the latest)."""
    by_cell = np.lexsort((block.col, block.step))  # stable: of one cell, the order of arrival
    step, col = block.step[by_cell], block.col[by_cell]
    starts = np.flatnonzero(np.r_[True, (step[1:] != step[:-1]) | (col[1:] != col[:-1])])
    nth = np.empty(len(step), np.int64)
    nth[by_cell] = np.arange(len(step)) - np.repeat(starts, np.diff(np.append(starts, len(step))))
    by_row = np.lexsort((nth, block.step))
    step, kth = block.step[by_row], nth[by_row]
    new = np.r_[True, (step[1:] != step[:-1]) | (kth[1:] != kth[:-1])]
    starts = np.flatnonzero(new)
    at = np.empty(len(step), np.int64)
    at[by_row] = np.cumsum(new) - 1
    return at, step[starts], kth[starts], np.maximum.reduceat(block.ts[by_row], starts)


def _json(kind: str, value: float, text: str | None) -> str | None:
    if kind == "metric":
        return orjson.dumps(json_number(value)).decode()
    return text if kind == "bool" else orjson.dumps(text).decode()


def json_number(value: float) -> float | str:
    """A number as JSON has it: what is not finite by its name."""
    if value != value:  # noqa: PLR0124 - NaN
        return "NaN"
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"
