"""The shapes of answers and commands about registries, promotions, bundles and parts, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from icecore_api.models import Answer, Command


class CollectionAnswer(Answer):
    """A collection: what it is for, what it asks of its versions, and what its aliases name."""

    path: str = Field(description="entity/project/name")
    type: str
    description: str
    tags: list[str]
    owner: str
    stages: list[str] = Field(description="the only aliases besides latest; empty: any")
    required: list[str] = Field(description="keys that a version's metadata must have")
    checks: dict[str, list[str]] = Field(description="by alias: what must hold before a version is promoted there")
    template: str = Field(description="the model card's template")
    card: str | None = Field(description="the card of the version asked for, rendered; null where there is none")
    version: str | None = Field(description="whose card it is")
    aliases: dict[str, str]
    versions: int
    open: list[str] = Field(description="ids of promotions that wait")
    created_at: str | None
    user: str


class CollectionsAnswer(Answer):
    """The collections of registries, and others that somebody set up."""

    collections: list[CollectionAnswer]


class VerdictAnswer(Answer):
    """How a check came out."""

    check: str
    ok: bool
    found: str


class StepAnswer(Answer):
    """Something that happened to a promotion."""

    step: str
    version: str
    at: str | None
    user: str
    credential: str
    reason: str
    checks: list[VerdictAnswer]
    position: str


PromotionState = Literal["requested", "approved", "rejected", "applied", "rolled_back"]


class PromotionAnswer(Answer):
    """A promotion, with all that happened to it."""

    promotion: str = Field(description="its id")
    path: str
    version: str
    alias: str
    state: PromotionState
    reason: str
    requested_by: str
    approved_by: str | None
    steps: list[StepAnswer]


class PromotionsAnswer(Answer):
    """Promotions, the last first."""

    promotions: list[PromotionAnswer]


class PromotedAnswer(Answer):
    """What came of a request, or what would."""

    promotion: PromotionAnswer | None = Field(description="null of a dry run")
    path: str
    version: str
    alias: str
    before: str | None = Field(description="what the alias named, or names")
    outcome: Literal["applied", "waits", "refused"]
    checks: list[VerdictAnswer]


class CollectionPatch(Command):
    """What a collection asks; what is left out stays."""

    type: str = Field("", description="makes the collection where it is not there yet")
    description: str | None = None
    tags: list[str] | None = None
    owner: str | None = None
    stages: list[str] | None = None
    required: list[str] | None = None
    template: str | None = None
    checks: dict[str, list[str]] | None = Field(None, description="of every alias: those that are not named have none")
    checks_of: dict[str, list[str]] | None = Field(
        None, description="of some aliases, an empty list for none; those that are not named keep theirs"
    )
    reason: str = ""


class Link(Command):
    """A version of another artifact that is to be in a collection."""

    source: str = Field(description="entity/project/name:v3, or with an alias")
    aliases: list[str] = Field([])


class Promote(Command):
    """A version that an alias is to name."""

    version: str = Field(description="v3, or an alias", max_length=128)
    to: str = Field(description="the alias", max_length=128)
    reason: str = ""
    dry_run: bool = False


class RollBack(Command):
    """An alias that is to name again what it named before."""

    to: str = Field(description="the alias", max_length=128)
    reason: str = ""


class Decision(Command):
    """Why a promotion is approved or rejected."""

    reason: str = ""


class Words(Command):
    """What people say about a version to be."""

    type: str
    description: str = ""
    metadata: dict[str, Any] = Field({})
    aliases: list[str] = Field([])
    tags: list[str] = Field([])
    run: str = ""
    ttl: int | None = Field(None, ge=0, description="seconds; 0 is for ever")


class BundleCommit(Words):
    """Versions to become one."""

    parts: dict[str, str] = Field(description="folder -> entity/project/name:v3, or with an alias")


class PartCommit(Command):
    """A part of a version that several processes put together."""

    manifest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the part's manifest, which is a blob")
    run: str = ""


class PartListed(Answer):
    """A part that waits for the end."""

    manifest: str
    run: str


class PartsAnswer(Answer):
    """The parts of a version that nobody has finished."""

    distributed_id: str
    parts: list[PartListed]


class PartAnswer(Answer):
    """A part that was noted."""

    distributed_id: str
    manifest: str
    parts: int = Field(description="how many different ones there are now")
