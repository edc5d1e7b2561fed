"""Every event: one fact, named and versioned, frozen.

An event's type and version are explicit strings, never import paths, and stored payloads are never rewritten. A
breaking change makes version n+1 and a pure upcaster n -> n+1 (`upcaster`), applied when read. Fields this version
does not know are kept in `unknown` and written out again.

docs/events.md is made from this file.
"""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, Literal, TypeVar

import msgspec

from icecore.errors import Invalid
from icecore.limits import LimitName, most
from icecore.position import LEDGER, METRICS

# --------------------------------------------------------------------------------------------------- envelope


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every record says about its event: small, JSON, strings and integers only.

    A client sends `id type v producer seq ts_client`; the gateway adds `actor credential ts_server trace`.
    """

    id: str
    """UUIDv7, made by the client before the first try, so that a retry is the same event."""
    type: str
    v: int
    producer: str
    """UUID of one writer: a process start of a client, or a server process. (producer, seq) is unique in a stream."""
    seq: int
    """0, 1, 2 … within (producer, stream), without gaps."""
    ts_client: int
    """Milliseconds since 1970 UTC by the client's clock. Never decides order."""
    ts_server: int = 0
    """Milliseconds since 1970 UTC by the gateway's clock, when it was accepted."""
    actor: str = ""
    """The user or service account who did it; `system` for the server's own."""
    credential: str = ""
    """The id of the key or session that was used."""
    trace: str = ""
    """The W3C traceparent of the request that brought it, where that request's trace is kept; mostly left out."""


def now_ms() -> int:
    """This machine's clock, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


def uuid7(ts_ms: int | None = None) -> str:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then 74 random bits. Sorts by time of making."""
    ms = now_ms() if ts_ms is None else ts_ms
    number = (ms & ((1 << 48) - 1)) << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# ------------------------------------------------------------------------------------------------------ names

