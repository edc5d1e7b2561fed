"""What a route asks for: a reading of the store at or after a position, and a body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, cast

import duckdb
import orjson
from fastapi import Depends, Header, Path, Request
from pydantic import BaseModel, ValidationError

from icecore.errors import BadRequest, NotYet, TooLarge
from icecore.events import check_path_part
from icecore.limits import most
from icecore.position import Token
from icecore_api.answers import invalid_fields
from icecore_api.context import Context, Store

M = TypeVar("M", bound=BaseModel)


class Deadline:
    """Interrupts a cursor's statements from some time on.

    Again and again, since an interrupt that falls between two statements is lost.
    """

    AGAIN_S: Final = 0.05

    def __init__(self, cursor: duckdb.DuckDBPyConnection, within_s: float) -> None:
        self._cursor = cursor
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(within_s, self._strike)

    def cancel(self) -> None:
        """Let the cursor run."""
        self._timer.cancel()

    def _strike(self) -> None:
        self._cursor.interrupt()
        self._timer = self._loop.call_later(self.AGAIN_S, self._strike)


@dataclass(slots=True)
class Reading:
    """One request's view of one store."""

    store: Store
    cursor: duckdb.DuckDBPyConnection
    position: Token
    """Taken before the cursor saw anything: what it sees is this, or later. Sent back as `Icecore-Position`."""
    now_ms: int
    crashed_before_ms: int
    """A running run not heard of since then reads as crashed."""
    deadline: Deadline

    def begin(self) -> None:
        """Let all statements from here on see one state of the store."""
        self.cursor.execute("BEGIN TRANSACTION READ ONLY")

    def without_limit(self) -> None:
        """Take the time limit off, for an answer that is streamed."""
        self.deadline.cancel()


def context_of(request: Request) -> Context:
    """The process around the request."""
    return cast("Context", request.app.state.context)


@asynccontextmanager
async def reading_now(context: Context) -> AsyncIterator[Reading]:
    """A reading of the store in use, under the time limit."""
    store = context.store
    now = context.clock_ms()
    position = store.token()
    cursor = store.cursor()
    deadline = Deadline(cursor, context.query_within_s)
    try:
        yield Reading(store, cursor, position, now, now - round(context.crashed_after_s * 1000), deadline)
    finally:
        deadline.cancel()
        cursor.close()


async def _read(
    request: Request,
    icecore_position: Annotated[
        str | None,
        Header(description="answer at or after this position (of an earlier answer)", max_length=4096),
    ] = None,
) -> AsyncIterator[Reading]:
    context = context_of(request)
    if icecore_position:
        await wait_for(context.store, Token.parse(icecore_position), context.wait_within_s)
    async with reading_now(context) as reading:
        yield reading


async def _context(request: Request) -> Context:
    return context_of(request)


# dependencies that only look are async, too: FastAPI sends each of the others to another thread and back
Read = Annotated[Reading, Depends(_read)]
Process = Annotated[Context, Depends(_context)]


async def wait_for(store: Store, token: Token, within: float) -> None:
    """Wait until the store has folded `token`.

    Raises:
        NotYet: it has not, within that many seconds.
    """
    if not await store.wait_async(token, within):
        have = store.token()
        raise NotYet(
            f"expected the store to have folded {token}, it is at {have}",
            hint="try again in a moment; `icecore status` shows the lag",
            have=str(have),
            want=str(token),
            retry_after=1,
        )


@dataclass(frozen=True, slots=True)
class ProjectPath:
    """entity/project, checked."""

    entity: str
    project: str


@dataclass(frozen=True, slots=True)
class RunPath:
    """entity/project/id, checked."""

    entity: str
    project: str
    id: str

    @property
    def path(self) -> str:
        """As in events."""
        return f"{self.entity}/{self.project}/{self.id}"


PathPart = Annotated[str, Path()]


async def _project_path(entity: PathPart, project: PathPart) -> ProjectPath:
    return ProjectPath(check_path_part("an entity", entity), check_path_part("a project", project))


async def _run_path(
    entity: Annotated[str, Path()], project: Annotated[str, Path()], run_id: Annotated[str, Path()]
) -> RunPath:
    return RunPath(
        check_path_part("an entity", entity),
        check_path_part("a project", project),
        check_path_part("a run id", run_id),
    )


OfProject = Annotated[ProjectPath, Depends(_project_path)]
OfRun = Annotated[RunPath, Depends(_run_path)]


async def read_body(request: Request, model: type[M], most_bytes: int | None = None) -> M:
    """The request's JSON body as `model`; an empty one is `{}`.

    Raises:
        TooLarge, BadRequest, Invalid: too long, no JSON, or other fields than the model's.
    """
    limit = most_bytes or 2 * most("config_bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"expected a body of at most {limit} bytes", limit="body", most=limit, value=len(body))
    try:
        parsed: Any = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"expected a JSON body, got {bytes(body[:80])!r}: {error}") from error
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        raise invalid_fields(error.errors()) from error


def body_schema(model: type[BaseModel]) -> Callable[[], dict[str, Any]]:
    """The OpenAPI of a route that reads its body by `read_body`, made when it is asked for."""
    return lambda: {
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": model.model_json_schema()}},
        }
    }
