"""A run's history as rows or as a DataFrame, read from the server as it streams."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from icecore.errors import ServerUnreachable, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from icecore.http import JsonClient

CLOCK: Final = ("_step", "_timestamp", "_runtime")
READ_BYTES: Final = 1 << 18
NOT_FINITE: Final[dict[object, float]] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How JSON says what it has no numbers for."""

_NOT_FINITE_BYTES: Final = re.compile(rb'"(?:NaN|-?Infinity)"')
_ROWS: Final = b'"rows":['
_MARK: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|["\[\]]', re.DOTALL)
"""A whole string, or what opens one or opens or closes a list."""

Row = dict[str, Any]


class Block(NamedTuple):
    """Some rows of a table, in order; None where a row has no value."""

    columns: list[str]
    rows: list[list[Any]]


def finite_or_float(value: Any) -> Any:
    """`value` with the strings NaN, Infinity and -Infinity as floats, inside lists and mappings too."""
    if isinstance(value, str):
        return NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {name: finite_or_float(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite_or_float(part) for part in value]
    return value


def stream_blocks(client: JsonClient, path: str, query: Mapping[str, Any]) -> Iterator[Block]:
    """A streamed `{"columns": […], "rows": [[…], …]}`, block by block: memory is that of a block.

    Raises:
        ServerUnreachable: the answer ended early; what was yielded is right, and not all.
    """
    with client.stream("GET", path, query={**query, "format": "json"}) as response:
        yield from split_table(client.chunks(response, READ_BYTES))


def split_table(chunks: Iterable[bytes]) -> Iterator[Block]:
    """The blocks of a table whose JSON comes in pieces cut anywhere."""
    columns: list[str] = []
    begun = False
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        if not begun:
            begin = buffer.find(_ROWS)
            if begin < 0:
                continue
            columns = orjson.loads(buffer[:begin].rstrip(b", ") + b"}")["columns"]
            buffer = buffer[begin + len(_ROWS) :]
            begun = True
        end, last = _end_of_rows(buffer)
        if end:
            yield Block(columns, _rows(buffer[:end]))
            buffer = buffer[end:]
        if last:
            return
    raise ServerUnreachable(
        "expected a whole answer, got its beginning", hint="ask again; the server may have been restarted"
    )


def _end_of_rows(buffer: bytes) -> tuple[int, bool]:
    """Where the last whole row in `buffer` ends, and whether the table ends after it."""
    depth = end = 0
    for mark in _MARK.finditer(buffer):
        text = mark[0]
        if text == b"[":
            depth += 1
        elif text == b"]":
            depth -= 1
            if depth < 0:
                return end, True
            if depth == 0:
                end = mark.end()
        elif text == b'"':
            break  # a string that is not all here yet
    return end, False


def _rows(data: bytes) -> list[list[Any]]:
    rows: list[list[Any]] = orjson.loads(b"[" + data.lstrip(b", \n") + b"]")
    if _NOT_FINITE_BYTES.search(data):
        rows = [[NOT_FINITE.get(cell, cell) if type(cell) is str else cell for cell in row] for row in rows]
    return rows


def as_dicts(blocks: Iterable[Block]) -> Iterator[Row]:
    """Rows as dicts, without the values they do not have."""
    for columns, rows in blocks:
        for row in rows:
            yield {name: value for name, value in zip(columns, row, strict=True) if value is not None}


def thin(rows: Sequence[Any], samples: int | None) -> list[Any]:
    """At most `samples` of `rows`, evenly spaced, the first and the last among them; None is all."""
    n = len(rows)
    if samples is None or n <= samples:
        return list(rows)
    if samples == 1:
        return [rows[-1]]
    return [rows[round(i * (n - 1) / (samples - 1))] for i in range(samples)]


def want_frame(pandas: bool | None) -> bool:
    """Whether a DataFrame is wanted: said so, or nothing said and pandas is there.

    Raises:
        UsageError: a DataFrame is wanted, and pandas is not installed.
    """
    found = importlib.util.find_spec("pandas") is not None
    if pandas and not found:
        raise UsageError(
            "expected pandas to be installed for history(pandas=True), got none",
            hint="pip install pandas, or history(pandas=False) for a list of dicts",
        )
    return found if pandas is None else pandas


def frame(block: Block, keys: Sequence[str] | None) -> pd.DataFrame:
    """A DataFrame: `_step`, `_timestamp`, `_runtime`, then the keys as given, else as the server has them."""
    import pandas as pd

    names = [*CLOCK, *(key for key in dict.fromkeys(keys or block.columns) if key not in CLOCK)]
    columns = dict(zip(block.columns, zip(*block.rows, strict=True), strict=True)) if block.rows else {}
    nothing = (None,) * len(block.rows)
    return pd.DataFrame({name: _column(columns.get(name, nothing)) for name in names}, columns=pd.Index(names))


def _column(values: Sequence[Any]) -> Any:
    """Numbers with NaN where there is none; anything else as it is."""
    kinds = set(map(type, values))
    if kinds <= {float, type(None)} or kinds == {float, int} or kinds == {float, int, type(None)}:
        return [math.nan if value is None else float(value) for value in values]
    return list(values)
