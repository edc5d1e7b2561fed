"""Registries out of the store: collections and their cards, promotions, evidence, and parts of versions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import duckdb
import orjson

from icecore.errors import NotFound
from icecore.registry_checks import MISSING, Check, Evidence, Verdict, at
from icecore_api.queries.artifacts import Artifacts, Found, version_answer
from icecore_api.queries.run_answers import iso
from icecore_api.queries.values import summaries
from icecore_projections.folds.artifact_rows import Collection
from icecore_projections.folds.registry import source_key
from icecore_projections.folds.registry_rows import Registry
from icecore_projections.folds.retention import VersionKey
from icecore_projections.schema import artifact_number

REGISTRY: Final = "registry"
"""The entity whose projects are registries."""
RUNS_MOST: Final = 100
"""Runs that are looked at for evidence: those that used the version last."""
_NEVER: Final = (1 << 63) - 1
_FIELD: Final = re.compile(r"\{([a-z_]+(?:\.[^{}\n]{1,200})?)\}")
_STEPS: Final = (
    "SELECT path, promotion, step, alias, version, off, ts, username, credential, reason, checks FROM promotions "
)


# --------------------------------------------------------------------------------------------------- collections


def registered(cursor: duckdb.DuckDBPyConnection, artifacts: Artifacts) -> list[Collection]:
    """The collections of registries, and others that somebody set up, by path."""
    found = cursor.execute(
        "SELECT DISTINCT entity, project, name FROM current_collections "
        "WHERE entity = $registry OR json_exists(doc, '$.registry') ORDER BY ALL",
        {"registry": REGISTRY},
    ).fetchall()
    rows = []
    for parts in found:
        try:
            rows.append(artifacts.collection("/".join(parts)))
        except NotFound:  # it came after the moment asked for
            continue
    return rows


def collection_answer(row: Collection, shown: Found | None = None) -> dict[str, Any]:
    """A collection as it is answered.

    Args:
        row: the collection.
        shown: the version whose card is wanted.
    """
    registry = row.registry or Registry()
    return {
        "path": row.path,
        "type": row.type,
        "description": registry.description,
        "tags": registry.tags,
        "owner": registry.owner,
        "stages": registry.stages,
        "required": registry.required,
        "checks": {alias: [str(check) for check in checks] for alias, checks in sorted(registry.checks.items())},
        "template": registry.card,
        "card": rendered(registry, shown) if shown and registry.card else None,
        "version": f"v{shown.version.number}" if shown else None,
        "aliases": {alias: f"v{number}" for alias, number in sorted(row.aliases.items())},
        "versions": row.versions - len(row.deleted),
        "open": list(registry.open),
        "created_at": iso(row.created_ts),
        "user": row.user,
    }


def rendered(registry: Registry, found: Found) -> str:
    """A card with the version's own values: `{metadata.f1}`, `{version}`, `{owner}`; what is not there is `—`."""
    values = {**version_answer(found), "owner": registry.owner, "about": registry.description}

    def fill(match: re.Match[str]) -> str:
        return _shown(at(values, match[1]))

    return _FIELD.sub(fill, registry.card)


def _shown(value: Any) -> str:
    if value is MISSING or value in (None, "", [], {}):
        return "—"
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


# ------------------------------------------------------------------------------------------------------ evidence


def evidence(cursor: duckdb.DuckDBPyConnection, found: Found, checks: Iterable[Check]) -> list[Evidence]:
    """What the runs that used a version say: of each job type that a check asks for, the last ones.

    A version that was linked counts as what it was linked from, and as what it is linked to.
    """
    wanted: dict[str, set[str]] = {}
    for check in checks:
        if check.kind == "evaluated":
            wanted.setdefault(check.job_type, set()).update({check.key} - {""})
    if not wanted:
        return []
    keys = _same(cursor, found)
    runs = cursor.execute(
        "SELECT run, max(off) AS last FROM artifact_edges WHERE kind = 'used' AND (artifact, version) IN "
        "(SELECT (unnest($artifacts::BIGINT[]), unnest($versions::INTEGER[]))) GROUP BY run ORDER BY last DESC",
        {"artifacts": [artifact_number(key.artifact) for key in keys], "versions": [key.version for key in keys]},
    ).fetchall()
    rows = cursor.execute(
        "SELECT run, doc FROM current_runs WHERE run IN (SELECT unnest($runs::BIGINT[])) AND NOT deleted "
        "AND job_type IN (SELECT unnest($types::VARCHAR[]))",
        {"runs": [run for run, _ in runs], "types": list(wanted)},
    ).fetchall()
    order = {run: place for place, (run, _) in enumerate(runs)}
    docs = {run: orjson.loads(doc) for run, doc in sorted(rows, key=lambda row: order[row[0]])[:RUNS_MOST]}
    values = summaries(cursor, {run: (doc["summary"], doc["metrics"]) for run, doc in docs.items()})
    return [_evidence(doc, values[run], wanted[doc["job_type"]]) for run, doc in docs.items()]


