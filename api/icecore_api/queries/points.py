"""Points out of the store: which series a run has, and their points as arrays.

Everything here reads through one cursor that must be within one transaction (`snapshot`): points move from hot to
cold, and two statements on their own could see one twice or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
import orjson
import pyarrow as pa

from icecore.errors import Invalid, NotFound
from icecore.position import LEDGER, METRICS, Place, Token
from icecore_api.queries.buckets import Array, Chunks, Curve, Span
from icecore_api.queries.chunks import ChunkMemory, Entries
from icecore_projections.schema import run_number

Kind = Literal["metric", "system"]
Axis = Literal["step", "ts"]

_TABLES: Final[dict[str, str]] = {"metric": "points", "system": "system"}
_CACHED_SERIES: Final = 100_000
_NEAR: Final = 64 * 256
"""Series numbers closer than this share a scan: a row group of 122,880 sorted points often holds them all."""
_NAMED: Final = 50
"""Runs named in an error, at most."""


class AsOf(NamedTuple):
    """The position at which a read is answered: only records before these offsets count; None is no bound."""

    ledger: int | None = None
    metrics: Mapping[int, int] | None = None
    """By partition; of a partition that is not named nothing counts."""

    @classmethod
    def of(cls, token: Token | None) -> AsOf:
        """The bounds that a token sets; None sets none."""
        if token is None:
            return cls()
        bounds = {place.partition: n for place, n in token.as_dict().items() if place.stream == METRICS}
        return cls(token.next_offset(Place(LEDGER, 0)), bounds)

    def sql(self, column: str = "off", partition: str = "(series & 255)") -> str:
        """The condition on a row made by the metrics stream: its offset, in the partition of its series."""
        if self.metrics is None:
            return ""
        parts = [f"({partition} = {int(part)} AND {column} < {int(n)})" for part, n in sorted(self.metrics.items())]
        return f" AND ({' OR '.join(parts) or 'false'})"


NOW: Final = AsOf()


class Run(NamedTuple):
    """A run that may be read: its number in every table, its path, and when it started (ms, None if never said)."""

    number: int
    path: str
    started_ts: int | None


class Series(NamedTuple):
    """One series: its number in the points tables, the run and key it belongs to, and how many points it has."""

    number: int
    run: int
    kind: str
    key: str
    n: int


@contextmanager
def snapshot(cursor: Any) -> Iterator[Any]:
    """Read everything inside at one moment of the store. A cursor that is within a transaction stays in it."""
    try:
        cursor.begin()
    except Exception as error:
        if "transaction" not in str(error).lower():
            raise
        yield cursor
        return
    try:
        yield cursor
    finally:
        cursor.rollback()


def find_runs(cursor: Any, paths: Sequence[str], upto: AsOf = NOW) -> list[Run]:
    """The runs of these paths, in this order.

    Raises:
        NotFound: some are not there, or deleted; the facts name them, and nothing is answered for the others.
    """
    numbers = {path: run_number(path) for path in paths}
    found = _runs_now(cursor, list(numbers.values())) if upto.ledger is None else _runs_then(cursor, numbers, upto)
    missing = [path for path, number in numbers.items() if number not in found]
    if missing:
        shown = ", ".join(repr(path) for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise NotFound(
            f"expected runs that are there, got {shown}{more}",
            hint="a run's path is entity/project/id; deleted runs can be restored",
            missing=missing[:_NAMED],
        )
    return [found[number] for number in numbers.values()]


def _runs_now(cursor: Any, numbers: list[int]) -> dict[int, Run]:
    """By number; two plain look-ups by the tables' keys, which is half of what a join takes to be planned."""
    members = ", ".join(str(int(number)) for number in numbers) or "NULL"
    rows = cursor.execute(
        "SELECT run, entity, project, id, started_ts FROM current_runs "  # noqa: S608 - numbers
        f"WHERE run IN ({members}) AND NOT deleted"
    ).fetchall()
    found = {row[0]: Run(row[0], f"{row[1]}/{row[2]}/{row[3]}", row[4]) for row in rows}
    silent = [run.number for run in found.values() if run.started_ts is None]
    if silent:
        first = cursor.execute(
            "SELECT run, first_ts FROM run_activity WHERE run IN (SELECT unnest($1))", [silent]
        ).fetchall()
        found |= {number: found[number]._replace(started_ts=ts) for number, ts in first}
    return found


