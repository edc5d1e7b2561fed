"""The shapes of answers and commands about retention and storage, as OpenAPI shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from icecore_api.models import Answer, Command

TTL_MOST = 100 * 366 * 86_400
"""Seconds: a hundred years."""


class KeepAnswer(Answer):
    """A thing that keeps a version."""

    kind: Literal["hold", "protected", "link", "bundle"]
    by: str
    why: str


class ErasedAnswer(Answer):
    """When and by whom the bytes of a version were erased."""

    at: str | None
    user: str
    plan: str


class StandingAnswer(Answer):
    """What keeps a version, and how long it lives."""

    path: str
    version: str
    state: Literal["committed", "deleted", "expired", "erased"]
    ttl: int | None = Field(
        description="what is said of the version: seconds; 0 for ever; null as the wider scopes say"
    )
    lives: int | None = Field(description="how long it lives, in seconds from its creation; null for ever")
    lives_by: str | None = Field(description="the scope that says so")
    expires_at: str | None
    kept_by: list[KeepAnswer] = Field(description="it neither expires nor can be deleted while there is one")
    erased: ErasedAnswer | None


class HoldAnswer(Answer):
    """A legal hold."""

    hold: str
    scope: str
    reason: str
    user: str
    since: str | None


class HoldsAnswer(Answer):
    """The legal holds in force, the oldest first."""

    holds: list[HoldAnswer]


class ScopeAnswer(Answer):
    """What is said of a team, a project, an artifact or a version as a whole."""

    scope: str
    ttl: int | None = Field(description="seconds; 0 for ever; null as the wider scopes say")
    holds: list[str]
    protected: list[str] = Field(description="of an artifact: aliases that keep the version they name")


class PolicyAnswer(Answer):
    """What a rule deletes, or would delete."""

    rule: dict[str, int | bool | str]
    simulated: bool
    versions: list[str]
    kept: dict[str, list[str]] = Field(description="versions that the rule would delete, and what keeps them")
    bytes: int = Field(description="what erasing them frees on the disk, once the grace is over")


class StorageRow(Answer):
    """What a group of versions weighs, in bytes."""

    group: str
    versions: int
    deleted: int = Field(description="versions that are deleted and not erased")
    logical: int = Field(description="all files of all versions, each as often as it has a name")
    unique: int = Field(description="each blob once, manifests among them")
    shared: int = Field(description="of these: what another group has as well")
    reclaimable: int = Field(description="blobs that only deleted versions name")
    growth: int = Field(description="added in the last 30 days")
    price: float = Field(description="a month, of `unique`")


class StorageTotal(StorageRow):
    """All groups, and what the disk says."""

    group: str = ""
    blobs: int
    stored: int = Field(description="all blobs: unique, reclaimable and uncommitted")
    uncommitted: int = Field(description="blobs that belong to no version")
    disk: int = Field(description="bytes of the files that hold the blobs")
    disk_reclaimable: int = Field(description="of these: what only deleted versions need")
    price: float = Field(description="a month, of `disk`")


class StorageAnswer(Answer):
    """What artifacts weigh."""

    by: str
    rows: list[StorageRow]
    total: StorageTotal


class TtlPatch(Command):
    """How long the versions of a scope live."""

    scope: str = Field(description="team, team/project, team/project/name or team/project/name:v3")
    seconds: int | None = Field(ge=0, le=TTL_MOST, description="0 for ever; null as the wider scopes say")


class ProtectedPatch(Command):
    """Which aliases of an artifact keep the version they name."""

    artifact: str = Field(description="team/project/name")
    protected: list[str]


class HoldRequest(Command):
    """A legal hold to place."""

    scope: str = Field(description="team, team/project, team/project/name or team/project/name:v3")
    reason: str = ""
    hold: str = Field("", description="its id; one is made where none is given")


class GcRequest(Command):
    """What to erase."""

    grace_s: float = Field(7 * 86_400.0, ge=0, le=TTL_MOST, description="versions deleted longer ago than that")
    dry_run: bool = False


class PolicyRequest(Command):
    """A rule for which versions stay."""

    keep_last: int = Field(ge=1, le=1_000_000)
    keep_aliased: bool = False
    scope: str = Field("", description="a team, project or artifact; empty for all")
    type: str = ""
    simulate: bool = True
