"""Record batches as bytes, streamed: Arrow, Parquet, CSV and JSON. Memory is that of a batch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Final, Literal, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from icecore_api.queries.buckets import Array
from icecore_api.queries.history import History, json_number

Format = Literal["json", "ndjson", "arrow", "parquet", "csv"]
Compression = Literal["none", "lz4", "zstd"]

MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8",
}

_ROW_GROUP_BYTES: Final = 64 << 20
_FORMULA: Final = r"^[=+\-@\t\r]"
"""What a spreadsheet would run rather than show, at the beginning of a cell."""


def encode(
    form: Format, schema: pa.Schema, batches: Iterable[pa.RecordBatch], compression: Compression = "none"
) -> Iterator[bytes]:
    """The bytes of a file or stream of `schema`, piece by piece.

    `compression` is of Arrow's buffers; Parquet is always zstd; JSON and CSV are left to the transport.
    """
    if form in ("json", "ndjson"):
        return json_objects(schema.names, batch_objects(batches), lines=form == "ndjson")
    if form == "csv":
        return _csv(schema, batches)
    return _parquet(schema, batches) if form == "parquet" else _arrow(schema, batches, compression)


def encode_history(rows: History, form: Format, compression: Compression = "none") -> Iterator[bytes]:
    """The same for a run's history. JSON leaves out missing values: a run with 50,000 keys is mostly that."""
    if form in ("json", "ndjson"):
        return json_objects(rows.schema.names, rows.objects(), lines=form == "ndjson")
    return encode(form, rows.schema, rows.batches(), compression)


class _Pieces(io.RawIOBase):
    """A file that is only written to, and emptied as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at

    def take(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _arrow(schema: pa.Schema, batches: Iterable[pa.RecordBatch], compression: Compression) -> Iterator[bytes]:
    sink = _Pieces()
    options = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        yield sink.take()
        for batch in batches:
            writer.write_batch(batch)
            yield sink.take()
    yield sink.take()


def _parquet(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    sink = _Pieces()
    with pyarrow.parquet.ParquetWriter(cast("IO[bytes]", sink), schema, compression="zstd") as writer:
        waiting: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            waiting.append(batch)
            size += batch.nbytes
            if size >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting, size = [], 0
                yield sink.take()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    yield sink.take()


def _csv(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    sink = _Pieces()
    plain = pa.schema(
        [pa.field(_safe_name(field.name), pa.string() if _is_text(field.type) else field.type) for field in schema]
    )
    with pyarrow.csv.CSVWriter(cast("IO[bytes]", sink), plain) as writer:
        yield sink.take()
        for batch in batches:
            columns = [_safe_cells(column) if _is_text(column.type) else column for column in batch.columns]
            writer.write_batch(pa.record_batch(columns, schema=plain))
            yield sink.take()
    yield sink.take()


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_dictionary(kind)


def _safe_cells(column: pa.Array[Any]) -> pa.Array[Any]:
    """Texts that a spreadsheet will not run: those that begin like a formula get an apostrophe before them."""
    if isinstance(column, pa.DictionaryArray):
        return _safe_cells(column.dictionary).take(column.indices)
    import pyarrow.compute as pc  # makes a function of each of Arrow's 300: 0.1 s that only CSV asks for

    return pc.replace_substring_regex(column, pattern=f"({_FORMULA})", replacement=r"'\1", max_replacements=1)


def _safe_name(name: str) -> str:
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


# ---------------------------------------------------------------------------------------------------------- JSON


def json_objects(names: Sequence[str], blocks: Iterable[Sequence[Any]], *, lines: bool) -> Iterator[bytes]:
    """Objects as `{"columns": [NAME…], "rows": [{NAME: VALUE…}…]}`, or (`lines`) one object a line."""
    if not lines:
        yield b'{"columns":' + orjson.dumps(names) + b',"rows":['
    comma = b""
    for block in blocks:
        if not len(block):
            continue
        if lines:
            yield b"\n".join(map(orjson.dumps, block)) + b"\n"
        else:
            yield comma + orjson.dumps(block)[1:-1]
            comma = b",\n"
    if not lines:
        yield b"]}\n"


def batch_objects(batches: Iterable[pa.RecordBatch]) -> Iterator[list[dict[str, Any]]]:
    """The rows of record batches as JSON objects; missing values are left out, times are seconds since 1970 UTC."""
    for batch in batches:
        names = batch.schema.names
        columns = [_json_cells(column) for column in batch.columns]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        if any(column.null_count for column in batch.columns):
            rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
        yield rows


def _json_cells(column: pa.Array[Any]) -> list[Any]:
    """One column's cells as orjson takes them."""
    if pa.types.is_floating(column.type):
        return json_numbers(column.to_numpy(zero_copy_only=False), column)
    if pa.types.is_timestamp(column.type):
        return (column.cast(pa.int64()).to_numpy() / 1000).tolist()  # type: ignore[no-any-return]
    return column.to_pylist()


def json_numbers(values: Array, column: pa.Array[Any] | None = None) -> list[Any]:
    """Floats as JSON has them: what is not finite by its name, and null where `column` is."""
    cells: list[Any] = values.tolist()
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        cells[index] = json_number(cells[index])
    if column is not None and column.null_count:
        for index in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
            cells[index] = None
    return cells
