# ruff: noqa: S608 - the texts are fixed, numbers are ours, and what callers send are parameters
"""The catalog as it was: at an earlier position, the tables a question reads are views of that position.

The names stay the same: a connection's own views come before the store's tables, and go with its transaction. So no
question is written twice. What the views cannot know is what no table keeps: the gaps of a run are those of now, and
a run that went on logging was last heard, as far as its points tell, at the time of its last point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import pyarrow as pa

from icecore.errors import BadRequest, Invalid
from icecore.log import EventLog
from icecore.position import Place, Token
from icecore_api.queries.points import AsOf
from icecore_projections.folds.run_row import RunRow, values
from icecore_projections.schema import name_number

_EPOCH_MS_FROM: Final = 1e11
"""An epoch number from here on is in ms, below in s."""
_YEAR_9999_MS: Final = 253_402_300_800_000
_HINT: Final = "a time such as 2026-03-03T14:00 (UTC), seconds since 1970, or an Icecore-Position of an earlier answer"


@dataclass(frozen=True, slots=True)
class Moment:
    """An earlier position, and the time it stands for."""

    token: Token
    ts: int
    """ms since 1970 UTC: the time asked for, or the gateway's clock at the last record before the position."""

    @property
    def upto(self) -> AsOf:
        """The bounds of a read."""
        return AsOf.of(self.token)


async def moment_of(log: EventLog, text: str) -> Moment:
    """Read `as_of`: a position token, an ISO-8601 time (UTC where it does not say), or an epoch number in s or ms.

    As of a time is the vector of the last offsets that the gateways accepted at or before it, one a partition; where
    a gateway's clock was set back meanwhile, one of the offsets at which it read that time.

    Raises:
        BadRequest: neither a token nor a time. Invalid: no time.
    """
    if not text[:1].isdigit():
        try:
            token = Token.parse(text)
        except BadRequest as error:
            raise BadRequest(_no_time(text).message, hint=_HINT) from error
        return Moment(
            token, max([await _accepted(log, place, n - 1) for place, n in token.as_dict().items()], default=0)
        )
    ts = _time_ms(text)
    places = [Place(stream, n) for stream, count in log.partitions.items() for n in range(count)]
    return Moment(Token({place: await _first_after(log, place, ts) for place in places}), ts)


def _time_ms(text: str) -> int:
    try:
        if text.replace(".", "", 1).isdigit():
            number = float(text)
            ms = round(number if number >= _EPOCH_MS_FROM else number * 1000)
        else:
            when = datetime.fromisoformat(text)
            ms = round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError, OSError) as error:
        raise _no_time(text) from error
    if not 0 <= ms < _YEAR_9999_MS:
        raise _no_time(text)
    return ms


def _no_time(text: str) -> Invalid:
    return Invalid(
        f"expected as_of as a position token or a time, got {text[:80]!r}",
        hint=_HINT,
        where="as_of",
    )


async def _accepted(log: EventLog, place: Place, offset: int) -> int:
    """When the record at `offset` was accepted; 0 where it is not there (yet, or any more)."""
    start, end = await log.start(), await log.end()
    if not start.next_offset(place) <= offset < end.next_offset(place):
        return 0
    return (await log.read(place, offset, records=1)).records[0].envelope.ts_server


async def _first_after(log: EventLog, place: Place, ts: int) -> int:
    """The offset of the first record accepted after `ts`, by halving."""
    low, high = (await log.start()).next_offset(place), (await log.end()).next_offset(place)
    while low < high:
        middle = (low + high) // 2
        if (await log.read(place, middle, records=1)).records[0].envelope.ts_server <= ts:
            low = middle + 1
        else:
            high = middle
    return low


# ------------------------------------------------------------------------------------------------------- the views


def look_back(cursor: Any, upto: AsOf, where: str, parameters: Mapping[str, Any], heard_most: int) -> None:
    """Let every statement until the transaction's end see `current_runs`, `run_values`, `series`, `run_activity` then.

    Args:
        cursor: within a transaction.
        upto: the position, of both streams.
        where: which runs are looked at, a condition over `c`, which is `current_runs`.
        parameters: of `where`.
        heard_most: no run was heard of after this time (ms).
    """
    (name,) = cursor.execute("SELECT current_database()").fetchall()[0]
    store = '"' + str(name).replace('"', '""') + '".main'
    ledger = int(upto.ledger or 0)
    _runs_then(cursor, store, ledger, where, parameters)
    chosen = ", ".join(
        str(int(run)) for (run,) in cursor.execute(
            f"SELECT run FROM {store}.current_runs c WHERE {where}", dict(parameters)
        ).fetchall()
    ) or "NULL"  # fmt: skip
    _series_then(cursor, store, upto, chosen)
    known = upto.sql("a.off", "p.part")
    cursor.execute(
        f"CREATE TEMP VIEW run_activity AS WITH p AS (SELECT run, any_value(series & 255) AS part FROM {store}.series "
        f"WHERE run IN ({chosen}) GROUP BY run), "
        f"kept AS (SELECT a.* FROM {store}.run_activity a JOIN p USING (run) WHERE true{known}) "
        "FROM kept UNION ALL BY NAME "
        "SELECT s.run, any_value(a.path) AS path, min(a.first_ts) AS first_ts, "
        f"least(max(s.last_ts), {int(heard_most)}) AS heard_ts, "
        "max(s.last_step) FILTER (s.kind <> 'system') AS last_step, "
        "sum(s.n) FILTER (s.kind <> 'system')::BIGINT AS points, max(s.off) AS off "
        f"FROM series s JOIN {store}.run_activity a USING (run) "
        f"WHERE s.run IN ({chosen}) AND s.run NOT IN (SELECT run FROM kept) GROUP BY s.run"
    )


