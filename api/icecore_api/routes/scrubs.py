"""Scrub as a job: begun, and looked at."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from starlette.responses import Response

from icecore_api.answers import Json
from icecore_api.deps import Process
from icecore_api.jobs import Job
from icecore_api.models import Job as JobAnswer
from icecore_api.routing import Router
from icecore_api.scrubs import scrub

router: Final = Router("operations")


@router.on("POST", "/scrub", permission="ops:admin", answer=JobAnswer, status=202, errors=[409])
async def start_scrub(request: Request, context: Process) -> Response:
    """Read every blob again, and say which versions are hurt by those that are damaged or missing."""
    job: Job = request.app.state.jobs["scrub"]
    job.start(lambda report: scrub(context, report))
    return Json(job.as_json(), status=202)


@router.on("GET", "/scrub", permission="ops:read", answer=JobAnswer)
async def get_scrub(request: Request) -> Response:
    """How the scrub is getting on, or what the last one found."""
    return Json(request.app.state.jobs["scrub"].as_json())
