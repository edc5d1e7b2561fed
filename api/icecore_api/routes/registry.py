"""Registries: collections and what they ask, links, and promotions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore.errors import Invalid, NotFound
from icecore.events import Event, check_name, uuid7
from icecore.position import LEDGER, Place, Token
from icecore.registry_checks import Check, Evidence, Verdict, parse_check
from icecore.registry_events import (
    ArtifactLinked,
    ArtifactUnlinked,
    CollectionSet,
    PromotionApplied,
    PromotionApproved,
    PromotionRejected,
    PromotionRequested,
    PromotionRolledBack,
)
from icecore.retention_events import split_scope
from icecore_api.answers import Json
from icecore_api.artifact_models import AliasState, VersionAnswer
from icecore_api.context import Context
from icecore_api.deps import Process, Read, Reading, body_schema, read_body, reading_now
from icecore_api.queries.artifacts import Artifacts, Found, version_answer
from icecore_api.queries.registry import (
    collection_answer,
    evidence,
    one_promotion,
    promotions,
    registered,
    verdicts_answer,
)
from icecore_api.registry_models import (
    CollectionAnswer,
    CollectionPatch,
    CollectionsAnswer,
    Decision,
    Link,
    Promote,
    PromotedAnswer,
    PromotionAnswer,
    PromotionsAnswer,
    PromotionState,
    RollBack,
)
from icecore_api.routes.artifacts import TEXT_BYTES_MOST, ArtifactPath, OfArtifact, check_alias, check_aliases
from icecore_api.routes.moments import Then
from icecore_api.routing import Router, principal
from icecore_projections.folds.artifact_rows import LATEST
from icecore_projections.folds.promotions import asked_for, judged
from icecore_projections.folds.registry_rows import NAMES_MOST, Registry

router: Final = Router("registry")
T = TypeVar("T")

_OF: Final = "/registry/{entity}/{project}/{name}"
_ID_CHARS: Final = 12
"""Of a promotion's id: the last of a UUIDv7, which are random."""


# ------------------------------------------------------------------------------------------------------- reading


@router.on("GET", "/registry", permission="artifact:read", answer=CollectionsAnswer)
def list_collections(reading: Read, then: Then = None) -> Response:
    """The collections of registries, and others that somebody set up."""
    reading.begin()
    rows = registered(reading.cursor, Artifacts(reading.cursor, then.upto.ledger if then else None))
    return Json({"collections": [collection_answer(row) for row in rows]}, position=reading.position)


@router.on("GET", _OF, permission="artifact:read", answer=CollectionAnswer, errors=[404])
def get_collection(
    at: OfArtifact,
    reading: Read,
    ref: Annotated[str | None, Query(max_length=128, description="whose card: an alias, or v3")] = None,
    then: Then = None,
) -> Response:
    """A collection, with the card of a version (by default the latest)."""
    reading.begin()
    artifacts = Artifacts(reading.cursor, then.upto.ledger if then else None)
    row = artifacts.collection(at.path)
    shown = artifacts.find(at.path, ref or LATEST) if ref or LATEST in row.aliases else None
    return Json(collection_answer(row, shown), position=reading.position)


@router.on("GET", f"{_OF}/promotions", permission="artifact:read", answer=PromotionsAnswer, errors=[404])
def list_promotions_of(
    at: OfArtifact,
    reading: Read,
    state: Annotated[PromotionState | None, Query()] = None,
    then: Then = None,
) -> Response:
    """The promotions of a collection, the last first."""
    reading.begin()
    upto = then.upto.ledger if then else None
    Artifacts(reading.cursor, upto).collection(at.path)
    found = promotions(reading.cursor, path=at.path, upto=upto)
    return Json(_in_state(found, state), position=reading.position)


@router.on("GET", "/promotions", permission="artifact:read", answer=PromotionsAnswer)
def list_promotions(
    reading: Read, state: Annotated[PromotionState | None, Query()] = None, then: Then = None
) -> Response:
    """All promotions, the last first."""
    reading.begin()
    found = promotions(reading.cursor, upto=then.upto.ledger if then else None)
    return Json(_in_state(found, state), position=reading.position)


