"""Answers as bytes: JSON by orjson, errors as the one error body."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import duckdb
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response

from icecore.errors import BadRequest, IcecoreError, Invalid, NotFound, Unavailable
from icecore.position import Token

WEB: Final = Path(__file__).parent / "web"
NO_CACHE: Final = {"Cache-Control": "no-cache"}
POSITION_HEADER: Final = "Icecore-Position"
_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


class Json(Response):
    """A JSON answer. NaN and infinities become null."""

    media_type = "application/json"

    def __init__(self, content: Any, *, status: int = 200, position: Token | None = None) -> None:
        super().__init__(status_code=status, content=content)
        if position is not None:
            self.headers[POSITION_HEADER] = str(position)

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return orjson.dumps(content, option=_OPTIONS)


def index_page(status: int = 200) -> Response:
    """The web page, which finds what to show in its own address."""
    return FileResponse(WEB / "index.html", status_code=status, media_type="text/html", headers=NO_CACHE)


class NotAllowed(IcecoreError):
    """The path exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


def error_answer(error: IcecoreError, headers: Mapping[str, str] | None = None) -> Response:
    """An error as its status, body and headers."""
    answer = Json(error.body(), status=error.status)
    answer.headers.update(headers or {})
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="icecore"'
    if error.status in (429, 503):
        answer.headers["Retry-After"] = str(max(1, round(error.facts.get("retry_after", 1))))
    return answer


def install_errors(app: FastAPI) -> None:
    """Make every error of the application leave it as the one error body."""

    @app.exception_handler(IcecoreError)
    def ours(_request: Request, error: IcecoreError) -> Response:
        return error_answer(error)

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> Response:
        return error_answer(invalid_fields(error.errors()))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        return error_answer(_from_http(request, error), error.headers)

    @app.exception_handler(ClientDisconnect)
    def gone(_request: Request, _error: ClientDisconnect) -> Response:
        return error_answer(BadRequest("expected the whole request, the client went away"))

    @app.exception_handler(duckdb.InterruptException)
    def interrupted(_request: Request, _error: duckdb.InterruptException) -> Response:
        return error_answer(
            Unavailable(
                "expected an answer within the time limit, the query took longer",
                hint="ask for less: fewer runs, fewer keys, a narrower filter",
                retry_after=5,
            )
        )


def invalid_fields(errors: Any) -> Invalid:
    """What pydantic found wrong, in our words."""
    found = [{"where": ".".join(str(part) for part in error["loc"]), "why": str(error["msg"])} for error in errors[:10]]
    said = "; ".join(f"{each['where']}: {each['why']}" for each in found)
    return Invalid(f"expected valid parameters, got {said}", hint="/openapi.json describes them", fields=found)


def _from_http(request: Request, error: HTTPException) -> IcecoreError:
    if error.status_code == 404:
        return NotFound(
            f"no such route: {request.method} {request.url.path[:200]!r}", hint="/openapi.json lists the routes"
        )
    if error.status_code == 405:
        return NotAllowed(f"{request.url.path[:200]!r} does not take {request.method[:20]!r}")
    return BadRequest(f"the request cannot be read: {error.detail}")