_PATH_PART: Final = re.compile(r"[^/\\#?%:\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_path_part(what: str, text: str) -> str:
    r"""An entity, project or run id as it may be stored: any language, but none of `/ \ # ? % :` or control characters.

    Names are data and never become file paths; the rule keeps them whole in URLs and in what people type.

    Raises:
        Invalid: it breaks the rule; the message shows the text.
    """
    if len(text) > most("path_part_chars"):
        raise _over("path_part_chars", len(text), what)
    if not _PATH_PART.fullmatch(text) or text in {".", ".."} or text != text.strip():
        raise Invalid(
            f"expected {what} without / \\ # ? % : control characters or outer spaces, got {text[:80]!r}",
            hint="letters of any language, digits, spaces inside, - _ . are fine",
        )
    return unicodedata.normalize("NFC", text)


def check_name(what: str, text: str, limit: LimitName = "name_chars") -> str:
    """A display name, group, tag or key as it may be stored: anything printable, within its limit.

    Raises:
        Invalid: it is too long or holds control characters or lone surrogates.
    """
    if len(text) > most(limit):
        raise _over(limit, len(text), what)
    if _CONTROL.search(text):
        raise Invalid(f"expected {what} without control characters, got {text[:80]!r}")
    return text


def check_uuid(what: str, text: str) -> str:
    """A lower-case UUID.

    Raises:
        Invalid: it is not one.
    """
    if not _UUID.fullmatch(text):
        raise Invalid(f"expected {what} to be a lower-case UUID, got {text[:80]!r}")
    return text


def split_run_path(path: str) -> tuple[str, str, str]:
    """`entity/project/run_id` in its three checked parts.

    Raises:
        Invalid: it is not such a path.
    """
    parts = path.split("/")
    if len(parts) != 3:
        raise Invalid(f"expected a run path entity/project/run_id, got {path[:200]!r}")
    entity, project, run_id = parts
    return (
        check_path_part("an entity", entity),
        check_path_part("a project", project),
        check_path_part("a run id", run_id),
    )


def _over(limit: LimitName, value: int, what: str) -> Invalid:
    return Invalid(
        f"expected {what} of at most {most(limit)} characters, got {value}",
        hint=f"the limit is `{limit}` in docs/limits.md",
        limit=limit,
        most=most(limit),
        value=value,
    )


# ----------------------------------------------------------------------------------------------------- events


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of every event."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int]
    STREAM: ClassVar[str]
    FROM_CLIENTS: ClassVar[bool]
    """Whether `POST /api/v1/events` takes it; the others are made by the server's commands only."""

    unknown: dict[str, Any] = {}
    """Fields of the payload that this version does not know, preserved."""

    @property
    def key(self) -> str:
        """The record's key: what must stay in order, and what decides the partition."""
        raise NotImplementedError  # every registered event has a subject


class RunEvent(Event, frozen=True, kw_only=True):
    """An event about one run."""

    run: str
    """entity/project/run_id"""

    @property
    def key(self) -> str:
        """The run's path."""
        return self.run


class UserEvent(Event, frozen=True, kw_only=True):
    """An event about one user's identity."""

    user: str
    """The user's name."""

    @property
    def key(self) -> str:
        """The user's name."""
        return self.user


class ArtifactEvent(Event, frozen=True, kw_only=True):
    """An event about one artifact: a collection of versions."""

    artifact: str
    """entity/project/name"""

    @property
    def key(self) -> str:
        """The artifact's path."""
        return self.artifact


E = TypeVar("E", bound=type[Event])

EVENTS: Final[dict[tuple[str, int], type[Event]]] = {}
"""Every known event by type and version: the newest version is what folds see."""

NEWEST: Final[dict[str, type[Event]]] = {}

_UPCASTERS: Final[dict[tuple[str, int], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {}


def event(name: str, version: int, stream: str, *, from_clients: bool = True) -> Callable[[E], E]:
    """Register an event class under its type and version."""

    def register(cls: E) -> E:
        cls.TYPE, cls.VERSION, cls.STREAM, cls.FROM_CLIENTS = name, version, stream, from_clients
        EVENTS[name, version] = cls
        if name not in NEWEST or version > NEWEST[name].VERSION:
            NEWEST[name] = cls
        return cls

    return register


Upcaster = Callable[[Mapping[str, Any]], dict[str, Any]]


def upcaster(name: str, version: int) -> Callable[[Upcaster], Upcaster]:
    """Register the pure function that turns a payload of `version` into one of `version + 1`."""

    def register(function: Upcaster) -> Upcaster:
        _UPCASTERS[name, version] = function
        return function

    return register


def upcast(name: str, version: int, payload: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """The payload at the newest version reachable by upcasters, and that version."""
    while (step := _UPCASTERS.get((name, version))) is not None:
        payload, version = step(payload), version + 1
    return version, payload


# ---- runs


@event("run.started", 1, LEDGER)
class RunStarted(RunEvent, frozen=True, kw_only=True):
    """A process began to write to a run; the first one makes the run."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = []
    notes: str = ""
    config: dict[str, Any] = {}
    """Nested as the user gave it; any JSON."""
    metadata: dict[str, Any] = {}
    """Git, command, host, Python, packages, hardware."""
    started_ts: int
    resumed: bool = False
    """This writer takes the run over: earlier writers no longer count as running."""


@event("run.updated", 1, LEDGER)
class RunUpdated(RunEvent, frozen=True, kw_only=True):
    """Some of a run's fields changed; a field left out stays as it is."""

    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    config: dict[str, Any] = {}
    """Top-level keys to set."""
    config_removed: list[str] = []
    """Top-level keys to remove."""
    metadata: dict[str, Any] = {}
    """Top-level keys to set."""
    metrics: dict[str, dict[str, str]] = {}
    """From define_metric: key or glob -> {"summary": "min|max|mean|last|first|none", "step_metric": key}."""


@event("run.summarised", 1, LEDGER)
class RunSummarised(RunEvent, frozen=True, kw_only=True):
    """Summary values set by hand; they win over what the metrics give."""

    set: dict[str, Any] = {}
    """Dotted path -> any JSON."""
    removed: list[str] = []


@event("run.finished", 1, LEDGER)
class RunFinished(RunEvent, frozen=True, kw_only=True):
    """A writer of a run ended."""

    exit_code: int = 0
    state: Literal["finished", "failed", "killed"] = "finished"
    error_type: str = ""
    error_message: str = ""
    finished_ts: int
    runtime_ms: int = 0
    """By the monotonic clock."""


@event("run.dropped", 1, LEDGER)
class RunDropped(RunEvent, frozen=True, kw_only=True):
    """The client could not keep some data, and says how much: the spool was full, or a value could not be logged."""

    reason: str
    events: int = 0
    points: int = 0
    bytes: int = 0
    keys: list[str] = []


@event("run.deleted", 1, LEDGER, from_clients=False)
class RunDeleted(RunEvent, frozen=True, kw_only=True):
    """A run is hidden from every listing; its records stay."""


@event("run.restored", 1, LEDGER, from_clients=False)
class RunRestored(RunEvent, frozen=True, kw_only=True):
    """A deleted run is back."""


# ---- data


@event("metrics.logged", 1, METRICS)
class MetricsLogged(RunEvent, frozen=True, kw_only=True):
    """History rows of a run, columnar, one event per client flush. See `icecore.codec` for the blocks."""

    blocks: list[dict[str, Any]]


@event("system.logged", 1, METRICS)
class SystemLogged(RunEvent, frozen=True, kw_only=True):
    """System metrics: the same blocks, with `ts` only; `step` counts the samples of this producer."""

    blocks: list[dict[str, Any]]


@event("console.logged", 1, METRICS)
class ConsoleLogged(RunEvent, frozen=True, kw_only=True):
    """Lines of a run's console output, as three columns of one length."""

    ts: list[int]
    """Milliseconds since 1970 UTC, when the line was ended."""
    stream: list[Literal["stdout", "stderr"]]
    text: list[str]
    """Without the line end; terminal colours kept."""


@event("run.heartbeat", 1, METRICS)
class RunHeartbeat(RunEvent, frozen=True, kw_only=True):
    """The writer is alive and had nothing else to say for a minute."""


# ---- identity


@event("user.created", 1, LEDGER, from_clients=False)
class UserCreated(UserEvent, frozen=True, kw_only=True):
    """A person or service may be given keys."""

    role: str = "owner"


@event("key.created", 1, LEDGER, from_clients=False)
class KeyCreated(UserEvent, frozen=True, kw_only=True):
    """An API key of a user. Its secret is shown once and never stored."""

    key_id: str
    name: str = ""
    sha256: str
    """Hex SHA-256 of the whole key."""
    own_name: bool = False
    """Rejected where another key in force of this user has its name."""


@event("key.revoked", 1, LEDGER, from_clients=False)
class KeyRevoked(UserEvent, frozen=True, kw_only=True):
    """A key stops working at this position."""

    key_id: str
    unless_last: bool = False
    """Rejected where the user has no other key in force."""


@event("login.offered", 1, LEDGER, from_clients=False)
class LoginOffered(UserEvent, frozen=True, kw_only=True):
    """A one-time login link was made."""

    sha256: str
    """Hex SHA-256 of the link's token."""
    expires_ts: int


@event("session.opened", 1, LEDGER, from_clients=False)
class SessionOpened(UserEvent, frozen=True, kw_only=True):
    """A browser session, from a login link that no earlier session has used: the fold rejects a second."""

    offer_sha256: str
    sha256: str
    """Hex SHA-256 of the session's cookie."""
    expires_ts: int


@event("session.closed", 1, LEDGER, from_clients=False)
class SessionClosed(UserEvent, frozen=True, kw_only=True):
    """A browser session ended by logging out."""

    sha256: str
