"""Browser sessions: a one-time link's token becomes a cookie."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from starlette.responses import Response

from icecore.errors import Unauthenticated, Unavailable
from icecore.events import SessionClosed
from icecore_api.answers import Json
from icecore_api.deps import Process, body_schema, read_body
from icecore_api.models import LoggedIn, LoggedOut, LoginRequest
from icecore_api.routing import Router, principal
from icecore_api.submit import Commands, Rejected
from icecore_ingest.identity import SESSION_COOKIE, SESSION_DAYS, Principal, sha256_hex

router: Final = Router("login")


@router.on("POST", "/login", permission="public", answer=LoggedIn, errors=[401, 413], extra=body_schema(LoginRequest))
async def login(request: Request, context: Process) -> Response:
    """Open a session with the token of a login link, which works once."""
    body = await read_body(request, LoginRequest, most_bytes=4096)
    secret, event = context.identities.open_session(body.token)
    commands: Commands = request.app.state.commands
    position = await commands.append_only(Principal(event.user, "login"), event)
    if not await context.identities.wait_for(position.next_offset, 5.0):
        raise Unavailable("expected the session to be folded within 5 s", hint="try again", retry_after=1)
    if not context.identities.has_session(secret):
        raise Unauthenticated("expected a login link that was not used before", hint="make another: icecore login")
    answer = Json({"user": event.user})
    answer.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=SESSION_DAYS * 86_400,
        httponly=True,
        samesite="lax",
        secure=request.headers.get("x-forwarded-proto", request.url.scheme) == "https",
        path="/",
    )
    return answer


@router.on("POST", "/logout", permission="viewer", answer=LoggedOut)
async def logout(request: Request) -> Response:
    """End the session the request came with; a key is left as it is."""
    secret = request.cookies.get(SESSION_COOKIE)
    who = principal(request)
    if secret and who.credential.startswith("session:"):
        commands: Commands = request.app.state.commands
        try:
            await commands.submit(who, [SessionClosed(user=who.user, sha256=sha256_hex(secret))])
        except Rejected:
            secret = None  # another request ended it at the same moment
    answer = Json({"logged_out": bool(secret)})
    answer.delete_cookie(SESSION_COOKIE, path="/", httponly=True, samesite="lax")
    return answer
