"""The part of the fold of artifacts that is about promotions: requested, approved or rejected, applied, rolled back.

What a check asks of a version's metadata is in the ledger. What it asks of runs is made of two streams, which a fold
must not read together: the server reads it at a position and writes it into the event as evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from icecore.events import ArtifactEvent
from icecore.registry_checks import Evidence, Verdict, judge
from icecore.registry_events import (
    PromotionApplied,
    PromotionApproved,
    PromotionRejected,
    PromotionRequested,
    PromotionRolledBack,
)
from icecore_projections.folds import Applied
from icecore_projections.folds.artifact_rows import LATEST, Collection, Version
from icecore_projections.folds.registry import check_stage
from icecore_projections.folds.registry_rows import (
    STANDING_MOST,
    Promotion,
    PromotionStep,
    Registry,
    Standing,
    Step,
)
from icecore_projections.folds.retention import Refused

if TYPE_CHECKING:
    from icecore_projections.folds.artifacts import Work

HANDLED: Final = (PromotionRequested, PromotionApproved, PromotionRejected, PromotionApplied, PromotionRolledBack)
"""The events that are applied here."""


def apply(work: Work, applied: Applied, event: ArtifactEvent) -> None:
    """Apply one of `HANDLED` whole, or refuse it.

    Raises:
        Refused: the fold decides against it.
    """
    if isinstance(event, PromotionRequested):
        _request(work, applied, event)
    elif isinstance(event, PromotionApproved):
        _approve(work, applied, event)
    elif isinstance(event, PromotionRejected):
        _reject(work, applied, event)
    elif isinstance(event, PromotionApplied):
        _promote(work, applied, event)
    elif isinstance(event, PromotionRolledBack):
        _roll_back(work, applied, event)


def _request(work: Work, applied: Applied, event: PromotionRequested) -> None:
    collection = work.there(event.artifact)
    registry = collection.registry or Registry()
    version = work.version(event.artifact, event.version)
    if event.alias == LATEST:
        raise Refused("expected an alias that people move, got 'latest', which names what was committed last")
    check_stage(collection, event.alias)
    if collection.aliases.get(event.alias) == version.number:
        raise Refused(f"expected a version that is not {event.alias} yet, v{version.number} is")
    if event.promotion in registry.open:
        raise Refused(f"expected a new promotion, found {event.promotion}")
    if again := asked_for(registry, version.number, event.alias):
        user = registry.open[again].user
        raise Refused(
            f"expected one request at a time, v{version.number} to {event.alias} is asked for already: "
            f"promotion {again} by {user}"
        )
    credential = applied.envelope.credential
    verdicts = judged(registry, version, event.alias, event.evidence, credential, "")
    lasting = [
        one
        for one, check in zip(verdicts, registry.checks.get(event.alias, ()), strict=True)
        if check.kind != "approved"
    ]
    _see_all_hold(collection, version, event.alias, lasting)
    promotion = Promotion(
        version=version.number,
        alias=event.alias,
        reason=event.reason,
        user=applied.envelope.actor,
        credential=credential,
    )
    _put(work, applied, collection, open={**registry.open, event.promotion: promotion})
    _step(work, applied, event.artifact, event.promotion, "requested", promotion, event.reason, verdicts)


def _approve(work: Work, applied: Applied, event: PromotionApproved) -> None:
    collection, registry, promotion = _open(work, event.artifact, event.promotion)
    credential = applied.envelope.credential
    asked = any(check.kind == "approved" for check in registry.checks.get(promotion.alias, ()))
    if asked and credential == promotion.credential:
        raise Refused(f"expected another credential than the requester's to approve, got {promotion.user}'s own")
    promotion = msgspec.structs.replace(promotion, approver=applied.envelope.actor, approver_credential=credential)
    _put(work, applied, collection, open={**registry.open, event.promotion: promotion})
    _step(work, applied, event.artifact, event.promotion, "approved", promotion, event.reason)


def _reject(work: Work, applied: Applied, event: PromotionRejected) -> None:
    collection, registry, promotion = _open(work, event.artifact, event.promotion)
    _put(work, applied, collection, open=_less(registry.open, event.promotion))
    _step(work, applied, event.artifact, event.promotion, "rejected", promotion, event.reason)


def _promote(work: Work, applied: Applied, event: PromotionApplied) -> None:
    collection, registry, promotion = _open(work, event.artifact, event.promotion)
    version = work.version(event.artifact, promotion.version)
    check_stage(collection, promotion.alias)
    verdicts = judged(
        registry, version, promotion.alias, event.evidence, promotion.credential, promotion.approver_credential
    )
    _see_all_hold(collection, version, promotion.alias, verdicts)
    before = collection.aliases.get(promotion.alias)
    standing = [*registry.standing.get(promotion.alias, ()), Standing(event.promotion, version.number, before)]
    registry = msgspec.structs.replace(
        registry,
        open=_less(registry.open, event.promotion),
        standing={**registry.standing, promotion.alias: standing[-STANDING_MOST:]},
    )
    said = [promotion.reason, f"promotion {event.promotion}", f"asked by {promotion.user}"]
    said += [f"approved by {promotion.approver}"] if promotion.approver else []
    aliases = {**collection.aliases, promotion.alias: version.number}
    collection = msgspec.structs.replace(collection, registry=registry)
    work.put_collection(applied, collection, aliases, "; ".join(filter(None, said)))
    _step(work, applied, event.artifact, event.promotion, "applied", promotion, promotion.reason, verdicts)


def _roll_back(work: Work, applied: Applied, event: PromotionRolledBack) -> None:
    collection = work.there(event.artifact)
    registry = collection.registry or Registry()
    found = collection.aliases.get(event.alias)
    if found != event.expected:
        shown = "no version" if found is None else f"v{found}"
        raise Refused(f"expected {event.alias} to be v{event.expected}, found {shown}")
    standing = list(registry.standing.get(event.alias, ()))
    undone = []
    while standing:
        last = standing.pop()
        undone.append(last)
        if last.before is not None and last.before not in collection.deleted and last.before != found:
            break
    else:
        raise Refused(f"expected a promotion to {event.alias} that can be rolled back, found none")
    back = undone[-1].before or 0
    registry = msgspec.structs.replace(registry, standing={**registry.standing, event.alias: standing})
    collection = msgspec.structs.replace(collection, registry=registry)
    undone_ids = ", ".join(one.promotion for one in undone)
    reason = "; ".join(filter(None, [event.reason, f"roll back of promotion {undone_ids}"]))
    work.put_collection(applied, collection, {**collection.aliases, event.alias: back}, reason)
    for one in undone:
        told = Promotion(version=back, alias=event.alias, user="", credential="")
        _step(work, applied, event.artifact, one.promotion, "rolled_back", told, event.reason)


def asked_for(registry: Registry, version: int, alias: str) -> str | None:
    """The id of the promotion that is open for a version and an alias; None where there is none."""
    return next((name for name, one in registry.open.items() if (one.version, one.alias) == (version, alias)), None)


def judged(
    registry: Registry,
    version: Version,
    alias: str,
    evidence: Sequence[Evidence],
    requester: str,
    approver: str,
) -> list[Verdict]:
    """How the checks of an alias come out for a version; the server's dry run asks the same."""
    return judge(registry.checks.get(alias, ()), version.metadata, evidence, requester, approver)


