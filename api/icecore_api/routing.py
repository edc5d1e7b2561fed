"""Routes that cannot be registered without a permission, and the gate that asks for it.

Every request is authenticated before it is routed, unless its path is one of the public ones: so an unknown path is
401 to a stranger and 404 to a caller. A route then asks for its permission. Until teams come, whoever holds a key is
the owner and has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, TypeVar, cast, get_args

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette import routing
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from icecore.errors import Forbidden, IcecoreError, Unauthenticated
from icecore_api.answers import error_answer, index_page
from icecore_api.context import Context, Principal
from icecore_api.models import ErrorBody

Permission = Literal[
    "public",
    "run:read",
    "run:write",
    "artifact:read",
    "artifact:write",
    "log:read",
    "ops:read",
    "ops:admin",
    "key:admin",
    "viewer",
]
PERMISSIONS: Final = frozenset(get_args(Permission))
OWNERS: Final[frozenset[Permission]] = frozenset({"key:admin"})
"""What nobody but an owner may."""

F = TypeVar("F", bound=Callable[..., Any])

_WHY: Final = {
    400: "The request cannot be read.",
    401: "No key, or an unknown or revoked one.",
    403: "The caller may not do this.",
    404: "Nothing of that name.",
    405: "The path does not take this method.",
    409: "The fold decided otherwise: the message says what was found.",
    413: "Over a size limit, which the error names.",
    416: "The bytes asked for are beyond the end.",
    422: "Readable, but breaks a rule or a limit, which the error names.",
    500: "What is stored is damaged.",
    503: "Not now: the store is behind the position asked for, or busy. `Retry-After` says when to try again.",
}


class Route(routing.Route):
    """A route as it is declared.

    What FastAPI makes of a function's parameters comes with the route's first request, and what it makes of all the
    models with the document: together they are milliseconds and 100 KB a route, which a start would pay for them all.
    """

    def __init__(
        self, method: str, path: str, function: Callable[..., Any], permission: Permission, document: Document
    ) -> None:
        super().__init__(path, function)
        self.method = method
        self.methods = {method}  # GET alone: Starlette would add HEAD
        self.permission: Permission = permission
        self._document = document

    def below(self, prefix: str) -> Route:
        """The same route, its path beginning with `prefix`."""
        return Route(self.method, prefix + self.path, self.endpoint, self.permission, self._document)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for this path."""
        if scope["method"] == self.method:
            _ask(scope, self.permission)
            self.app = self._asked
        scope["route"] = self
        await super().handle(scope, receive, send)

    @cached_property
    def _asked(self) -> ASGIApp:
        return APIRoute(self.path, self.endpoint, methods=[self.method], response_model=None).app

    def documented(self) -> APIRoute:
        """The route with all that OpenAPI says of it."""
        said = self._document
        public = self.permission == "public"
        responses: dict[int | str, dict[str, Any]] = {
            code: {"model": ErrorBody, "description": _WHY[code]}
            for code in sorted({*said.errors, 400, 422, 503} | (set() if public else {401, 403}))
        }
        responses[said.status] = {"description": said.description}
        if said.answer is not None:
            responses[said.status]["model"] = said.answer
        if said.content:
            responses[said.status]["content"] = said.content
        operation = {"x-permission": self.permission, **(said.extra() if callable(said.extra) else said.extra)}
        if not public:
            operation["security"] = [{"key": []}, {"session": []}]
        return APIRoute(
            self.path,
            self.endpoint,
            methods=[self.method],
            status_code=said.status,
            response_model=None,
            tags=[said.tag],
            responses=responses,
            openapi_extra=operation,
        )


@dataclass(frozen=True, slots=True)
class Document:
    """What OpenAPI says of a route besides its parameters; `Router.on` names the fields."""

    tag: str
    answer: Any
    errors: Sequence[int]
    description: str
    status: int
    extra: dict[str, Any] | Callable[[], dict[str, Any]]
    content: dict[str, Any] | None


class Router:
    """Routes that belong together, made by `on`, which needs a permission."""

    def __init__(self, tag: str) -> None:
        self.routes: list[Route] = []
        self._tag = tag

    def on(
        self,
        method: str,
        path: str,
        *,
        permission: Permission,
        answer: Any,
        errors: Sequence[int] = (),
        description: str = "The answer.",
        status: int = 200,
        extra: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        content: dict[str, Any] | None = None,
    ) -> Callable[[F], F]:
        """Register a route.

        Args:
            method: the HTTP method.
            path: below the application's prefix.
            permission: what the caller must be allowed; `public` asks nobody.
            answer: the model of a 200 (for OpenAPI; the route returns a finished Response), or None.
            errors: further statuses it may answer with; 401 and 422 go without saying, and 503 for reads.
            description: of the answer.
            status: of the answer.
            extra: merged into the operation's OpenAPI; or a function that makes it.
            content: further media types of the answer, as OpenAPI has them.
        """
        if permission not in PERMISSIONS:
            raise ValueError(f"expected one of {sorted(PERMISSIONS)} for {method} {path}, got {permission!r}")

        def register(function: F) -> F:
            document = Document(self._tag, answer, errors, description, status, extra or {}, content)
            self.routes.append(Route(method, path, function, permission, document))
            return function

        return register


def _ask(scope: Scope, permission: Permission) -> None:
    if permission == "public":
        return
    who = scope.get("state", {}).get("principal")
    if who is None:  # a public path, but this method of it is another route
        raise Unauthenticated("expected an API key or a session, got neither", hint="icecore login")
    allow(who, permission)


def allow(who: Principal, permission: Permission) -> None:
    """Whether the caller may.

    Raises:
        Forbidden: they may not.
    """
    allowed = cast("Collection[str]", getattr(who, "permissions", PERMISSIONS))
    if permission not in allowed or (permission in OWNERS and getattr(who, "role", "") != "owner"):
        raise Forbidden(f"expected a caller with {permission!r}, {who.user!r} does not have it")


def principal(request: Request) -> Principal:
    """The caller the gate let in."""
    return cast("Principal", request.state.principal)


def permission_of(route: BaseRoute) -> Permission | None:
    """The permission a route was registered with; None where it has none."""
    return route.permission if isinstance(route, Route) else None


def include(app: FastAPI, routes: Iterable[Route], prefix: str) -> None:
    """Add routes to the application, their paths beginning with `prefix`."""
    app.router.routes += [route.below(prefix) for route in routes]


class Gate:
    """ASGI middleware: nobody gets past it without a key, except to the public paths."""

    def __init__(self, app: ASGIApp, context: Context, public: Collection[str]) -> None:
        self._app = app
        self._context = context
        self._public = frozenset(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate one request, then pass it on."""
        if scope["type"] == "http" and scope["path"] not in self._public:
            headers = dict(scope["headers"])
            try:
                who = self._context.identities.authenticate(headers.get(b"authorization"), headers.get(b"cookie"))
            except IcecoreError as error:
                browser = scope["method"] == "GET" and b"text/html" in headers.get(b"accept", b"")
                page = browser and not scope["path"].startswith("/api")
                await (index_page(401) if page else error_answer(error))(scope, receive, send)
                return
            scope.setdefault("state", {})["principal"] = who
        await self._app(scope, receive, send)
