"""The events of what is kept and for how long: time to live, holds, and bytes that are gone.

Made by the server's commands and its own clockwork only; the fold of artifacts judges them (docs/decisions/0009).

A *scope* is what such an event is about: a team (`team`), a project (`team/project`), an artifact
(`team/project/name`) or one version (`team/project/name:v3`).
"""

from __future__ import annotations

import re
from typing import Final

from icecore.errors import Invalid
from icecore.events import ArtifactEvent, Event, check_path_part, event
from icecore.position import LEDGER

_VERSION: Final = re.compile(r"v(0|[1-9][0-9]{0,8})")
_PARTS: Final = ("a team", "a project", "an artifact's name")


def split_scope(scope: str) -> tuple[str, int | None]:
    """A scope as its path of one to three parts, and its version, where it is one.

    Raises:
        Invalid: it is no scope.
    """
    path, colon, named = scope.partition(":")
    parts = path.split("/")
    numbered = _VERSION.fullmatch(named) if colon else None
    if len(parts) > len(_PARTS) or (colon and (numbered is None or len(parts) < len(_PARTS))):
        raise Invalid(f"expected team, team/project, team/project/name or team/project/name:v3, got {scope[:200]!r}")
    checked = [check_path_part(what, part) for what, part in zip(_PARTS, parts, strict=False)]
    return "/".join(checked), int(numbered[1]) if numbered else None


class ScopeEvent(Event, frozen=True, kw_only=True):
    """An event about a team, a project, an artifact or a version."""

    scope: str

    @property
    def key(self) -> str:
        """The scope without its version."""
        return split_scope(self.scope)[0]


@event("hold.placed", 1, LEDGER, from_clients=False)
class HoldPlaced(ScopeEvent, frozen=True, kw_only=True):
    """A legal hold: nothing within the scope is deleted, expires or is erased. Later versions are held, too."""

    hold: str
    """Its id, unique within the scope."""
    reason: str = ""


@event("hold.released", 1, LEDGER, from_clients=False)
class HoldReleased(ScopeEvent, frozen=True, kw_only=True):
    """A hold ended; rejected where there is none of that id."""

    hold: str
    reason: str = ""


@event("artifact.ttl_set", 1, LEDGER, from_clients=False)
class ArtifactTtlSet(ScopeEvent, frozen=True, kw_only=True):
    """How long versions live, from when they were made. The narrowest scope that says something counts."""

    seconds: int | None = None
    """None takes what the wider scope says; 0 keeps them for ever."""


@event("collection.updated", 1, LEDGER, from_clients=False)
class CollectionUpdated(ArtifactEvent, frozen=True, kw_only=True):
    """What an artifact's settings are; a field left out stays as it is."""

    protected: list[str] | None = None
    """Aliases that keep the version they name."""


@event("artifact.expired", 1, LEDGER, from_clients=False)
class ArtifactExpired(ArtifactEvent, frozen=True, kw_only=True):
    """A version's time is over: it is hidden as a deleted one. Rejected where something keeps it."""

    version: int
    born_ts: int
    """From when its time counts: milliseconds since 1970 UTC."""
    seconds: int
    """The time to live that was over."""


@event("artifact.erased", 1, LEDGER, from_clients=False)
class ArtifactErased(ArtifactEvent, frozen=True, kw_only=True):
    """A deleted version's bytes are about to go: it cannot be restored any more. Rejected where something keeps it."""

    version: int
    plan: str
    """The id of the plan that it goes with."""


@event("blob.erasing", 1, LEDGER, from_clients=False)
class BlobErasing(Event, frozen=True, kw_only=True):
    """These blobs are about to be erased; `blob.erased` of the same plan follow, for as many as go."""

    plan: str
    part: int
    """A plan with many blobs has several of these events: 0, 1, …"""
    bytes: int
    """What the whole plan is to free."""
    digests: list[str] = []
    orphans: list[str] = []
    """What interrupted uploads have left, by name."""

    @property
    def key(self) -> str:
        """The plan's id."""
        return self.plan


@event("blob.erased", 1, LEDGER, from_clients=False)
class BlobErased(Event, frozen=True, kw_only=True):
    """A receipt: these blobs are no longer on the disk. The bytes of a plan's receipts are what it freed."""

    plan: str
    digests: list[str] = []
    orphans: list[str] = []
    """What interrupted uploads had left, by name."""
    bytes: int = 0
    """What was freed, that of the orphans among it."""
    done: bool = False
    """Whether it is the plan's last."""

    @property
    def key(self) -> str:
        """The plan's id."""
        return self.plan
