"""The shapes of answers about lineage, as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from icecore_api.artifact_models import VersionAnswer
from icecore_api.models import Answer


class LineageEdge(Answer):
    """From what was there first to what came of it."""

    from_: str = Field(alias="from")
    to: str
    kind: Literal["logged", "used", "refers", "part", "linked"]


class Hidden(Answer):
    """Neighbours of a node that are within the depth and not answered."""

    node: str
    direction: Literal["up", "down"]
    count: int


class LineageAnswer(Answer):
    """A neighbourhood of the graph of runs, versions and references."""

    start: str = Field(description="the version asked for: entity/project/name:v3")
    nodes: list[dict[str, Any]] = Field(
        description="`id`, `kind` (version, bundle, run, reference), `distance` in steps; of a run `name job_type "
        "state user created_at commit dirty config`, of a version `path version type aliases state size files digest "
        "user created_at`"
    )
    edges: list[LineageEdge]
    truncated: bool = Field(description="whether there is more within the depth than `limit` nodes")
    hidden: list[Hidden]


class Served(Answer):
    """An alias other than `latest` that names a version which came of the one asked for, or that one itself."""

    alias: str
    version: str
    type: str
    distance: int


class Told(Answer):
    """A user who is concerned, and by how much."""

    user: str
    runs: int
    versions: int


class ImpactAnswer(Answer):
    """All that came of a version."""

    start: str
    versions: list[dict[str, Any]] = Field(description="the nearest 1,000, as nodes of a lineage")
    runs: list[dict[str, Any]] = Field(description="the nearest 1,000: `id name job_type state user distance`")
    versions_count: int
    runs_count: int
    served_by: list[Served]
    tell: list[Told]
    truncated: bool = Field(description="whether there is more than was counted")


class RunArtifactsAnswer(Answer):
    """Versions that a run logged and used, in order."""

    logged: list[VersionAnswer]
    used: list[VersionAnswer]