@router.on("GET", "/promotions/{promotion}", permission="artifact:read", answer=PromotionAnswer, errors=[404])
def get_promotion(promotion: Annotated[str, Path(max_length=64)], reading: Read) -> Response:
    """A promotion, with all that happened to it."""
    return Json(one_promotion(reading.cursor, promotion), position=reading.position)


def _in_state(found: list[dict[str, Any]], state: str | None) -> dict[str, Any]:
    return {"promotions": [one for one in found if state in (None, one["state"])]}


# ---------------------------------------------------------------------------------------- what a collection asks


@router.on(
    "PATCH", _OF, permission="artifact:write", answer=CollectionAnswer, errors=[404, 409, 413],
    extra=body_schema(CollectionPatch),
)  # fmt: skip
async def set_collection(request: Request, at: OfArtifact, context: Process) -> Response:
    """Say what a collection is for, and what it asks of its versions; a type makes it where it is not there."""
    body = await read_body(request, CollectionPatch)
    if not body.type:
        try:
            await _look(context, lambda reading: Artifacts(reading.cursor).collection(at.path))
        except NotFound as error:
            raise NotFound(error.message, hint="a type makes it: `--type model`") from error
    token = await _submit(request, _settings(at, body))
    return await _look(
        context,
        lambda reading: Json(collection_answer(Artifacts(reading.cursor).collection(at.path)), position=token),
    )


def _settings(at: ArtifactPath, body: CollectionPatch) -> CollectionSet:
    for stage in [*(body.stages or ()), *(body.checks or ()), *(body.checks_of or ())]:
        check_alias(stage)
    for what, texts in (("a tag", body.tags), ("a key of metadata", body.required)):
        for text in texts or ():
            check_name(what, text)
    lists = [body.stages, body.tags, body.required]
    for checks in (body.checks or {}, body.checks_of or {}):
        lists += [list(checks), *checks.values()]
    if any(len(texts) > NAMES_MOST for texts in lists if texts):
        raise Invalid(f"expected at most {NAMES_MOST} stages, tags, keys or checks, got more")
    check_name("an artifact's type", body.type)
    check_name("an owner", body.owner or "")
    for said in (body.template, body.description):
        if said is not None and len(said.encode()) > TEXT_BYTES_MOST:
            raise Invalid(f"expected a text of at most {TEXT_BYTES_MOST} bytes, got {len(said.encode())}")
    return CollectionSet(
        artifact=at.path,
        type=body.type,
        description=body.description,
        tags=body.tags,
        owner=body.owner,
        stages=body.stages,
        required=body.required,
        card=body.template,
        checks=_parsed(body.checks),
        checks_of=_parsed(body.checks_of),
        reason=check_name("a reason", body.reason, "text_value_bytes"),
    )


def _parsed(checks: dict[str, list[str]] | None) -> dict[str, list[Check]] | None:
    return None if checks is None else {alias: [parse_check(one) for one in each] for alias, each in checks.items()}


# --------------------------------------------------------------------------------------------------------- links


@router.on(
    "POST", f"{_OF}/links", permission="artifact:write", answer=VersionAnswer, errors=[404, 409, 413],
    extra=body_schema(Link),
)  # fmt: skip
async def link(request: Request, at: OfArtifact, context: Process) -> Response:
    """Put a version of another artifact into a collection, without copying a byte."""
    body = await read_body(request, Link)
    check_aliases(body.aliases)
    source = await _look(context, lambda reading: _named(reading, body.source))
    event = ArtifactLinked(
        artifact=at.path,
        source=source.collection.path,
        source_version=source.version.number,
        digest=source.version.digest,
        aliases=body.aliases,
    )
    return await _version(request, context, at, event, source.version.digest)


