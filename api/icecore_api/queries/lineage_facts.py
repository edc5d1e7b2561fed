"""What is told of the nodes of a lineage: of versions their columns, of runs what made them what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import duckdb
import orjson

from icecore_api.queries.artifacts import Artifacts
from icecore_api.queries.lineage import Key, Lineage, SubjectKey, VersionKey
from icecore_api.queries.lineage_edges import Edges
from icecore_api.queries.run_answers import iso

CONFIG_MOST: Final = 40
"""Leaves of a run's config that a node has; the whole of it is the run's."""
TEXT_MOST: Final = 200

_DELETED: Final = "deleted"


class Facts:
    """Answers about nodes, at one state of a store.

    Args:
        cursor: within a transaction.
        edges: in which the nodes were found.
        upto: only records of the ledger before this offset count; None is now.
        crashed_before_ms: a run that has not been heard of since counts as crashed.
    """

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, edges: Edges, upto: int | None, crashed_before_ms: int
    ) -> None:
        self._cursor = cursor
        self._edges = edges
        self._upto = upto
        self._crashed_before_ms = crashed_before_ms

    def answer(self, found: Lineage) -> dict[str, Any]:
        """Nodes and edges as they are answered; an edge goes from what was there first to what came of it."""
        versions = self.versions([key for key in found.nodes if isinstance(key, VersionKey)])
        subjects = [key for key in found.nodes if isinstance(key, SubjectKey)]
        runs = self.runs([key.number for key in subjects if key.number not in self._edges.paths])
        told: dict[Key, dict[str, Any]] = {}
        for key in found.nodes:
            if isinstance(key, VersionKey):
                if key in versions:
                    told[key] = versions[key]
            elif key.number in runs:
                told[key] = runs[key.number]
            elif key.number in self._edges.paths:
                told[key] = {"id": self._edges.paths[key.number], "kind": "reference"}
        links = ((told[link.start]["id"], told[link.end]["id"], link.kind) for link in found.links
                 if link.start in told and link.end in told)  # fmt: skip
        return {
            "start": told[found.start]["id"],
            "nodes": [{**told[key], "distance": step} for key, step in found.nodes.items() if key in told],
            "edges": [{"from": start, "to": end, "kind": kind} for start, end, kind in sorted(links)],
            "truncated": found.truncated,
            "hidden": [
                {"node": told[key]["id"], "direction": way, "count": count}
                for (key, way), count in found.hidden.items()
                if key in told
            ],
        }

    # ------------------------------------------------------------------------------------------------- versions

    def versions(self, keys: Sequence[VersionKey]) -> dict[VersionKey, dict[str, Any]]:
        """Versions by key; those that are not there are left out."""
        if self._upto is not None:
            found = Artifacts(self._cursor, self._upto).by_number([(key.artifact, key.version) for key in keys])
            rows = [
                (one.collection.number, one.version.number, one.version.size, one.version.files, one.version.user,
                 one.version.created_ts, one.version.deleted, one.version.digest)
                for one in found.values()
            ]  # fmt: skip
            collections = {one.collection.number: _collection(one.collection.to_doc()) for one in found.values()}
        else:
            wanted = {"artifacts": [key.artifact for key in keys], "versions": [key.version for key in keys]}
            rows = self._cursor.execute(
                "SELECT artifact, version, size, files, username, created_ts, deleted, digest FROM current_versions "
                "WHERE (artifact, version) IN (SELECT (unnest($artifacts::BIGINT[]), unnest($versions::INTEGER[])))",
                wanted,
            ).fetchall()
            collections = self._collections({key.artifact for key in keys})
        return {VersionKey(row[0], row[1]): self._version(row, collections[row[0]]) for row in rows}

    def _collections(self, numbers: set[int]) -> dict[int, dict[str, Any]]:
        members = ", ".join(str(int(number)) for number in numbers) or "NULL"
        found = self._cursor.execute(
            f"SELECT artifact, doc FROM current_collections WHERE artifact IN ({members})"  # noqa: S608 - numbers
        ).fetchall()
        return {number: _collection(doc) for number, doc in found}

    def _version(self, row: tuple[Any, ...], collection: Mapping[str, Any]) -> dict[str, Any]:
        artifact, version, size, files, user, created_ts, deleted, digest = row
        return {
            "id": f"{collection['path']}:v{version}",
            "kind": "bundle" if (artifact, version) in self._edges.bundles else "version",
            "path": collection["path"],
            "version": f"v{version}",
            "type": collection["type"],
            "aliases": collection["named"].get(version, []),
            "state": _DELETED if deleted else "committed",
            "size": size,
            "files": files,
            "digest": digest,
            "user": user,
            "created_at": iso(created_ts),
        }

    # ----------------------------------------------------------------------------------------------------- runs

    def runs(self, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Runs by number; of one that never began only its path is known."""
        told = dict(self._runs_now(numbers) if self._upto is None else self._runs_then(numbers, self._upto))
        missing = ", ".join(str(int(number)) for number in numbers if number not in told)
        if missing:
            told |= {
                number: {"id": path, "kind": "run"}
                for number, path in self._cursor.execute(
                    "SELECT run, any_value(path) FROM artifact_edges "  # noqa: S608 - numbers
                    f"WHERE run IN ({missing}) AND kind IN ('logged', 'used') GROUP BY run"
                ).fetchall()
            }
        return told

    def _runs_now(self, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
        if not numbers:
            return {}
        members = ", ".join(str(int(number)) for number in numbers)
        found = self._cursor.execute(
            f"SELECT run, doc FROM current_runs WHERE run IN ({members})"  # noqa: S608 - numbers
        ).fetchall()
        docs = {number: orjson.loads(doc) for number, doc in found}
        heard = self._heard([number for number, doc in docs.items() if doc["state"] == "running"])
        for number, doc in docs.items():
            last = max(doc["heard_ts"], heard.get(number, 0))
            if doc["state"] == "running" and last < self._crashed_before_ms:
                doc["state"] = "crashed"
        return {number: _run(doc) for number, doc in docs.items()}

    def _heard(self, runs: Sequence[int]) -> dict[int, int]:
        if not runs:
            return {}
        members = ", ".join(str(int(run)) for run in runs)
        return dict(
            self._cursor.execute(
                f"SELECT run, heard_ts FROM run_activity WHERE run IN ({members})"  # noqa: S608 - numbers
            ).fetchall()
        )

    def _runs_then(self, numbers: Sequence[int], upto: int) -> dict[int, dict[str, Any]]:
        if not numbers:
            return {}
        members = ", ".join(str(int(number)) for number in numbers)
        found = self._cursor.execute(
            f"SELECT run, arg_max(doc, off) FROM runs WHERE run IN ({members}) "  # noqa: S608 - numbers
            "AND off < $upto GROUP BY run",
            {"upto": upto},
        ).fetchall()
        return {number: _run(orjson.loads(doc)) for number, doc in found}


def _run(doc: Mapping[str, Any]) -> dict[str, Any]:
    git = doc["metadata"].get("git")
    git = git if isinstance(git, dict) else {}
    commit, dirty = git.get("commit"), git.get("dirty")
    return {
        "id": doc["path"],
        "kind": "run",
        "name": doc["name"],
        "job_type": doc["job_type"],
        "state": _DELETED if doc["deleted"] else doc["state"],
        "user": doc["user"],
        "created_at": iso(doc["created_ts"]),
        "commit": commit if isinstance(commit, str) else None,
        "dirty": dirty if isinstance(dirty, bool) else None,
        "config": short_config(doc["config"]),
    }


def short_config(config: object) -> dict[str, Any]:
    """The first leaves of a config by dotted path, long texts cut: what fits beside a node."""
    leaves: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", config)]
    while stack and len(leaves) < CONFIG_MOST:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{path}.{key}" if path else str(key), value[key]) for key in sorted(value, reverse=True)]
        elif path:
            text = value if isinstance(value, str) else orjson.dumps(value).decode() if value else value
            leaves[path] = value if not isinstance(text, str) or len(text) <= TEXT_MOST else f"{text[:TEXT_MOST]}…"
    return leaves


def _collection(text: str) -> dict[str, Any]:
    """What nodes need of a collection."""
    doc = orjson.loads(text)
    named: dict[int, list[str]] = {}
    for alias, number in sorted(doc["aliases"].items()):
        named.setdefault(number, []).append(alias)
    return {"path": doc["path"], "type": doc["type"], "named": named}
