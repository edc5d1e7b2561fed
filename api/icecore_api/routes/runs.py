"""Runs: listed, looked at, changed, deleted, restored."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore.errors import NotFound
from icecore.events import Event, RunDeleted, RunRestored
from icecore.limits import most
from icecore_api.answers import Json
from icecore_api.deps import OfProject, OfRun, Process, Read, Reading, RunPath, body_schema, read_body, reading_now
from icecore_api.models import RunAnswer, RunPatch, RunsPage, RunState
from icecore_api.patches import patch_events
from icecore_api.queries.as_of import Moment
from icecore_api.queries.facets import facets as count_facets
from icecore_api.queries.filters import parse_filters
from icecore_api.queries.order import DEFAULT
from icecore_api.queries.run_answers import run_answers
from icecore_api.queries.runs import Found, Matching, Question, find
from icecore_api.queries.values import TooWide
from icecore_api.routes.moments import Then, back_then, of_project, of_run
from icecore_api.routing import Router, principal
from icecore_projections.schema import run_number

router: Final = Router("runs")

_FILTERS: Final = (
    "A Mongo-style filter as JSON: fields `state tags group job_type name user notes created_at heartbeat_at id "
    "config.X summary_metrics.X` and operators `$and $or $nor $not $in $nin $gt $gte $lt $lte $eq $ne $exists $regex`."
)
_ORDER: Final = "A field of a run, `config.X` or `summary_metrics.X`; `-` before it for falling. Several by comma."


@router.on("GET", "/runs/{entity}/{project}", permission="run:read", answer=RunsPage)
def list_runs(
    at: OfProject,
    reading: Read,
    filters: Annotated[str | None, Query(description=_FILTERS, max_length=1 << 16)] = None,
    order: Annotated[str, Query(description=_ORDER, max_length=2048)] = DEFAULT,
    limit: Annotated[int, Query(ge=0, le=most("page_runs"), description="0 for the count and facets alone")] = 50,
    cursor: Annotated[str | None, Query(description="`cursor` of the page before", max_length=8192)] = None,
    facets: Annotated[str | None, Query(description="Fields to count by, by comma", max_length=8192)] = None,
    then: Then = None,
) -> Response:
    """A page of a project's runs, how many match in all, and counts by value of the fields asked for."""
    asked = f"{filters or ''}\0{then.token if then else ''}"
    question = Question(at.entity, at.project, parse_filters(filters), asked, order, limit, cursor)
    reading.begin()
    reading = back_then(reading, then, *of_project(at.entity, at.project))
    found, answers = _page(reading, question)
    names = [name for name in (facets or "").split(",") if name]
    body = {
        "runs": answers,
        "cursor": found.cursor,
        "count": found.count,
        "facets": count_facets(Matching(reading, question), names),
    }
    return Json(body, position=reading.position)


def _page(reading: Reading, question: Question) -> tuple[Found, list[dict[str, Any]]]:
    """The runs of a page: fewer than asked for where they are very wide, and the cursor goes on after them."""
    while True:
        found = find(reading, question)
        try:
            return found, run_answers(reading, found.runs)
        except TooWide:
            question = replace(question, limit=max(1, len(found.runs) // 4))


@router.on("GET", "/runs/{entity}/{project}/{run_id}", permission="run:read", answer=RunAnswer, errors=[404])
def get_run(at: OfRun, reading: Read, then: Then = None) -> Response:
    """A run in full."""
    return Json(_one(reading, at, then), position=reading.position)


@router.on(
    "PATCH",
    "/runs/{entity}/{project}/{run_id}",
    permission="run:write",
    answer=RunAnswer,
    errors=[404, 409, 413],
    extra=body_schema(RunPatch),
)
async def patch_run(request: Request, at: OfRun, context: Process) -> Response:
    """Change a run's fields; answers with the run as it is then."""
    events = patch_events(at.path, await read_body(request, RunPatch))
    return await _command(request, at, context, events, deleted=False)


@router.on("DELETE", "/runs/{entity}/{project}/{run_id}", permission="run:write", answer=RunState, errors=[404, 409])
async def delete_run(request: Request, at: OfRun, context: Process) -> Response:
    """Hide a run from every listing. Its records stay, and it can be restored."""
    return await _command(request, at, context, [RunDeleted(run=at.path)], deleted=True)


@router.on(
    "POST",
    "/runs/{entity}/{project}/{run_id}/restore",
    permission="run:write",
    answer=RunState,
    errors=[404, 409],
)
async def restore_run(request: Request, at: OfRun, context: Process) -> Response:
    """Bring a deleted run back."""
    return await _command(request, at, context, [RunRestored(run=at.path)], deleted=None)


def _one(reading: Reading, at: RunPath, then: Moment | None = None, *, deleted: bool = False) -> dict[str, Any]:
    """The run at a path.

    Raises:
        NotFound: there is none, or it is deleted.
    """
    reading.begin()
    reading = back_then(reading, then, *of_run(at.path))
    number = run_number(at.path)
    answers = run_answers(reading, [number], deleted=True)
    hidden = reading.cursor.execute("SELECT deleted FROM current_runs WHERE run = $run", {"run": number}).fetchone()
    if not answers or answers[0]["path"] != at.path or hidden is None:
        raise NotFound(f"no such run: {at.path!r}", hint=f"`icecore runs {at.entity}/{at.project}` lists them")
    if hidden[0] and not deleted:
        raise NotFound(f"run {at.path!r} is deleted", hint="POST …/restore brings it back", deleted=True)
    return answers[0]


async def _command(
    request: Request, at: RunPath, context: Process, events: list[Event], *, deleted: bool | None
) -> Response:
    """Submit events about a run, and answer with what it is then.

    `deleted` is the state to answer with; False with the whole run, and None for not deleted.
    """
    async with reading_now(context) as before:
        await run_in_threadpool(_one, before, at, deleted=deleted is not False)
    token = await request.app.state.commands.submit(principal(request), events) if events else None
    if deleted is not False:
        return Json({"path": at.path, "deleted": bool(deleted)}, position=token)
    async with reading_now(context) as after:
        return Json(await run_in_threadpool(_one, after, at), position=after.position)
