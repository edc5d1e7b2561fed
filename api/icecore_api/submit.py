"""Commands: append an event, wait for its fold, read the decision.

Commands that come while others are being appended are appended together, next: one fsync, one batch of the fold and
one look at the rejections for all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from icecore import tracing
from icecore.codec import encode_event
from icecore.errors import Conflict, IcecoreError, LogError, NotFound
from icecore.events import Envelope, Event, uuid7
from icecore.log import Record
from icecore.position import LEDGER, Position, Token
from icecore_api.context import Context, Principal, Store
from icecore_api.deps import wait_for

_UNKNOWN: Final = "no such "
"""What a fold's reason begins with where a name is nobody's."""
_TOGETHER: Final = 256
"""Commands that are appended at once, at most."""
_BYTES: Final = 4 << 20
"""Bytes of their payloads after which no further one joins."""
_REJECTIONS: Final = "SELECT part, off, reason FROM rejections WHERE stream = $stream AND off BETWEEN $first AND $last"
_NEXT: Final = (
    ("that nothing keeps", "release the hold, unlink it, delete the bundle or take the alias away; then again"),
    ("without aliases", "`--with-aliases` or `delete_aliases=True` takes its aliases away, too"),
    ("another credential", "`icecore promote list` shows who asked: somebody else approves it"),
    ("is asked for already", "`icecore promote approve ID` applies it, `icecore promote reject ID` closes it"),
    ("as it always did", "give what is of another type another name"),
    ("no such version", "`icecore artifact versions NAME` lists them"),
    ("no such artifact", "`icecore artifacts PROJECT` lists them"),
    (", found v", "somebody moved it: `icecore alias history NAME:ALIAS` says who, when and why"),
    ("is erased", "log the same files again to have it back"),
)
"""Words of a fold's reason -> what to do next; the first that is in it counts."""


class Rejected(Conflict):
    """The fold decided against a command."""

    def __init__(self, reason: str, **facts: str) -> None:
        super().__init__(reason, hint=_hint(reason), **facts)


def rejected(reason: str, **facts: str) -> IcecoreError:
    """The error for a fold's reason: what it does not know is `NotFound`, everything else `Rejected`."""
    if reason.startswith(_UNKNOWN):
        return NotFound(reason, hint=_hint(reason), **facts)
    return Rejected(reason, **facts)


def _hint(reason: str) -> str:
    return next((hint for words, hint in _NEXT if words in reason), "")


@dataclass(frozen=True, slots=True, eq=False)
class _Command:
    """What somebody waits for."""

    who: Principal
    events: Sequence[Event]
    payloads: Sequence[bytes]
    trace: str
    appended: asyncio.Future[tuple[list[Position], _Decisions]]


@dataclass(slots=True, eq=False)
class _Decisions:
    """What the fold decided on commands that were appended together; asked once for all of them."""

    store: Store
    positions: list[Position]
    within_s: float
    _reasons: asyncio.Task[Mapping[tuple[int, int], str]] | None = field(default=None)

    async def reasons(self) -> Mapping[tuple[int, int], str]:
        """(partition, offset) -> why it was rejected, once all are folded.

        Raises:
            NotYet: they are not, in time.
        """
        if self._reasons is None:
            self._reasons = asyncio.create_task(self._read())
        return await asyncio.shield(self._reasons)

    async def _read(self) -> Mapping[tuple[int, int], str]:
        await wait_for(self.store, Token.after(self.positions), self.within_s)
        offsets = [position.offset for position in self.positions]
        bounds = {"stream": str(LEDGER), "first": min(offsets), "last": max(offsets)}
        with closing(self.store.cursor()) as cursor:
            return {(part, off): str(why) for part, off, why in cursor.execute(_REJECTIONS, bounds).fetchall()}


class Commands:
    """This process as a writer of the ledger: one producer, numbered without gaps."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seq = 0
        self._waiting: deque[_Command] = deque()
        self._appending: asyncio.Task[None] | None = None
        self._together = _TOGETHER
        self.seen: set[str] = set()
        """Paths of artifacts that are known to be there."""

    async def submit(self, who: Principal, events: Sequence[Event]) -> Token:
        """Append events in one piece, and wait until the fold has passed them.

        Returns:
            The token that covers them.

        Raises:
            Rejected: the fold decided against one; the message is its reason.
            NotFound: it does not know what one names.
            NotYet: appended and durable, but the fold is behind; the facts say which position to wait for.
            LogError: the log took nothing.
        """
        positions, decisions = await self._append(who, events)
        token = Token.after(positions)
        reasons = await decisions.reasons()
        for position in positions:
            if reason := reasons.get((position.partition, position.offset)):
                raise rejected(reason, position=str(position))
        return token

    async def append_only(self, who: Principal, event: Event) -> Position:
        """Append an event whose decision is read elsewhere; returns where it is."""
        (position,), _ = await self._append(who, [event])
        return position

    async def _append(self, who: Principal, events: Sequence[Event]) -> tuple[list[Position], _Decisions]:
        payloads = [encode_event(event) for event in events]
        appended: asyncio.Future[tuple[list[Position], _Decisions]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Command(who, events, payloads, tracing.sampled(), appended))
        if self._appending is None or self._appending.done():
            self._appending = asyncio.create_task(self._append_waiting())
        return await appended

    async def _append_waiting(self) -> None:
        """Append what waits, and what comes meanwhile. A caller who leaves before his turn is passed over."""
        while commands := self._next():
            try:
                await self._append_together(commands)
            except IcecoreError as error:
                if isinstance(error, LogError) or len(commands) == 1:
                    _fail(commands, error)
                else:  # it was one record's fault: each by itself, so that none fails for another's sake
                    self._waiting.extendleft(reversed(commands))
                    self._together = 1
                continue
            except BaseException as error:
                _fail([*commands, *self._waiting], error)
                self._waiting.clear()
                raise
            self._together = min(self._together * 2, _TOGETHER)

    def _next(self) -> list[_Command]:
        found: list[_Command] = []
        size = 0
        while self._waiting and len(found) < self._together and size < _BYTES:
            command = self._waiting.popleft()
            if not command.appended.done():
                found.append(command)
                size += sum(len(payload) for payload in command.payloads)
        return found

    async def _append_together(self, commands: Sequence[_Command]) -> None:
        """One append, in order of the numbers; where it fails they are used again, so none is ever missing."""
        now = self._context.clock_ms()
        records: list[Record] = []
        for command in commands:
            for event, payload in zip(command.events, command.payloads, strict=True):
                envelope = Envelope(
                    id=uuid7(now),
                    type=event.TYPE,
                    v=event.VERSION,
                    producer=self._context.producer,
                    seq=self._seq + len(records),
                    ts_client=now,
                    ts_server=now,
                    actor=command.who.user,
                    credential=command.who.credential,
                    trace=command.trace,
                )
                records.append(Record(event.key, envelope, payload))
        store = self._context.store
        positions = await self._context.log.append(LEDGER, records)
        self._seq += len(records)
        decisions = _Decisions(store, positions, max(self._context.wait_within_s, 5.0))
        at = 0
        for command in commands:
            own = positions[at : at + len(command.events)]
            at += len(own)
            if not command.appended.done():
                command.appended.set_result((own, decisions))


def _fail(commands: Iterable[_Command], error: BaseException) -> None:
    told = error if isinstance(error, Exception) else LogError("expected the server to go on, got its end")
    for command in commands:
        if not command.appended.done():
            command.appended.set_exception(told)
