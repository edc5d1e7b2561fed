"""Identities of a process, kept up with the ledger: a snapshot to start from, then the log itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from icecore.codec import decode_event, encode_event
from icecore.errors import BadRequest, LogCorrupt, LogError, Unauthenticated
from icecore.events import Envelope, Event, KeyCreated, KeyRevoked, SessionOpened, UserCreated, now_ms, uuid7
from icecore.log import EventLog, Record, StoredRecord
from icecore.position import LEDGER, METRICS, NEVER, Place, Token
from icecore_ingest import identity
from icecore_ingest.identity import IDENTITY_TYPES, IdentityState, Key, Principal, new_key, sha256_hex

PLACE: Final = Place(LEDGER, 0)
SNAPSHOT_FORMAT: Final = 3
SNAPSHOT_EVERY: Final = 10_000
"""Ledger records after which a new snapshot is worth writing although no identity changed."""
OWNER: Final = "owner"

_WAIT_S: Final = 10.0
_RETRY_S: Final = 0.5


class Snapshot(msgspec.Struct):
    """What run/identities.json holds: no secrets, only their hashes."""

    format: int
    log_id: str
    next_offset: int
    last: str
    """The id of the ledger's last event in it: a ledger that lost its end has another there, or none."""
    state: IdentityState


class Identities:
    """All identities at a ledger position, and the task that follows the ledger.

    Args:
        log: the log whose ledger is folded.
        snapshot: where to keep a snapshot (mode 0600), or None for none.
        clock: ms since 1970 UTC, for the end of sessions.
    """

    def __init__(self, log: EventLog, snapshot: Path | None = None, clock: Callable[[], int] = now_ms) -> None:
        self._log = log
        self._snapshot = snapshot
        self._clock = clock
        self._saved = 0
        self._last = ""
        self._moved = asyncio.Event()
        self.state = IdentityState()
        self.next_offset = 0
        self.trouble = ""
        """Why the ledger cannot be followed just now, or empty."""

    @classmethod
    async def open(cls, log: EventLog, snapshot: Path | None = None) -> Identities:
        """Identities that have folded everything the ledger holds now."""
        identities = cls(log, snapshot)
        identities.load()
        await identities.check_ledger()
        await identities.catch_up()
        return identities

    # ------------------------------------------------------------------------------------------------- asking

    def authenticate(self, authorization: bytes | None, cookie: bytes | None = None) -> Principal:
        """Who a request is from; see `identity.authenticate`.

        Raises:
            Unauthenticated: no key or session of it is in force.
        """
        return identity.authenticate(self.state, authorization, cookie, self._clock())

    def open_session(self, token: str) -> tuple[str, SessionOpened]:
        """A session's cookie value and its event, from a login link's token.

        The ledger's fold decides whether it counts: append the event, wait for its offset, ask `has_session`.

        Raises:
            Unauthenticated: the link is unknown, used or expired already.
        """
        offer = self.state.offers.get(sha256_hex(token))
        if offer is not None:
            secret, event = identity.open_session(offer.user, token)
            if identity.session_refused(self.state, event, self._clock()) is None:
                return secret, event
        raise Unauthenticated(
            "expected a login link that was not used before and has not expired", hint="make another: icecore login"
        )

    def has_session(self, secret: str) -> bool:
        """Whether a session's cookie value is in force."""
        session = self.state.sessions.get(sha256_hex(secret))
        return session is not None and self._clock() < session.expires_ts

    def every_key(self) -> list[Key]:
        """Every key, revoked ones among them, in the order they were made."""
        return list(self.state.keys.values())

    def key_refused(self, event: KeyCreated | KeyRevoked) -> str | None:
        """Why the fold would reject a new key, or a key's end, now; None where it would not."""
        if isinstance(event, KeyCreated):
            return identity.key_refused(self.state, event)
        return identity.revocation_refused(self.state, event)

    async def wait_for(self, next_offset: int, within: float) -> bool:
        """Wait until the ledger is folded up to `next_offset`; False after `within` seconds. Needs `follow`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.next_offset < next_offset:
                    self._moved.clear()
                    await self._moved.wait()
        return self.next_offset >= next_offset

    # ---------------------------------------------------------------------------------------------- following

    async def catch_up(self) -> None:
        """Fold what the ledger holds beyond what is folded."""
        while True:
            batch = await self._log.read(PLACE, self.next_offset)
            if not batch.records:
                return
            changed = self.fold_batch(batch.records)
            self.next_offset, self._last = batch.next_offset, batch.records[-1].envelope.id
            self._moved.set()
            if changed or self.next_offset - self._saved >= SNAPSHOT_EVERY:
                self.save()

    async def follow(self) -> None:
        """Keep up with the ledger until cancelled. A log that cannot be read is tried again."""
        others = {Place(METRICS, partition): NEVER for partition in range(self._log.partitions[METRICS])}
        while True:
            try:
                await self.catch_up()
                self.trouble = ""
                await self._log.wait(Token({**others, PLACE: self.next_offset}), _WAIT_S)
            except LogError as error:
                self.trouble = error.message
                await asyncio.sleep(_RETRY_S)

    def fold_batch(self, records: Sequence[StoredRecord]) -> bool:
        """Fold the identity events among some records; answers whether there were any."""
        changed = False
        for record in records:
            if record.envelope.type not in IDENTITY_TYPES:
                continue
            try:
                event = decode_event(record.envelope, record.payload)
            except BadRequest:
                continue  # the store keeps such a record as a dead letter; it cannot give anybody access
            if event is not None:
                identity.fold(self.state, event, record.envelope.ts_server)
                changed = True
        return changed

    # ----------------------------------------------------------------------------------------------- snapshot

    def load(self) -> None:
        """Start from the snapshot, where there is a good one of this log."""
        if self._snapshot is None:
            return
        try:
            snapshot = msgspec.convert(orjson.loads(self._snapshot.read_bytes()), Snapshot)
        except (OSError, orjson.JSONDecodeError, msgspec.ValidationError):
            return
        if snapshot.format == SNAPSHOT_FORMAT and snapshot.log_id == self._log.log_id and snapshot.next_offset >= 0:
            self.state, self.next_offset, self._saved = snapshot.state, snapshot.next_offset, snapshot.next_offset
            self._last = snapshot.last

    async def check_ledger(self) -> None:
        """Let go of a snapshot that the ledger does not bear out: it lost its end, and may have grown again since.

        From such a snapshot on, a key revoked at one of the lost offsets would stay good.
        """
        if not self.next_offset:
            return
        try:
            batch = await self._log.read(PLACE, self.next_offset - 1, records=1)
        except LogCorrupt:  # another damage: what was folded from that record is still right
            return
        if not batch.records or batch.records[0].envelope.id != self._last:
            self.state, self.next_offset, self._saved, self._last = IdentityState(), 0, 0, ""

    def save(self) -> None:
        """Write the snapshot, by rename. It only saves time: a folder that cannot be written is no error."""
        if self._snapshot is None:
            return
        body: dict[str, Any] = msgspec.to_builtins(
            Snapshot(SNAPSHOT_FORMAT, self._log.log_id, self.next_offset, self._last, self.state)
        )
        part = self._snapshot.with_name(f".{self._snapshot.name}.{os.getpid()}")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
                file.write(orjson.dumps(body))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._snapshot)
        except OSError:
            part.unlink(missing_ok=True)
            return
        self._saved = self.next_offset


async def found_owner(log: EventLog, user: str = OWNER, secret: str = "") -> str | None:
    """Make the first user of a log that has none, and a key for it: `secret`, or a random one.

    Returns:
        The key, which is not shown again; None where there is a user already.
    """
    if (await Identities.open(log)).state.users:
        return None
    secret, key = new_key(user, "first key", secret)
    await log.append(LEDGER, system_records([UserCreated(user=user), key]))
    return secret


def system_records(events: Sequence[Event]) -> list[Record]:
    """Events of the server's own, as the records of one producer."""
    producer, now = str(uuid.uuid4()), now_ms()
    return [
        Record(
            event.key,
            Envelope(uuid7(now), event.TYPE, event.VERSION, producer, seq, now, now, actor="system"),
            encode_event(event),
        )
        for seq, event in enumerate(events)
    ]
