"""What the API needs of the process it runs in: given to `create_app`, so that tests give it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb

from icecore.events import KeyCreated, KeyRevoked, SessionOpened, now_ms
from icecore.log import EventLog
from icecore.position import Token
from icecore_api.blobs.store import BlobStore
from icecore_ingest.metric_defs import Metrics

CRASHED_AFTER_S: Final = 300.0
"""Seconds of silence after which a running run reads as crashed (`ICECORE_CRASHED_AFTER`)."""
QUERY_WITHIN_S: Final = 30.0
"""Seconds a read may take before it is interrupted and answered with 503."""
WAIT_WITHIN_S: Final = 2.0
"""Seconds a read waits for the position it was given, and a command for its fold."""


class Store(Protocol):
    """The projection store, as the API sees it (`icecore_projections.store.Store`)."""

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for one request; the caller closes it."""
        ...

    def token(self) -> Token:
        """What is folded: a cursor used after this call sees at least that."""
        ...

    async def wait_async(self, token: Token, within: float) -> bool:
        """Wait until `token` is folded; False after `within` seconds."""
        ...


class Principal(Protocol):
    """Who asks (`icecore_ingest.identity.Principal`)."""

    @property
    def user(self) -> str:
        """The user's name."""
        ...

    @property
    def credential(self) -> str:
        """The id of the key or session that was used."""
        ...


class Key(Protocol):
    """An API key (`icecore_ingest.identity.Key`)."""

    key_id: str
    user: str
    name: str
    revoked: bool
    created_ts: int
    revoked_ts: int


class Identities(Protocol):
    """Who holds which key (`icecore_ingest.identity.Identities`)."""

    def authenticate(self, authorization: bytes | None, cookie: bytes | None = None) -> Principal:
        """The caller, by the `Authorization` header or the `Cookie` header.

        Raises:
            Unauthenticated: no key, an unknown one, or a revoked one.
        """
        ...

    def open_session(self, token: str) -> tuple[str, SessionOpened]:
        """A session's cookie value and its event, from a login link's token.

        Raises:
            Unauthenticated: the link is unknown, used or expired.
        """
        ...

    def has_session(self, secret: str) -> bool:
        """Whether a session's cookie value is in force: the fold has taken its event."""
        ...

    def every_key(self) -> Sequence[Key]:
        """Every key, revoked ones among them, in the order they were made."""
        ...

    def key_refused(self, event: KeyCreated | KeyRevoked) -> str | None:
        """Why the fold would reject a new key, or a key's end, now; None where it would not."""
        ...

    async def wait_for(self, next_offset: int, within: float) -> bool:
        """Wait until the ledger's identities are folded up to an offset."""
        ...


Report = Callable[[Mapping[str, Any]], None]
"""Given to a long operation, which calls it with its progress as JSON."""


class Operations(Protocol):
    """The long operations of a running server; each runs in its own thread of control and reports its progress."""

    async def rebuild(self, report: Report, *, verify: bool) -> Mapping[str, Any]:
        """Fold the log into a new store; compare digests; switch unless only verifying. Returns the outcome."""
        ...

    async def fsck(self, report: Report) -> Mapping[str, Any]:
        """Check log, store and spools. Returns the findings."""
        ...

    async def replay(self) -> Mapping[str, Any]:
        """Try the dead letters again. Returns how many were tried, and how many folded now."""
        ...

    async def digest(self) -> str:
        """The digest of the store's tables, as they are now."""
        ...


@dataclass(frozen=True)
class Context:
    """The process around the API."""

    log: EventLog
    current_store: Callable[[], Store]
    """The store in use: a rebuild may switch it, so a request pins it once."""
    identities: Identities
    operations: Operations
    producer: str
    """UUID of this process as a writer of commands."""
    data: Path
    blobs: BlobStore
    processes: Callable[[], Mapping[str, Any]] = dict
    """The supervisor's word on its children: pids, restarts."""
    metrics: Metrics = field(default_factory=lambda: Metrics("store"))
    """What /metrics shows; also counted in by the folding thread."""
    clock_ms: Callable[[], int] = now_ms
    crashed_after_s: float = CRASHED_AFTER_S
    query_within_s: float = QUERY_WITHIN_S
    wait_within_s: float = WAIT_WITHIN_S

    @property
    def store(self) -> Store:
        """The store in use now."""
        return self.current_store()