def _evidence(doc: Mapping[str, Any], summary: Mapping[str, Any], keys: Iterable[str]) -> Evidence:
    values = {key: value for key in sorted(keys) if (value := at(summary, key)) is not MISSING}
    plain = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    return Evidence(doc["path"], doc["job_type"], plain)


def _same(cursor: duckdb.DuckDBPyConnection, found: Found) -> list[VersionKey]:
    """A version, those it was linked from, and those that it was linked to."""
    own = VersionKey(found.collection.path, found.version.number)
    linked = cursor.execute(
        "SELECT DISTINCT path FROM artifact_edges WHERE artifact = $artifact AND version = $version "
        "AND kind = 'linked'",
        {"artifact": artifact_number(own.artifact), "version": own.version},
    ).fetchall()
    return [own, *map(source_key, found.version.sources), *(source_key(path) for (path,) in linked)]


# ---------------------------------------------------------------------------------------------------- promotions


def promotions(
    cursor: duckdb.DuckDBPyConnection, *, path: str = "", promotion: str = "", upto: int | None = None
) -> list[dict[str, Any]]:
    """Promotions as they are answered, the last first.

    Args:
        cursor: where to look.
        path: only those of a collection.
        promotion: only the one of an id.
        upto: only records of the ledger before this offset count.
    """
    conditions, parameters = ["off < $upto"], {"upto": _NEVER if upto is None else upto}
    if path:
        conditions.append("artifact = $artifact")
        parameters["artifact"] = artifact_number(path)
    if promotion:
        conditions.append("promotion = $promotion")
    given: dict[str, Any] = {**parameters, **({"promotion": promotion} if promotion else {})}
    rows = cursor.execute(f"{_STEPS} WHERE {' AND '.join(conditions)} ORDER BY off", given).fetchall()
    by_id: dict[str, list[tuple[Any, ...]]] = {}
    for row in rows:
        by_id.setdefault(row[1], []).append(row)
    return [_promotion(steps) for steps in reversed(by_id.values())]


def one_promotion(cursor: duckdb.DuckDBPyConnection, promotion: str) -> dict[str, Any]:
    """The promotion of an id.

    Raises:
        NotFound: there is none.
    """
    found = promotions(cursor, promotion=promotion)
    if not found:
        raise NotFound(f"no such promotion: {promotion[:80]!r}", hint="`icecore promote list` has their ids")
    return found[0]


def _promotion(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    steps = [
        {
            "step": step,
            "version": f"v{version}",
            "at": iso(ts),
            "user": user,
            "credential": credential,
            "reason": reason,
            "checks": orjson.loads(checks),
            "position": f"ledger:0:{off}",
        }
        for _, _, step, _, version, off, ts, user, credential, reason, checks in rows
    ]
    path, name, _, alias, version, *_ = rows[0]
    approved = [step["user"] for step in steps if step["step"] == "approved"]
    return {
        "promotion": name,
        "path": path,
        "version": f"v{version}",
        "alias": alias,
        "state": steps[-1]["step"],
        "reason": steps[0]["reason"],
        "requested_by": steps[0]["user"],
        "approved_by": approved[-1] if approved else None,
        "steps": steps,
    }


def verdicts_answer(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as they are answered."""
    return [verdict._asdict() for verdict in verdicts]


# --------------------------------------------------------------------------------- versions of several writers


class UnderWay(NamedTuple):
    """A version of several writers, so far."""

    parts: list[tuple[str, str]]
    """(manifest, run) of each different part since the last end, in log order."""
    upto: int
    """The offset after the last of them."""


def parts_under_way(cursor: duckdb.DuckDBPyConnection, path: str, distributed_id: str) -> UnderWay:
    """The parts that were sent since the last end, and not taken back since."""
    number = artifact_number(path)
    asked = {"artifact": number, "id": distributed_id}
    ended = cursor.execute(
        "SELECT max(upto) FROM draft_parts WHERE artifact = $artifact AND distributed_id = $id AND kind = 'finished'",
        asked,
    ).fetchone()
    since = ended[0] if ended and ended[0] is not None else 0
    rows = cursor.execute(
        "SELECT digest, arg_max(run, off), max(off) FROM draft_parts WHERE artifact = $artifact "
        "AND distributed_id = $id AND kind IN ('part', 'withdrawn') AND off >= $since GROUP BY digest "
        "HAVING arg_max(kind, off) = 'part' ORDER BY min(off)",
        {**asked, "since": since},
    ).fetchall()
    return UnderWay([(digest, run) for digest, run, _ in rows], max((off + 1 for _, _, off in rows), default=0))


def last_end(cursor: duckdb.DuckDBPyConnection, path: str, distributed_id: str) -> str | None:
    """The manifest of the version that was finished last under an id; None where none was."""
    found = cursor.execute(
        "SELECT arg_max(digest, off) FROM draft_parts WHERE artifact = $artifact AND distributed_id = $id "
        "AND kind = 'finished'",
        {"artifact": artifact_number(path), "id": distributed_id},
    ).fetchone()
    return found[0] if found else None
