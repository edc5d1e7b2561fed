"""Everything a project has logged, in long form: run, key, step, timestamp, value (and text, where there are texts).

Rows come as the store has them: piece by piece, each ordered by series and step, the newest points last in order of
arrival. Sorting a project of a hundred million points is left to whoever needs it sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, cast

import numpy as np
import pyarrow as pa

from icecore.errors import NotFound
from icecore_api.queries.buckets import Array
from icecore_api.queries.points import NOW, AsOf

BATCH_ROWS: Final = 262_144
_TABLE_MOST: Final = 1 << 24
"""Entries of the table from series number to dictionary code, at most; beyond it codes are searched for."""

_RUN: Final = pa.dictionary(pa.int32(), pa.string())
_FIELDS: Final = [
    pa.field("run", _RUN),
    pa.field("key", _RUN),
    pa.field("step", pa.int64()),
    pa.field("timestamp", pa.timestamp("ms", tz="UTC")),
    pa.field("value", pa.float64()),
]
_TEXT: Final = pa.field("text", pa.string())


class Export:
    """The points of some runs, to be read once. Its cursor must be within one snapshot until then.

    Attributes:
        schema: the schema of every batch. `run` (path) and `key` are dictionaries that stay the same throughout;
            `text` is there only where the runs have texts or booleans ('true', 'false'), whose `value` is null.
    """

    def __init__(
        self,
        cursor: Any,
        paths: Sequence[str],
        numbers: Sequence[int],
        kind: Literal["metric", "system"] = "metric",
        upto: AsOf = NOW,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self._cursor = cursor
        self._kind = kind
        self._upto = upto
        self._batch_rows = batch_rows
        series = _series_of(cursor, numbers, ("system",) if kind == "system" else ("metric", "text", "bool"))
        self._texts = any(name in ("text", "bool") for name in series.column("kind").unique().to_pylist())
        self.schema = pa.schema([*_FIELDS, _TEXT] if self._texts else _FIELDS)
        self._lookup = _Lookup(series, paths, numbers)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every point, `batch_rows` at a time."""
        if not self._lookup.any:
            return
        table = "system" if self._kind == "system" else "points"
        for part in ("cold", "hot"):
            for series, step, ts, value in self._read(f"{table}_{part}", "value"):
                yield self._batch(series, step, ts, pa.array(value), None)
        if self._texts:
            for series, step, ts, text in self._read("texts", "text"):
                yield self._batch(series, step, ts, pa.nulls(len(series), pa.float64()), text)

    def _read(self, table: str, value: str) -> Iterator[tuple[Array, Array, Array, Any]]:
        low, high = self._lookup.span
        reader = self._cursor.execute(
            f"SELECT series, step, ts, {value} FROM {table} WHERE series BETWEEN {low} AND {high} "  # noqa: S608
            f"AND series IN (SELECT unnest($1)){self._upto.sql()}",
            [self._lookup.numbers],
        ).to_arrow_reader(self._batch_rows)
        for batch in reader:
            last = batch.column(3)
            yield (
                batch.column(0).to_numpy(),
                batch.column(1).to_numpy(),
                batch.column(2).to_numpy(),
                last.to_numpy(zero_copy_only=False) if value == "value" else last,
            )

    def _batch(
        self, series: Array, step: Array, ts: Array, value: pa.Array[Any], text: pa.Array[Any] | None
    ) -> pa.RecordBatch:
        run, key = self._lookup.codes(series)
        arrays: list[pa.Array[Any]] = [
            pa.DictionaryArray.from_arrays(run, self._lookup.runs),
            pa.DictionaryArray.from_arrays(key, self._lookup.keys),
            pa.array(step),
            pa.array(ts).view(pa.timestamp("ms", tz="UTC")),
            value,
        ]
        if self._texts:
            arrays.append(pa.nulls(len(series), pa.string()) if text is None else text)
        return pa.record_batch(arrays, schema=self.schema)


def runs_of_project(cursor: Any, entity: str, project: str, upto: AsOf = NOW) -> tuple[list[str], list[int]]:
    """Paths and numbers of a project's runs, without deleted ones, ordered by path.

    Raises:
        NotFound: the project has never had a run.
    """
    if upto.ledger is None:
        sql = "SELECT run, id, deleted FROM current_runs WHERE entity = $1 AND project = $2"
        parameters: list[Any] = [entity, project]
    else:
        sql = (
            "SELECT run, id, coalesce(json_extract(arg_max(r.doc, r.off), '$.deleted')::BOOLEAN, FALSE) "
            "FROM runs r JOIN current_runs c USING (run) WHERE entity = $1 AND project = $2 AND r.off < $3 GROUP BY ALL"
        )
        parameters = [entity, project, upto.ledger]
    rows = cursor.execute(sql, parameters).fetchall()
    if not rows:
        raise NotFound(f"expected a project with runs, got {entity}/{project}", hint="GET projects lists them")
    there = sorted((f"{entity}/{project}/{name}", number) for number, name, deleted in rows if not deleted)
    return [path for path, _ in there], [number for _, number in there]


def _series_of(cursor: Any, runs: Sequence[int], kinds: Sequence[str]) -> pa.Table:
    found = cursor.execute(
        "SELECT series, run, kind, key FROM series WHERE run IN (SELECT unnest($1)) AND kind IN (SELECT unnest($2)) "
        "ORDER BY series",
        [list(runs), list(kinds)],
    ).to_arrow_table()
    return cast("pa.Table", found)


class _Lookup:
    """From series numbers to the codes of run and key in their dictionaries."""

    def __init__(self, series: pa.Table, paths: Sequence[str], numbers: Sequence[int]) -> None:
        self._number = series.column("series").to_numpy()
        self.any = len(self._number) > 0
        self.numbers: list[int] = self._number.tolist()
        self.span = (self.numbers[0], self.numbers[-1]) if self.any else (0, -1)
        self.runs = pa.array(list(paths), pa.string())
        by_number = np.argsort(np.array(numbers, np.int64))
        runs = np.array(numbers, np.int64)[by_number]
        self._run = by_number[np.searchsorted(runs, series.column("run").to_numpy())].astype(np.int32)
        keys = series.column("key").combine_chunks().dictionary_encode()
        self.keys = keys.dictionary
        self._key = keys.indices.to_numpy()
        self._stride = max(1, int(np.gcd.reduce(np.diff(self._number)))) if len(self._number) > 1 else 1
        size = (self.span[1] - self.span[0]) // self._stride + 1
        self._row = None
        if self.any and size <= _TABLE_MOST:
            self._row = np.zeros(size, np.int32)
            self._row[(self._number - self.span[0]) // self._stride] = np.arange(len(self._number), dtype=np.int32)

    def codes(self, series: Array) -> tuple[Array, Array]:
        """The codes of (run, key) for each series number."""
        if self._row is None:
            row = np.searchsorted(self._number, series)
        else:
            row = self._row[(series - np.int32(self.span[0])) // np.int32(self._stride)]
        return self._run[row], self._key[row]
