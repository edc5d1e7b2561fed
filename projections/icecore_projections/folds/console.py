"""`console.logged` -> rows of `console`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from icecore.errors import Invalid
from icecore.events import ConsoleLogged
from icecore_projections import arrow
from icecore_projections.schema import run_number

_KINDS: Final[arrow.Columns] = {
    "run": pa.int64(),
    "off": pa.int64(),
    "line": pa.int32(),
    "ts": pa.int64(),
    "stream": pa.string(),
    "text": pa.string(),
}


def lines(event: ConsoleLogged) -> int:
    """How many lines an event holds.

    Raises:
        Invalid: its three columns differ in length.
    """
    n = len(event.text)
    if len(event.ts) != n or len(event.stream) != n:
        raise Invalid(
            f"expected `ts`, `stream` and `text` of one length, got {len(event.ts)}, {len(event.stream)}, {n}"
        )
    return n


def rows(events: Sequence[tuple[int, ConsoleLogged]]) -> pa.Table | None:
    """The lines of (offset, event) pairs, numbered within their event; None where there is none."""
    sizes = [lines(event) for _, event in events]
    total = sum(sizes)
    if not total:
        return None
    return arrow.table(
        _KINDS,
        [
            np.repeat(np.array([run_number(event.run) for _, event in events], np.int64), sizes),
            np.repeat(np.array([off for off, _ in events], np.int64), sizes),
            [line for size in sizes for line in range(size)],
            [ts for _, event in events for ts in event.ts],
            [stream for _, event in events for stream in event.stream],
            [text for _, event in events for text in event.text],
        ],
    )
