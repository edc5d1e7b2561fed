"""Operations: how the server is, dead letters, rebuild, fsck."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore.errors import LogError
from icecore.position import Token
from icecore_api.answers import Json
from icecore_api.deps import Process, Read, Reading, body_schema, read_body
from icecore_api.jobs import Job
from icecore_api.models import DeadLetters, Done, RebuildRequest, Status
from icecore_api.models import Job as JobAnswer
from icecore_api.routing import Router

router: Final = Router("operations")

_LOG_WITHIN_S: Final = 1.0
"""How long a status waits for brokers that may be away."""

_COUNTS: Final = """
SELECT (SELECT count(*) FROM dead_letters), (SELECT count(*) FROM rejections),
    (SELECT coalesce(sum(n), 0)::BIGINT FROM skipped)
"""


@router.on("GET", "/status", permission="ops:read", answer=Status)
async def status(
    context: Process,
    reading: Read,
    digest: Annotated[
        bool, Query(description="Also the digest of the store's tables, which reads all of them")
    ] = False,
) -> Response:
    """The processes, how far the log is folded, and what could not be."""
    folded, trouble = reading.position, context.log.trouble
    try:
        async with asyncio.timeout(_LOG_WITHIN_S):
            end = await context.log.end()
    except LogError as error:
        end, trouble = folded, trouble or f"{error.code}: {error.message}"
    except TimeoutError:
        end, trouble = folded, trouble or "log_away: the log does not say how far it goes"
    counts = await run_in_threadpool(_counts, reading)
    body: dict[str, Any] = {
        **await run_in_threadpool(context.processes),
        "log": _places(end),
        "folded": _places(folded),
        "lag": sum(max(0, n - folded.next_offset(place)) for place, n in end.as_dict().items()),
        **({"log_trouble": trouble} if trouble else {}),
        **counts,
        "data": str(context.data),
    }
    if digest:
        reading.without_limit()
        body["digest"] = await context.operations.digest()
    return Json(body, position=folded)


@router.on("GET", "/dead-letters", permission="ops:read", answer=DeadLetters)
def dead_letters(reading: Read, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
    """Records that could not be folded, the newest first."""
    rows = reading.cursor.execute(
        "SELECT stream, part, off, id, type, key, reason, attempts, ts_server FROM dead_letters "
        "ORDER BY ts_server DESC, stream, part, off DESC LIMIT $n",
        {"n": limit},
    ).fetchall()
    names = ("stream", "partition", "offset", "id", "type", "key", "reason", "attempts", "ts_server")
    found = [dict(zip(names, row, strict=True)) for row in rows]
    count = reading.cursor.execute("SELECT count(*) FROM dead_letters").fetchall()[0][0]
    return Json({"dead_letters": found, "count": count}, position=reading.position)


@router.on("POST", "/dead-letters/replay", permission="ops:admin", answer=Done)
async def replay(context: Process) -> Response:
    """Try the dead letters again, with the code that runs now."""
    return Json(await context.operations.replay())


@router.on(
    "POST",
    "/rebuild",
    permission="ops:admin",
    answer=JobAnswer,
    status=202,
    errors=[409, 413],
    extra=body_schema(RebuildRequest),
)
async def start_rebuild(request: Request, context: Process) -> Response:
    """Fold the log into a new store beside the serving one, compare, and switch unless `verify`."""
    body = await read_body(request, RebuildRequest, most_bytes=4096)
    job: Job = request.app.state.jobs["rebuild"]
    job.start(lambda report: context.operations.rebuild(report, verify=body.verify))
    return Json(job.as_json(), status=202)


@router.on("GET", "/rebuild", permission="ops:read", answer=JobAnswer)
async def get_rebuild(request: Request) -> Response:
    """How the rebuild is getting on, or how the last one ended."""
    return Json(request.app.state.jobs["rebuild"].as_json())


@router.on("POST", "/fsck", permission="ops:admin", answer=JobAnswer, status=202, errors=[409])
async def start_fsck(request: Request, context: Process) -> Response:
    """Check the log's frames, the offsets, and the store against a rebuild."""
    job: Job = request.app.state.jobs["fsck"]
    job.start(context.operations.fsck)
    return Json(job.as_json(), status=202)


@router.on("GET", "/fsck", permission="ops:read", answer=JobAnswer)
async def get_fsck(request: Request) -> Response:
    """How the check is getting on, or what the last one found."""
    return Json(request.app.state.jobs["fsck"].as_json())


def _counts(reading: Reading) -> dict[str, int]:
    letters, rejections, skipped = reading.cursor.execute(_COUNTS).fetchall()[0]
    return {"dead_letters": letters, "rejections": rejections, "skipped": skipped}


def _places(token: Token) -> dict[str, int]:
    return {f"{place.stream}:{place.partition}": n for place, n in sorted(token.as_dict().items())}
