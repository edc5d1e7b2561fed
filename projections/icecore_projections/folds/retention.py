"""What keeps a version, and for how long it lives: keeps, holds, protected aliases and times to live.

What keeps a version from deletion, from expiry and from having its bytes erased:

| kind | what it is | `by` |
|---|---|---|
| `hold` | a legal hold on the version, its artifact, its project or its team; it beats everything | the hold's id |
| `protected` | an alias that the artifact's settings protect | the alias |
| `link` | a collection of a registry has it | the collection's path |
| `bundle` | a version of a bundle pins it | `entity/project/name:v3` |

Holds and protected aliases follow from scopes and aliases. Links and bundles are *keeps* of their own (table
`artifact_keeps`), which other parts of the fold of artifacts add and take away while they apply an event:

    work.keeping.keep(applied, "link", VersionKey(artifact, version), by="registry/model/churn")
    work.keeping.release(applied, "link", VersionKey(artifact, version), by="registry/model/churn")
    work.keeping.keepers(collection, version)      # [] where nothing keeps it

Adding what is there, and taking away what is not, changes nothing. The keeps of an artifact are in the state where
`artifacts.artifacts(events)` names it: whoever keeps versions of another artifact adds its path there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec

from icecore.retention_events import (
    ArtifactTtlSet,
    CollectionUpdated,
    HoldPlaced,
    HoldReleased,
    ScopeEvent,
    split_scope,
)
from icecore_projections.folds import Applied
from icecore_projections.folds.artifact_rows import Collection, Row
from icecore_projections.schema import scope_number

KeepKind = Literal["hold", "protected", "link", "bundle"]
FOR_EVER: Final = 0
"""A time to live that never ends."""


class VersionKey(NamedTuple):
    """A version by its number."""

    artifact: str
    version: int

    @property
    def scope(self) -> str:
        """As in events."""
        return f"{self.artifact}:v{self.version}"


class Keep(NamedTuple):
    """A thing that keeps a version."""

    kind: KeepKind
    by: str
    why: str = ""

    def __str__(self) -> str:
        return f"{_SAID[self.kind]} {self.by}{f' ({self.why})' if self.why else ''}"


_SAID: Final = {
    "hold": "the legal hold",
    "protected": "the protected alias",
    "link": "the registry's",
    "bundle": "the bundle",
}


class KeepRow(NamedTuple):
    """A keep of another's that began or ended."""

    key: VersionKey
    keep: Keep
    kept: bool
    off: int
    ts: int
    user: str


class Hold(msgspec.Struct, frozen=True):
    """A legal hold."""

    reason: str
    user: str
    ts: int


class Scope(Row, frozen=True, kw_only=True):
    """What is said of a team, a project, an artifact or a version as a whole."""

    scope: str
    ttl: int | None = None
    """Seconds; None is what the wider scope says, 0 for ever."""
    holds: dict[str, Hold] = msgspec.field(default_factory=dict)
    protected: list[str] = msgspec.field(default_factory=list)
    """Of an artifact: aliases that keep what they name."""

    @property
    def number(self) -> int:
        """The scope's number in every table."""
        return scope_number(self.scope)


class Life(NamedTuple):
    """How long a version lives: seconds (None is for ever), and the scope that says so (empty where none does)."""

    seconds: int | None
    scope: str


@dataclass(slots=True)
class RetentionState:
    """What is known of scopes, and of the keeps of artifacts."""

    scopes: dict[str, Scope] = field(default_factory=dict)
    keeps: dict[str, dict[VersionKey, list[Keep]]] = field(default_factory=dict)
    """Artifact -> version -> links and bundles, in log order."""


@dataclass(slots=True)
class RetentionChanges:
    """What a batch changed: every row made, in log order, and the last state of what changed."""

    state: RetentionState = field(default_factory=RetentionState)
    scopes: list[Scope] = field(default_factory=list)
    keeps: list[KeepRow] = field(default_factory=list)


class Refused(Exception):
    """The fold decides against an event; the text is the reason people read."""


