"""Rollup entries that were read once and are kept: a chart that is looked at again reads only what came since.

The rollup is only ever appended to, one stretch a piece, so what a series had in it stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from icecore_api.queries.buckets import Array

CHUNKS_MOST: Final = 500_000
"""Entries kept in all: about 40 MB."""

_COLUMNS: Final = (
    "step_first, step_last, ts_first, ts_last, n::BIGINT AS n, nans::BIGINT AS nans, "
    "coalesce(least, 'inf'::DOUBLE) AS least, coalesce(most, '-inf'::DOUBLE) AS most, "
    "CASE WHEN n = nans THEN 0 ELSE total END AS total, last"
)


@dataclass(frozen=True, slots=True)
class Entries:
    """A series' rollup entries in order of arrival, by column; all up to the row `upto` of the table are here."""

    columns: dict[str, Array]
    upto: int
    last_row: int

    def __len__(self) -> int:
        return len(self.columns["n"])


class ChunkMemory:
    """The rollup entries of series of one store file. Threads may share it."""

    def __init__(self, most: int = CHUNKS_MOST) -> None:
        self._most = most
        self._kept: dict[tuple[str, int], Entries] = {}

    def read(self, cursor: Any, table: str, series: Sequence[int]) -> dict[int, Entries]:
        """The entries of some series; of those without any, none.

        Args:
            cursor: within a snapshot.
            table: of the rollup.
            series: numbers, ascending.
        """
        kept = self._kept  # replaced as a whole, never changed
        known = {number: kept.get((table, number), _NONE) for number in series}
        (rows,) = cursor.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - of a fixed list
        late = [number for number in series if known[number].upto < rows]
        if late:
            # rows are numbered as they come, so what is new is beyond the count of then (or was seen: dropped below)
            begin = min(known[number].upto for number in late)
            for number, new in _fetch(cursor, table, late, begin):
                known[number] = _appended(known[number], new)
            for number in late:
                known[number] = Entries(known[number].columns, rows, known[number].last_row)
            self._keep({(table, number): known[number] for number in late})
        return {number: entries for number, entries in known.items() if len(entries)}

    def _keep(self, new: dict[tuple[str, int], Entries]) -> None:
        kept = {**self._kept, **new}
        size = sum(map(len, kept.values())) + len(kept)
        self._kept = kept if size <= self._most else new if sum(map(len, new.values())) <= self._most else {}


_NAMES: Final = ("step_first", "step_last", "ts_first", "ts_last", "n", "nans", "least", "most", "total", "last")
_NONE: Final = Entries(
    {name: np.zeros(0, np.int64 if i < 6 else np.float64) for i, name in enumerate(_NAMES)}, upto=0, last_row=-1
)


def _fetch(cursor: Any, table: str, series: Sequence[int], begin: int) -> list[tuple[int, dict[str, Array]]]:
    members = ", ".join(str(int(number)) for number in series)
    found = cursor.execute(
        f"SELECT series, rowid AS row, {_COLUMNS} FROM {table} WHERE rowid >= {int(begin)} "  # noqa: S608 - numbers
        f"AND series BETWEEN {int(series[0])} AND {int(series[-1])} AND series IN ({members})"
    ).to_arrow_table()
    columns = {name: found.column(name).to_numpy() for name in found.column_names}
    names = columns.pop("series")
    if not len(names):
        return []
    order = np.lexsort((columns["row"], names))
    columns = {name: column[order] for name, column in columns.items()}
    names = names[order]
    starts = np.flatnonzero(np.diff(names, prepend=names[0] - 1))
    ends = np.append(starts[1:], len(names))
    return [
        (int(names[first]), {name: column[first:last] for name, column in columns.items()})
        for first, last in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _appended(before: Entries, new: dict[str, Array]) -> Entries:
    rows = new["row"]
    unseen = rows > before.last_row
    if not unseen.any():
        return before
    columns = {name: np.concatenate([before.columns[name], new[name][unseen]]) for name in _NAMES}
    return Entries(columns, before.upto, int(rows[-1]))
