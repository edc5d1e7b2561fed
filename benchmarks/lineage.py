"""Lineage: the neighbourhood of any version in a graph of 100,000 runs and versions.

Half of the nodes are runs with the facts of a real environment on them, half are versions in 500 artifacts. A run
uses up to three versions, mostly young ones, and logs one. Two datasets are hubs: one is used by two fifths of all
runs, one by every fiftieth.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final, cast

import duckdb
import pyarrow as pa

from benchmarks.results import Result
from icecore.artifact_events import ArtifactCommitted, ArtifactUsed
from icecore.events import Envelope, Event
from icecore.position import LEDGER, Place, Position
from icecore_api.queries.lineage import VersionKey, Walk, walk
from icecore_api.queries.lineage_edges import EdgesOf
from icecore_api.queries.lineage_facts import Facts
from icecore_projections.artifact_state import ArtifactsFold
from icecore_projections.folds import Applied
from icecore_projections.folds.run_row import RunRow
from icecore_projections.schema import INDEXES, artifact_number, definitions

NODES: Final = 100_000
ARTIFACTS: Final = 500
ROUNDS: Final = 60
NOW: Final = 1_800_000_000_000
HUB: Final = "team/graph/tickets"
PACKAGES: Final = {f"package-{n}": f"{n % 7}.{n % 13}.0" for n in range(150)}


def run(scale: float) -> list[Result]:
    """Make the graph and walk it from many versions. `scale` 1 is 100,000 nodes."""
    nodes = max(200, round(NODES * scale))
    with tempfile.TemporaryDirectory(prefix="icecore-bench-") as folder, graph(Path(folder), nodes) as con:
        return measure(con, nodes)


@contextlib.contextmanager
def graph(folder: Path, nodes: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A store that holds the graph, as the folds leave it."""
    con = duckdb.connect(str(folder / "bench.duckdb"))
    try:
        for statement in definitions():
            con.execute(statement)
        for name, columns in INDEXES.items():
            con.execute(f"CREATE INDEX {name} ON {columns}")
        _put_runs(con, nodes // 2)
        _put_versions(con, list(_events(nodes // 2)))
        con.execute("INSERT INTO offsets SELECT 'ledger', 0, max(off) + 1, 0 FROM artifact_edges")
        con.execute("CHECKPOINT")
        yield con
    finally:
        con.close()


def measure(con: duckdb.DuckDBPyConnection, nodes: int) -> list[Result]:
    """Neighbourhoods of depth 5 with everything that is answered of their nodes."""
    starts = con.execute(
        "SELECT artifact, version FROM current_versions ORDER BY hash(artifact, version) LIMIT $rounds",
        {"rounds": ROUNDS},
    ).fetchall()
    tickets = artifact_number(HUB)
    edges = EdgesOf()
    first = timed(lambda: edges.seen_by(con))
    any_of = [timed(partial(neighbourhood, con, edges, *at)) for at in starts]
    hub = [timed(lambda: neighbourhood(con, edges, tickets, 0)) for _ in range(15)]
    what = f"lineage of depth 5 in {nodes:,} nodes, at the store"
    return [
        Result(f"{what}, median", median(any_of), "ms", 50, "at most", "documents of its runs"),
        Result(f"{what}, slowest of {len(any_of)}", max(any_of), "ms", 50, "at most", "documents of its runs"),
        Result(f"{what}, from a hub, median", median(hub), "ms", 50, "at most", "the hub's edges"),
        Result("reading all edges, once after a start", first, "ms"),
    ]


def neighbourhood(con: duckdb.DuckDBPyConnection, edges_of: EdgesOf, artifact: int, version: int) -> dict[str, Any]:
    """What the route does, without HTTP."""
    cursor = con.cursor()
    try:
        edges, upto = edges_of.seen_by(cursor)
        found = walk(edges, upto, VersionKey(artifact, version), Walk("both", 5))
        return Facts(cursor, edges, None, 0).answer(found)
    finally:
        cursor.close()


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of a piece of work: the lesser of the clock and the CPU, since others run beside."""
    began, cpu = perf_counter(), process_time()
    work()
    return min(perf_counter() - began, process_time() - cpu) * 1000


def _events(runs: int) -> Iterator[Event]:
    draw = random.Random(1)
    made: list[tuple[str, int]] = []
    counts: dict[str, int] = {}
    for hub in (HUB, f"{HUB}-small"):
        yield ArtifactCommitted(artifact=hub, type="dataset", digest=f"{len(made):064x}", files=9, size=9)
        made.append((hub, 0))
    for number in range(runs):
        path = f"team/graph/r{number}"
        used = {made[-draw.randrange(1, min(len(made), 2_000) + 1)] for _ in range(draw.randrange(1, 4))}
        used |= {made[0]} if draw.random() < 0.4 else set()
        used |= {made[1]} if draw.random() < 0.02 else set()
        for artifact, version in sorted(used):
            yield ArtifactUsed(artifact=artifact, version=version, run=path)
        artifact = f"team/graph/a{draw.randrange(ARTIFACTS)}"
        metadata = {"f1": draw.random(), "epoch": number % 50}
        digest = f"{number + 2:064x}"
        yield ArtifactCommitted(
            artifact=artifact, type="model", digest=digest, files=3, size=10**6, metadata=metadata, run=path
        )
        made.append((artifact, counts.get(artifact, 0)))
        counts[artifact] = made[-1][1] + 1


def _put_versions(con: duckdb.DuckDBPyConnection, events: list[Event]) -> None:
    applied = [
        Applied(
            Position(LEDGER, 0, offset),
            Envelope(
                id="", type=event.TYPE, v=1, producer="", seq=offset, ts_client=NOW, ts_server=NOW + offset, actor="ann"
            ),
            event.key,
            event,
        )
        for offset, event in enumerate(events)
    ]
    fold = ArtifactsFold()
    changes = fold.fold(Place(LEDGER, 0), applied).changes
    parts = [*changes.append.items(), *((name, [one.rows for one in rows]) for name, rows in changes.replace.items())]
    for name, tables in parts:
        con.register("given", pa.concat_tables(tables))
        con.execute(f"INSERT INTO {name} BY NAME FROM given")
        con.unregister("given")


def _put_runs(con: duckdb.DuckDBPyConnection, runs: int) -> None:
    kinds = ("train", "eval", "preprocess")
    same = {"entity": "team", "project": "graph", "user": "ann", "started_ts": NOW, "heard_ts": NOW, "off_first": 0}
    metadata = {"git": {"commit": "c" * 40, "dirty": False}, "packages": PACKAGES, "host": "node", "python": "3.11.9"}
    config = {"lr": 0.1, "model": "net", **{f"p{n}": n for n in range(20)}}
    rows = [
        RunRow(
            path=f"team/graph/r{n}", id=f"r{n}", name=f"run-{n}", job_type=kinds[n % 3], state="finished", off=n,
            created_ts=NOW + n, config=config, metadata=metadata, **cast("Any", same),
        )
        for n in range(runs)
    ]  # fmt: skip
    columns = {name: [getattr(row, name) for row in rows] for name in ("id", "name", "job_type", "state", "created_ts")}
    docs = [row.to_doc() for row in rows]
    given = pa.table({"run": [row.number for row in rows], "off": range(runs), "doc": docs, **columns})
    con.register("given", given)
    con.execute(
        "INSERT INTO current_runs BY NAME SELECT *, 0 AS off_first, 'team' AS entity, 'graph' AS project, "
        "'ann' AS username, false AS deleted FROM given"
    )
    con.execute("INSERT INTO runs SELECT run, off, doc FROM given")
    con.unregister("given")
