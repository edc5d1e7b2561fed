"""The shapes of answers and commands about artifacts, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from icecore_api.models import Answer, Command
from icecore_api.retention.models import TTL_MOST


class VersionAnswer(Answer):
    """A version of an artifact."""

    path: str = Field(description="entity/project/name")
    entity: str
    project: str
    name: str
    type: str
    version: str = Field(description="v0, v1, …")
    digest: str = Field(description="SHA-256 of the manifest")
    size: int = Field(description="bytes of its files")
    files: int
    description: str
    metadata: dict[str, Any]
    tags: list[str]
    aliases: list[str]
    sources: list[str] = Field(description="versions of other artifacts that were linked here")
    parts: dict[str, str] = Field(description="of a bundle: the versions it pins, by folder")
    state: Literal["committed", "deleted", "expired", "erased"]
    run: str | None = Field(description="the run that logged it first")
    user: str
    created_at: str | None
    updated_at: str | None


class ArtifactAnswer(Answer):
    """An artifact: all its versions."""

    path: str
    name: str
    type: str
    versions: int = Field(description="those that are not deleted")
    aliases: dict[str, str]
    created_at: str | None
    user: str


class ArtifactsAnswer(Answer):
    """The artifacts of a project."""

    artifacts: list[ArtifactAnswer]


class VersionsPage(Answer):
    """Versions of an artifact, newest first."""

    versions: list[VersionAnswer]
    cursor: str | None


class AliasState(Answer):
    """What an alias names now, and what it named before."""

    alias: str
    version: str | None
    before: str | None


class AliasMove(Answer):
    """A move of an alias."""

    version: str | None
    before: str | None
    at: str | None
    user: str
    credential: str
    reason: str
    position: str


class AliasHistory(Answer):
    """The moves of an alias, the last first."""

    alias: str
    history: list[AliasMove]


class Commit(Command):
    """A manifest to become a version."""

    type: str
    manifest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the manifest, which is a blob")
    description: str = ""
    metadata: dict[str, Any] = Field({})
    aliases: list[str] = Field([])
    tags: list[str] = Field([])
    run: str = ""
    ttl: int | None = Field(None, ge=0, le=TTL_MOST, description="how long it lives, in seconds; 0 for ever")


class VersionPatch(Command):
    """What people say about a version; what is left out stays."""

    description: str | None = None
    metadata: dict[str, Any] | None = None
    tags: list[str] | None = None


class AliasPatch(Command):
    """Where an alias is to go."""

    version: str | None = Field(description="v3; null takes the alias away")
    expected: str | None = Field(None, description="what it must name so far; null where it must not be there yet")
    reason: str = ""


class Use(Command):
    """A run that takes a version as its input."""

    run: str
