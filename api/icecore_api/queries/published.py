"""Runs as they are published to `PREFIX.run-summaries`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import orjson

from icecore_api.queries.values import TooWide, summaries
from icecore_projections.store import Store


def published(store: Store, runs: Sequence[int]) -> Mapping[str, Mapping[str, Any] | None]:
    """What is published of some runs, by path; None of a deleted one, and nothing of one without `run.started`.

    Args:
        store: the store in use.
        runs: numbers of runs.
    """
    positions = str(store.token())  # before the cursor sees anything: what it sees is this, or later
    members = ", ".join(str(int(run)) for run in runs)
    with store.reading() as con:
        con.execute("BEGIN TRANSACTION READ ONLY")  # closing the cursor ends it
        rows = con.execute(
            f"SELECT run, doc, deleted FROM current_runs WHERE run IN ({members})"  # noqa: S608 - numbers
        ).fetchall()
        active = con.execute(
            f"SELECT run, heard_ts, last_step FROM run_activity WHERE run IN ({members})"  # noqa: S608 - numbers
        ).fetchall()
        heard = {run: (heard_ts, last_step) for run, heard_ts, last_step in active}
        docs = {run: orjson.loads(doc) for run, doc, _ in rows}
        gone = {run for run, _, deleted in rows if deleted}
        kept = {run: (doc["summary"], doc["metrics"]) for run, doc in docs.items() if run not in gone}
        values = _summaries(con, kept)
    return {
        doc["path"]: None if run in gone else _value(doc, heard.get(run, (None, None)), values[run], positions)
        for run, doc in docs.items()
    }


def _summaries(con: duckdb.DuckDBPyConnection, runs: Mapping[int, Any]) -> dict[int, dict[str, Any]]:
    """The summaries of any number of runs, in as many parts as their width asks for."""
    if not runs:
        return {}
    try:
        return summaries(con, runs)
    except TooWide:
        if len(runs) == 1:
            raise
        listed = list(runs.items())
        half = len(listed) // 2
        return _summaries(con, dict(listed[:half])) | _summaries(con, dict(listed[half:]))


def _value(
    doc: Mapping[str, Any], heard: tuple[int | None, int | None], summary: Mapping[str, Any], positions: str
) -> dict[str, Any]:
    heard_ts, last_step = heard
    names = ("name", "group", "job_type", "tags", "user", "state", "exit_code")
    return {
        "run": doc["path"],
        **{name: doc[name] for name in names},
        **{name: doc[name] for name in ("created_ts", "started_ts", "finished_ts")},
        "heard_ts": max(doc["heard_ts"], heard_ts or 0),
        "config": doc["config"],
        "summary": {**summary, **({} if last_step is None else {"_step": last_step})},
        "positions": positions,
    }
