"""The events of artifacts: versions made and used, what people say of them, and the aliases that name them.

They are made by the server's commands only; their fold judges them (docs/decisions/0008).
"""

from __future__ import annotations

from typing import Any

import msgspec

from icecore.events import ArtifactEvent, event
from icecore.position import LEDGER


class BundlePart(msgspec.Struct, frozen=True):
    """A version that a bundle pins."""

    key: str
    """The folder of the bundle that it is."""
    artifact: str
    """entity/project/name"""
    version: int
    digest: str
    """Of its manifest."""

    @property
    def name(self) -> str:
        """As people write it: entity/project/name:v3."""
        return f"{self.artifact}:v{self.version}"


@event("artifact.committed", 1, LEDGER, from_clients=False)
class ArtifactCommitted(ArtifactEvent, frozen=True, kw_only=True):
    """A manifest became a version. The fold gives the number: a digest that is there already keeps its version.

    `latest`, and the aliases named here, move to that version.
    """

    type: str
    """What it is, for all versions of the artifact: model, dataset, …"""
    digest: str
    """Hex SHA-256 of the manifest's bytes, which are a blob."""
    files: int
    size: int
    """Bytes of all files that are kept here; what references point to is not counted."""
    description: str = ""
    metadata: dict[str, Any] = {}
    aliases: list[str] = []
    tags: list[str] = []
    run: str = ""
    """The run that logged it: entity/project/run_id."""
    references: list[str] = []
    """Where its files lie that are not kept here: URIs, or the folders that they have in common."""
    ttl: int | None = None
    """How long it lives, in seconds; 0 is for ever; None leaves it as it is, at first to the wider scopes."""
    parts: list[BundlePart] = []
    """Of a bundle: the versions it is made of, which it keeps. Rejected where one is not there, or is another."""


@event("artifact.used", 1, LEDGER, from_clients=False)
class ArtifactUsed(ArtifactEvent, frozen=True, kw_only=True):
    """A run takes a version as its input."""

    version: int
    run: str
    """entity/project/run_id"""
    alias: str = ""
    """The alias that was asked for, where it was one."""


@event("artifact.updated", 1, LEDGER, from_clients=False)
class ArtifactUpdated(ArtifactEvent, frozen=True, kw_only=True):
    """What people say about a version changed; a field left out stays as it is. Its files never change."""

    version: int
    description: str | None = None
    metadata: dict[str, Any] | None = None
    """All of it."""
    tags: list[str] | None = None


@event("alias.moved", 1, LEDGER, from_clients=False)
class AliasMoved(ArtifactEvent, frozen=True, kw_only=True):
    """An alias names another version, or none: rejected where it does not name the expected one."""

    alias: str
    version: int | None = None
    """None takes the alias away."""
    expected: int | None = None
    """The version it must name so far; None with `conditional`: it must not be there yet."""
    conditional: bool = False
    """Whether `expected` counts."""
    reason: str = ""


@event("artifact.deleted", 1, LEDGER, from_clients=False)
class ArtifactDeleted(ArtifactEvent, frozen=True, kw_only=True):
    """A version is hidden; rejected where an alias other than `latest` names it, unless those go too."""

    version: int
    with_aliases: bool = False
    reason: str = ""


@event("artifact.restored", 1, LEDGER, from_clients=False)
class ArtifactRestored(ArtifactEvent, frozen=True, kw_only=True):
    """A deleted version is back, without the aliases it had."""

    version: int