def _see_all_hold(collection: Collection, version: Version, alias: str, verdicts: Sequence[Verdict]) -> None:
    failed = [f"{one.check}, found {one.found}" for one in verdicts if not one.ok]
    if failed:
        raise Refused(f"expected of {collection.path}:v{version.number} for {alias}: {'; '.join(failed)}")


def _open(work: Work, path: str, promotion: str) -> tuple[Collection, Registry, Promotion]:
    collection = work.there(path)
    registry = collection.registry or Registry()
    found = registry.open.get(promotion)
    if found is None:
        raise Refused(f"expected a promotion that is open, {promotion} of {path} is not")
    return collection, registry, found


def _less(promotions: dict[str, Promotion], gone: str) -> dict[str, Promotion]:
    return {name: promotion for name, promotion in promotions.items() if name != gone}


def _put(work: Work, applied: Applied, collection: Collection, **fields: Any) -> None:
    registry = msgspec.structs.replace(collection.registry or Registry(), **fields)
    collection = msgspec.structs.replace(collection, registry=registry)
    work.put_collection(applied, collection, collection.aliases, "")


def _step(
    work: Work,
    applied: Applied,
    path: str,
    name: str,
    step: Step,
    promotion: Promotion,
    reason: str,
    verdicts: Sequence[Verdict] = (),
) -> None:
    envelope = applied.envelope
    work.changes.steps.append(
        PromotionStep(
            path,
            name,
            step,
            promotion.alias,
            promotion.version,
            applied.position.offset,
            envelope.ts_server,
            envelope.actor,
            envelope.credential,
            reason,
            [verdict._asdict() for verdict in verdicts],
        )
    )