def _runs_then(cursor: Any, numbers: dict[str, int], upto: AsOf) -> dict[int, Run]:
    rows = cursor.execute(
        "SELECT run, arg_max(doc, off) FROM runs WHERE off < $2 AND run IN (SELECT unnest($1)) GROUP BY run",
        [list(numbers.values()), upto.ledger],
    ).fetchall()
    docs = {number: orjson.loads(doc) for number, doc in rows}
    return {
        number: Run(number, path, docs[number].get("started_ts"))
        for path, number in numbers.items()
        if number in docs and not docs[number].get("deleted")
    }


# ----------------------------------------------------------------------------------------------------- series


class SeriesNumbers:
    """Remembers which number a (run, kind, key) has. A number never changes within one store file.

    One for each open store: the table has a row for every key of every run, and a chart asks for the same few.
    """

    def __init__(self, most: int = _CACHED_SERIES) -> None:
        self._most = most
        self._known: dict[tuple[int, str, str], Series] = {}
        self.chunks = ChunkMemory()

    def find(self, cursor: Any, runs: Sequence[int], kinds: Sequence[str], keys: Sequence[str]) -> list[Series]:
        """The series that exist of runs x kinds x keys, in that order. `n` may be of an earlier moment."""
        wanted = [(run, kind, key) for run in runs for kind in kinds for key in keys]
        remembered = self._known  # threads may replace it, none changes what another reads
        known = {name: series for name in wanted if (series := remembered.get(name)) is not None}
        if len(known) < len(wanted):
            unknown = sorted({name[0] for name in wanted if name not in known})
            found = {(one.run, one.kind, one.key): one for one in find_series(cursor, unknown, kinds, keys)}
            known |= found
            kept = remembered if len(remembered) + len(found) <= self._most else {}
            self._known = {**kept, **found}
        return [known[name] for name in wanted if name in known]


def find_series(
    cursor: Any, runs: Sequence[int], kinds: Sequence[str], keys: Sequence[str] | None = None
) -> list[Series]:
    """The series of some runs, ordered by number; of all keys where none are named."""
    chosen = "" if keys is None else " AND key IN (SELECT unnest($3))"
    several = f"IN ({', '.join(str(int(run)) for run in runs)})" if len(runs) < 1000 else "IN (SELECT unnest($1))"
    if not runs:
        return []
    parameters: dict[str, Any] = {"2": list(kinds)}
    if keys is not None:
        parameters["3"] = list(keys)
    if len(runs) >= 1000:
        parameters["1"] = list(runs)
    # the inner query has one condition, so that the index on `run` serves it
    rows = cursor.execute(
        f"SELECT series, run, kind, key, n FROM (SELECT * FROM series WHERE run {several} OFFSET 0) "  # noqa: S608
        f"WHERE kind IN (SELECT unnest($2)){chosen} ORDER BY series",
        parameters,
    ).fetchall()
    return [Series(*row) for row in rows]


# ----------------------------------------------------------------------------------------------------- points


def read_points(
    cursor: Any,
    kind: Kind,
    series: Sequence[int],
    axis: Axis,
    upto: AsOf = NOW,
    span: Span | None = None,
    where: Literal["all", "cold", "hot"] = "all",
) -> dict[int, Curve]:
    """Every point of some series as curves over step or time (ms), ordered by it.

    Of equal steps the order is that of arrival, of equal times that of steps.

    Args:
        cursor: within a snapshot.
        kind: whose points: `metric` or `system`.
        series: numbers; those without points are left out of the answer.
        axis: what x is.
        upto: only records before it.
        span: only points with first <= x <= last.
        where: both tables, or one of them.
    """
    table = _TABLES[kind]
    within = upto.sql() + _between(axis, span)
    # of one time the order is that of steps, and tables are only ordered by step piece by piece
    columns = "series, step, value" if axis == "step" else "series, ts, value, step"
    parts: list[pa.Table] = []
    if where != "hot":
        parts += [
            _fetch(cursor, f"SELECT {columns} FROM {table}_cold WHERE {_among(group)}{within}")  # noqa: S608
            for group in _neighbours(series)
        ]
    if where != "cold":
        parts.append(_fetch(cursor, f"SELECT {columns} FROM {table}_hot WHERE {_among(sorted(series))}{within}"))  # noqa: S608
    names, x, value = (_column(parts, i) for i in range(3))
    curves = {number: Curve(x[rows], value[rows]) for number, rows in _split(names)}
    if axis == "ts":
        step = _column(parts, 3)
        for number, rows in _split(names):
            if bool((np.diff(step[rows]) < 0).any()):
                curves[number] = curves[number].take(np.argsort(step[rows], kind="stable"))
    return {number: curve.ordered() for number, curve in curves.items()}


