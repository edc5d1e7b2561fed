"""The ledger's fold over artifacts: versions, aliases, and which runs made and used them.

It decides, in log order. The n-th distinct digest committed to an artifact is v(n-1); the same digest again is the
same version. An alias moves as asked, or is rejected where it does not name what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from icecore.artifact_events import (
    AliasMoved,
    ArtifactCommitted,
    ArtifactDeleted,
    ArtifactRestored,
    ArtifactUpdated,
    ArtifactUsed,
)
from icecore.events import ArtifactEvent, Event
from icecore.registry_events import ArtifactLinked, ArtifactUnlinked, PartsFinished, PromotionRequested
from icecore.retention_events import (
    ArtifactErased,
    ArtifactExpired,
    ArtifactTtlSet,
    CollectionUpdated,
    HoldPlaced,
    HoldReleased,
    ScopeEvent,
)
from icecore_projections.folds import Applied, promotions, registry
from icecore_projections.folds.artifact_rows import LATEST, Collection, Edge, EdgeKind, Ended, Move, Version
from icecore_projections.folds.registry_rows import DraftPart, PromotionStep
from icecore_projections.folds.retention import (
    Keeping,
    Refused,
    RetentionChanges,
    RetentionState,
    VersionKey,
    scopes_of,
    subject,
)

HANDLED: Final = (
    ArtifactCommitted,
    ArtifactUsed,
    ArtifactUpdated,
    AliasMoved,
    ArtifactDeleted,
    ArtifactRestored,
    ArtifactExpired,
    ArtifactErased,
    CollectionUpdated,
    ArtifactTtlSet,
    HoldPlaced,
    HoldReleased,
    *registry.HANDLED,
    *promotions.HANDLED,
)
"""The events this fold takes; it passes over others."""

NUMBERED: Final = (
    ArtifactUsed,
    ArtifactUpdated,
    ArtifactDeleted,
    ArtifactRestored,
    ArtifactExpired,
    ArtifactErased,
    PromotionRequested,
)
"""Events about one version, by its number."""
DIGESTED: Final = (ArtifactCommitted, ArtifactLinked, ArtifactUnlinked, PartsFinished)
"""Events about one version, by its digest."""


class DigestKey(NamedTuple):
    """A version by its manifest's digest."""

    artifact: str
    digest: str


@dataclass(slots=True)
class ArtifactState:
    """What the store says about the subjects of a batch, by their own paths."""

    collections: dict[str, Collection] = field(default_factory=dict)
    versions: dict[VersionKey, Version] = field(default_factory=dict)
    digests: dict[DigestKey, int] = field(default_factory=dict)
    retention: RetentionState = field(default_factory=RetentionState)


@dataclass(slots=True)
class ArtifactChanges:
    """What a batch of events changed."""

    state: ArtifactState = field(default_factory=ArtifactState)
    """The last rows of all that changed."""
    collections: list[Collection] = field(default_factory=list)
    """Every row made, in log order."""
    versions: list[Version] = field(default_factory=list)
    """Every row made, in log order."""
    moves: list[Move] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    retention: RetentionChanges = field(default_factory=RetentionChanges)
    steps: list[PromotionStep] = field(default_factory=list)
    drafts: list[DraftPart] = field(default_factory=list)
    rejected: list[tuple[Applied, str]] = field(default_factory=list)


def artifacts(events: Iterable[Applied]) -> set[str]:
    """Paths of the artifacts whose rows, with all that keeps their versions, `fold` needs."""
    found = set()
    for event in (applied.event for applied in events):
        if isinstance(event, ScopeEvent):
            if (about := subject(event)) is not None:
                found.add(about.artifact if isinstance(about, VersionKey) else about)
        elif isinstance(event, ArtifactEvent):
            found.add(event.artifact)
            found.update(key.artifact for key in registry.elsewhere(event))
    return found


def version_keys(events: Iterable[Applied]) -> set[VersionKey]:
    """The versions whose rows `fold` needs, by number; those of committed digests besides."""
    found = set()
    for event in (applied.event for applied in events):
        found.update(registry.elsewhere(event))
        if isinstance(event, NUMBERED):
            found.add(VersionKey(event.artifact, event.version))
        elif isinstance(event, ScopeEvent) and isinstance(about := subject(event), VersionKey):
            found.add(about)
    return found


