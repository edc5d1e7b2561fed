"""What is kept and for how long: times to live, holds, protected aliases, rules, and erasing what nobody needs."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore.errors import Conflict, Invalid
from icecore.events import Event, check_name, uuid7
from icecore.position import Token
from icecore.retention_events import (
    ArtifactTtlSet,
    CollectionUpdated,
    HoldPlaced,
    HoldReleased,
    split_scope,
)
from icecore_api.answers import Json
from icecore_api.context import Report
from icecore_api.deps import Process, Read, body_schema, read_body, reading_now
from icecore_api.jobs import Job
from icecore_api.models import Job as JobAnswer
from icecore_api.queries.artifacts import Artifacts, Found
from icecore_api.queries.retention import Retention, Standing
from icecore_api.queries.run_answers import iso
from icecore_api.retention import policy
from icecore_api.retention.erasing import Eraser
from icecore_api.retention.models import (
    GcRequest,
    HoldAnswer,
    HoldRequest,
    HoldsAnswer,
    PolicyAnswer,
    PolicyRequest,
    ProtectedPatch,
    ScopeAnswer,
    StandingAnswer,
    TtlPatch,
)
from icecore_api.routes.artifacts import OfArtifact, Ref, check_alias
from icecore_api.routes.moments import Then
from icecore_api.routing import Router, principal
from icecore_projections.folds.retention import VersionKey

router: Final = Router("retention")


# --------------------------------------------------------------------------------------------------------- reading


@router.on(
    "GET",
    "/artifacts/{entity}/{project}/{name}/{ref}/retention",
    permission="artifact:read",
    answer=StandingAnswer,
    errors=[404],
)
def get_standing(at: OfArtifact, ref: Ref, reading: Read, then: Then = None) -> Response:
    """What keeps a version, how long it lives, and when it expires."""
    upto = then.upto.ledger if then else None
    reading.begin()
    found = Artifacts(reading.cursor, upto).find(at.path, ref, deleted=True)
    (standing,) = Retention(reading.cursor, upto).of([found]).values()
    return Json(_standing(found, standing), position=reading.position)


@router.on("GET", "/retention", permission="artifact:read", answer=ScopeAnswer)
def get_scope(
    reading: Read,
    scope: Annotated[str, Query(max_length=1000, description="team, team/project, team/project/name or with :v3")],
    then: Then = None,
) -> Response:
    """What is said of a team, a project, an artifact or a version as a whole."""
    scope = _scope(scope)
    row = Retention(reading.cursor, then.upto.ledger if then else None).scopes([scope]).get(scope)
    body = {
        "scope": scope,
        "ttl": row.ttl if row else None,
        "holds": sorted(row.holds) if row else [],
        "protected": row.protected if row else [],
    }
    return Json(body, position=reading.position)


@router.on("GET", "/holds", permission="artifact:read", answer=HoldsAnswer)
def list_holds(reading: Read) -> Response:
    """The legal holds in force, the oldest first."""
    return Json({"holds": Retention(reading.cursor).holds()}, position=reading.position)


# -------------------------------------------------------------------------------------------------------- commands


@router.on(
    "PUT",
    "/retention/ttl",
    permission="artifact:write",
    answer=ScopeAnswer,
    errors=[404, 409, 413],
    extra=body_schema(TtlPatch),
)
async def set_ttl(request: Request, context: Process) -> Response:
    """Say how long the versions of a scope live, from when they were made."""
    body = await read_body(request, TtlPatch)
    scope = _scope(body.scope)
    token = await _submit(request, ArtifactTtlSet(scope=scope, seconds=body.seconds))
    return await _then_scope(context, scope, token)


@router.on(
    "PUT",
    "/retention/protected",
    permission="artifact:write",
    answer=ScopeAnswer,
    errors=[404, 409, 413],
    extra=body_schema(ProtectedPatch),
)
async def set_protected(request: Request, context: Process) -> Response:
    """Say which aliases of an artifact keep the version that they name."""
    body = await read_body(request, ProtectedPatch)
    path = _scope(body.artifact)
    if path.count("/") != 2 or ":" in path:
        raise Invalid(f"expected an artifact, team/project/name, got {body.artifact[:200]!r}")
    for alias in body.protected:
        check_alias(alias)
    token = await _submit(request, CollectionUpdated(artifact=path, protected=body.protected))
    return await _then_scope(context, path, token)


@router.on(
    "POST",
    "/holds",
    permission="artifact:write",
    answer=HoldAnswer,
    errors=[404, 409, 413],
    extra=body_schema(HoldRequest),
)
async def place_hold(request: Request, context: Process) -> Response:
    """Place a legal hold: nothing within the scope is deleted, expires or is erased until it is released."""
    body = await read_body(request, HoldRequest)
    scope = _scope(body.scope)
    hold = check_name("a hold's id", body.hold) or f"hold-{uuid7()[-12:]}"
    if hold in {".", ".."}:
        raise Invalid(f"expected a hold's id that an address may end in, got {hold!r}")
    reason = check_name("a reason", body.reason, "text_value_bytes")
    token = await _submit(request, HoldPlaced(scope=scope, hold=hold, reason=reason))
    async with reading_now(context) as reading:
        found = await run_in_threadpool(Retention(reading.cursor).holds)
    (placed,) = [one for one in found if (one["hold"], one["scope"]) == (hold, scope)]
    return Json(placed, position=token)


@router.on("DELETE", "/holds/{hold:path}", permission="artifact:write", answer=HoldsAnswer, errors=[404, 409])
async def release_hold(
    request: Request,
    context: Process,
    hold: Annotated[str, Path(max_length=256)],
    scope: Annotated[str | None, Query(max_length=1000, description="where several have this id")] = None,
    reason: Annotated[str, Query(max_length=1000)] = "",
) -> Response:
    """Release a legal hold. Answers those that are left."""
    async with reading_now(context) as reading:
        where = await run_in_threadpool(Retention(reading.cursor).hold, hold, scope)
    token = await _submit(request, HoldReleased(scope=where, hold=hold, reason=check_name("a reason", reason)))
    async with reading_now(context) as reading:
        left = await run_in_threadpool(Retention(reading.cursor).holds)
    return Json({"holds": left}, position=token)


@router.on(
    "POST", "/gc", permission="ops:admin", answer=JobAnswer, status=202, errors=[409, 413], extra=body_schema(GcRequest)
)
async def start_gc(request: Request) -> Response:
    """Plan what nobody needs, and unless `dry_run` erase it. The result has the plan, and what was freed."""
    body = await read_body(request, GcRequest, most_bytes=4096)
    eraser: Eraser = request.app.state.eraser
    job: Job = request.app.state.jobs["gc"]
    who = principal(request)

    async def work(report: Report) -> dict[str, Any]:
        if body.dry_run:
            return (await eraser.plan(body.grace_s)).as_json()
        return await eraser.run(who, body.grace_s, report)

    job.start(work)
    return Json(job.as_json(), status=202)


@router.on("GET", "/gc", permission="ops:read", answer=JobAnswer)
async def get_gc(request: Request) -> Response:
    """How erasing is getting on, or what the last plan was and what it freed."""
    return Json(request.app.state.jobs["gc"].as_json())


@router.on(
    "POST",
    "/retention/policy",
    permission="artifact:write",
    answer=PolicyAnswer,
    errors=[404, 409, 413],
    extra=body_schema(PolicyRequest),
)
async def apply_policy(request: Request, context: Process) -> Response:
    """Delete the versions that a rule does not keep; with `simulate` only say which, and what that would free."""
    body = await read_body(request, PolicyRequest)
    if body.scope:
        body.scope = _scope(body.scope)
    rule = policy.Rule(body.keep_last, body.keep_aliased, body.scope, body.type)
    eraser: Eraser = request.app.state.eraser
    async with reading_now(context) as reading:
        reading.without_limit()
        reading.begin()
        verdict = await run_in_threadpool(policy.judge, reading.cursor, rule)
    freed = await policy.freed(context.blobs, eraser.contents, verdict)
    going = verdict.going
    if not body.simulate:
        going = [one for one in going if await _delete(request, one, rule, verdict)]
    answer = {
        "rule": rule.as_json(),
        "simulated": body.simulate,
        "versions": [VersionKey(one.version.artifact, one.version.number).scope for one in going],
        "kept": {key.scope: why for key, why in verdict.kept},
        "bytes": freed,
    }
    return Json(answer)


async def _delete(request: Request, found: Found, rule: policy.Rule, verdict: policy.Verdict) -> bool:
    """Whether a version was deleted; where something has come to keep it, that is noted."""
    try:
        await _submit(request, policy.deletion(found, rule))
    except Conflict as error:
        verdict.kept.append((VersionKey(found.version.artifact, found.version.number), [error.message]))
        return False
    return True


async def _then_scope(context: Process, scope: str, token: Token) -> Response:
    async with reading_now(context) as reading:
        response: Response = await run_in_threadpool(get_scope, reading, scope)
    response.headers["Icecore-Position"] = str(token)
    return response


async def _submit(request: Request, event: Event) -> Token:
    token: Token = await request.app.state.commands.submit(principal(request), [event])
    return token


def _scope(text: str) -> str:
    path, version = split_scope(text)
    return path if version is None else f"{path}:v{version}"


def _standing(found: Found, standing: Standing) -> dict[str, Any]:
    version = found.version
    seconds = standing.life.seconds
    ended = version.ended
    erased = ended if ended is not None and ended.how == "erased" else None
    return {
        "path": version.artifact,
        "version": f"v{version.number}",
        "state": ended.how if ended else "deleted" if version.deleted else "committed",
        "ttl": standing.own,
        "lives": seconds,
        "lives_by": standing.life.scope or None,
        "expires_at": None if seconds is None or version.deleted else iso(version.created_ts + seconds * 1000),
        "kept_by": [{"kind": keep.kind, "by": keep.by, "why": keep.why} for keep in standing.kept],
        "erased": {"at": iso(erased.ts), "user": erased.user, "plan": erased.plan} if erased else None,
    }
