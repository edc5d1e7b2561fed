"""Projects, and who asks."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from fastapi import Request
from starlette.responses import Response

from icecore_api.answers import Json
from icecore_api.deps import Read
from icecore_api.models import Projects, Viewer
from icecore_api.routing import Router, principal

router: Final = Router("projects")

_PROJECTS: Final = """
SELECT c.entity, c.project, count(*) FILTER (NOT c.deleted), max(greatest(c.heard_ts, coalesce(a.heard_ts, 0)))
FROM current_runs c LEFT JOIN run_activity a USING (run)
GROUP BY ALL ORDER BY 1, 2
"""


@router.on("GET", "/projects", permission="run:read", answer=Projects)
def list_projects(reading: Read) -> Response:
    """Every project that has runs, or had: one whose runs are all deleted counts 0."""
    rows = reading.cursor.execute(_PROJECTS).fetchall()
    found = [
        {"entity": entity, "project": project, "runs": runs, "last_ts": last} for entity, project, runs, last in rows
    ]
    return Json({"projects": found}, position=reading.position)


@router.on("GET", "/viewer", permission="viewer", answer=Viewer)
def viewer(request: Request, reading: Read) -> Response:
    """Who the key or session belongs to."""
    who = principal(request)
    found = {"user": who.user, "key_id": who.credential, "version": version("icecore")}
    return Json(found, position=reading.position)
