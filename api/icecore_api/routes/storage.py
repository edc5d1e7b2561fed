"""What artifacts weigh, by team, project, collection, type or user."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore_api.answers import Json
from icecore_api.deps import Process, Read
from icecore_api.queries.storage import By, Table, held
from icecore_api.retention.erasing import Eraser
from icecore_api.retention.models import StorageAnswer
from icecore_api.routing import Router

router: Final = Router("retention")

PRICE: Final = 0.023
"""Of a GB for a month: what object stores ask."""


@router.on("GET", "/storage", permission="artifact:read", answer=StorageAnswer)
async def storage(
    request: Request,
    reading: Read,
    context: Process,
    by: Annotated[By, Query()] = "project",
    price: Annotated[float, Query(ge=0, le=1e6, description="of a GB for a month")] = PRICE,
) -> Response:
    """Bytes of artifacts: all, each blob once, what groups share, what could be freed, what came lately."""
    reading.without_limit()
    versions = await run_in_threadpool(held, reading.cursor, by)
    eraser: Eraser = request.app.state.eraser
    known = await eraser.contents.read([version.digest for version in versions])
    table = Table(known, versions, reading.now_ms, price)
    body = {"by": by, "rows": await run_in_threadpool(table.rows), "total": await table.total(context.blobs)}
    return Json(body, position=reading.position)
