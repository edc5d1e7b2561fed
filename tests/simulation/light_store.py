"""A store whose tables are rows in memory, for thousands of simulated lives: what is read goes through the same SQL.

Writing a batch to DuckDB costs about 25 ms however small it is, and opening a file as much again; here it costs 1 ms.
`Store`'s own code commits, keeps the token and wakes who waits: only the transaction and the file are others'.
`test_light_store.py` holds it to what the real one says.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from icecore.position import Place, Token
from icecore_projections.folds import Changes, Rows
from icecore_projections.schema import FORMAT, TABLES, definitions
from icecore_projections.store import Store

Row = dict[str, Any]


class Disk:
    """What outlives a store's process: the tables as of the last commit."""

    def __init__(self, log_id: str) -> None:
        self.tables: dict[str, list[Row]] = {name: [] for name in TABLES}
        self.versions = dict.fromkeys(TABLES, 0)
        self.put("meta", [{"key": "format", "value": str(FORMAT)}, {"key": "log_id", "value": log_id}])
        self.log_id = log_id

    def put(self, table: str, rows: list[Row]) -> None:
        """Make `rows` all that a table holds."""
        self.tables[table] = rows
        self.versions[table] += 1

    def apply(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        """A transaction: everything, as all of it is worked out before any of it is put."""
        new: dict[str, list[Row]] = {}
        for table, rows in _parts(changes.delete):
            new[table] = _without(new.get(table, self.tables[table]), rows)
        for table, rows in _parts(changes.update):
            values = {_key(row, rows.key): row for row in rows.rows.to_pylist()}
            old = new.get(table, self.tables[table])
            new[table] = [{**row, **values.get(_key(row, rows.key), {})} for row in old]
        for table, rows in _parts(changes.replace):
            values = {_key(row, rows.key): row for row in rows.rows.to_pylist()}
            new[table] = [*_without(new.get(table, self.tables[table]), rows), *values.values()]
        for table, parts in changes.append.items():
            old = new.get(table, self.tables[table])
            new[table] = [*old, *(row for part in parts for row in part.to_pylist())]
        new["offsets"] = self.with_offsets(offsets)
        for table, whole in new.items():
            self.put(table, whole)

    def with_offsets(self, offsets: Mapping[Place, tuple[int, int]]) -> list[Row]:
        """The rows of `offsets` after a commit."""
        known = {Place(row["stream"], row["part"]): row for row in self.tables["offsets"]}
        for place, (next_offset, ts) in offsets.items():
            latest = max(ts, known[place]["ts_server"]) if place in known else ts
            values = (place.stream, place.partition, next_offset, latest)
            known[place] = dict(zip(("stream", "part", "next_offset", "ts_server"), values, strict=True))
        return list(known.values())

    def token(self) -> Token:
        """What is folded."""
        return Token({Place(row["stream"], row["part"]): row["next_offset"] for row in self.tables["offsets"]})


class LightStore(Store):
    """A `Store` on a `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__(Path("disk"), _Connection(disk), disk.log_id, {}, readonly=False)

    def reopen(self) -> None:
        self._token = self.disk.token()
        self._sound = True

    def _transact(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        self.disk.apply(changes, offsets)


class _Connection:
    """As much of a connection as folds and digests use: a statement sees the disk's tables."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def cursor(self) -> _Connection:
        return self

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        tables = self._disk.tables
        if lookup := _LOOKUP.fullmatch(query):
            return _Found(_select(tables[lookup["table"]], lookup["columns"], lookup["where"], parameters))
        if count := _COUNT.fullmatch(query):
            return _Found([(len(tables[count["table"]]),)])
        if (groups := _GROUPS.search(query)) and not tables[groups["table"]]:
            return _Found([])
        return _ENGINE.execute(self._disk, query, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(_ENGINE.con, name)  # of the last statement: its description and its rows

    def begin(self) -> None:
        """One thread: nothing changes between two statements."""

    rollback = close = begin


_LOOKUP: Final = re.compile(r'SELECT (?P<columns>[\w", ]+) FROM (?P<table>\w+)(?: WHERE (?P<where>\w+ .*))', re.DOTALL)
_COUNT: Final = re.compile(r"SELECT count\(\*\) FROM (?P<table>\w+)")
_GROUPS: Final = re.compile(r"FROM (?P<table>\w+) GROUP BY 1$")
_IS: Final = re.compile(r"(\w+) (?:= \?|IN \(SELECT unnest\(\?::\w+\[\]\)\))")


class _Found:
    """The rows of a statement that needed no DuckDB: what the folds ask again and again is answered in microseconds."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def fetchall(self) -> list[tuple[Any, ...]]:
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None


def _select(rows: list[Row], columns: str, where: str | None, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows for which every named column is, or is one of, its parameter."""
    names = [name.strip(' "') for name in columns.split(",")]
    conditions = []
    for condition, wanted in zip(where.split(" AND ") if where else (), parameters, strict=True):
        match = _IS.fullmatch(condition)
        assert match is not None, f"expected COLUMN = ? or COLUMN IN (SELECT unnest(?)), got {condition}"
        conditions.append((match[1], frozenset(wanted) if "unnest" in condition else frozenset([wanted])))
    chosen = (row for row in rows if all(row[name] in wanted for name, wanted in conditions))
    return [tuple(row[name] for name in names) for row in chosen]


class _Engine:
    """One DuckDB in memory for all disks, in which a table of rows is laid over the empty one of its name."""

    def __init__(self) -> None:
        self.con = duckdb.connect(":memory:", config={"threads": 1})
        for statement in definitions():
            self.con.execute(statement)
        self._schemas = {name: self.con.execute(f"SELECT * FROM {name}").to_arrow_table().schema for name in TABLES}
        self._laid: dict[str, tuple[weakref.ref[Disk], int]] = {}

    def execute(self, disk: Disk, query: str, parameters: Sequence[Any]) -> duckdb.DuckDBPyConnection:
        for name, rows in disk.tables.items():
            if name in query:
                self._lay(disk, name, rows)
        return self.con.execute(query, parameters)

    def _lay(self, disk: Disk, name: str, rows: list[Row]) -> None:
        laid = self._laid.get(name)
        if laid is not None and laid[0]() is disk and laid[1] == disk.versions[name]:
            return
        if laid is None and not rows:
            return
        self.con.register(name, pa.Table.from_pylist(rows, schema=self._schemas[name]))
        self._laid[name] = (weakref.ref(disk), disk.versions[name])


_ENGINE = _Engine()


def _parts(tables: Mapping[str, list[Rows]]) -> Iterator[tuple[str, Rows]]:
    for table, parts in tables.items():
        for rows in parts:
            yield table, rows


def _key(row: Row, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _without(rows: list[Row], gone: Rows) -> list[Row]:
    keys = {_key(row, gone.key) for row in gone.rows.select(list(gone.key)).to_pylist()}
    return [row for row in rows if _key(row, gone.key) not in keys]


def rows_of(store: Store, name: str) -> list[Row]:
    """All rows of a table; of `points` and `system`, the hot and the cold ones."""
    kinds = ("points", "system")
    if isinstance(store, LightStore):
        return store.disk.tables[f"{name}_hot" if name in kinds else name]
    columns = "series, step, ts, value, off"
    query = (
        f"SELECT {columns} FROM {name}_hot UNION ALL SELECT {columns} FROM {name}_cold"
        if name in kinds
        else f"SELECT * FROM {name}"
    )
    with store.reading() as con:
        found: list[Row] = con.execute(query).to_arrow_table().to_pylist()
    return found
