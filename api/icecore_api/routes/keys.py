"""API keys of the owner: made, listed, revoked. A key's secret is in one answer and nowhere else."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import Path, Request
from starlette.responses import Response

from icecore.errors import Conflict, Invalid, NotFound, Unavailable
from icecore.events import KeyCreated, KeyRevoked, check_name
from icecore.position import Token
from icecore_api.answers import Json
from icecore_api.context import Context, Key, Principal
from icecore_api.deps import Process, body_schema, read_body
from icecore_api.models import KeyAnswer, KeyMade, KeyRequest, KeysAnswer
from icecore_api.queries.run_answers import iso
from icecore_api.routing import Router, principal
from icecore_api.submit import Commands
from icecore_ingest.identity import new_key

router: Final = Router("keys")

_WITHIN_S: Final = 5.0
_ID: Final = re.compile(r"key_[0-9a-f]{16}")
_LAST_HINT: Final = "make another first: icecore key create NAME"
_NAME_HINT: Final = "`icecore key list` shows them; revoke that one, or choose another name"


@router.on("GET", "/keys", permission="key:admin", answer=KeysAnswer)
async def list_keys(request: Request, context: Process) -> Response:
    """Every key in the order they were made, those that are revoked among them; no secrets."""
    who = principal(request)
    return Json({"keys": [_answer(key, who) for key in context.identities.every_key()]})


@router.on("POST", "/keys", permission="key:admin", answer=KeyMade, errors=[409, 413], extra=body_schema(KeyRequest))
async def create_key(request: Request, context: Process) -> Response:
    """Make a key for the caller. Its secret is in this answer only; the log has its SHA-256."""
    body = await read_body(request, KeyRequest, most_bytes=4096)
    name = check_name("a key's name", body.name)
    if not name or name != name.strip() or _ID.fullmatch(name):
        raise Invalid(f"expected a name for the key, got {name[:80]!r}", hint="say whose or what it is: ci, laptop-2")
    who = principal(request)
    secret, event = new_key(who.user, name, own_name=True)
    token = await _decided(request, context, event)
    made = _found(context, event.key_id)
    if made is None:  # the fold rejected it: somebody else was first with this name
        raise Conflict(_refused(context, event, name), hint=_NAME_HINT)
    return Json({"key": secret, **_answer(made, who)}, position=token)


@router.on("DELETE", "/keys/{key_id}", permission="key:admin", answer=KeyAnswer, errors=[404, 409])
async def revoke_key(
    request: Request, key_id: Annotated[str, Path(max_length=64, description="its id")], context: Process
) -> Response:
    """Revoke a key: from this answer on it is refused. One that is revoked already stays as it is."""
    key = _found(context, key_id)
    if key is None:
        raise NotFound(f"no such key: {key_id!r}", hint="`icecore key list` shows their ids")
    event = KeyRevoked(user=key.user, key_id=key_id, unless_last=True)
    token = await _decided(request, context, event)
    key = _found(context, key_id)
    if key is None or not key.revoked:
        raise Conflict(_refused(context, event, key_id), hint=_LAST_HINT)
    return Json(_answer(key, principal(request)), position=token)


async def _decided(request: Request, context: Context, event: KeyCreated | KeyRevoked) -> Token:
    """Append an event, and wait until this process has folded it.

    Raises:
        Conflict: the fold would reject it, so it was not appended. Unavailable: it is durable, and not folded yet.
    """
    if reason := context.identities.key_refused(event):
        raise Conflict(reason, hint=_NAME_HINT if isinstance(event, KeyCreated) else _LAST_HINT)
    commands: Commands = request.app.state.commands
    position = await commands.append_only(principal(request), event)
    if not await context.identities.wait_for(position.next_offset, _WITHIN_S):
        raise Unavailable(
            f"expected {position} to be folded within {_WITHIN_S:.0f} s", hint="icecore key list", retry_after=1
        )
    return Token.after([position])


def _found(context: Context, key_id: str) -> Key | None:
    return next((key for key in context.identities.every_key() if key.key_id == key_id), None)


def _refused(context: Context, event: KeyCreated | KeyRevoked, what: str) -> str:
    return context.identities.key_refused(event) or f"expected to be the first to change {what!r}, another was"


def _answer(key: Key, who: Principal) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "user": key.user,
        "state": "revoked" if key.revoked else "active",
        "created_at": iso(key.created_ts) if key.created_ts else None,
        "revoked_at": iso(key.revoked_ts) if key.revoked else None,
        "current": key.key_id == who.credential,
    }
