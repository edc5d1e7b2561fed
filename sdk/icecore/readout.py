"""A run's history as rows or as a DataFrame, read from the server as it streams."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import orjson

from icecore.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from icecore.http import JsonClient

CLOCK: Final = ("_step", "_timestamp", "_runtime")
READ_BYTES: Final = 1 << 18
NOT_FINITE: Final[dict[object, float]] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How JSON says what it has no numbers for."""

_NOT_FINITE_BYTES: Final = re.compile(rb'"(?:NaN|-?Infinity)"')
Row = dict[str, Any]


def finite_or_float(value: Any) -> Any:
    """`value` with the strings NaN, Infinity and -Infinity as floats, inside lists and mappings too."""
    if isinstance(value, str):
        return NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {name: finite_or_float(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite_or_float(part) for part in value]
    return value


def stream_rows(client: JsonClient, path: str, query: Mapping[str, Any]) -> Iterator[Row]:
    """Rows as the server streams them, one JSON object a line: memory is that of a piece.

    Raises:
        ServerUnreachable: the answer ended early; what was yielded is right, and not all.
    """
    with client.stream("GET", path, query={**query, "format": "ndjson"}, accept="application/x-ndjson") as response:
        yield from split_rows(client.chunks(response, READ_BYTES))


def split_rows(chunks: Iterable[bytes]) -> Iterator[Row]:
    """The rows of lines that come in pieces cut anywhere."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        strange = _NOT_FINITE_BYTES.search(chunk) is not None
        for index, line in enumerate(lines):
            if line:
                # the first line began in an earlier piece
                yield _row(line) if strange or index == 0 else orjson.loads(line)
    if rest:
        yield _row(rest)


def _row(line: bytes) -> Row:
    row: Row = orjson.loads(line)
    if _NOT_FINITE_BYTES.search(line):
        return {name: NOT_FINITE.get(cell, cell) if type(cell) is str else cell for name, cell in row.items()}
    return row


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


def frame(rows: Sequence[Row], keys: Sequence[str] | None) -> pd.DataFrame:
    """A DataFrame: `_step`, `_timestamp`, `_runtime`, then the keys as given, else as they come."""
    import pandas as pd

    if keys is None:
        keys = list(dict.fromkeys(chain.from_iterable(rows)))
    names = [*CLOCK, *(key for key in dict.fromkeys(keys) if key not in CLOCK)]
    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in names}, columns=pd.Index(names))


def _column(values: list[Any]) -> list[Any]:
    """Numbers with NaN where there is none; anything else as it is."""
    kinds = set(map(type, values))
    if kinds <= {float, type(None)} or (float in kinds and kinds <= {float, int, type(None)}):
        return [math.nan if value is None else float(value) for value in values]
    return values
