"""Who may call: a fold of the ledger's identity events, and keys, login links and sessions made for it.

Secrets are 256 random bits, shown once; the log holds their SHA-256. So many bits need no slow hash, and a lookup by
hash gives nothing away. Any process folds these events for itself, so no request asks another process who it is from,
and a revoked key stops working where its `key.revoked` lies in the log.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import string
from typing import Final, NamedTuple, cast

import msgspec

from icecore.errors import SettingsError, Unauthenticated
from icecore.events import (
    Event,
    KeyCreated,
    KeyRevoked,
    LoginOffered,
    SessionClosed,
    SessionOpened,
    UserCreated,
    now_ms,
)

KEY_PREFIX: Final = "icecore-"
SESSION_COOKIE: Final = "icecore_session"
SESSION_DAYS: Final = 30
LOGIN_MINUTES: Final = 15

_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_CHARS: Final = 43
"""62^43 > 2^256. Letters and digits only: selected by a double click, and clients that check keys take them."""


class Principal(NamedTuple):
    """An authenticated caller."""

    user: str
    credential: str
    """The id of the key, or `session:` and the start of the session's hash. Never a secret."""
    role: str = "owner"


class Key(msgspec.Struct):
    """An API key as the fold knows it."""

    key_id: str
    user: str
    name: str = ""
    revoked: bool = False
    created_ts: int = 0
    """By the log's clock, ms since 1970 UTC."""
    revoked_ts: int = 0
    """Of a key that is revoked."""


class Offer(msgspec.Struct):
    """A one-time login link."""

    user: str
    expires_ts: int
    used: bool = False


class Session(msgspec.Struct):
    """An open browser session."""

    user: str
    expires_ts: int


class IdentityState(msgspec.Struct):
    """All identities: users and their roles by name; keys, offers and sessions by the SHA-256 of their secret."""

    users: dict[str, str] = {}
    keys: dict[str, Key] = {}
    offers: dict[str, Offer] = {}
    sessions: dict[str, Session] = {}


# ---------------------------------------------------------------------------------------------------- the fold


def fold(state: IdentityState, event: Event, ts_server: int) -> str | None:
    """Apply one event to the state, by nothing but the event and when the log took it.

    Returns:
        None, or why the event does not count: every process that folds the ledger reaches the same answer.
    """
    match event:
        case UserCreated():
            if event.user in state.users:
                return f"user {event.user!r} is already there"
            state.users[event.user] = event.role
        case KeyCreated():
            if reason := key_refused(state, event):
                return reason
            state.keys[event.sha256] = Key(event.key_id, event.user, event.name, created_ts=ts_server)
        case KeyRevoked():
            if reason := revocation_refused(state, event):
                return reason
            key = key_of(state, event.key_id)
            if key is not None and not key.revoked:
                key.revoked, key.revoked_ts = True, ts_server
        case LoginOffered():
            if event.user not in state.users or event.sha256 in state.offers:
                return "expected a new offer to a known user"
            _forget_expired(state, ts_server)
            state.offers[event.sha256] = Offer(event.user, event.expires_ts)
        case SessionOpened():
            if reason := session_refused(state, event, ts_server):
                return reason
            state.offers[event.offer_sha256].used = True
            state.sessions[event.sha256] = Session(event.user, event.expires_ts)
        case SessionClosed():
            if state.sessions.pop(event.sha256, None) is None:
                return "expected an open session"
        case _:
            return None
    return None


def key_refused(state: IdentityState, event: KeyCreated) -> str | None:
    """Why a key may not be made: its user is unknown, or the key or its name is there already."""
    if event.user not in state.users:
        return f"expected a known user, got {event.user!r}"
    if event.sha256 in state.keys or any(key.key_id == event.key_id for key in state.keys.values()):
        return f"key {event.key_id!r} is already there"
    if event.own_name and any(key.name == event.name for key in in_force(state, event.user)):
        return f"expected a name that no key in force has, got {event.name!r}"
    return None


def revocation_refused(state: IdentityState, event: KeyRevoked) -> str | None:
    """Why a key may not be revoked: it is unknown, another user's, or the last that the user has."""
    key = key_of(state, event.key_id)
    if key is None or key.user != event.user:
        return f"expected a key of {event.user!r}, got {event.key_id!r}"
    if event.unless_last and not key.revoked and len(in_force(state, event.user)) == 1:
        return f"expected {event.user!r} to have another key, {event.key_id} is the last one"
    return None


def key_of(state: IdentityState, key_id: str) -> Key | None:
    """The key of an id, revoked or not."""
    return next((key for key in state.keys.values() if key.key_id == key_id), None)


def in_force(state: IdentityState, user: str) -> list[Key]:
    """The keys of a user that work."""
    return [key for key in state.keys.values() if key.user == user and not key.revoked]


