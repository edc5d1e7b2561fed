"""Whether this process is alive and ready, and its numbers: the gateway asks it over the socket."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from starlette.responses import Response

from icecore_api.answers import Json
from icecore_api.deps import Process, Read
from icecore_api.metrics import render
from icecore_api.models import Alive
from icecore_api.routing import Router

router: Final = Router("operations")


@router.on("GET", "/healthz", permission="public", answer=Alive)
async def healthz() -> Response:
    """Alive."""
    return Json({"ok": True})


@router.on("GET", "/readyz", permission="public", answer=Alive)
def readyz(reading: Read) -> Response:
    """Ready: the store answers."""
    reading.cursor.execute("SELECT 1").fetchall()
    return Json({"ok": True})


@router.on("GET", "/metrics", permission="public", answer=None, content={"text/plain": {"schema": {"type": "string"}}})
async def metrics(request: Request, context: Process) -> Response:
    """The store's metrics, for Prometheus."""
    text = await render(context, request.app.state.jobs["rebuild"])
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
