"""Artifacts out of the store: collections, versions, aliases and lineage, now or as of a moment of the ledger."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import duckdb
import msgspec
import orjson

from icecore.errors import NotFound
from icecore.position import LEDGER, Place, Token
from icecore_api.queries.run_answers import iso
from icecore_projections.folds.artifact_rows import Collection, Version
from icecore_projections.schema import artifact_number

NUMBERED: Final = re.compile(r"v(0|[1-9][0-9]{0,8})")
"""A version's name: v0, v1, …"""

Row = TypeVar("Row", Collection, Version)


class Found(NamedTuple):
    """A version, and the artifact it belongs to."""

    collection: Collection
    version: Version


class Artifacts:
    """What a store says about artifacts.

    Args:
        cursor: within a transaction, where several questions must see one state.
        upto: only records of the ledger before this offset count; None is now.
    """

    def __init__(self, cursor: duckdb.DuckDBPyConnection, upto: int | None = None) -> None:
        self._cursor = cursor
        self._upto = upto

    def collection(self, path: str) -> Collection:
        """An artifact.

        Raises:
            NotFound: there is none.
        """
        row = self._one(Collection, "collections", f"artifact = {artifact_number(path)}", {})
        if row is None or row.path != path:
            entity, project, _ = path.split("/")
            raise NotFound(f"no such artifact: {path!r}", hint=f"`icecore artifacts {entity}/{project}` lists them")
        return row

    def collections(self, entity: str, project: str, kind: str | None = None) -> list[Collection]:
        """The artifacts of a project, by name."""
        if self._upto is None:
            found = self._cursor.execute(
                "SELECT doc, off_first, off FROM current_collections WHERE entity = $entity AND project = $project",
                {"entity": entity, "project": project},
            ).fetchall()
        else:
            found = self._cursor.execute(
                "SELECT arg_max(doc, off), min(off), max(off) FROM collections WHERE off < $upto "
                "AND starts_with(doc->>'path', $prefix) GROUP BY artifact",
                {"prefix": f"{entity}/{project}/", "upto": self._upto},
            ).fetchall()
        rows = [_row(Collection, *each) for each in found]
        return sorted((row for row in rows if kind in (None, row.type)), key=lambda row: row.path)

    def find(self, path: str, ref: str, *, deleted: bool = False) -> Found:
        """The version that `v3` or an alias names.

        Raises:
            NotFound: there is no such artifact, version or alias, or it is deleted and `deleted` is false.
        """
        collection = self.collection(path)
        numbered = NUMBERED.fullmatch(ref)
        number = int(numbered[1]) if numbered else collection.aliases.get(ref)
        version = None if number is None else self._version(path, number)
        if version is None:
            named = ", ".join(sorted(collection.aliases)[:20]) or "none"
            raise NotFound(
                f"no such version: {path}:{ref}",
                hint=f"its newest is v{collection.versions - 1}, and its aliases are: {named}"
                if collection.versions
                else "it has no version yet",
            )
        if version.deleted and not deleted:
            raise _hidden(version)
        return Found(collection, version)

    def with_digest(self, path: str, digest: str) -> Found:
        """The version of a manifest's digest, which is there."""
        row = self.same(path, digest)
        if row is None:
            raise NotFound(f"no version of {path} has the digest {digest}", hint="commit it")
        return Found(self.collection(path), row)

    def same(self, path: str, digest: str) -> Version | None:
        """The version of a manifest's digest, be it deleted or not; None where there was never one."""
        where = "artifact = $artifact AND digest = $digest"
        return self._one(Version, "versions", where, {"artifact": artifact_number(path), "digest": digest})

    def newest(self, path: str) -> Version | None:
        """The version that was committed last, be it deleted or not; None where there is none."""
        try:
            collection = self.collection(path)
        except NotFound:
            return None
        return self._version(path, collection.versions - 1) if collection.versions else None

    def versions(self, path: str, before: int | None = None) -> Iterator[Found]:
        """The versions of an artifact that are there, newest first.

        Args:
            path: the artifact's.
            before: only those with a lower number.
        """
        collection = self.collection(path)
        last = collection.versions if before is None else min(before, collection.versions)
        for end in range(last, 0, -_PAGE):
            numbers = {"artifact": collection.number, "first": max(end - _PAGE, 0), "end": end}
            for row in self._versions("artifact = $artifact AND version >= $first AND version < $end", numbers):
                if not row.deleted:
                    yield Found(collection, row)

    def moves(self, path: str, alias: str) -> list[dict[str, Any]]:
        """Where an alias went, the last move first."""
        found = self._cursor.execute(
            "SELECT version, version_before, ts, username, credential, reason, off FROM alias_moves "
            "WHERE artifact = $artifact AND alias = $alias AND off < $upto ORDER BY off DESC",
            {"artifact": self.collection(path).number, "alias": alias, "upto": self._bound},
        ).fetchall()
        return [
            {
                "version": _name(version),
                "before": _name(before),
                "at": iso(ts),
                "user": user,
                "credential": credential,
                "reason": reason,
                "position": f"ledger:0:{off}",
            }
            for version, before, ts, user, credential, reason, off in found
        ]

    def moved_from(self, path: str, alias: str, token: Token) -> tuple[str | None] | None:
        """What an alias named before the move that the last record under `token` made; None where it made none."""
        found = self._cursor.execute(
            "SELECT version_before FROM alias_moves WHERE artifact = $artifact AND alias = $alias AND off = $off",
            {"artifact": artifact_number(path), "alias": alias, "off": token.next_offset(Place(LEDGER, 0)) - 1},
        ).fetchone()
        return (_name(found[0]),) if found else None

    # --------------------------------------------------------------------------------------------- lineage

    def by_number(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Found]:
        """Versions by (artifact number, version)."""
        if not keys:
            return {}
        of = {"numbers": sorted({number for number, _ in keys})}
        collections = {row.number: row for row in self._many(Collection, "collections", _OF_ARTIFACTS, of)}
        wanted = {"artifacts": [artifact for artifact, _ in keys], "versions": [version for _, version in keys]}
        rows = self._versions(
            "(artifact, version) IN (SELECT (unnest($artifacts::BIGINT[]), unnest($versions::INTEGER[])))", wanted
        )
        found = (Found(collections[artifact_number(row.artifact)], row) for row in rows)
        return {(one.collection.number, one.version.number): one for one in found}

    # ------------------------------------------------------------------------------------------------ rows

    @property
    def _bound(self) -> int:
        return _NEVER if self._upto is None else self._upto

    def _version(self, path: str, number: int) -> Version | None:
        where = f"artifact = {artifact_number(path)} AND version = {number:d}"  # a parameter costs 30 us each
        return self._one(Version, "versions", where, {})

    def _versions(self, where: str, parameters: Mapping[str, Any]) -> list[Version]:
        rows = self._many(Version, "versions", where, parameters)
        return sorted(rows, key=lambda row: -row.number)

    def _one(self, kind: type[Row], table: str, where: str, parameters: Mapping[str, Any]) -> Row | None:
        rows = self._many(kind, table, where, parameters)
        return rows[0] if rows else None

    def _many(self, kind: type[Row], table: str, where: str, parameters: Mapping[str, Any]) -> list[Row]:
        """The last row of each subject; as of a moment out of all that there ever were."""
        if self._upto is None:
            query = f"SELECT doc, off_first, off FROM current_{table} WHERE {where}"  # noqa: S608 - texts of ours
            return [_row(kind, *each) for each in self._cursor.execute(query, dict(parameters)).fetchall()]
        subject = "artifact" if kind is Collection else "artifact, version"
        where = where.replace("digest = ", "doc->>'digest' = ")
        query = (
            f"SELECT arg_max(doc, off), min(off), max(off) FROM {table} "  # noqa: S608
            f"WHERE {where} AND off < $upto GROUP BY {subject}"
        )
        found = self._cursor.execute(query, {**parameters, "upto": self._upto}).fetchall()
        return [_row(kind, *each) for each in found]


