"""A run's history as rows or as a DataFrame, read from the server as it streams."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
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
    """The rows of a streamed JSON answer, one JSON object a line, in the server's order."""
    with client.stream("GET", path, query={**query, "format": "json"}, accept="application/x-ndjson") as response:
        rest = b""
        for chunk in response.stream(READ_BYTES, decode_content=True):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _row(line)
        if rest.strip():
            yield _row(rest)


def _row(line: bytes) -> Row:
    row = orjson.loads(line)
    return {name: NOT_FINITE.get(value, value) if type(value) is str else value for name, value in row.items()}


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
    """A DataFrame of rows: `_step`, `_timestamp`, `_runtime`, then the keys as given, else as they first came."""
    import pandas as pd

    if keys is None:
        keys = list(dict.fromkeys(name for row in rows for name in row if name not in CLOCK))
    columns = [*CLOCK, *(key for key in keys if key not in CLOCK)]
    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in columns})


def _column(values: list[Any]) -> Any:
    """Numbers with None as NaN; anything else as it is."""
    kinds = {type(value) for value in values}
    if float in kinds and kinds <= {float, int, type(None)}:
        return [math.nan if value is None else float(value) for value in values]
    return values
