"""Commands: append an event, wait for its fold, read the decision."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from icecore import tracing
from icecore.codec import encode_event
from icecore.errors import Conflict, IcecoreError
from icecore.events import Envelope, Event, uuid7
from icecore.log import Record
from icecore.position import LEDGER, Position, Token
from icecore_api.context import Context, Principal
from icecore_api.deps import wait_for

_REJECTION = "SELECT reason FROM rejections WHERE stream = $stream AND part = $part AND off = $off"


class Rejected(Conflict):
    """The fold decided against a command."""


class Commands:
    """This process as a writer of the ledger: one producer, numbered without gaps."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._seq = 0
        self._turn = asyncio.Lock()

    async def submit(self, who: Principal, events: Sequence[Event]) -> Token:
        """Append events in one piece, and wait until the fold has passed them.

        Returns:
            The token that covers them.

        Raises:
            Rejected: the fold decided against one; the message is its reason.
            NotYet: appended and durable, but the fold is behind; the facts say which position to wait for.
            LogError: the log took nothing.
        """
        positions = await self._append(who, events)
        token = Token.after(positions)
        store = self._context.store
        await wait_for(store, token, max(self._context.wait_within_s, 5.0))
        cursor = store.cursor()
        try:
            for position in positions:
                found = cursor.execute(
                    _REJECTION,
                    {"stream": position.stream, "part": position.partition, "off": position.offset},
                ).fetchone()
                if found:
                    raise Rejected(str(found[0]), position=str(position))
        finally:
            with contextlib.suppress(Exception):
                cursor.close()
        return token

    async def append_only(self, who: Principal, event: Event) -> Position:
        """Append an event whose decision is read elsewhere; returns where it is."""
        (position,) = await self._append(who, [event])
        return position

    async def _append(self, who: Principal, events: Sequence[Event]) -> list[Position]:
        """Append in order of the numbers; a number whose append failed is used again, so none is ever missing."""
        async with self._turn:
            now = self._context.clock_ms()
            records = [
                Record(
                    event.key,
                    Envelope(
                        id=uuid7(now),
                        type=event.TYPE,
                        v=event.VERSION,
                        producer=self._context.producer,
                        seq=self._seq + i,
                        ts_client=now,
                        ts_server=now,
                        actor=who.user,
                        credential=who.credential,
                        trace=tracing.sampled(),
                    ),
                    encode_event(event),
                )
                for i, event in enumerate(events)
            ]
            appending = asyncio.ensure_future(self._context.log.append(LEDGER, records))
            try:
                # a caller who leaves must not leave the outcome unknown: the numbers are taken or not
                positions = await asyncio.shield(appending)
            except asyncio.CancelledError:
                with contextlib.suppress(IcecoreError):
                    await appending
                    self._seq += len(records)
                raise
            self._seq += len(records)
            return positions