def read_chunks(cursor: Any, kind: Kind, series: Sequence[int], axis: Axis, memory: ChunkMemory) -> dict[int, Curve]:
    """The same series from the rollup (64 points an entry) and the hot points: exact, at the rollup's resolution.

    An entry's x is that of its first point.
    """
    numbers = sorted(series)
    cold = memory.read(cursor, f"{_TABLES[kind]}_rollup", numbers)
    hot = read_points(cursor, kind, numbers, axis, where="hot")
    return {
        number: _merged(cold.get(number), hot.get(number), axis)
        for number in numbers
        if number in cold or number in hot
    }


def _merged(cold: Entries | None, hot: Curve | None, axis: Axis) -> Curve:
    """Entries and single points as one curve."""
    parts = [_of_entries(cold, axis)] if cold is not None else []
    if hot is not None:
        parts.append(_of_points(hot))
    if len(parts) == 1:
        curve, chunks = parts[0]
    else:
        (old, old_chunks), (new, new_chunks) = parts
        curve = Curve(np.concatenate([old.x, new.x]), np.concatenate([old.value, new.value]))
        pairs = zip(old_chunks, new_chunks, strict=True)
        chunks = [np.concatenate(pair) for pair in pairs]
    x_last, n, nans, least, most, total = chunks
    entries = Chunks(x_last, n, nans, least, most, total, np.arange(len(curve.x)))
    return Curve(curve.x, curve.value, entries).ordered()


def _of_entries(cold: Entries, axis: Axis) -> tuple[Curve, list[Array]]:
    c = cold.columns
    curve = Curve(c[f"{axis}_first"], c["last"])
    return curve, [c[f"{axis}_last"], c["n"], c["nans"], c["least"], c["most"], c["total"]]


def _of_points(hot: Curve) -> tuple[Curve, list[Array]]:
    missing = np.isnan(hot.value)
    least, most, total = (np.where(missing, blank, hot.value) for blank in (np.inf, -np.inf, 0.0))
    return hot, [hot.x, np.ones(len(hot.x), np.int64), missing.astype(np.int64), least, most, total]


def _fetch(cursor: Any, sql: str) -> pa.Table:
    return cast("pa.Table", cursor.execute(sql).to_arrow_table())


def _column(parts: Iterable[pa.Table], index: int) -> Array:
    """One column of several tables, as one array."""
    chunks = [chunk.to_numpy(zero_copy_only=False) for part in parts for chunk in part.column(index).chunks]
    chunks = [chunk for chunk in chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def _split(names: Array) -> Iterator[tuple[int, Any]]:
    """Where each series' rows are, in order: a slice where they lie together, else indices."""
    if not len(names):
        return
    if bool((names == names[0]).all()):
        yield int(names[0]), slice(0, len(names))
        return
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    for begin, end in zip(starts, np.append(starts[1:], len(ordered)), strict=True):
        yield int(ordered[begin]), order[begin:end]


def _among(series: Sequence[int]) -> str:
    """The condition that picks ordered series: bounds first, which skip whole vectors, then the members."""
    if not series:
        return "FALSE"
    if len(series) == 1:
        return f"series = {int(series[0])}"
    members = ", ".join(str(int(number)) for number in series)
    return f"series BETWEEN {int(series[0])} AND {int(series[-1])} AND series IN ({members})"


def _neighbours(series: Sequence[int]) -> Iterator[list[int]]:
    """Ordered groups of series close to each other: a scan each, since zone maps know only a least and a most."""
    group: list[int] = []
    for number in sorted(series):
        if group and number - group[-1] > _NEAR:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _between(column: str, span: Span | None) -> str:
    if span is None:
        return ""
    low, high = span
    if np.isnan(low) or np.isnan(high):
        raise Invalid(f"expected a range of two numbers, got [{low}, {high}]")
    return f" AND {column} BETWEEN {low!r} AND {high!r}"