@router.on("DELETE", f"{_OF}/links", permission="artifact:write", answer=VersionAnswer, errors=[404, 409])
async def unlink(
    request: Request,
    at: OfArtifact,
    context: Process,
    source: Annotated[str, Query(max_length=1024, description="entity/project/name:v3, or with an alias")],
    with_aliases: Annotated[bool, Query(description="its aliases go too")] = False,
    reason: Annotated[str, Query(max_length=4096)] = "",
) -> Response:
    """Take a link back; the collection's version goes with the last of its links."""
    found = await _look(context, lambda reading: _named(reading, source, deleted=True))
    await _look(context, lambda reading: Artifacts(reading.cursor).with_digest(at.path, found.version.digest))
    event = ArtifactUnlinked(
        artifact=at.path,
        source=found.collection.path,
        source_version=found.version.number,
        digest=found.version.digest,
        with_aliases=with_aliases,
        reason=check_name("a reason", reason, "text_value_bytes"),
    )
    return await _version(request, context, at, event, found.version.digest)


async def _version(request: Request, context: Context, at: ArtifactPath, event: Event, digest: str) -> Response:
    token = await _submit(request, event)
    return await _look(
        context,
        lambda reading: Json(version_answer(Artifacts(reading.cursor).with_digest(at.path, digest)), position=token),
    )


def _named(reading: Reading, text: str, *, deleted: bool = False) -> Found:
    return named_version(Artifacts(reading.cursor), text, deleted=deleted)


def named_version(artifacts: Artifacts, text: str, *, deleted: bool = False) -> Found:
    """The version that `entity/project/name:ref` names.

    Raises:
        Invalid: it is no such name. NotFound: there is none.
    """
    path, colon, ref = text.rpartition(":")
    if not colon or ":" in path or path.count("/") != 2 or not ref:
        raise Invalid(f"expected entity/project/name:v3 or with an alias, got {text[:200]!r}")
    return artifacts.find(split_scope(path)[0], ref, deleted=deleted)


# ---------------------------------------------------------------------------------------------------- promotions


@router.on(
    "POST", f"{_OF}/promotions", permission="artifact:write", answer=PromotedAnswer, errors=[404, 409, 413],
    extra=body_schema(Promote),
)  # fmt: skip
async def promote(request: Request, at: OfArtifact, context: Process) -> Response:
    """Ask that an alias names a version; it does at once, where no check asks for an approval."""
    body = await read_body(request, Promote)
    check_alias(body.to)
    check_name("a reason", body.reason, "text_value_bytes")
    known = await _look(context, lambda reading: _Known.of(reading, at.path, body.version, body.to))
    verdicts = known.verdicts(principal(request).credential, "")
    waits = any(check.kind == "approved" for check in known.checks)
    answer: dict[str, Any] = {
        "promotion": None,
        "path": at.path,
        "version": f"v{known.found.version.number}",
        "alias": body.to,
        "before": known.before,
        "outcome": known.outcome(verdicts),
        "checks": verdicts_answer([*verdicts, *known.asked_for_already()]),
    }
    if body.dry_run:
        return Json(answer)
    name = uuid7().replace("-", "")[-_ID_CHARS:]
    events: list[Event] = [
        PromotionRequested(
            artifact=at.path,
            promotion=name,
            version=known.found.version.number,
            alias=body.to,
            reason=body.reason,
            evidence=known.evidence,
        )
    ]
    if not waits:
        events.append(PromotionApplied(artifact=at.path, promotion=name, evidence=known.evidence))
    token = await _submit(request, *events)
    answer["promotion"] = await _look(context, lambda reading: one_promotion(reading.cursor, name))
    answer["outcome"] = "waits" if waits else "applied"
    return Json(answer, position=token)


@router.on(
    "POST", "/promotions/{promotion}/approve", permission="artifact:write", answer=PromotionAnswer,
    errors=[404, 409, 413], extra=body_schema(Decision),
)  # fmt: skip
async def approve(request: Request, promotion: Annotated[str, Path(max_length=64)], context: Process) -> Response:
    """Approve a promotion, and apply it; one that was approved, but could not be applied then, is tried again."""
    body = await read_body(request, Decision)
    check_name("a reason", body.reason, "text_value_bytes")
    found = await _look(context, lambda reading: one_promotion(reading.cursor, promotion))
    path = found["path"]
    known = await _look(context, lambda reading: _Known.of(reading, path, found["version"], found["alias"]))
    events: list[Event] = [PromotionApplied(artifact=path, promotion=promotion, evidence=known.evidence)]
    if found["state"] != "approved":
        events.insert(0, PromotionApproved(artifact=path, promotion=promotion, reason=body.reason))
    token = await _submit(request, *events)
    return await _look(context, lambda reading: Json(one_promotion(reading.cursor, promotion), position=token))


