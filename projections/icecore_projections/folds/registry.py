"""The part of the fold of artifacts that is about registries: links, bundles, and what collections ask.

A link makes a version of the collection with the source's digest and words, and keeps the source (`link`). It is an
edge in `artifact_edges`, too: kind `linked`, `path` the collection's version (`registry/model/churn:v0`), `artifact`
and `version` the source's. The parts of a bundle are stored the same way: kind `part`, `path` the bundle's version,
`alias` the part's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from icecore.artifact_events import ArtifactCommitted, ArtifactDeleted, ArtifactRestored, BundlePart
from icecore.events import ArtifactEvent
from icecore.registry_checks import MISSING, at
from icecore.registry_events import (
    ArtifactLinked,
    ArtifactUnlinked,
    CollectionSet,
    PartLogged,
    PartsFinished,
    PartWithdrawn,
    PromotionApplied,
)
from icecore.retention_events import ArtifactExpired
from icecore_projections.folds import Applied
from icecore_projections.folds.artifact_rows import LATEST, Collection, Version
from icecore_projections.folds.registry_rows import (
    NAMES_MOST,
    DraftPart,
    Registry,
)
from icecore_projections.folds.retention import Refused, VersionKey

if TYPE_CHECKING:
    from icecore_projections.folds.artifacts import Work

HANDLED: Final = (
    ArtifactLinked,
    ArtifactUnlinked,
    CollectionSet,
    PartLogged,
    PartWithdrawn,
    PartsFinished,
)
"""The events that are applied here."""


def elsewhere(event: object) -> list[VersionKey]:
    """The versions of other artifacts that an event is about."""
    if isinstance(event, ArtifactLinked | ArtifactUnlinked):
        return [VersionKey(event.source, event.source_version)]
    if isinstance(event, ArtifactCommitted):
        return [VersionKey(part.artifact, part.version) for part in event.parts]
    return []


def pinned(version: Version) -> list[VersionKey]:
    """The versions of other artifacts that a version keeps: what it was linked from, and a bundle's parts."""
    return [*map(source_key, version.sources), *(VersionKey(one.artifact, one.version) for one in own_parts(version))]


def own_parts(version: Version) -> list[BundlePart]:
    """The parts that a version keeps by itself: those of a linked bundle are kept by the bundle it came from."""
    return [] if version.linked else version.parts


def source_key(source: str) -> VersionKey:
    """`entity/project/name:v3` as a key."""
    path, _, number = source.rpartition(":v")
    return VersionKey(path, int(number))


def further(
    event: object, collections: Mapping[str, Collection], versions: Mapping[VersionKey, Version]
) -> list[VersionKey]:
    """The versions that an event is about, as the rows that it names say.

    Args:
        event: of a batch.
        collections: what is known.
        versions: what is known.
    """
    if isinstance(event, PromotionApplied):
        collection = collections.get(event.artifact)
        promotion = collection.registry.open.get(event.promotion) if collection and collection.registry else None
        return [VersionKey(event.artifact, promotion.version)] if promotion else []
    if isinstance(event, ArtifactLinked):
        return list(chain(VersionKey(event.source, event.source_version), versions.get))
    if isinstance(event, ArtifactDeleted | ArtifactRestored | ArtifactExpired):
        version = versions.get(VersionKey(event.artifact, event.version))
        return pinned(version) if version else []
    return []


def apply(work: Work, applied: Applied, event: ArtifactEvent) -> None:
    """Apply one of `HANDLED` whole, or refuse it.

    Raises:
        Refused: the fold decides against it.
    """
    if isinstance(event, ArtifactLinked):
        _link(work, applied, event)
    elif isinstance(event, ArtifactUnlinked):
        _unlink(work, applied, event)
    elif isinstance(event, CollectionSet):
        _set(work, applied, event)
    elif isinstance(event, PartLogged | PartWithdrawn | PartsFinished):
        _draft(work, applied, event)


# --------------------------------------------------------------------------------------------------------- links