def scopes(events: Iterable[Applied], digests: Mapping[DigestKey, int]) -> set[str]:
    """The scopes whose rows `fold` needs.

    Args:
        events: of a batch.
        digests: what is known of versions by digest: those of the batch that are there.
    """
    events = list(events)
    found = {event.scope for applied in events if isinstance(event := applied.event, ScopeEvent)}
    keys = version_keys(events) | {
        VersionKey(key.artifact, digests[key]) for key in digest_keys(events) if key in digests
    }
    for key in keys | {VersionKey(path, 0) for path in artifacts(events)}:
        found.update(scopes_of(key))
    return found


def digest_keys(events: Iterable[Applied]) -> set[DigestKey]:
    """The digests that `fold` must be able to tell from new ones."""
    return {
        DigestKey(event.artifact, event.digest) for applied in events if isinstance(event := applied.event, DIGESTED)
    }


def further_keys(events: Iterable[Applied], state: ArtifactState) -> set[VersionKey]:
    """The versions whose rows and keeps `fold` needs besides, as the rows that the events name say.

    Args:
        events: of a batch.
        state: with the rows that the other functions name.
    """
    return {key for applied in events for key in registry.further(applied.event, state.collections, state.versions)}


def fold(state: ArtifactState, events: Sequence[Applied]) -> ArtifactChanges:
    """Apply the artifact events of a batch, in order; `events` of other kinds are passed over.

    Args:
        state: what is known of `artifacts(events)`, `version_keys(events)` and `digest_keys(events)`, with the rows
            of the versions that those digests are.
        events: of the ledger, in log order, duplicates left out.
    """
    work = Work(state)
    for applied in events:
        if isinstance(applied.event, HANDLED):
            try:
                work.apply(applied, applied.event)
            except Refused as refused:
                work.changes.rejected.append((applied, str(refused)))
    return work.changes


