"""Answers over ASGI: JSON bodies, and the one shape of every error."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from icecore.errors import IcecoreError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = dict[bytes, bytes]

JSON: Final = b"application/json"
TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
_RETRY_SECONDS: Final = 1


async def answer(
    send: Send,
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = JSON,
    *,
    more_body: bool = False,
) -> None:
    """Send one whole answer; with `more_body` the exchange stays open although the client has all of it."""
    head = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})


async def answer_error(
    send: Send, error: IcecoreError, headers: Iterable[tuple[bytes, bytes]] = (), *, more_body: bool = False
) -> None:
    """Send an error in the shape all of icecore uses, with `Retry-After` where trying again makes sense."""
    extra = list(headers)
    if error.status in {429, 503}:
        seconds = error.facts.setdefault("retry_after", _RETRY_SECONDS)
        extra.append((b"retry-after", b"%d" % max(1, round(seconds))))
    elif error.status == 401:
        extra.append((b"www-authenticate", b'Bearer realm="icecore"'))
    await answer(send, error.status, error_body(error), extra, more_body=more_body)


def error_body(error: IcecoreError) -> bytes:
    """The JSON of an error. Not orjson: a message may quote text that UTF-8 cannot hold."""
    return json.dumps(error.body(), default=str).encode()


def content_length(headers: Headers) -> int | None:
    """The declared size of the body in bytes, or None where it comes in chunks. The HTTP parser checked the digits."""
    if b"transfer-encoding" in headers:
        return None
    return int(headers.get(b"content-length", b"0"))
