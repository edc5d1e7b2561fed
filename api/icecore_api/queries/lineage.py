"""What a version was made from, and what was made from it: a walk over runs and versions, one level at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from icecore_api.queries.artifacts import Artifacts, Found, version_answer

Direction = Literal["up", "down", "both"]
NODES_MOST: Final = 10_000
"""Where a walk would find more it ends, and says so."""

_VersionKey = tuple[int, int]
_Runs = list[str]


@dataclass(slots=True)
class Lineage:
    """Nodes and edges of a neighbourhood."""

    versions: dict[_VersionKey, int] = field(default_factory=dict)
    """(artifact number, version) -> its distance from the start, in steps between a run and a version."""
    runs: dict[str, int] = field(default_factory=dict)
    edges: set[tuple[str, _VersionKey, str]] = field(default_factory=set)
    """(run, version, logged or used)."""
    cut: bool = False
    """Whether there is more within the depth than is here."""


def walk(artifacts: Artifacts, start: Found, direction: Direction, depth: int) -> Lineage:
    """The neighbourhood of a version.

    Args:
        artifacts: where to look.
        start: the version.
        direction: up is what it was made from: the run that logged it, what that run used, and so on.
        depth: steps, each from a version to a run or back.
    """
    found = Lineage({(start.collection.number, start.version.number): 0})
    for one in ("up", "down") if direction == "both" else (direction,):
        _walk(artifacts, found, one, start, depth)
    return found


def _walk(artifacts: Artifacts, found: Lineage, direction: str, start: Found, depth: int) -> None:
    to_run, to_version = ("logged", "used") if direction == "up" else ("used", "logged")
    versions: list[_VersionKey] = [(start.collection.number, start.version.number)]
    for step in range(1, depth + 1, 2):
        runs = _runs_of(artifacts, found, versions, to_run, step)
        if step + 1 > depth or not runs:
            return
        versions = _versions_of(artifacts, found, runs, to_version, step + 1)
        if not versions:
            return


def _runs_of(artifacts: Artifacts, found: Lineage, versions: list[_VersionKey], kind: str, step: int) -> _Runs:
    """The runs next to some versions that were not met before."""
    by_artifact: dict[int, list[int]] = {}
    for artifact, version in versions:
        by_artifact.setdefault(artifact, []).append(version)
    new: _Runs = []
    for artifact, numbers in by_artifact.items():
        for version, run in artifacts.runs_of(artifact, numbers, kind):
            if run not in found.runs:
                if _is_full(found):
                    return new
                found.runs[run] = step
                new.append(run)
            found.edges.add((run, (artifact, version), kind))
    return new


def _versions_of(artifacts: Artifacts, found: Lineage, runs: _Runs, kind: str, step: int) -> list[_VersionKey]:
    """The versions next to some runs that were not met before."""
    new: list[_VersionKey] = []
    for run, artifact, version in artifacts.versions_of(runs, kind):
        key = (artifact, version)
        if key not in found.versions:
            if _is_full(found):
                return new
            found.versions[key] = step
            new.append(key)
        found.edges.add((run, key, kind))
    return new


def _is_full(found: Lineage) -> bool:
    found.cut = len(found.versions) + len(found.runs) >= NODES_MOST
    return found.cut


def lineage_answer(artifacts: Artifacts, found: Lineage, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Nodes and edges as they are answered; an edge goes from what was there first to what came of it.

    Args:
        artifacts: where to look up versions.
        found: the walk.
        runs: what is known of runs, by path: `name`, `job_type`, `state`, `commit`.
    """
    versions = artifacts.by_number(list(found.versions))
    ids = {key: f"{one.collection.path}:v{one.version.number}" for key, one in versions.items()}
    nodes: list[dict[str, Any]] = [
        {"id": ids[key], "kind": "version", "distance": found.versions[key], **_short(versions[key])}
        for key in found.versions
        if key in versions
    ]
    nodes += [{"id": run, "kind": "run", "distance": step, **runs.get(run, {})} for run, step in found.runs.items()]
    edges = [
        {"from": run, "to": ids[key], "kind": kind} if kind == "logged" else {"from": ids[key], "to": run, "kind": kind}
        for run, key, kind in sorted(found.edges)
        if key in ids
    ]
    return {"nodes": nodes, "edges": edges, "cut": found.cut}


def _short(found: Found) -> dict[str, Any]:
    kept = ("path", "version", "type", "aliases", "state", "size", "created_at", "user")
    answer = version_answer(found)
    return {name: answer[name] for name in kept}