def _link(work: Work, applied: Applied, event: ArtifactLinked) -> None:
    if event.source == event.artifact:
        raise Refused(f"expected a version of another artifact than {event.artifact!r} to link")
    source = work.version(event.source, event.source_version)
    if source.digest != event.digest:
        raise Refused(f"expected {event.source}:v{source.number} to be {event.digest}, found {source.digest}")
    kind = work.there(event.source).type
    at_, ts, user = applied.position.offset, applied.envelope.ts_server, applied.envelope.actor
    collection = work.collection(event.artifact) or Collection(
        path=event.artifact, type=kind, created_ts=ts, user=user, off_first=at_, off=at_
    )
    if collection.type != kind:
        raise Refused(f"expected {event.artifact!r} to get a {collection.type!r}, as it always did, got {kind!r}")
    known = work.known(event.artifact, event.digest)
    _see_no_circle(work, source, known)
    check_version(collection, (known or source).metadata, event.aliases)
    name = VersionKey(event.source, source.number).scope
    if known is None:
        version = Version(
            artifact=event.artifact,
            number=collection.versions,
            digest=source.digest,
            files=source.files,
            size=source.size,
            description=source.description,
            metadata=source.metadata,
            tags=source.tags,
            run=source.run,
            user=user,
            created_ts=ts,
            updated_ts=ts,
            sources=[name],
            linked=True,
            parts=source.parts,
            off_first=at_,
            off=at_,
        )
        collection = msgspec.structs.replace(collection, versions=collection.versions + 1)
    else:
        version = msgspec.structs.replace(
            known,
            sources=[name] if known.deleted else list(dict.fromkeys([*known.sources, name])),
            deleted=False,
            ended=None,
            updated_ts=ts,
            off=at_,
        )
        collection = collection.without_deleted(version.number)
    work.put_version(version)
    aliases = dict.fromkeys([LATEST, *event.aliases], version.number)
    work.put_collection(applied, collection, {**collection.aliases, **aliases}, "")
    work.keeping.keep(applied, "link", VersionKey(event.source, source.number), by=event.artifact)
    work.edge(applied, VersionKey(event.artifact, version.number).scope, source, "linked", "")


def _see_no_circle(work: Work, source: Version, known: Version | None) -> None:
    """See that a version is not to be linked from what came of it: they would keep each other for ever.

    Raises:
        Refused: it is.
    """
    if known is None or known.deleted:
        return
    target = VersionKey(known.artifact, known.number)
    for key in chain(VersionKey(source.artifact, source.number), work.row):
        if key == target:
            raise Refused(
                f"expected a version that is not from {known.artifact} itself, "
                f"{source.artifact}:v{source.number} was linked from {target.scope}"
            )


def chain(start: VersionKey, row: Callable[[VersionKey], Version | None]) -> Iterator[VersionKey]:
    """A version, what it was linked from, what that was linked from, and so on."""
    waiting, seen = [start], {start}
    while waiting:
        key = waiting.pop()
        yield key
        version = row(key)
        if version is not None:
            sources = [source for source in map(source_key, version.sources) if source not in seen]
            waiting += sources
            seen.update(sources)


def _unlink(work: Work, applied: Applied, event: ArtifactUnlinked) -> None:
    collection = work.there(event.artifact)
    key = VersionKey(event.source, event.source_version)
    version = work.known(event.artifact, event.digest)
    if version is None or key.scope not in version.sources or version.deleted:
        raise Refused(f"no such link: expected {key.scope} in {event.artifact}, found none")
    others = [one for one in version.sources if one != key.scope]
    if version.linked and not others:
        gone = ArtifactDeleted(
            artifact=event.artifact,
            version=version.number,
            with_aliases=event.with_aliases,
            reason=event.reason or "unlinked",
        )
        work.delete(applied, gone)
        version = work.row(VersionKey(collection.path, version.number)) or version
    ts, off = applied.envelope.ts_server, applied.position.offset
    work.put_version(msgspec.structs.replace(version, sources=others, updated_ts=ts, off=off))
    work.keeping.release(applied, "link", key, by=event.artifact)


def keep_pinned(work: Work, applied: Applied, version: Version) -> None:
    """Keep what a version was linked from, and a bundle's parts.

    Raises:
        Refused: one of them is not there any more; nothing has changed then.
    """
    own = VersionKey(version.artifact, version.number).scope
    for key in pinned(version):
        row = work.row(key)
        if row is None or row.deleted:
            state = "not there" if row is None else "deleted"
            raise Refused(f"expected {key.scope}, which {own} is made of, to be there; it is {state}")
    for key in map(source_key, version.sources):
        work.keeping.keep(applied, "link", key, by=version.artifact)
    keep_parts(work, applied, version)


def keep_parts(work: Work, applied: Applied, version: Version) -> None:
    """Keep a bundle's parts."""
    own = VersionKey(version.artifact, version.number).scope
    for part in own_parts(version):
        work.keeping.keep(applied, "bundle", VersionKey(part.artifact, part.version), by=own)


def release_pinned(work: Work, applied: Applied, version: Version) -> None:
    """What a version kept is kept by it no longer."""
    own = VersionKey(version.artifact, version.number).scope
    for key in map(source_key, version.sources):
        work.keeping.release(applied, "link", key, by=version.artifact)
    for part in own_parts(version):
        work.keeping.release(applied, "bundle", VersionKey(part.artifact, part.version), by=own)


