"""Deliberate bugs, one at a time: what a simulation that finds nothing would have to be ashamed of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from icecore.errors import LogError, LogPoisoned
from icecore.log import Batch, Record, StoredRecord
from icecore.position import Place, Position, Token
from icecore.transport import Answer, Sender, Transport
from icecore_ingest.identities import Identities
from icecore_projections.dedupe import Dedupe
from icecore_projections.feed import Feed
from icecore_projections.folds import Changes
from icecore_projections.runner import Prepared, Runner
from simulation.clients import Client, Written
from simulation.faulty_log import FaultyLog
from simulation.light_store import LightStore
from simulation.nodes import GatewayNode, StoreNode
from simulation.world import Parts

# ------------------------------------------------------------------------------------------------------ the log


class AcknowledgedBeforeAppended(FaultyLog):
    """Appending answers at once with where the records should come to lie, and does it afterwards."""

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        end = await self.log.end()
        work = asyncio.ensure_future(super().append(stream, records))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return [Position(stream, 0, end.next_offset(Place(stream, 0)) + n) for n in range(len(records))]


class UnknownTakenForDone(FaultyLog):
    """A log that answers nothing is taken to have done what it was asked."""

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        try:
            return await super().append(stream, records)
        except LogPoisoned:
            raise
        except LogError:
            return [Position(stream, 0, 0)] * len(records)


# ---------------------------------------------------------------------------------------------------- the client


class DropsOnRetry(Client):
    """What got no answer is not sent again."""

    async def send(self, transport: Transport, sender: Sender, batch: Sequence[Written]) -> None:
        answer, token = await self.post(transport, batch)
        if answer.kind == "taken":
            self.note(batch, token)
        elif answer.kind != "unreachable":
            await super().send(transport, sender, batch)


class SendsWithoutOrder(Client):
    """The next batch is sent although the last is not acknowledged yet."""

    async def send(self, transport: Transport, sender: Sender, batch: Sequence[Written]) -> None:
        await asyncio.gather(*(super(SendsWithoutOrder, self).send(transport, sender, [one]) for one in batch))


class SendsOtherBytes(Client):
    """A retry carries another payload under the same (producer, seq)."""

    async def post(self, transport: Transport, batch: Sequence[Written]) -> tuple[Answer, Token]:
        again = [one._replace(frame=one.frame.replace(b'"run":', b'"again":1,"run":')) for one in batch]
        return await super().post(transport, again if self.spool.chance.random() < 0.2 else batch)


# --------------------------------------------------------------------------------------------------- the gateway


class _ForgetfulIdentities(Identities):
    """What a batch holds beyond its first record is passed over while following."""

    def fold_batch(self, records: Sequence[StoredRecord]) -> bool:
        return super().fold_batch(records[:1] if self.next_offset > 3 else records)


class ForgetfulGateway(GatewayNode):
    """Revocations are missed where several records come at once."""

    identities_class = _ForgetfulIdentities


# ----------------------------------------------------------------------------------------------------- the store


BETWEEN_S: Final = 0.05


def _soon(work: Callable[[], None]) -> None:
    """Do the second half of a commit a moment later, unless the process is killed first."""
    asyncio.get_running_loop().call_later(BETWEEN_S, work)


class _OffsetsFirst(LightStore):
    def _transact(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        self.disk.put("offsets", self.disk.with_offsets(offsets))
        _soon(lambda: self.disk.apply(changes, {}))


class OffsetsBeforeRows(StoreNode):
    """A crash between offsets and rows loses rows."""

    light_class = _OffsetsFirst


class _RowsFirst(LightStore):
    def _transact(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        known = {"producers": changes.replace["producers"]}
        self.disk.apply(replace(changes, replace={**changes.replace, "producers": []}), {})
        _soon(lambda: self.disk.apply(Changes(replace=known), offsets))


class RowsBeforeOffsets(StoreNode):
    """A crash between rows and what says that they are there folds records twice."""

    light_class = _RowsFirst


class _NoDedupe(Dedupe):
    """Every record is new."""

    def fresh(self, con: Any, place: Place, records: Sequence[StoredRecord]) -> tuple[list[StoredRecord], Any]:
        _, rows = super().fresh(con, place, records)
        return list(records), rows


class _RunnerWithoutDedupe(Runner):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._dedupe = _NoDedupe()


class NoDedupe(StoreNode):
    """What was sent twice is folded twice."""

    runner_class = _RunnerWithoutDedupe


class _EarlyRunner(Runner):
    async def _commit(self, batch: Prepared) -> None:
        self.store._token = batch.after(self.store._token)
        self.store._bell.ring()
        await super()._commit(batch)


class TokenTooEarly(StoreNode):
    """Readers are told that a position is folded before its rows are written."""

    runner_class = _EarlyRunner


class _RememberingRunner(Runner):
    def _forget(self) -> None:
        self._epoch += 1


class RemembersWhatFailed(StoreNode):
    """After a failed commit the states in memory are kept."""

    runner_class = _RememberingRunner


class _SkippingFeed(Feed):
    """A gap in what was delivered is not filled from the log."""

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        lane = self._lanes.get(place)
        first = lane[0].position.offset if lane else start
        return await super().read(place, max(start, first), records=records, size=size)


class SkipsGaps(StoreNode):
    """What the deliverer left out is never folded."""

    feed_class = _SkippingFeed


class _RepeatingFeed(Feed):
    """What is delivered again is read again, as if the store's offset did not matter."""

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        lane = self._lanes.get(place)
        first = lane[0].position.offset if lane else start
        return await super().read(place, min(start, first), records=records, size=size)


class ReadsAgain(StoreNode):
    """The deliverer's place decides, not the store's."""

    feed_class = _RepeatingFeed


class OpensWhatIsLocked(StoreNode):
    """A new process takes the store over while the old one may wake up."""

    def _open(self, process: Any) -> Any:
        self._holder = None
        return super()._open(process)


MUTANTS: Final[Mapping[str, Parts]] = {
    "acknowledged before it is appended": Parts(log=AcknowledgedBeforeAppended),
    "an unknown outcome taken for success": Parts(log=UnknownTakenForDone),
    "dropped on retry": Parts(client=DropsOnRetry),
    "sent without waiting for its turn": Parts(client=SendsWithoutOrder),
    "retried with other bytes": Parts(client=SendsOtherBytes),
    "revocations missed": Parts(gateway=ForgetfulGateway),
    "offsets committed before rows": Parts(store=OffsetsBeforeRows),
    "rows committed before offsets": Parts(store=RowsBeforeOffsets),
    "no dedupe": Parts(store=NoDedupe),
    "token too early": Parts(store=TokenTooEarly),
    "states kept after a failed commit": Parts(store=RemembersWhatFailed),
    "a feed that skips gaps": Parts(store=SkipsGaps),
    "a feed that reads again": Parts(store=ReadsAgain),
    "two processes with one store": Parts(store=OpensWhatIsLocked),
}
"""By what is wrong."""
