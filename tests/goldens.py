"""Golden cases: records in, rows out. `python tests/goldens.py` writes the rows anew, for a person to compare.

tests/golden/README.md says what a case looks like.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import duckdb
import msgspec
import orjson

from icecore.events import Envelope
from icecore.log import Record
from icecore.position import LEDGER, METRICS
from icecore.testing.memory_log import MemoryLog
from icecore_projections.runner import Runner
from icecore_projections.store import Store

FOLDER: Final = Path(__file__).parent / "golden" / "rows"
CASES: Final = sorted(path.stem for path in FOLDER.glob("*.json"))

_RUN: Final = "(SELECT min(path) FROM run_activity a WHERE a.run = t.run)"
_SERIES: Final = "JOIN series s USING (series) JOIN run_activity a USING (run)"

QUERIES: Final[Mapping[str, str]] = {
    "current_runs": "SELECT off, off_first, doc FROM current_runs",
    "runs": "SELECT off, doc->>'path' AS path, doc->>'state' AS state FROM runs",
    "run_values": "SELECT r.doc->>'path' AS run, v.path, v.number, v.text "
    "FROM run_values v JOIN current_runs r USING (run)",
    "run_activity": "SELECT * EXCLUDE (run) FROM run_activity",
    "series": f"SELECT {_RUN} AS run, t.* EXCLUDE (run, series, key_number) FROM series t",
    "points": f"SELECT a.path AS run, key, p.step, p.ts, p.value, p.off FROM points_hot p {_SERIES}",
    "system": f"SELECT a.path AS run, key, p.step, p.ts, p.value, p.off FROM system_hot p {_SERIES}",
    "texts": f"SELECT a.path AS run, key, kind, p.step, p.ts, p.text, p.off FROM texts p {_SERIES}",
    "console": f"SELECT {_RUN} AS run, t.* EXCLUDE (run) FROM console t",
    "producers": "SELECT stream, producer, key, intervals, duplicates FROM producers",
    "dead_letters": "SELECT * REPLACE (split_part(reason, ':', 1) AS reason) FROM dead_letters",
    "rejections": "SELECT * FROM rejections",
    "skipped": "SELECT * FROM skipped",
}
"""How each table is told: runs by path, series by run, kind and key."""


def load(name: str) -> dict[str, Any]:
    """A case."""
    case: dict[str, Any] = orjson.loads((FOLDER / f"{name}.json").read_bytes())
    return case


def record(told: Mapping[str, Any]) -> Record:
    """A record of a case."""
    payload = told["text"].encode() if "text" in told else orjson.dumps(told["payload"])
    return Record(told["key"], msgspec.convert(told["envelope"], Envelope), payload)


def rows(case: Mapping[str, Any], path: Path, *, batch: int = 5_000) -> dict[str, list[dict[str, Any]]]:
    """The rows that a case's records make, by table; tables without rows are left out."""

    async def work() -> dict[str, list[dict[str, Any]]]:
        log = MemoryLog()
        for stream in (LEDGER, METRICS):
            await log.append(stream, [record(told) for told in case["records"] if told["stream"] == stream])
        with contextlib.closing(Store.open(path, log_id=log.log_id)) as store:
            await Runner(log, store, records=batch).catch_up()
            with contextlib.closing(store.cursor()) as cursor:
                found = {table: _told(cursor, query) for table, query in QUERIES.items()}
        return {table: all_of for table, all_of in found.items() if all_of}

    return asyncio.run(work())


def _told(cursor: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    cursor.execute(query)
    names = [column[0] for column in cursor.description or ()]
    found = [{name: _cell(name, cell) for name, cell in zip(names, row, strict=True)} for row in cursor.fetchall()]
    return sorted(found, key=lambda row: orjson.dumps(row, option=orjson.OPT_SORT_KEYS))


def _cell(name: str, cell: Any) -> Any:
    """A cell as JSON: documents unfolded, numbers that JSON does not know as words."""
    if name in ("doc", "intervals"):
        return orjson.loads(cell)
    if isinstance(cell, float) and not math.isfinite(cell):
        return "NaN" if math.isnan(cell) else "Infinity" if cell > 0 else "-Infinity"
    return cell


def write(name: str) -> None:
    """Write a case's rows anew."""
    case = load(name)
    with tempfile.TemporaryDirectory() as folder:
        case["rows"] = rows(case, Path(folder) / "store.duckdb")
    (FOLDER / f"{name}.json").write_bytes(orjson.dumps(case, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or CASES:
        write(chosen)
