"""One fingerprint of everything a store says: equal on every machine for the same records.

Each row is mixed to 128 bits and the rows of a table are summed, so their order does not matter. What depends on
how the records were batched or where they lie is left out: offsets, series numbers, the split into hot and cold,
and the rollup. Speed: tens of millions of points a second on one core, in numpy over Arrow batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from icecore.position import Place, Token

VERSION: Final = 1
"""Raised when the way of mixing changes, so that digests of different versions never compare equal."""

_BATCH_ROWS: Final = 1 << 16
"""Rows mixed at once: their columns stay in the processor's cache."""
_DOC_ROWS: Final = 1 << 10
"""Rows at once where a row may hold a megabyte of text."""

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class TableDigest:
    """How many rows a table has, and the sum of their mixes as 32 hex digits."""

    rows: int
    hex: str


@dataclass(frozen=True, slots=True)
class Digest:
    """The fingerprint of a store at a position."""

    hex: str
    tables: Mapping[str, TableDigest]
    token: Token
    """The position the store had folded, seen in the same transaction."""

    def differing(self, other: Digest) -> list[str]:
        """The tables in which two digests differ, sorted."""
        names = self.tables.keys() | other.tables.keys()
        return sorted(name for name in names if self.tables.get(name) != other.tables.get(name))


def digest(
    cursor: duckdb.DuckDBPyConnection, progress: Callable[[str], None] | None = None, *, begun: bool = False
) -> Digest:
    """The digest of a store as one transaction sees it: writers go on meanwhile.

    Args:
        cursor: a cursor of its own on the store.
        progress: told the name of each table before it is read.
        begun: the cursor is in a transaction already, which is to be seen and left as it is.
    """
    if begun:
        return _digest(cursor, progress)
    cursor.begin()
    try:
        return _digest(cursor, progress)
    finally:
        cursor.rollback()


def _digest(cursor: duckdb.DuckDBPyConnection, progress: Callable[[str], None] | None) -> Digest:
    token = folded_token(cursor)
    series = _series_hashes(cursor)
    tables: dict[str, TableDigest] = {}
    for name, query in _QUERIES.items():
        if progress is not None:
            progress(name)
        tables[name] = _table(cursor, query, series)
    whole = hashlib.blake2b(f"icecore digest {VERSION}\n".encode(), digest_size=16)
    for name in sorted(name for name, table in tables.items() if table.rows or name not in _LATER):
        whole.update(f"{name} {tables[name].rows} {tables[name].hex}\n".encode())
    return Digest(whole.hexdigest(), tables, token)


def folded_token(cursor: duckdb.DuckDBPyConnection) -> Token:
    """The position a store has folded."""
    rows = cursor.execute("SELECT stream, part, next_offset FROM offsets").fetchall()
    return Token({Place(stream, part): offset for stream, part, offset in rows})


# ------------------------------------------------------------------------------------------------- what is read


@dataclass(frozen=True, slots=True)
class _Query:
    """The columns of a table that count; a column `series` stands for the series' run, kind and key."""

    sql: str
    batch_rows: int = _BATCH_ROWS


_QUERIES: Final[Mapping[str, _Query]] = {
    "producers": _Query("SELECT stream, producer, key, intervals FROM producers"),
    # not why: the words are those of a JSON parser, and of its version
    "dead_letters": _Query("SELECT stream, id, type, key FROM dead_letters"),
    "rejections": _Query("SELECT stream, id, type, key, reason FROM rejections"),
    "skipped": _Query("SELECT stream, type, v, sum(n)::BIGINT FROM skipped GROUP BY ALL"),
    "runs": _Query("SELECT run, doc FROM runs", _DOC_ROWS),
    "current_runs": _Query(
        'SELECT run, entity, project, id, name, "group", job_type, array_to_string(tags, chr(31)), notes, username, '
        "state, exit_code, created_ts, started_ts, finished_ts, runtime_ms, heard_ts, deleted, doc FROM current_runs",
        _DOC_ROWS,
    ),
    "run_values": _Query("SELECT run, path, number, text FROM run_values"),
    "collections": _Query("SELECT artifact, doc FROM collections", _DOC_ROWS),
    "current_collections": _Query(
        "SELECT artifact, entity, project, name, type, versions, created_ts, username, doc FROM current_collections",
        _DOC_ROWS,
    ),
    "versions": _Query("SELECT artifact, version, doc FROM versions", _DOC_ROWS),
    "current_versions": _Query(
        "SELECT artifact, version, digest, files, size, array_to_string(tags, chr(31)), username, created_ts, "
        "updated_ts, deleted, doc FROM current_versions",
        _DOC_ROWS,
    ),
    "alias_moves": _Query(
        "SELECT artifact, alias, version, version_before, ts, username, credential, reason FROM alias_moves"
    ),
    "scopes": _Query("SELECT scope, doc FROM scopes"),
    "current_scopes": _Query("SELECT scope, path, ttl, holds, doc FROM current_scopes"),
    "artifact_keeps": _Query("SELECT artifact, version, kind, keeper, kept, ts, username FROM artifact_keeps"),
    "erasures": _Query("SELECT plan, kind, ts, username, blobs, bytes, done FROM erasures"),
    "promotions": _Query(
        "SELECT path, promotion, step, alias, version, ts, username, credential, reason, checks FROM promotions"
    ),
    # not where an end is: offsets depend on the log
    "draft_parts": _Query("SELECT artifact, distributed_id, kind, digest, run, ts, username FROM draft_parts"),
    "artifact_edges": _Query("SELECT run, path, artifact, version, kind, alias, ts FROM artifact_edges"),
    "run_activity": _Query(
        "SELECT run, path, first_ts, heard_ts, last_step, points, rows_seen, console_lines FROM run_activity"
    ),
    "series": _Query(
        "SELECT run, kind, key, n, nans, least, most, total, first_step, first, last_step, last, last_text, last_ts "
        "FROM series"
    ),
    "points": _Query(
        "SELECT series, step, ts, value FROM points_hot UNION ALL SELECT series, step, ts, value FROM points_cold"
    ),
    "system": _Query(
        "SELECT series, step, ts, value FROM system_hot UNION ALL SELECT series, step, ts, value FROM system_cold"
    ),
    "texts": _Query("SELECT series, step, ts, text FROM texts"),
    "console": _Query("SELECT run, line, ts, stream, text FROM console"),
}


