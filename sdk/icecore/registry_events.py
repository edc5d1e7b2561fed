"""The events of registries: versions linked into a collection, what it asks of them, and how they are promoted.

A collection of a registry is an artifact as any other, of the entity `registry`: `registry/model/churn`. What is
asked of it (`registry.collection_set`) may be asked of any artifact. Also here: versions that several processes put
together. All are made by the server's commands only; the fold of artifacts judges them (docs/decisions/0012).
"""

from __future__ import annotations

from icecore.events import ArtifactEvent, event
from icecore.position import LEDGER
from icecore.registry_checks import Check, Evidence

# ---- links


@event("artifact.linked", 1, LEDGER, from_clients=False)
class ArtifactLinked(ArtifactEvent, frozen=True, kw_only=True):
    """A version of another artifact is in this collection, too; no byte is copied.

    It gets a number here, and the description, metadata and tags that the source has at this position; one whose
    digest is here already keeps its number and its own. `latest`, and the aliases named here, move to it. Rejected
    where the source was itself linked from here.
    """

    source: str
    """entity/project/name of the artifact it comes from."""
    source_version: int
    digest: str
    """Of the manifest: rejected where the source has another."""
    aliases: list[str] = []


@event("artifact.unlinked", 1, LEDGER, from_clients=False)
class ArtifactUnlinked(ArtifactEvent, frozen=True, kw_only=True):
    """A link is taken back; a version here that no other link made is deleted, and the source is kept no longer.

    Rejected where an alias other than `latest` names it, unless those go too.
    """

    source: str
    """entity/project/name"""
    source_version: int
    digest: str
    """Of the manifest."""
    with_aliases: bool = False
    reason: str = ""


# ---- what a collection asks


@event("registry.collection_set", 1, LEDGER, from_clients=False)
class CollectionSet(ArtifactEvent, frozen=True, kw_only=True):
    """What a collection is for, and what it asks of its versions; a field left out stays as it is."""

    type: str = ""
    """Makes the collection, without a version, where it is not there yet."""
    description: str | None = None
    tags: list[str] | None = None
    owner: str | None = None
    """A user or team."""
    stages: list[str] | None = None
    """The only aliases that versions may have besides `latest`; empty: any."""
    required: list[str] | None = None
    """Keys that a version's metadata must have, or it is rejected."""
    card: str | None = None
    """The model card as a template: `{metadata.f1}` stands for what a version has."""
    checks: dict[str, list[Check]] | None = None
    """By alias: what must hold of a version before it is promoted there. Such an alias moves by promotion only."""
    checks_of: dict[str, list[Check]] | None = None
    """The same of some aliases: those named here have these checks from now on, or none; others keep theirs."""
    reason: str = ""


# ---- promotion


@event("promotion.requested", 1, LEDGER, from_clients=False)
class PromotionRequested(ArtifactEvent, frozen=True, kw_only=True):
    """Somebody wants an alias to name a version.

    Rejected where a check fails that no approval can mend, and while the same is asked for already.
    """

    promotion: str
    """Its id."""
    version: int
    alias: str
    reason: str = ""
    evidence: list[Evidence] = []
    """What the server knew then of the runs that used the version."""


@event("promotion.approved", 1, LEDGER, from_clients=False)
class PromotionApproved(ArtifactEvent, frozen=True, kw_only=True):
    """Somebody agrees; rejected where the requester's own credential does, and a check asks for another."""

    promotion: str
    reason: str = ""


@event("promotion.rejected", 1, LEDGER, from_clients=False)
class PromotionRejected(ArtifactEvent, frozen=True, kw_only=True):
    """Somebody refuses, or the requester takes the request back: it is closed."""

    promotion: str
    reason: str = ""


@event("promotion.applied", 1, LEDGER, from_clients=False)
class PromotionApplied(ArtifactEvent, frozen=True, kw_only=True):
    """The alias moves, if every check holds at this position."""

    promotion: str
    evidence: list[Evidence] = []
    """What the server knew then of the runs that used the version."""


@event("promotion.rolled_back", 1, LEDGER, from_clients=False)
class PromotionRolledBack(ArtifactEvent, frozen=True, kw_only=True):
    """The alias names again what it named before the last promotion that still stands; no check is asked."""

    alias: str
    expected: int
    """The version it must name so far."""
    reason: str = ""


# ---- versions of several writers


@event("artifact.part_logged", 1, LEDGER, from_clients=False)
class PartLogged(ArtifactEvent, frozen=True, kw_only=True):
    """One of several writers has sent its files of a version to be; the same part again changes nothing."""

    distributed_id: str
    """What the writers call the version to be."""
    digest: str
    """Hex SHA-256 of the part's manifest, which is a blob."""
    run: str = ""


@event("artifact.part_withdrawn", 1, LEDGER, from_clients=False)
class PartWithdrawn(ArtifactEvent, frozen=True, kw_only=True):
    """A part is taken back before the version is made; sent again it counts again."""

    distributed_id: str
    digest: str
    """Hex SHA-256 of the part's manifest."""
    reason: str = ""


@event("artifact.parts_finished", 1, LEDGER, from_clients=False)
class PartsFinished(ArtifactEvent, frozen=True, kw_only=True):
    """The parts logged so far became a version; later ones begin the next."""

    distributed_id: str
    upto: int
    """Parts before this offset of the ledger are in it."""
    digest: str
    """Of the version's manifest."""