@router.on(
    "POST", "/promotions/{promotion}/reject", permission="artifact:write", answer=PromotionAnswer,
    errors=[404, 409, 413], extra=body_schema(Decision),
)  # fmt: skip
async def reject(request: Request, promotion: Annotated[str, Path(max_length=64)], context: Process) -> Response:
    """Refuse a promotion, or take one's own back."""
    body = await read_body(request, Decision)
    check_name("a reason", body.reason, "text_value_bytes")
    found = await _look(context, lambda reading: one_promotion(reading.cursor, promotion))
    token = await _submit(request, PromotionRejected(artifact=found["path"], promotion=promotion, reason=body.reason))
    return await _look(context, lambda reading: Json(one_promotion(reading.cursor, promotion), position=token))


@router.on(
    "POST", f"{_OF}/rollback", permission="artifact:write", answer=AliasState, errors=[404, 409, 413],
    extra=body_schema(RollBack),
)  # fmt: skip
async def roll_back(request: Request, at: OfArtifact, context: Process) -> Response:
    """Let an alias name again what it named before the last promotion that still stands."""
    body = await read_body(request, RollBack)
    check_alias(body.to)
    before = await _look(context, lambda reading: Artifacts(reading.cursor).collection(at.path).aliases.get(body.to))
    if before is None:
        raise NotFound(f"expected {at.path}:{body.to} to name a version, it names none", hint="promote one")
    reason = check_name("a reason", body.reason, "text_value_bytes")
    token = await _submit(request, PromotionRolledBack(artifact=at.path, alias=body.to, expected=before, reason=reason))
    upto = token.next_offset(Place(LEDGER, 0))
    then = await _look(context, lambda reading: Artifacts(reading.cursor, upto).collection(at.path))
    return Json({"alias": body.to, "version": f"v{then.aliases[body.to]}", "before": f"v{before}"}, position=token)


class _Known:
    """What the server knows of a promotion before it asks for it."""

    def __init__(self, found: Found, alias: str, said: list[Evidence]) -> None:
        self.found, self.alias, self.evidence = found, alias, said
        self.registry = found.collection.registry or Registry()
        self.checks = self.registry.checks.get(alias, [])
        self.again = asked_for(self.registry, found.version.number, alias)
        number = found.collection.aliases.get(alias)
        self.before = None if number is None else f"v{number}"

    @classmethod
    def of(cls, reading: Reading, path: str, ref: str, alias: str) -> _Known:
        """What the store says now."""
        found = Artifacts(reading.cursor).find(path, ref)
        checks = (found.collection.registry or Registry()).checks.get(alias, [])
        return cls(found, alias, evidence(reading.cursor, found, checks))

    def verdicts(self, requester: str, approver: str) -> list[Verdict]:
        """How the checks come out."""
        return judged(self.registry, self.found.version, self.alias, self.evidence, requester, approver)

    def asked_for_already(self) -> list[Verdict]:
        """What a dry run says of a request that is open already."""
        if self.again is None:
            return []
        found = f"promotion {self.again} by {self.registry.open[self.again].user}"
        return [Verdict("not asked for already", ok=False, found=found)]

    def outcome(self, verdicts: list[Verdict]) -> str:
        """What would come of a request."""
        stages = self.registry.stages
        lasting = [one.ok for one, check in zip(verdicts, self.checks, strict=True) if check.kind != "approved"]
        there = self.before == f"v{self.found.version.number}"
        if not all(lasting) or there or self.again or (stages and self.alias not in stages):
            return "refused"
        return "waits" if len(lasting) < len(verdicts) else "applied"


# ------------------------------------------------------------------------------------------------------- running


async def _submit(request: Request, *events: Event) -> Token:
    token: Token = await request.app.state.commands.submit(principal(request), list(events))
    return token


async def _look(context: Context, ask: Callable[[Reading], T]) -> T:
    """What a question to the store answers now."""
    async with reading_now(context) as reading:
        return await run_in_threadpool(ask, reading)