_LATER: Final = frozenset(
    {
        "collections",
        "current_collections",
        "versions",
        "current_versions",
        "alias_moves",
        "artifact_edges",
        "scopes",
        "current_scopes",
        "artifact_keeps",
        "erasures",
        "promotions",
        "draft_parts",
    }
)
"""Tables that came after digests were first written down: without rows they change none."""


def _series_hashes(cursor: duckdb.DuckDBPyConnection) -> U64:
    """By series number, the hash of the series' run, kind and key; an unknown number hashes as itself."""
    table = cursor.execute("SELECT series, run, kind, key FROM series").to_arrow_table()
    numbers = table["series"].to_numpy().astype(np.int64)
    size = int(numbers.max()) + 1 if len(numbers) else 0
    hashes = np.zeros(size, np.uint64)
    for batch in table.select(["run", "kind", "key"]).to_batches(max_chunksize=_BATCH_ROWS):
        first, _ = _mix_rows([_column(column) for column in batch.columns], batch.num_rows)
        hashes[numbers[: batch.num_rows]] = first
        numbers = numbers[batch.num_rows :]
    return hashes


def _table(cursor: duckdb.DuckDBPyConnection, query: _Query, series: U64) -> TableDigest:
    rows, sums = 0, [0, 0]
    for batch in _batches(cursor, query):
        columns = [
            _series_column(column, series) if name == "series" else _column(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        rows += batch.num_rows
        for lane, mixed in enumerate(_mix_rows(columns, batch.num_rows)):
            sums[lane] += int(mixed.sum(dtype=np.uint64))
    return TableDigest(rows, "".join(f"{total % (1 << 64):016x}" for total in sums))


def _batches(cursor: duckdb.DuckDBPyConnection, query: _Query) -> Iterator[pa.RecordBatch]:
    yield from cursor.execute(query.sql).to_arrow_reader(query.batch_rows)


# ------------------------------------------------------------------------------------------------------- mixing

_SEED: Final = np.uint64(0x9E3779B97F4A7C15)
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = (np.uint64(n) for n in (30, 27, 31, 32))
_NULL: Final = np.uint64(0x6E756C6C00000001)
_NAN: Final = np.uint64(0x7FF8000000000000)


def _splitmix(x: U64) -> U64:
    """The finaliser of splitmix64, in place: a bijection in which every bit of the input moves half of the output."""
    spare = np.right_shift(x, _S30)
    x ^= spare
    x *= _M1
    np.right_shift(x, _S27, out=spare)
    x ^= spare
    x *= _M2
    np.right_shift(x, _S31, out=spare)
    x ^= spare
    return x


def _mix_rows(columns: list[U64], rows: int) -> tuple[U64, U64]:
    """Two 64-bit mixes of each row: a chain over the columns, and the chain with another combination of them."""
    chain = np.full(rows, _SEED, np.uint64)
    other = np.full(rows, _M2, np.uint64)
    for column in columns:
        chain ^= column
        _splitmix(chain)
        chain += _SEED
        other *= _M1
        other += column
    other ^= chain
    other += np.left_shift(chain, _S32)
    return chain, _splitmix(other)


def _series_column(column: pa.Array[Any], series: U64) -> U64:
    numbers = column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    if not len(series):
        return numbers.view(np.uint64).copy()
    known = (numbers >= 0) & (numbers < len(series))
    if known.all():
        return series[numbers]
    return np.where(known, series[np.where(known, numbers, 0)], numbers.view(np.uint64))


def _column(column: pa.Array[Any]) -> U64:
    """A 64-bit value for each cell; of two kinds of cells, only null and the rest must never meet."""
    null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    values = _values(column)
    if null is not None:
        values = np.where(null, _NULL, values)
    return values


def _values(column: pa.Array[Any]) -> U64:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text_values(column)
    if column.null_count:
        column = column.fill_null(False if pa.types.is_boolean(kind) else 0)
    numbers = column.to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        # DuckDB's constant and run-length segments hold 0.0 for -0.0, which it takes for equal: so does the digest
        bits = (numbers.astype(np.float64) + 0.0).view(np.uint64)
        bits[np.isnan(numbers)] = _NAN
        return bits
    return numbers.astype(np.int64).view(np.uint64)


def _text_values(column: pa.Array[Any]) -> U64:
    """Texts by BLAKE2b of each distinct one."""
    coded = column.dictionary_encode()
    distinct: list[Any] = coded.dictionary.cast(pa.binary()).to_pylist()
    joined = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in distinct)
    hashes = np.frombuffer(joined, "<u8").astype(np.uint64)
    codes = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return hashes[codes] if len(hashes) else np.zeros(len(column), np.uint64)
