"""What would be hurt if a version were bad: everything made from it, what is served of that, and whom to tell."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import duckdb

from icecore_api.queries.lineage import Reach
from icecore_api.queries.lineage_facts import Facts

LISTED: Final = 1_000
"""Runs and versions that are listed of each; all are counted."""
NODES_MOST: Final = 200_000
_LATEST: Final = "latest"
_BATCH: Final = 5_000


def impact_answer(cursor: duckdb.DuckDBPyConnection, facts: Facts, reach: Reach) -> dict[str, Any]:
    """The answer about all that came of the first version of `reach`."""
    versions = facts.versions(list(reach.versions))
    runs = {number: row for batch in _batches(list(reach.runs)) for number, row in _runs(cursor, batch)}
    (start, *below) = [{**versions[key], "distance": step} for key, step in reach.versions.items() if key in versions]
    ran = [{**runs[number], "distance": step} for number, step in reach.runs.items() if number in runs]
    by_runs = Counter(run["user"] for run in ran)
    by_versions = Counter(version["user"] for version in below)
    users = sorted(by_runs.keys() | by_versions.keys(), key=lambda user: (-by_runs[user] - by_versions[user], user))
    return {
        "start": start["id"],
        "versions": below[:LISTED],
        "runs": ran[:LISTED],
        "versions_count": len(reach.versions) - 1,
        "runs_count": len(reach.runs),
        "served_by": [
            {"alias": alias, "version": version["id"], "type": version["type"], "distance": version["distance"]}
            for version in (start, *below)
            for alias in version["aliases"]
            if alias != _LATEST
        ],
        "tell": [{"user": user, "runs": by_runs[user], "versions": by_versions[user]} for user in users],
        "truncated": reach.truncated,
    }


def _batches(numbers: list[int]) -> list[list[int]]:
    return [numbers[first : first + _BATCH] for first in range(0, len(numbers), _BATCH)]


def _runs(cursor: duckdb.DuckDBPyConnection, numbers: list[int]) -> list[tuple[int, dict[str, Any]]]:
    found = cursor.execute(
        "SELECT run, concat_ws('/', entity, project, id), name, job_type, state, username FROM current_runs "
        "WHERE run IN (SELECT unnest($runs::BIGINT[]))",
        {"runs": numbers},
    ).fetchall()
    return [
        (number, {"id": path, "kind": "run", "name": name, "job_type": job_type, "state": state, "user": user})
        for number, path, name, job_type, state, user in found
    ]
