"""Rules for which versions stay: what a rule would delete, and what it would free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from icecore.artifact_events import ArtifactDeleted
from icecore.errors import NotFound
from icecore_api.blobs.store import BlobStore
from icecore_api.queries.artifacts import Artifacts, Found
from icecore_api.queries.retention import Retention
from icecore_api.retention.contents import Contents
from icecore_projections.folds.artifact_rows import LATEST
from icecore_projections.folds.retention import VersionKey


@dataclass(frozen=True, slots=True)
class Rule:
    """Which versions of each artifact stay."""

    keep_last: int
    """So many of the newest; at least one, as `latest` names it."""
    keep_aliased: bool
    """And those with an alias of their own."""
    scope: str = ""
    """A team, project or artifact; empty for all."""
    type: str = ""
    """Only artifacts of a type; empty for all."""

    def as_json(self) -> dict[str, Any]:
        """As it is answered."""
        return {
            "keep_last": self.keep_last,
            "keep_aliased": self.keep_aliased,
            "scope": self.scope,
            "type": self.type,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule comes to."""

    rule: Rule
    going: list[Found]
    kept: list[tuple[VersionKey, list[str]]]
    """What the rule would delete, but something keeps it."""
    staying: list[str]
    """Manifests of all other versions."""


def judge(cursor: duckdb.DuckDBPyConnection, rule: Rule) -> Verdict:
    """Which versions a rule deletes.

    Raises:
        NotFound: it is about a team, project or artifact that has none.
    """
    if rule.scope and not _is_there(cursor, rule.scope):
        raise NotFound(
            f"no such scope: expected a team, project or artifact with versions, got {rule.scope!r}",
            hint="`icecore storage --by collection` lists them",
        )
    found = cursor.execute(
        "SELECT c.artifact, v.version, v.digest, $scope IN ('', c.entity, concat_ws('/', c.entity, c.project), "
        "concat_ws('/', c.entity, c.project, c.name)) AND $type IN ('', c.type) "
        "FROM current_versions v JOIN current_collections c USING (artifact) WHERE NOT v.deleted "
        "ORDER BY c.artifact, v.version DESC",
        {"scope": rule.scope, "type": rule.type},
    ).fetchall()
    newest: dict[int, int] = {}
    beyond, staying = [], []
    for artifact, version, digest, meant in found:
        newest[artifact] = newest.get(artifact, 0) + 1
        if meant and newest[artifact] > rule.keep_last:
            beyond.append((artifact, version))
        else:
            staying.append(digest)
    rows = Artifacts(cursor).by_number(beyond)
    standing = Retention(cursor).of(list(rows.values()))
    going, kept = [], []
    for one in (rows[key] for key in beyond):
        key = VersionKey(one.version.artifact, one.version.number)
        aliases = [alias for alias in one.collection.named(key.version) if alias != LATEST]
        if standing[key].kept:
            kept.append((key, [str(keep) for keep in standing[key].kept]))
        elif aliases and rule.keep_aliased:
            kept.append((key, [f"the alias {alias}" for alias in aliases]))
        else:
            going.append(one)
            continue
        staying.append(one.version.digest)
    return Verdict(rule, going, kept, staying)


def _is_there(cursor: duckdb.DuckDBPyConnection, scope: str) -> bool:
    """Whether a team, project or artifact has artifacts."""
    entity, project, name = [*scope.split("/"), None, None][:3]
    row = cursor.execute(
        "SELECT 1 FROM current_collections WHERE entity = $entity AND project = coalesce($project, project) "
        "AND name = coalesce($name, name) LIMIT 1",
        {"entity": entity, "project": project, "name": name},
    ).fetchone()
    return row is not None


def deletion(found: Found, rule: Rule) -> ArtifactDeleted:
    """The event that deletes a version by a rule."""
    version = found.version
    aliased = "; aliases" if rule.keep_aliased else ""
    return ArtifactDeleted(
        artifact=version.artifact,
        version=version.number,
        with_aliases=not rule.keep_aliased,
        reason=f"policy: keep the last {rule.keep_last}{aliased}",
    )


async def freed(blobs: BlobStore, contents: Contents, verdict: Verdict) -> int:
    """By how many bytes the disk gets emptier once the versions that go are erased."""
    going = [one.version.digest for one in verdict.going]
    known = await contents.read([*going, *verdict.staying])
    alone = np.setdiff1d(known.of(going), known.of(verdict.staying), assume_unique=True)
    return (await blobs.weigh(known.digests(alone.tolist()))).reclaimable