_PAGE: Final = 500
_NEVER: Final = (1 << 63) - 1
_OF_ARTIFACTS: Final = "artifact IN (SELECT unnest($numbers::BIGINT[]))"


def version_answer(found: Found) -> dict[str, Any]:
    """A version as it is answered."""
    collection, version = found
    entity, project, name = collection.path.split("/")
    return {
        "path": collection.path,
        "entity": entity,
        "project": project,
        "name": name,
        "type": collection.type,
        "version": f"v{version.number}",
        "digest": version.digest,
        "size": version.size,
        "files": version.files,
        "description": version.description,
        "metadata": version.metadata,
        "tags": version.tags,
        "aliases": collection.named(version.number),
        "sources": version.sources,
        "parts": {part.key: part.name for part in version.parts},
        "state": version.ended.how if version.ended else "deleted" if version.deleted else "committed",
        "run": version.run or None,
        "user": version.user,
        "created_at": iso(version.created_ts),
        "updated_at": iso(version.updated_ts),
    }


def _hidden(version: Version) -> NotFound:
    """The error for a version that is deleted: whether it can come back, and who erased its bytes."""
    ended = version.ended
    if ended is None or ended.how != "erased":
        how = "deleted" if ended is None else ended.how
        name = f"{version.artifact}:v{version.number}"
        return NotFound(f"{name} is {how}", hint=f"`icecore artifact restore {name}` brings it back", deleted=True)
    return NotFound(
        f"{version.artifact}:v{version.number} is erased: {ended.user} erased its bytes at {iso(ended.ts)}",
        hint="log the same files again to have it back",
        deleted=True,
        erased={"at": iso(ended.ts), "user": ended.user, "plan": ended.plan},
    )


def collection_answer(row: Collection) -> dict[str, Any]:
    """An artifact as it is listed."""
    return {
        "path": row.path,
        "name": row.path.split("/")[2],
        "type": row.type,
        "versions": row.versions - len(row.deleted),
        "aliases": {alias: f"v{number}" for alias, number in sorted(row.aliases.items())},
        "created_at": iso(row.created_ts),
        "user": row.user,
    }


def _name(version: int | None) -> str | None:
    return None if version is None else f"v{version}"


def _row(kind: type[Row], doc: str, off_first: int, off: int) -> Row:
    return msgspec.convert({**orjson.loads(doc), "off_first": off_first, "off": off}, kind)
