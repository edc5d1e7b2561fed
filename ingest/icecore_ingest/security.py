"""What every request must pass before anything looks at it: who it was sent to, and which page sent it.

A web page anywhere can make a browser send requests to a server on its user's machine. Two rules stop that: the
`Host` must be a name this server goes by (a rebound name is not), and a request that another site caused is refused
wherever it could change or read something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from icecore.errors import BadRequest, Forbidden, IcecoreError
from icecore_ingest.answers import App, Headers, Message, Receive, Scope, Send, answer_error

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
ANY_HOST: Final = "*"
"""As a public host: take every name. Only behind a proxy that checks names itself."""

_HOST: Final = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_LOOPBACK: Final = re.compile(r"localhost|[a-z0-9-]+\.localhost|127(\.[0-9]{1,3}){3}|\[::1\]")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_ONCE: Final = (b"host", b"origin", b"authorization", b"sec-fetch-site", b"content-encoding")

CONTENT_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_SECURITY_NAMES: Final = frozenset(name for name, _ in SECURITY_HEADERS)


@dataclass(frozen=True, slots=True)
class SecurityPolicy:
    """Which names this server goes by, besides the loopback ones (any port)."""

    public_hosts: frozenset[str] = field(default_factory=frozenset)
    """Lower-case host names or addresses, without port; `*` takes every name."""


@lru_cache(maxsize=1024)
def host_name(host: bytes) -> str | None:
    """The name in a `Host` header, lower-case and without port; None where it is no host at all."""
    found = _HOST.fullmatch(host.decode("latin-1").lower())
    return found[1] if found else None


@lru_cache(maxsize=1024)
def same_origin(origin: bytes, host: bytes) -> bool:
    """Whether an `Origin` header names the host the request was sent to."""
    scheme, _, rest = origin.decode("latin-1").lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    theirs, ours = _HOST.fullmatch(rest), _HOST.fullmatch(host.decode("latin-1").lower())
    if default is None or theirs is None or ours is None:
        return False
    return (theirs[1], theirs[2] or default) == (ours[1], ours[2] or default)


def check_request(scope: Scope, headers: Headers, policy: SecurityPolicy) -> IcecoreError | None:
    """What is wrong with where a request was sent or came from, or None.

    1. Headers that decide something may come once.
    2. The host is one of ours.
    3. A request caused by another site may neither change anything nor reach /api.
    """
    if len(headers) != len(scope["headers"]):
        names = [name for name, _ in scope["headers"]]
        twice = [name.decode("latin-1") for name in _ONCE if names.count(name) > 1]
        if twice:
            return BadRequest(f"expected each header at most once, got several of {', '.join(twice)}")
    host = headers.get(b"host", b"")
    name = host_name(host)
    hosts = policy.public_hosts
    if name is None or not (_LOOPBACK.fullmatch(name) or name in hosts or ANY_HOST in hosts):
        return Forbidden(
            f"expected a Host this server goes by, got {host[:80].decode('latin-1')!r}",
            hint="use localhost, or name the host when starting the server (icecore up --public-host)",
        )
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", b"none")
    foreign = (origin is not None and not same_origin(origin, host)) or site not in {b"none", b"same-origin"}
    if foreign and (scope.get("method") not in SAFE_METHODS or in_api(scope["path"])):
        return Forbidden("expected a request from this server's own pages or a program, got one from another site")
    return None


def in_api(path: str) -> bool:
    """Whether a path belongs to the API, where also reading needs the caller's own intent."""
    return path.lower().lstrip("/").startswith("api")


class Security:
    """ASGI middleware: `check_request` before the application, security headers on its answers.

    A header that the application set itself (a looser content policy of one page) stays as it is.
    """

    def __init__(self, app: App, policy: SecurityPolicy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_security_headers(message.get("headers", ()))
            await send(message)

        error = check_request(scope, dict(scope["headers"]), self._policy)
        if error is None:
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "http":
            await answer_error(send_with_headers, error)
        else:
            await send({"type": "websocket.close", "code": 1008})


def _with_security_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    present = _SECURITY_NAMES.intersection([name for name, _ in headers])
    if present:
        return [*headers, *(pair for pair in SECURITY_HEADERS if pair[0] not in present)]
    return [*headers, *SECURITY_HEADERS]