def _runs_then(cursor: Any, store: str, ledger: int, where: str, parameters: Mapping[str, Any]) -> None:
    """Rows that were changed since are made of the version they had; the others are as they are."""
    docs = cursor.execute(
        f"SELECT arg_max(r.doc, r.off), max(r.off), any_value(c.off_first) FROM {store}.runs r "
        f"JOIN {store}.current_runs c USING (run) "
        f"WHERE {where} AND c.off >= {ledger} AND r.off < {ledger} GROUP BY r.run",
        dict(parameters),
    ).fetchall()
    rows = [RunRow.from_doc(doc, off=off, off_first=first) for doc, off, first in docs]
    columns = [name for name, *_ in cursor.execute(f"DESCRIBE {store}.current_runs").fetchall()]
    cursor.execute(f"CREATE TEMP TABLE runs_then AS FROM {store}.current_runs LIMIT 0")
    cursor.execute(f"CREATE TEMP TABLE values_then AS FROM {store}.run_values LIMIT 0")
    if rows:
        cells: dict[str, Any] = {name: [_cell(row, name) for row in rows] for name in columns}
        _put(cursor, "runs_then", pa.table(cells))
        leaves = [
            {"run": row.number, **value._asdict(), "path_number": name_number(value.path)}
            for row in rows
            for value in values(row)
        ]
        if leaves:
            _put(cursor, "values_then", pa.Table.from_pylist(leaves))
    cursor.execute(
        f"CREATE TEMP VIEW current_runs AS FROM {store}.current_runs WHERE off < {ledger} UNION ALL FROM runs_then"
    )
    cursor.execute(
        f"CREATE TEMP VIEW run_values AS FROM {store}.run_values WHERE run NOT IN "
        f"(SELECT run FROM {store}.current_runs WHERE off >= {ledger}) UNION ALL FROM values_then"
    )


def _cell(row: RunRow, name: str) -> Any:
    """A column of `current_runs`."""
    if name == "run":
        return row.number
    if name == "username":
        return row.user
    if name == "doc":
        return row.to_doc()
    if name == "metrics":
        return _json(row.metrics) if row.metrics else None
    return getattr(row, name)


def _json(tree: Mapping[str, Any]) -> str:
    return orjson.dumps(tree, option=orjson.OPT_SORT_KEYS).decode()


def _put(cursor: Any, table: str, rows: pa.Table) -> None:
    cursor.register("rows_then", rows)
    try:
        cursor.execute(f"INSERT INTO {table} BY NAME FROM rows_then")
    finally:
        cursor.unregister("rows_then")


_POINTS: Final = (
    "SELECT series, step, ts, value, NULL::VARCHAR AS text, off, {part} AS part, rowid AS row FROM {store}.{table}"
)


def _series_then(cursor: Any, store: str, upto: AsOf, chosen: str) -> None:
    """Statistics of series that went on since are taken anew from their points; the others are as they are."""
    tables: Sequence[str] = ("points_cold", "points_hot", "system_cold", "system_hot")
    parts = [_POINTS.format(part=part, store=store, table=table) for part, table in enumerate(tables)]
    parts.append(
        f"SELECT series, step, ts, NULL::DOUBLE AS value, text, off, 0 AS part, rowid AS row FROM {store}.texts"
    )
    then, unchanged = upto.sql("p.off", "(p.series & 255)"), upto.sql("s.off", "(s.series & 255)")
    order = "ORDER BY p.step, p.part, p.row"
    number = "p.value IS NOT NULL AND NOT isnan(p.value)"
    cursor.execute(
        f"CREATE TEMP VIEW series AS SELECT s.* FROM {store}.series s WHERE true{unchanged} UNION ALL BY NAME "
        "SELECT s.series, s.run, s.kind, s.key, s.key_number, count(*) AS n, count(*) FILTER (isnan(p.value)) AS nans, "
        f"min(p.value) FILTER ({number}) AS least, max(p.value) FILTER ({number}) AS most, "
        f"coalesce(sum(p.value) FILTER ({number}), 0) AS total, "
        f"min(p.step) AS first_step, first(p.value {order}) AS first, max(p.step) AS last_step, "
        f"last(p.value {order}) AS last, last(p.text {order}) AS last_text, last(p.ts {order}) AS last_ts, "
        f"max(p.off) AS off FROM {store}.series s JOIN ({' UNION ALL '.join(parts)}) p ON p.series = s.series{then} "
        f"WHERE s.run IN ({chosen}) AND NOT (true{unchanged}) GROUP BY s.series, s.run, s.kind, s.key, s.key_number"
    )
