"""What keeps versions and how long they live, out of the store: now or as of a moment of the ledger."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import duckdb

from icecore.errors import NotFound
from icecore_api.queries.artifacts import Found
from icecore_api.queries.run_answers import iso
from icecore_projections.folds.retention import Keep, Life, Scope, VersionKey, keepers, life, scopes_of
from icecore_projections.retention_state import scope_row
from icecore_projections.schema import artifact_number, scope_number

_NEVER: Final = (1 << 63) - 1

_AGED: Final = """
WITH trusted AS (SELECT *, CASE WHEN {ts} <= $now THEN {ts} END AS good FROM current_versions),
marked AS (
    SELECT *, CASE WHEN good >= coalesce(max(good) OVER before, good) THEN good END AS high FROM trusted
    WINDOW before AS (ORDER BY {off} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
),
aged AS (
    SELECT *, coalesce(high, min(high) OVER after, $now) AS age FROM marked
    WINDOW after AS (ORDER BY {off} ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING)
)
"""
"""Times by a clock that may have been wrong. One that has not come yet, or is before that of an earlier record, is
false: it counts as the next one that is neither, and as now where there is none."""


class Standing(NamedTuple):
    """What keeps a version, and how long it lives."""

    kept: list[Keep]
    life: Life
    own: int | None
    """What is said of the version itself: seconds, 0 for ever, None for what the wider scopes say."""


class Hidden(NamedTuple):
    """A version that is deleted or expired."""

    key: VersionKey
    digest: str
    since: int
    """Milliseconds since 1970 UTC, by a clock that never goes back."""
    erased: bool


class Due(NamedTuple):
    """A version whose time is over."""

    key: VersionKey
    born: int
    """Milliseconds since 1970 UTC, by a clock that never goes back."""
    seconds: int


class Retention:
    """What a store says of scopes and keeps.

    Args:
        cursor: within a transaction, where several questions must see one state.
        upto: only records of the ledger before this offset count; None is now.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, upto: int | None = None) -> None:
        self._cursor = cursor
        self._upto = upto

    def of(self, found: Sequence[Found]) -> dict[VersionKey, Standing]:
        """What keeps some versions, and how long they live."""
        keys = [VersionKey(one.version.artifact, one.version.number) for one in found]
        scopes = self.scopes({scope for key in keys for scope in scopes_of(key)})
        kept = self.keeps({key.artifact for key in keys})
        standing = {}
        for key, one in zip(keys, found, strict=True):
            said = [scopes[scope] for scope in scopes_of(key) if scope in scopes]
            own = scopes[key.scope].ttl if key.scope in scopes else None
            aliases = one.collection.named(key.version)
            standing[key] = Standing(keepers(said, aliases, kept.get(key, [])), life(said), own)
        return standing

    def scopes(self, names: Collection[str]) -> dict[str, Scope]:
        """What is said of some scopes; those that nothing is said of are left out."""
        if not names:
            return {}
        if self._upto is None:
            query = "SELECT doc, off, off_first FROM current_scopes WHERE scope IN (SELECT unnest($numbers::BIGINT[]))"
            bounds: dict[str, Any] = {}
        else:
            query = (
                "SELECT arg_max(doc, off), max(off), min(off) FROM scopes "
                "WHERE scope IN (SELECT unnest($numbers::BIGINT[])) AND off < $upto GROUP BY scope"
            )
            bounds = {"upto": self._upto}
        found = self._cursor.execute(query, {"numbers": [scope_number(name) for name in names], **bounds}).fetchall()
        return {row.scope: row for row in (scope_row(*each) for each in found)}

    def keeps(self, artifacts: Collection[str]) -> dict[VersionKey, list[Keep]]:
        """The links and bundles that keep versions of some artifacts."""
        by_number = {artifact_number(path): path for path in artifacts}
        found = self._cursor.execute(
            "SELECT artifact, version, kind, keeper FROM artifact_keeps WHERE off < $upto "
            "AND artifact IN (SELECT unnest($numbers::BIGINT[])) GROUP BY ALL HAVING arg_max(kept, off) "
            "ORDER BY max(off)",
            {"numbers": list(by_number), "upto": _NEVER if self._upto is None else self._upto},
        ).fetchall()
        kept: dict[VersionKey, list[Keep]] = {}
        for number, version, kind, keeper in found:
            kept.setdefault(VersionKey(by_number[number], version), []).append(Keep(kind, keeper))
        return kept

    def holds(self) -> list[dict[str, Any]]:
        """The legal holds that are in force, the oldest first."""
        found = self._cursor.execute("SELECT doc, off, off_first FROM current_scopes WHERE holds > 0").fetchall()
        rows = [
            {"hold": name, "scope": row.scope, "reason": hold.reason, "user": hold.user, "since": iso(hold.ts)}
            for row in (scope_row(*each) for each in found)
            for name, hold in row.holds.items()
        ]
        return sorted(rows, key=lambda row: (str(row["since"]), str(row["hold"])))

    def hold(self, name: str, scope: str | None) -> str:
        """The scope that a hold is on.

        Raises:
            NotFound: there is no such hold, or several, and no scope says which.
        """
        scopes = [row["scope"] for row in self.holds() if row["hold"] == name and scope in (None, row["scope"])]
        if len(scopes) != 1:
            raise NotFound(f"expected one hold {name!r}, found {len(scopes)}", hint="`icecore hold list` lists them")
        return str(scopes[0])

    # ------------------------------------------------------------------------------------------ all versions

    def due(self, now_ms: int) -> list[Due]:
        """The versions whose time is over, and that nothing was asked of that keeps them."""
        if not self._one("SELECT count(*) FROM current_scopes WHERE ttl > 0"):
            return []
        found = self._cursor.execute(
            _AGED.format(ts="created_ts", off="off_first")  # noqa: S608 - texts of ours
            + """
            , named AS (
                SELECT concat_ws('/', c.entity, c.project, c.name) AS path, c.entity, c.project, v.version, v.age
                FROM aged v JOIN current_collections c USING (artifact) WHERE NOT v.deleted
            )
            SELECT n.path, n.version, n.age, coalesce(v.ttl, a.ttl, p.ttl, e.ttl) AS seconds FROM named n
            LEFT JOIN current_scopes v ON v.path = concat(n.path, ':v', n.version)
            LEFT JOIN current_scopes a ON a.path = n.path
            LEFT JOIN current_scopes p ON p.path = concat_ws('/', n.entity, n.project)
            LEFT JOIN current_scopes e ON e.path = n.entity
            WHERE seconds > 0 AND n.age + seconds * 1000 <= $now ORDER BY n.age, n.path, n.version
            """,
            {"now": now_ms},
        ).fetchall()
        return [Due(VersionKey(path, version), born, seconds) for path, version, born, seconds in found]

    def hidden(self, now_ms: int) -> list[Hidden]:
        """The versions that are deleted or expired, and since when; those that are erased among them."""
        found = self._cursor.execute(
            _AGED.format(ts="updated_ts", off="off")  # noqa: S608 - texts of ours
            + """
            SELECT concat_ws('/', c.entity, c.project, c.name), v.version, v.digest, v.age,
                coalesce(v.doc->>'$.ended.how', '') = 'erased'
            FROM aged v JOIN current_collections c USING (artifact) WHERE v.deleted
            ORDER BY v.artifact, v.version
            """,
            {"now": now_ms},
        ).fetchall()
        return [Hidden(VersionKey(path, version), *rest) for path, version, *rest in found]

    def unfinished(self) -> list[tuple[str, list[int], int, int]]:
        """Plans that were begun and not ended: id, offsets of what was to go, bytes of the plan, bytes that went."""
        found = self._cursor.execute(
            "SELECT plan, list(off ORDER BY off), max(bytes) FILTER (kind = 'erasing'), "
            "coalesce(sum(bytes) FILTER (kind = 'erased'), 0)::BIGINT FROM erasures "
            "GROUP BY plan HAVING NOT bool_or(done) ORDER BY min(off)"
        ).fetchall()
        return [(plan, offsets, planned, freed) for plan, offsets, planned, freed in found]

    def _one(self, query: str) -> Any:
        return self._cursor.execute(query).fetchall()[0][0]