class Work:
    """A state, and the changes that lie over it."""

    def __init__(self, state: ArtifactState) -> None:
        self._before = state
        self.changes = ArtifactChanges()
        self.keeping = Keeping(state.retention, self.changes.retention)

    def apply(self, applied: Applied, event: Event) -> None:
        """Apply one event whole, or refuse it before anything has changed."""
        if isinstance(event, ArtifactCommitted):
            self._commit(applied, event)
        elif isinstance(event, AliasMoved):
            self._move(applied, event)
        elif isinstance(event, ArtifactUsed):
            version = self.version(event.artifact, event.version)
            self.edge(applied, event.run, version, "used", event.alias)
        elif isinstance(event, ArtifactUpdated):
            self._update(applied, event)
        elif isinstance(event, ArtifactDeleted):
            self.delete(applied, event)
        elif isinstance(event, ArtifactRestored):
            self._restore(applied, event)
        elif isinstance(event, ArtifactExpired):
            self._expire(applied, event)
        elif isinstance(event, ArtifactErased):
            self._erase(applied, event)
        elif isinstance(event, CollectionUpdated):
            self.there(event.artifact)
            self.keeping.apply(applied, event)
        elif isinstance(event, ScopeEvent):
            self._of_scope(applied, event)
        elif isinstance(event, registry.HANDLED):
            registry.apply(self, applied, event)
        elif isinstance(event, promotions.HANDLED):
            promotions.apply(self, applied, event)

    # ------------------------------------------------------------------------------------------------ events

    def _commit(self, applied: Applied, event: ArtifactCommitted) -> None:
        at, ts = applied.position.offset, applied.envelope.ts_server
        collection = self.collection(event.artifact)
        if collection is None:
            collection = Collection(
                path=event.artifact,
                type=event.type,
                created_ts=ts,
                user=applied.envelope.actor,
                off_first=at,
                off=at,
            )
        elif collection.type != event.type:
            raise Refused(
                f"expected {event.artifact!r} to get a {collection.type!r}, as it always did, got {event.type!r}"
            )
        known = self.known(event.artifact, event.digest)
        registry.check_version(collection, known.metadata if known else event.metadata, event.aliases)
        registry.check_parts(self, event)
        if known is None:
            version = Version(
                artifact=event.artifact,
                number=collection.versions,
                digest=event.digest,
                files=event.files,
                size=event.size,
                description=event.description,
                metadata=event.metadata,
                tags=_distinct(event.tags),
                run=event.run,
                references=_distinct(event.references),
                parts=event.parts,
                user=applied.envelope.actor,
                created_ts=ts,
                updated_ts=ts,
                off_first=at,
                off=at,
            )
            collection = msgspec.structs.replace(collection, versions=collection.versions + 1)
            self.put_version(version)
            for uri in version.references:
                self.edge(applied, uri, version, "refers", "")
            registry.part_edges(self, applied, version)
        else:
            version = known
            tags = _distinct([*known.tags, *event.tags])
            if known.deleted or known.linked or tags != known.tags:
                sources = [] if known.deleted else known.sources  # what linked it was let go of when it was deleted
                version = msgspec.structs.replace(
                    known, tags=tags, sources=sources, deleted=False, ended=None, linked=False, updated_ts=ts, off=at
                )
                self.put_version(version)
            collection = collection.without_deleted(version.number)
        registry.keep_parts(self, applied, version)
        aliases = dict.fromkeys([LATEST, *event.aliases], version.number)
        self.put_collection(applied, collection, {**collection.aliases, **aliases}, "")
        if event.ttl is not None:
            self.keeping.set_ttl(applied, VersionKey(event.artifact, version.number).scope, event.ttl)
        if event.run:
            self.edge(applied, event.run, version, "logged", "")

    def _move(self, applied: Applied, event: AliasMoved) -> None:
        collection = self.there(event.artifact)
        found = collection.aliases.get(event.alias)
        if event.alias == LATEST:
            raise Refused("expected an alias that people move, got 'latest', which names what was committed last")
        if event.conditional and found != event.expected:
            raise Refused(f"expected {event.alias} to be {_named(event.expected)}, found {_named(found)}")
        aliases = dict(collection.aliases)
        if event.version is None:
            if found is None:
                raise Refused(f"expected {event.alias} to name a version, found none")
            del aliases[event.alias]
        else:
            if not 0 <= event.version < collection.versions:
                raise Refused(f"no such version: expected {event.artifact}:v{event.version}, found none")
            if event.version in collection.deleted:
                raise Refused(f"expected a version that is there, {event.artifact}:v{event.version} is deleted")
            registry.check_alias(collection, event.alias)
            aliases[event.alias] = event.version
        self.put_collection(applied, collection, aliases, event.reason)

    def _update(self, applied: Applied, event: ArtifactUpdated) -> None:
        version = self.version(event.artifact, event.version)
        self.put_version(
            msgspec.structs.replace(
                version,
                description=version.description if event.description is None else event.description,
                metadata=version.metadata if event.metadata is None else event.metadata,
                tags=version.tags if event.tags is None else _distinct(event.tags),
                updated_ts=applied.envelope.ts_server,
                off=applied.position.offset,
            )
        )

    def delete(self, applied: Applied, event: ArtifactDeleted) -> None:
        """Hide a version, unless something keeps or names it."""
        collection = self.there(event.artifact)
        version = self.version(event.artifact, event.version)
        self.keeping.refuse_kept(collection, version.number, "delete")
        named = [alias for alias in collection.named(version.number) if alias != LATEST]
        if named and not event.with_aliases:
            raise Refused(
                f"expected a version without aliases, {event.artifact}:v{version.number} is {', '.join(named)}"
            )
        self._hide(applied, collection, _changed(applied, version, deleted=True), event.reason)

    def _expire(self, applied: Applied, event: ArtifactExpired) -> None:
        collection = self.there(event.artifact)
        version = self.version(event.artifact, event.version)
        self.keeping.refuse_kept(collection, version.number, "expire")
        seconds = self.keeping.life(VersionKey(event.artifact, event.version)).seconds
        if seconds is None or seconds > event.seconds:
            lives = "for ever" if seconds is None else f"{seconds} s"
            raise Refused(f"expected {event.artifact}:v{event.version} to live {event.seconds} s, it lives {lives}")
        if (over := event.born_ts + event.seconds * 1000) > applied.envelope.ts_server:
            raise Refused(f"expected {event.artifact}:v{event.version} to expire at {over} ms since 1970, not before")
        ended = Ended("expired", applied.envelope.ts_server, applied.envelope.actor)
        self._hide(applied, collection, _changed(applied, version, deleted=True, ended=ended), "expired")

    def _hide(self, applied: Applied, collection: Collection, version: Version, reason: str) -> None:
        deleted = sorted([*collection.deleted, version.number])
        collection = msgspec.structs.replace(collection, deleted=deleted)
        aliases = {alias: n for alias, n in collection.aliases.items() if n != version.number}
        if LATEST in collection.aliases and LATEST not in aliases and collection.last is not None:
            aliases[LATEST] = collection.last
        registry.release_pinned(self, applied, version)
        self.put_version(version)
        self.put_collection(applied, collection, aliases, reason)

    def _restore(self, applied: Applied, event: ArtifactRestored) -> None:
        collection = self.there(event.artifact)
        version = self.version(event.artifact, event.version, deleted=True)
        if version.ended is not None and version.ended.how == "erased":
            raise Refused(f"expected a version whose bytes are there, {version.artifact}:v{version.number} is erased")
        collection = collection.without_deleted(version.number)
        aliases = dict(collection.aliases)
        aliases.setdefault(LATEST, version.number)
        registry.keep_pinned(self, applied, version)
        self.put_version(_changed(applied, version, deleted=False))
        self.put_collection(applied, collection, aliases, "")

    def _erase(self, applied: Applied, event: ArtifactErased) -> None:
        collection = self.there(event.artifact)
        version = self.version(event.artifact, event.version, deleted=True)
        self.keeping.refuse_kept(collection, version.number, "erase")
        envelope = applied.envelope
        ended = Ended("erased", envelope.ts_server, envelope.actor, event.plan, version.updated_ts)
        if version.ended is None or version.ended.how != "erased":
            self.put_version(_changed(applied, version, deleted=True, ended=ended))

    def _of_scope(self, applied: Applied, event: ScopeEvent) -> None:
        about = subject(event)
        if isinstance(about, VersionKey):
            row = self.row(about)
            if row is None:
                raise Refused(f"no such version: expected {event.scope}, found none")
            if row.ended is not None and row.ended.how == "erased":
                raise Refused(f"expected a version whose bytes are there, {event.scope} is erased")
        elif about is not None:
            self.there(about)
        self.keeping.apply(applied, event)

    # ------------------------------------------------------------------------------------------------- state

    def collection(self, path: str) -> Collection | None:
        """An artifact; None where there is none."""
        return self.changes.state.collections.get(path) or self._before.collections.get(path)

    def there(self, path: str) -> Collection:
        """An artifact that must be there.

        Raises:
            Refused: it is not.
        """
        collection = self.collection(path)
        if collection is None:
            raise Refused(f"no such artifact: expected {path!r}, found none")
        return collection

    def known(self, path: str, digest: str) -> Version | None:
        """The version of a digest; None where there is none."""
        key = DigestKey(path, digest)
        number = self.changes.state.digests.get(key, self._before.digests.get(key))
        return None if number is None else self.row(VersionKey(path, number))

    def row(self, key: VersionKey) -> Version | None:
        """A version, deleted or not; None where there is none."""
        return self.changes.state.versions.get(key) or self._before.versions.get(key)

    def version(self, path: str, number: int, *, deleted: bool = False) -> Version:
        """A version that must be there, or be deleted.

        Raises:
            Refused: it is not.
        """
        version = self.row(VersionKey(path, number))
        if version is None:
            raise Refused(f"no such version: expected {path}:v{number}, found none")
        if version.deleted != deleted:
            raise Refused(f"expected a version that is {_state(deleted)}, {path}:v{number} is {_state(not deleted)}")
        return version

    def put_version(self, version: Version) -> None:
        """Note a version's new row; of several that one event makes, the last counts."""
        made, key = self.changes.versions, VersionKey(version.artifact, version.number)
        if made and (made[-1].artifact, made[-1].number, made[-1].off) == (*key, version.off):
            made.pop()
        made.append(version)
        self.changes.state.versions[key] = version
        self.changes.state.digests[DigestKey(version.artifact, version.digest)] = version.number

    def put_collection(self, applied: Applied, collection: Collection, aliases: dict[str, int], reason: str) -> None:
        """Note a collection's new row, with these aliases; what moved is told."""
        before = collection.aliases
        row = msgspec.structs.replace(collection, aliases=aliases, off=applied.position.offset)
        self.changes.collections.append(row)
        self.changes.state.collections[row.path] = row
        envelope = applied.envelope
        for alias in sorted(before.keys() | aliases.keys()):
            if (was := before.get(alias)) != (now := aliases.get(alias)):
                self.changes.moves.append(
                    Move(
                        row.path,
                        alias,
                        now,
                        was,
                        row.off,
                        envelope.ts_server,
                        envelope.actor,
                        envelope.credential,
                        reason,
                    )
                )

    def edge(self, applied: Applied, path: str, version: Version, kind: EdgeKind, alias: str) -> None:
        """Note what is at the other end of a version's edge."""
        at, ts = applied.position.offset, applied.envelope.ts_server
        self.changes.edges.append(Edge(path, version.artifact, version.number, kind, alias, at, ts))


def _changed(applied: Applied, version: Version, *, deleted: bool, ended: Ended | None = None) -> Version:
    ts, off = applied.envelope.ts_server, applied.position.offset
    return msgspec.structs.replace(version, deleted=deleted, ended=ended, updated_ts=ts, off=off)


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _named(version: int | None) -> str:
    return "no version" if version is None else f"v{version}"


def _state(deleted: bool) -> str:
    return "deleted" if deleted else "there"
