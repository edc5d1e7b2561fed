"""What every request of a server process has around it: an id, a span where traces are wanted, and a last resort.

The id comes with the request (`X-Request-Id`, where it is short and plain) or is made. It is in every line said while
the request is answered, in the answer's header, in the body of a 500, and goes with the request to the store.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from icecore import tracing
from icecore.errors import IcecoreError, SettingsError
from icecore.journal import Level, heard, places, request_id, say
from icecore_ingest.answers import App, Message, Receive, Scope, Send, answer_error

HEADER: Final = b"x-request-id"
_GOOD: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
SLOW_S: Final = 5.0
"""Seconds until an answer begins, from which on it is said (ICECORE_SLOW_SECONDS)."""


class InternalError(IcecoreError):
    """A fault of ours: the client is told an id, and stderr where it happened."""

    status = 500
    code = "internal"


@dataclass(frozen=True, slots=True)
class Watched:
    """How the requests of a process are watched."""

    slow_s: float = SLOW_S
    failed: Callable[[], None] = lambda: None
    """Called for each request that ended in the last resort."""

    @classmethod
    def of(cls, environ: Mapping[str, str], failed: Callable[[], None] = lambda: None) -> Watched:
        """As the environment has it.

        Raises:
            SettingsError: ICECORE_SLOW_SECONDS is no number.
        """
        text = environ.get("ICECORE_SLOW_SECONDS", "") or str(SLOW_S)
        try:
            return cls(float(text), failed)
        except ValueError as error:
            raise SettingsError(f"expected ICECORE_SLOW_SECONDS to be a number of seconds, got {text!r}") from error


class Requests:
    """ASGI middleware, the outermost of a process."""

    def __init__(self, app: App, watched: Watched | None = None) -> None:
        self._app = app
        self._watched = watched or Watched.of(os.environ)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens within."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        given = [value for name, value in headers if name == HEADER]
        own = chosen_id(given)
        if given:
            headers = [pair for pair in headers if pair[0] != HEADER]
        scope["headers"] = [*headers, (HEADER, own)]
        token = request_id.set(own.decode())
        try:
            if tracing.on():
                await self._traced(scope, receive, send, own)
            else:
                await self._answer(scope, receive, send, own)
        finally:
            request_id.reset(token)

    async def _traced(self, scope: Scope, receive: Receive, send: Send, own: bytes) -> None:
        headers = dict(scope["headers"])
        came_from = headers.get(b"traceparent", b"").decode("latin-1")
        with tracing.span(scope["method"], parent=came_from, kind="server") as span:
            span.set_attributes({"url.path": scope["path"], "icecore.request_id": own.decode()})
            rest = [pair for pair in scope["headers"] if pair[0] not in {b"traceparent", b"tracestate"}]
            scope["headers"] = [*rest, (b"traceparent", tracing.traceparent(span).encode())]
            status = await self._answer(scope, receive, send, own)
            route = getattr(scope.get("route"), "path", "") or scope["path"]
            span.update_name(f"{scope['method']} {route}")
            span.set_attributes({"http.response.status_code": status})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, own: bytes) -> int:
        """The status that was answered; 0 where the client was gone before."""
        began = time.perf_counter()
        status = 0

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != HEADER]
                message = {**message, "headers": [*headers, (HEADER, own)]}
                status = message["status"]
                self._note(scope, status, time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, numbered)
        except Exception as error:
            if _client_left(error):
                say("the client went away", "debug", method=scope["method"], path=scope["path"])
                return status
            told = self._fault(error, scope, own)
            if not status:
                await answer_error(numbered, told)
            else:
                raise  # only cutting the connection can tell the client now
        return status

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Say what was slow or failed; the query is left out, it may name things that are nobody's business."""
        level: Level = "debug"
        what = "request"
        if seconds > self._watched.slow_s:
            level, what = "warning", "slow request"
        elif status >= 500:
            level, what = "warning", "failed request"
        if heard(level):
            say(what, level, method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))

    def _fault(self, error: Exception, scope: Scope, own: bytes) -> InternalError:
        self._watched.failed()
        say(
            "internal error",
            "error",
            error=type(error).__name__,
            method=scope.get("method"),
            path=scope["path"],
            at=places(error),
        )
        return internal_error(own.decode())


def _client_left(error: BaseException) -> bool:
    """Whether a framework's error only says that nobody reads the answer any more."""
    causes = (error, error.__cause__, error.__context__)
    return any(type(cause).__name__ in {"ClientDisconnect", "ClientGone"} for cause in causes)


def internal_error(own: str) -> InternalError:
    """What a client is told of a fault: no data, no secrets, an id to ask for."""
    return InternalError(
        "expected no such case: this is a fault of the server", hint="its log names the request", request_id=own
    )


def chosen_id(given: Sequence[bytes]) -> bytes:
    """The id a request came with, if it is one that may stand in a log and a header; else a new one."""
    if len(given) == 1 and _GOOD.fullmatch(given[0]):
        return given[0]
    return b"%016x" % random.getrandbits(64)
