"""What a run printed."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import Query
from starlette.responses import Response

from icecore.errors import NotFound
from icecore_api.answers import Json
from icecore_api.deps import OfRun, Read
from icecore_api.models import Console
from icecore_api.queries.console import LINES_MOST, ConsoleQuestion, console
from icecore_api.routing import Router
from icecore_projections.schema import run_number

router: Final = Router("console")


@router.on("GET", "/runs/{entity}/{project}/{run_id}/console", permission="run:read", answer=Console, errors=[404])
def get_console(
    at: OfRun,
    reading: Read,
    after: Annotated[str | None, Query(description="`next` of an earlier answer", max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=LINES_MOST)] = 1000,
    tail: Annotated[
        int | None, Query(ge=1, le=LINES_MOST, description="The last so many lines, in place of `limit`")
    ] = None,
    search: Annotated[str | None, Query(description="Only lines that contain this text", max_length=1024)] = None,
    stream: Annotated[Literal["stdout", "stderr"] | None, Query()] = None,
) -> Response:
    """Lines a run printed, in order: from the start or after some line, the last ones, or those that hold a text."""
    reading.begin()
    number = run_number(at.path)
    known = reading.cursor.execute(
        "SELECT 1 FROM current_runs WHERE run = $run AND NOT deleted", {"run": number}
    ).fetchone()
    if known is None:
        raise NotFound(f"no such run: {at.path!r}")
    question = ConsoleQuestion(number, after, tail or limit, tail is not None, search or None, stream)
    return Json(console(reading.cursor, question), position=reading.position)
