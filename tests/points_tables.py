"""A store's tables filled with random points, and the same points as plain lists to compare with."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import duckdb
import orjson
import pyarrow as pa

from icecore_projections import compaction
from icecore_projections.schema import definitions, name_number, run_number


class Point(NamedTuple):
    """What was logged, in order of arrival."""

    run: str
    kind: str
    key: str
    step: int
    ts: int
    value: Any
    off: int


STARTED = 1_700_000_000_000


@dataclass
class Tables:
    """An in-memory store. Series numbers are 256 apart, as the metrics' fold gives them."""

    con: duckdb.DuckDBPyConnection = field(default_factory=duckdb.connect)
    points: list[Point] = field(default_factory=list)
    series: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for statement in definitions():
            self.con.execute(statement)

    def run(self, path: str, *, off: int = 0, deleted: bool = False, **fields: Any) -> None:
        """Add a run, as the ledger's fold would."""
        entity, project, name = path.split("/")
        doc = {"path": path, "started_ts": STARTED, "deleted": deleted, **fields}
        number = run_number(path)
        self.con.execute("INSERT INTO runs VALUES (?, ?, ?)", [number, off, orjson.dumps(doc).decode()])
        self.con.execute("DELETE FROM current_runs WHERE run = ?", [number])
        self.con.execute(
            'INSERT INTO current_runs (run, off, off_first, entity, project, id, "group", job_type, tags, started_ts, '
            "deleted, heard_ts, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'finished')",
            [
                number,
                off,
                off,
                entity,
                project,
                name,
                fields.get("group", ""),
                fields.get("job_type", ""),
                fields.get("tags", []),
                STARTED,
                deleted,
                STARTED,
            ],
        )
        for root in ("config", "summary"):
            for key, value in fields.get(root, {}).items():
                numeric = float(value) if isinstance(value, (bool, int, float)) else None
                text = str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else None
                path = f"{root}.{key}"
                self.con.execute(
                    "INSERT INTO run_values VALUES (?, ?, ?, ?, ?)", [number, path, numeric, text, name_number(path)]
                )

    def log(self, points: list[Point]) -> None:
        """Points arrive: into the hot tables."""
        hot: dict[str, list[tuple[Any, ...]]] = {"points_hot": [], "system_hot": [], "texts": []}
        for point in points:
            name = (point.run, point.kind, point.key)
            number = self.series.setdefault(name, 256 * len(self.series))
            table = {"metric": "points_hot", "system": "system_hot"}.get(point.kind, "texts")
            value = point.value
            if point.kind == "bool":
                value = "true" if value else "false"
            hot[table].append((number, point.step, point.ts, value, point.off))
        for table, rows in hot.items():
            if rows:
                names = ["series", "step", "ts", "text" if table == "texts" else "value", "off"]
                kinds = [
                    pa.int32(),
                    pa.int64(),
                    pa.int64(),
                    pa.string() if table == "texts" else pa.float64(),
                    pa.int64(),
                ]
                columns = [
                    pa.array(c, k, from_pandas=False) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)
                ]
                arrived = pa.table(columns, names=names)
                self.con.execute(f"INSERT INTO {table} SELECT * FROM arrived")
                del arrived
        self.points += points

    def compact(self) -> None:
        """The hot points become a piece."""
        for kind in ("points", "system"):
            compaction.compact(self.con, kind)

    def finish(self) -> Tables:
        """Write the series table."""
        self.con.execute("DELETE FROM series")
        for (run, kind, key), number in self.series.items():
            mine = [p for p in self.points if (p.run, p.kind, p.key) == (run, kind, key)]
            last = max(mine, key=lambda p: p.step)
            top = [p for p in mine if p.step == last.step][-1]
            text = str(top.value).lower() if kind == "bool" else top.value if kind == "text" else None
            self.con.execute(
                "INSERT INTO series (series, run, kind, key, n, last_step, last, last_text, off, key_number) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    number,
                    run_number(run),
                    kind,
                    key,
                    len(mine),
                    top.step,
                    None if text is not None else top.value,
                    text,
                    top.off,
                    name_number(key),
                ],
            )
        return self

    def of(self, run: str, key: str, kind: str = "metric") -> list[Point]:
        """A series' points by step; of one step in order of arrival."""
        return sorted((p for p in self.points if (p.run, p.kind, p.key) == (run, kind, key)), key=lambda p: p.step)


def number(rng: random.Random) -> float:
    """Mostly a number, sometimes what is none."""
    return (
        rng.choice([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e300]) if rng.random() < 0.1 else rng.gauss(0, 3)
    )


def random_points(rng: random.Random, n: int, runs: int = 3, keys: int = 3, first_off: int = 0) -> list[Point]:
    """Points of several runs and keys, steps out of order and repeated, times that mostly follow them."""
    points = []
    for i in range(n):
        step = rng.choice([i // 4, rng.randrange(max(1, n // 3)), rng.randrange(-5, 5)])
        ts = STARTED + 100 * step + rng.randrange(-300, 300)
        run, key = f"e/p/r{rng.randrange(runs)}", f"k{rng.randrange(keys)}"
        kind = "system" if rng.random() < 0.1 else "metric"
        points.append(Point(run, kind, key, step, ts, number(rng), first_off + i // 7))
    return points


def random_tables(seed: int, n: int = 900, pieces: int = 3, runs: int = 3, keys: int = 3) -> Tables:
    """Cold pieces, then hot points."""
    rng = random.Random(seed)
    tables = Tables()
    for index in range(runs):
        tables.run(f"e/p/r{index}", off=index)
    points = random_points(rng, n, runs, keys)
    size = max(1, n // (pieces + 1))
    for piece in range(pieces):
        tables.log(points[piece * size : (piece + 1) * size])
        tables.compact()
    tables.log(points[pieces * size :])
    return tables.finish()
