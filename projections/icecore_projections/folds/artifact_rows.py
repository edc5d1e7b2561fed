"""Artifacts as the ledger tells them: rows of collections and versions, moves of aliases, and who made or used what."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, Self

import msgspec
import orjson

from icecore.artifact_events import BundlePart
from icecore_projections.folds.registry_rows import Registry
from icecore_projections.schema import artifact_number

LATEST = "latest"
"""The alias that names what was committed last; nobody moves it by hand."""


LATER: Final = frozenset({"ended", "linked", "parts", "references", "registry", "sources"})
"""Fields that came after rows were first written down: empty they are left out, so that old rows are as they were."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What collections and versions have in common: their place in the log, and a form as JSON."""

    off_first: int
    off: int

    def to_doc(self) -> str:
        """This row as canonical JSON: sorted keys, and without offsets, which are columns of their own."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        del fields["off"], fields["off_first"]
        for name in LATER & fields.keys():
            if not fields[name]:
                del fields[name]
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()


class Collection(Row, frozen=True, kw_only=True):
    """An artifact: the versions that share one name."""

    path: str
    """entity/project/name"""
    type: str
    versions: int = 0
    """How many there are, deleted ones among them: the next is v{versions}."""
    aliases: dict[str, int] = {}
    """Alias -> version."""
    deleted: list[int] = []
    """Versions that are deleted, in order."""
    created_ts: int
    """The gateway's clock, ms since 1970 UTC."""
    user: str
    registry: Registry | None = None
    """What it asks of its versions, and their promotions; None where nobody set it up."""

    @property
    def number(self) -> int:
        """The artifact's number in every table."""
        return artifact_number(self.path)

    def named(self, version: int) -> list[str]:
        """The aliases of a version, sorted."""
        return sorted(alias for alias, named in self.aliases.items() if named == version)

    @property
    def last(self) -> int | None:
        """The highest version that is not deleted."""
        return next((n for n in range(self.versions - 1, -1, -1) if n not in self.deleted), None)

    def without_deleted(self, version: int) -> Self:
        """The same, with a version that is there."""
        return msgspec.structs.replace(self, deleted=[n for n in self.deleted if n != version])


class Ended(msgspec.Struct, frozen=True):
    """How a version came to its end, other than by being deleted by hand."""

    how: Literal["expired", "erased"]
    """Its time was over, or its bytes are gone."""
    ts: int
    """The gateway's clock, ms since 1970 UTC."""
    user: str
    plan: str = ""
    """Of what is erased: the plan it went with."""
    deleted_ts: int = 0
    """Of what is erased: when it was deleted, or expired."""


class Version(Row, frozen=True, kw_only=True):
    """One version of an artifact."""

    artifact: str
    number: int
    digest: str
    """Hex SHA-256 of the manifest."""
    files: int
    size: int
    description: str = ""
    metadata: dict[str, Any] = {}
    tags: list[str] = []
    run: str = ""
    """The run that logged it first."""
    references: list[str] = []
    """Where its files lie that are not kept here."""
    sources: list[str] = []
    """The versions of other artifacts that were linked here, as entity/project/name:v3."""
    linked: bool = False
    """Whether links alone made it: it goes with the last of them."""
    parts: list[BundlePart] = []
    """Of a bundle: the versions it pins."""
    user: str
    created_ts: int
    updated_ts: int
    deleted: bool = False
    ended: Ended | None = None
    """Of a deleted version: None where somebody deleted it, and its bytes are there."""


class Move(NamedTuple):
    """An alias went from one version to another; None is none."""

    artifact: str
    alias: str
    version: int | None
    before: int | None
    off: int
    ts: int
    user: str
    credential: str
    reason: str


EdgeKind = Literal["logged", "used", "refers", "part", "linked"]


class Edge(NamedTuple):
    """A run logged or used a version, files of it lie at a URI, or it is part of a bundle or linked elsewhere."""

    run: str
    """What is at the other end: a run's path, a URI, or another version as entity/project/name:v3."""
    artifact: str
    version: int
    kind: EdgeKind
    alias: str
    """The alias that was asked for; of a part, its name in the bundle."""
    off: int
    ts: int