class Keeping:
    """A state of retention, and the changes that lie over it."""

    def __init__(self, before: RetentionState, changes: RetentionChanges) -> None:
        self._before = before
        self._changes = changes

    # ------------------------------------------------------------------------------------------------- questions

    def keepers(self, collection: Collection, version: int) -> list[Keep]:
        """Everything that keeps a version, holds first; empty where nothing does."""
        key = VersionKey(collection.path, version)
        return keepers(self.scopes(key), collection.named(version), self.keeps_of(key))

    def life(self, key: VersionKey) -> Life:
        """How long a version lives by what its scopes say."""
        return life(self.scopes(key))

    def scopes(self, key: VersionKey) -> list[Scope]:
        """What is said of a version's scopes, the narrowest first; those that nothing is said of are left out."""
        return [found for scope in scopes_of(key) if (found := self._scope(scope)) is not None]

    def keeps_of(self, key: VersionKey) -> list[Keep]:
        """The links and bundles that keep a version."""
        return self._keeps(key.artifact).get(key, [])

    def refuse_kept(self, collection: Collection, version: int, what: str) -> None:
        """See that nothing keeps a version.

        Raises:
            Refused: something does; the reason names it.
        """
        if found := self.keepers(collection, version):
            named = ", ".join(str(keep) for keep in found)
            raise Refused(f"expected a version that nothing keeps to {what}, {collection.path}:v{version} has {named}")

    # ------------------------------------------------------------------------------------------------- changes

    def keep(self, applied: Applied, kind: Literal["link", "bundle"], key: VersionKey, *, by: str) -> None:
        """From now on something keeps a version."""
        if not any((one.kind, one.by) == (kind, by) for one in self.keeps_of(key)):
            self._put_keep(applied, key, Keep(kind, by), kept=True)

    def release(self, applied: Applied, kind: Literal["link", "bundle"], key: VersionKey, *, by: str) -> None:
        """From now on it no longer keeps the version."""
        for one in self.keeps_of(key):
            if (one.kind, one.by) == (kind, by):
                self._put_keep(applied, key, one, kept=False)

    def set_ttl(self, applied: Applied, scope: str, seconds: int | None) -> None:
        """Say how long versions of a scope live."""
        row = self._row(applied, scope)
        if row.ttl != seconds:
            self._put(applied, row, ttl=seconds)

    def apply(self, applied: Applied, event: ScopeEvent | CollectionUpdated) -> None:
        """Apply an event about a scope, or refuse it."""
        if isinstance(event, ArtifactTtlSet):
            self.set_ttl(applied, event.scope, event.seconds)
        elif isinstance(event, HoldPlaced):
            row = self._row(applied, event.scope)
            if event.hold in row.holds:
                raise Refused(f"expected a new hold on {event.scope}, {event.hold!r} is there")
            hold = Hold(event.reason, applied.envelope.actor, applied.envelope.ts_server)
            self._put(applied, row, holds={**row.holds, event.hold: hold})
        elif isinstance(event, HoldReleased):
            row = self._row(applied, event.scope)
            if event.hold not in row.holds:
                raise Refused(f"no such hold: expected {event.hold!r} on {event.scope}, found none")
            self._put(applied, row, holds={name: hold for name, hold in row.holds.items() if name != event.hold})
        elif isinstance(event, CollectionUpdated) and event.protected is not None:
            row = self._row(applied, event.artifact)
            if (protected := sorted(set(event.protected))) != row.protected:
                self._put(applied, row, protected=protected)

    # ------------------------------------------------------------------------------------------------- state

    def _scope(self, scope: str) -> Scope | None:
        return self._changes.state.scopes.get(scope) or self._before.scopes.get(scope)

    def _row(self, applied: Applied, scope: str) -> Scope:
        at = applied.position.offset
        return self._scope(scope) or Scope(scope=scope, off_first=at, off=at)

    def _put(self, applied: Applied, row: Scope, **fields: object) -> None:
        new = msgspec.structs.replace(row, off=applied.position.offset, **fields)
        self._changes.scopes.append(new)
        self._changes.state.scopes[new.scope] = new

    def _keeps(self, artifact: str) -> dict[VersionKey, list[Keep]]:
        return self._changes.state.keeps.get(artifact) or self._before.keeps.get(artifact) or {}

    def _put_keep(self, applied: Applied, key: VersionKey, keep: Keep, *, kept: bool) -> None:
        keeps = dict(self._keeps(key.artifact))
        others = [one for one in keeps.get(key, ()) if one != keep]
        keeps[key] = [*others, keep] if kept else others
        self._changes.state.keeps[key.artifact] = keeps
        row = KeepRow(key, keep, kept, applied.position.offset, applied.envelope.ts_server, applied.envelope.actor)
        made = self._changes.keeps
        if made and (made[-1].key, made[-1].keep, made[-1].off) == (row.key, row.keep, row.off):
            made.pop()  # one record never says two things of one keep: the last counts
        made.append(row)


def keepers(scopes: list[Scope], aliases: list[str], keeps: list[Keep]) -> list[Keep]:
    """Everything that keeps a version, holds first.

    Args:
        scopes: what is said of its scopes, the narrowest first.
        aliases: those that name it.
        keeps: its links and bundles.
    """
    holds = [Keep("hold", name, hold.reason) for scope in scopes for name, hold in scope.holds.items()]
    guarded = {alias for scope in scopes for alias in scope.protected}
    return [*holds, *(Keep("protected", alias) for alias in aliases if alias in guarded), *keeps]


def life(scopes: list[Scope]) -> Life:
    """How long a version lives: the narrowest scope that says something counts; where none does, for ever."""
    for scope in scopes:
        if scope.ttl is not None:
            return Life(scope.ttl or None, scope.scope)
    return Life(None, "")


def scopes_of(key: VersionKey) -> tuple[str, str, str, str]:
    """The scopes that a version is within, the narrowest first."""
    entity, project, _ = key.artifact.split("/")
    return key.scope, key.artifact, f"{entity}/{project}", entity


def subject(event: ScopeEvent) -> VersionKey | str | None:
    """The version or artifact that an event about a scope is about; None where it is a project or a team."""
    path, version = split_scope(event.scope)
    if version is not None:
        return VersionKey(path, version)
    return path if path.count("/") == 2 else None