def session_refused(state: IdentityState, event: SessionOpened, ts_server: int) -> str | None:
    """Why a session may not be opened: its login link is unknown, another user's, used or expired."""
    offer = state.offers.get(event.offer_sha256)
    if offer is None or offer.user != event.user:
        return "expected a login link of this server"
    if offer.used:
        return "expected a login link that was not used before"
    if ts_server >= offer.expires_ts:
        return "expected a login link that has not expired"
    if event.sha256 in state.sessions:
        return "expected a new session"
    return None


def _forget_expired(state: IdentityState, ts_server: int) -> None:
    """Drop what time has ended, by the log's clock, so that the state stays small."""
    state.offers = {sha: offer for sha, offer in state.offers.items() if offer.expires_ts > ts_server}
    state.sessions = {sha: one for sha, one in state.sessions.items() if one.expires_ts > ts_server}


# ------------------------------------------------------------------------------------------- who a request is from


def authenticate(state: IdentityState, authorization: bytes | None, cookie: bytes | None, now: int) -> Principal:
    """Who a request is from.

    Args:
        state: the identities.
        authorization: the header: `Bearer KEY`, or `Basic` with any user name and the key as password.
        cookie: the Cookie header, which may hold a session. A key, where given, decides alone.
        now: ms since 1970 UTC.

    Raises:
        Unauthenticated: neither is known and in force. The message does not say which it was.
    """
    if authorization is not None:
        secret = _key_of(authorization)
        if secret is not None:
            sha = sha256_hex(secret)
            key = state.keys.get(sha)
            if key is not None and not key.revoked and _proves(secret, sha):
                return Principal(key.user, key.key_id, state.users[key.user])
        raise Unauthenticated(
            "expected a valid API key, got one that is unknown or revoked", hint="make a key: icecore login"
        )
    secret = _session_of(cookie) if cookie else None
    if secret is not None:
        sha = sha256_hex(secret)
        session = state.sessions.get(sha)
        if session is not None and now < session.expires_ts and _proves(secret, sha):
            return Principal(session.user, f"session:{sha[:16]}", state.users[session.user])
    raise Unauthenticated(
        "expected an API key or a session, got neither", hint="send Authorization: Bearer KEY; see icecore login"
    )


def sha256_hex(secret: bytes | str) -> str:
    """What the log holds of a secret."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()


def _proves(secret: bytes, sha: str) -> bool:
    """The comparison that decides, in constant time; the lookup before it only found the candidate."""
    return hmac.compare_digest(hashlib.sha256(secret).hexdigest(), sha)


def _key_of(authorization: bytes) -> bytes | None:
    scheme, _, rest = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return rest.strip()
        case b"basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                return None
    return None


def _session_of(cookie: bytes) -> bytes | None:
    for part in cookie.split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name == SESSION_COOKIE.encode():
            return value
    return None


# ------------------------------------------------------------------------------------------------------ secrets


def _new_secret() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_CHARS))


def new_key(user: str, name: str = "", secret: str = "", *, own_name: bool = False) -> tuple[str, KeyCreated]:
    """A new API key: the secret, to be shown once, and the event that makes it valid.

    Args:
        user: whose key it is.
        name: what people call it.
        secret: chosen by whoever sets up a cluster; without it a random one is made.
        own_name: let the fold refuse it where another key in force has that name.

    Raises:
        SettingsError: the secret chosen is shorter than a random one.
    """
    if secret and len(secret) < _SECRET_CHARS:
        raise SettingsError(f"expected a key of at least {_SECRET_CHARS} characters, got {len(secret)}")
    secret = secret or KEY_PREFIX + _new_secret()
    key_id = f"key_{secrets.token_hex(8)}"
    return secret, KeyCreated(user=user, key_id=key_id, name=name, sha256=sha256_hex(secret), own_name=own_name)


def new_login_offer(user: str, ttl_ms: int = LOGIN_MINUTES * 60_000) -> tuple[str, LoginOffered]:
    """A new one-time login link's token, and the event that makes it valid."""
    token = _new_secret()
    return token, LoginOffered(user=user, sha256=sha256_hex(token), expires_ts=now_ms() + ttl_ms)


def open_session(user: str, token: str, ttl_ms: int = SESSION_DAYS * 86_400_000) -> tuple[str, SessionOpened]:
    """A new session from a login link: the cookie's value, and the event whose fold decides whether it counts."""
    secret = _new_secret()
    return secret, SessionOpened(
        user=user, offer_sha256=sha256_hex(token), sha256=sha256_hex(secret), expires_ts=now_ms() + ttl_ms
    )


_FOLDED: Final = (UserCreated, KeyCreated, KeyRevoked, LoginOffered, SessionOpened, SessionClosed)
IDENTITY_TYPES: Final = frozenset(cast("type[Event]", cls).TYPE for cls in _FOLDED)