def check_parts(work: Work, event: ArtifactCommitted) -> None:
    """See that the parts of a bundle are what it says.

    Raises:
        Refused: one is not there, is deleted, or has other content.
    """
    for part in event.parts:
        found = work.row(VersionKey(part.artifact, part.version))
        if found is None or found.deleted:
            state = "there is none" if found is None else "it is deleted"
            raise Refused(f"expected the part {part.key!r} of a bundle to be {part.name}, but {state}")
        if found.digest != part.digest:
            raise Refused(f"expected {part.name} to be {part.digest}, found {found.digest}")


def part_edges(work: Work, applied: Applied, version: Version) -> None:
    """Note a new bundle in the lineage of its parts."""
    own = VersionKey(version.artifact, version.number).scope
    for part in version.parts:
        row = work.row(VersionKey(part.artifact, part.version))
        if row is not None:
            work.edge(applied, own, row, "part", part.key)


# ---------------------------------------------------------------------------------------- what a collection asks


def _set(work: Work, applied: Applied, event: CollectionSet) -> None:
    collection = work.collection(event.artifact)
    at_, ts = applied.position.offset, applied.envelope.ts_server
    if collection is None:
        if not event.type:
            raise Refused(f"no such artifact: expected {event.artifact!r}, found none; a type makes it")
        collection = Collection(
            path=event.artifact,
            type=event.type,
            created_ts=ts,
            user=applied.envelope.actor,
            off_first=at_,
            off=at_,
        )
    elif event.type and event.type != collection.type:
        raise Refused(f"expected {event.artifact!r} to hold a {event.type!r}, it holds {collection.type!r}")
    names = ("description", "tags", "owner", "stages", "required", "card", "checks")
    said = {name: value for name in names if (value := getattr(event, name)) is not None}
    registry = msgspec.structs.replace(collection.registry or Registry(), **said)
    if event.checks_of is not None:
        checks = {alias: those for alias, those in {**registry.checks, **event.checks_of}.items() if those}
        if len(checks) > max(NAMES_MOST, len(registry.checks)):
            raise Refused(f"expected checks of at most {NAMES_MOST} aliases, got {len(checks)}")
        registry = msgspec.structs.replace(registry, checks=checks)
    if registry.stages and (other := sorted(registry.checks.keys() - set(registry.stages))):
        raise Refused(f"expected checks of {', '.join(registry.stages)} only, got some of {', '.join(other)}")
    collection = msgspec.structs.replace(collection, registry=registry)
    work.put_collection(applied, collection, collection.aliases, event.reason)


def check_version(collection: Collection, metadata: dict[str, Any], aliases: Iterable[str]) -> None:
    """See that a version may be in a collection, under these aliases, without promotion.

    Raises:
        Refused: required metadata is missing, or an alias is no stage, or moves by promotion only.
    """
    registry = collection.registry
    if registry is None:
        return
    missing = [key for key in registry.required if at(metadata, key) is MISSING]
    if missing:
        raise Refused(
            f"expected metadata with {', '.join(registry.required)}, as {collection.path} requires, "
            f"found none of {', '.join(missing)}"
        )
    for alias in aliases:
        check_alias(collection, alias)


def check_alias(collection: Collection, alias: str) -> None:
    """See that an alias may be given without promotion.

    Raises:
        Refused: it is no stage of the collection, or has checks.
    """
    registry = collection.registry or Registry()
    check_stage(collection, alias)
    if registry.checks.get(alias):
        raise Refused(
            f"expected a promotion, since {alias} of {collection.path} has checks: "
            f"use `icecore promote {collection.path}:VERSION --to {alias}`"
        )


def check_stage(collection: Collection, alias: str) -> None:
    """See that an alias is one of a collection's stages, where it has some.

    Raises:
        Refused: it is not.
    """
    stages = (collection.registry or Registry()).stages
    if stages and alias not in stages and alias != LATEST:
        raise Refused(f"expected one of the stages {', '.join(stages)} of {collection.path}, got {alias!r}")


# ---------------------------------------------------------------------------------- versions of several writers

_DRAFTS: Final[Mapping[type, Literal["part", "withdrawn", "finished"]]] = {
    PartLogged: "part",
    PartWithdrawn: "withdrawn",
    PartsFinished: "finished",
}


def _draft(work: Work, applied: Applied, event: PartLogged | PartWithdrawn | PartsFinished) -> None:
    if isinstance(event, PartsFinished) and work.known(event.artifact, event.digest) is None:
        raise Refused(f"no such version: expected {event.digest} in {event.artifact!r}, found none")
    work.changes.drafts.append(
        DraftPart(
            event.artifact,
            event.distributed_id,
            _DRAFTS[type(event)],
            event.digest,
            event.upto if isinstance(event, PartsFinished) else None,
            event.run if isinstance(event, PartLogged) else "",
            applied.position.offset,
            applied.envelope.ts_server,
            applied.envelope.actor,
        )
    )
