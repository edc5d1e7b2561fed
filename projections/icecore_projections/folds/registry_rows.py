"""What a collection is for, what it asks of its versions, and the promotions that are under way."""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import msgspec

from icecore.registry_checks import Check

STANDING_MOST = 100
"""Applied promotions of an alias that can be rolled back, one after the other."""


class Promotion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that is neither applied nor rejected."""

    version: int
    alias: str
    reason: str = ""
    user: str
    """Who asked."""
    credential: str
    approver: str = ""
    approver_credential: str = ""
    """Empty while nobody approved."""


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """A promotion that was applied and not rolled back."""

    promotion: str
    version: int
    before: int | None = None
    """What the alias named before."""


NAMES_MOST: Final = 100
"""Stages, required keys, aliases with checks, or checks of an alias."""


class Registry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A collection's settings and promotions; all empty for artifacts that nobody set up."""

    description: str = ""
    tags: list[str] = []
    owner: str = ""
    stages: list[str] = []
    """The only aliases besides `latest`; empty: any."""
    required: list[str] = []
    """Keys that a version's metadata must have."""
    card: str = ""
    """The model card's template."""
    checks: dict[str, list[Check]] = {}
    """By alias, in the order they were given."""
    open: dict[str, Promotion] = {}
    """By id."""
    standing: dict[str, list[Standing]] = {}
    """By alias, the last one last."""


Step = Literal["requested", "approved", "rejected", "applied", "rolled_back"]


class PromotionStep(NamedTuple):
    """Something that happened to a promotion."""

    artifact: str
    promotion: str
    step: Step
    alias: str
    version: int
    """What it promotes; of a roll back, what the alias names again."""
    off: int
    ts: int
    user: str
    credential: str
    reason: str
    checks: list[dict[str, Any]]
    """How the checks came out, where they were judged."""


class DraftPart(NamedTuple):
    """A part of a version that several processes put together, that it was taken back, or the end of it."""

    artifact: str
    distributed_id: str
    kind: Literal["part", "withdrawn", "finished"]
    digest: str
    """Of the part's manifest, or of the whole."""
    upto: int | None
    """Of an end: parts before this offset are in it."""
    run: str
    off: int
    ts: int
    user: str
