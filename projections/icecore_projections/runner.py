"""The runner: reads the log, folds it, commits it, and tells who waits. It alone moves the store on.

A step takes one batch from each partition that has news and commits them together. Nothing here remembers a
position: it is read from the store, so whatever fails, the next step starts where the last commit ended.

While a batch is written the next is read, decoded and folded in another thread: sorting, encoding and DuckDB's
writing leave Python's lock to it. What was folded ahead counts for nothing until the batch before it is committed,
and is forgotten with all states in memory where that fails.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pyarrow as pa

from icecore.errors import LogError, StoreDamaged, StoreError
from icecore.log import EventLog
from icecore.position import LEDGER, NEVER, Place, Token
from icecore_projections.decoding import Decoded, decode
from icecore_projections.dedupe import Dedupe
from icecore_projections.folds import Changes, Rows
from icecore_projections.ledger import LedgerFold
from icecore_projections.letters import dead_rows, rejected_rows, skipped_rows
from icecore_projections.poison import Dead, Guard, Mark, PoisonDominatesError, said, sift
from icecore_projections.store import Store, last_key
from icecore_projections.streams import MetricsFold, StreamFold

log = logging.getLogger(__name__)

RECORDS: Final = 12_000
BYTES: Final = 96 << 20
"""A batch: at most so many records or bytes of payload of one partition. While that many are waiting, a batch is
about five million points, which become a piece at once and are never written to the hot table. Two batches are in
memory, one decoded and one folded: about 1.5 GB at their largest."""

BYTES_LEAST: Final = 1 << 20
"""A partition's share of a batch is not smaller: one event may have this much."""

IDLE_S: Final = 3.0
"""Nothing came for so long: time to compact."""

GATHER_S: Final = 0.5
GATHERED: Final = 200
"""After a step of fewer records than this, wait so long for more: a few clients cost 2 commits a second at most."""

BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits between tries after an unexpected failure; the last one goes on."""

State = Literal["running", "waiting", "halted"]


@dataclass(slots=True)
class Status:
    """What the runner is doing, for `icecore status`. Counts are since the start."""

    state: State = "running"
    """`waiting` is for something to get better (a full disk, a log that cannot be read); `halted` for a person."""
    reason: str = ""
    records: int = 0
    duplicates: int = 0
    dead: int = 0


@dataclass(slots=True)
class Prepared:
    """Batches of one step, folded and not yet committed."""

    offsets: Mapping[Place, tuple[int, int]]
    """For each partition read, the next offset and the highest `ts_server`."""
    changes: Changes = field(default_factory=Changes)
    records: int = 0
    duplicates: int = 0
    dead: int = 0
    guarded: Mark = ()
    traces: frozenset[str] = frozenset()
    """`Envelope.trace` of the records that have one."""
    began_ns: int = 0
    """When its fold began, in ns since 1970."""
    fold_s: float = 0.0
    commit_s: float = 0.0

    def after(self, token: Token) -> Token:
        """Where the log is to be read on after this and `token`."""
        return token.merge(Token({place: next_offset for place, (next_offset, _) in self.offsets.items()}))


class Runner:
    """Folds `log` into `store`.

    Args:
        log: where records come from.
        store: where rows go; its token says where to read on.
        folds: one for each stream; the ones of this release where none are given.
        records: most records of a batch.
        size: about most bytes of payload of a batch.
        idle_s: seconds without news after which hot tables are compacted.
        backoff_s: waits between tries after a failure; the last one goes on.
        guard: how many records may die; the usual one where none is given.
        told: called with every batch that was committed, in the runner's event loop; must not raise.
    """

    def __init__(
        self,
        log: EventLog,
        store: Store,
        folds: Iterable[StreamFold] = (),
        *,
        records: int = RECORDS,
        size: int = BYTES,
        idle_s: float = IDLE_S,
        gather_s: float = GATHER_S,
        backoff_s: Sequence[float] = BACKOFF_S,
        guard: Guard | None = None,
        told: Callable[[Prepared], None] = lambda _: None,
    ) -> None:
        self.log = log
        self.store = store
        self.told = told
        self.status = Status()
        self._folds = {fold.stream: fold for fold in (tuple(folds) or (LedgerFold(), MetricsFold()))}
        self._dedupe = Dedupe()
        self._guard = guard or Guard()
        self._records = self._records_most = records
        self._size = size
        self._idle_s = idle_s
        self._gather_s = gather_s
        self._backoff_s = backoff_s
        self._places = [Place(stream, n) for stream, count in sorted(log.partitions.items()) for n in range(count)]
        self._ahead: asyncio.Task[Prepared | list[Decoded]] | None = None
        self._resumed = asyncio.Event()
        self._stepped = 0
        self._states = threading.Lock()
        """Held by who reads or moves the states of the folds."""
        self._epoch = 0
        """Raised when the states are forgotten: what was read ahead before that is not to be folded."""
        self._guarded = self._guard.mark()

    @property
    def state(self) -> State:
        """Running, waiting for something to get better, or halted for a person to look."""
        return self.status.state

    # ------------------------------------------------------------------------------------------------- one step

    async def step(self) -> bool:
        """Fold one batch of each partition that has news; False where nothing has.

        While it is committed the next one is read, decoded and folded.

        Raises:
            PoisonDominatesError: too many records cannot be folded; nothing of the batch is committed.
            LogError, StoreError: nothing of the batch is committed; call `recover` before the next step.
        """
        try:
            batch = await self._next()
            if batch is None:
                return False
            self._ahead = asyncio.create_task(self._fold_ahead(batch.after(self.store.token())))
            await self._commit(batch)
        except BaseException:
            await self._drop_ahead()
            raise
        return True

    async def catch_up(self) -> Token:
        """Step until there is no news; what is folded then."""
        while await self.step():
            pass
        return self.store.token()

    async def recover(self) -> None:
        """After a failed step: forget what is in memory and open the store anew.

        Raises:
            StoreError: it cannot be opened.
        """
        await self._drop_ahead()
        await asyncio.to_thread(self.store.reopen)

    async def close(self) -> None:
        """Let go of what was read ahead; log and store stay open."""
        await self._drop_ahead()

    async def _drop_ahead(self) -> None:
        """Forget what is not committed: a batch that was folded ahead has moved the states on."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        await asyncio.to_thread(self._forget)

    def _forget(self) -> None:
        with self._states:  # a fold whose task was cancelled goes on in its thread
            self._epoch += 1
            self._dedupe.forget()
            self._guard.rewind(self._guarded)
            for fold in self._folds.values():
                fold.forget()

    async def _next(self) -> Prepared | None:
        """The batch that was folded ahead, or else one that is read and folded now."""
        ahead, self._ahead = self._ahead, None
        found = await ahead if ahead else None
        if isinstance(found, Prepared):
            return found
        batches = found or await self._read(self.store.token())
        return await asyncio.to_thread(self._prepare, batches, self._epoch) if batches else None

    async def _fold_ahead(self, token: Token) -> Prepared | list[Decoded]:
        """What comes after `token`, which is being committed: folded, unless that must wait for the commit."""
        epoch = self._epoch
        batches = await self._read(token)
        if not batches or any(batch.skipped for batch in batches) or self._dedupe.full or self._full():
            return batches
        return await asyncio.to_thread(self._prepare, batches, epoch, ahead=True)

    def _full(self) -> bool:
        return any(fold.full for fold in self._folds.values())

    async def _read(self, token: Token) -> list[Decoded]:
        end = await self.log.end()
        news = [place for place in self._places if end.next_offset(place) > token.next_offset(place)]
        # a batch is bounded as a whole: sixteen partitions that are all far behind share its bytes
        size = max(self._size // max(len(news), 1), BYTES_LEAST)
        batches = await asyncio.gather(
            *(self.log.read(place, token.next_offset(place), records=self._records, size=size) for place in news)
        )
        return await asyncio.to_thread(lambda: [decode(batch) for batch in batches if batch.records])

    def _prepare(self, batches: Sequence[Decoded], epoch: int, *, ahead: bool = False) -> Prepared:
        """Fold batches, one of each partition.

        With `ahead` the batches before them are not in the store yet: the states in memory have all that these
        changed, and what has to be loaded is what they did not touch. So nothing may be dropped from memory then.
        """
        with self._states:
            if epoch != self._epoch:
                raise StoreError("expected the batches before these to be committed, got a failure meanwhile")
            if not ahead:
                self._dedupe.trim()
                for fold in self._folds.values():
                    fold.trim()
            done = Prepared({batch.place: (batch.next_offset, batch.ts_server) for batch in batches})
            done.began_ns, began = time.time_ns(), time.perf_counter()
            done.traces = frozenset(found for batch in batches for r in batch.records if (found := r.envelope.trace))
            done.changes = Changes.merged([self._fold_place(batch, done) for batch in batches])
            done.guarded = self._guard.mark()
            done.fold_s = time.perf_counter() - began
        return done

    async def _commit(self, batch: Prepared) -> None:
        """Write a batch; where this task is cancelled meanwhile, the write is not left behind unfinished."""
        began = time.perf_counter()
        writing = asyncio.ensure_future(asyncio.to_thread(self.store.commit, batch.changes, batch.offsets))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait((writing,))
            raise
        self._guarded = batch.guarded
        self._stepped = batch.records
        self.status.records += batch.records
        self.status.duplicates += batch.duplicates
        self.status.dead += batch.dead
        batch.commit_s = time.perf_counter() - began
        self.told(batch)

    def _fold_place(self, batch: Decoded, done: Prepared) -> Changes:
        place, fold = batch.place, self._folds[batch.place.stream]
        with self.store.reading() as con:
            kept, producers = self._dedupe.fresh(con, place, batch.records)
            fresh = {record.position.offset: record for record in kept}
            events = [e for e in batch.events if e.position.offset in fresh and e.event.TYPE in fold.types]
            fold.load(con, events)
            skipped = skipped_rows(con, place, [r for r in batch.skipped if r.position.offset in fresh])
        folded, bad = sift(lambda part: fold.fold(place, part), events)
        dead = [letter for letter in batch.dead if letter.record.position.offset in fresh]
        dead += [Dead(fresh[offset], reason) for offset, reason in bad.items()]
        died = {letter.record.position.offset for letter in dead}
        self._guard.check([offset in died for offset in fresh], dead[-1].reason if dead else "")
        fold.advance(folded)
        done.records += len(batch.records)
        done.duplicates += len(batch.records) - len(kept)
        done.dead += len(dead)
        own = Changes(
            append={"dead_letters": [dead_rows(dead)]} if dead else {},
            replace={
                "producers": [Rows(("stream", "part", "producer"), producers)],
                "meta": [Rows(("key",), _last_row(batch))],
                **skipped,
            },
        )
        return Changes.merged([folded.changes, own, rejected_rows(folded.rejected)])

    # ------------------------------------------------------------------------------------------------- for ever

    async def run(self, stop: asyncio.Event) -> None:
        """Fold until `stop` is set. Failures are waited out; the position is never lost.

        Raises:
            StoreDamaged: the file cannot be read any more: set it aside and start over from the log.
        """
        failures = 0
        while not stop.is_set():
            try:
                moved = await self.step()
                self._is("running")
                failures, self._records = 0, self._records_most
                if moved and self._stepped < GATHERED:
                    await self._gather(stop)
                elif not moved and not await self._news(stop) and not stop.is_set():
                    await self._idle()
            except PoisonDominatesError as error:
                self._is("halted", str(error))
                await _first_of(stop.wait(), self._resumed.wait())
            except StoreDamaged as error:
                self._is("halted", str(error))
                raise
            except Exception as error:  # noqa: BLE001 - see below
                # a disk that is full, a log that cannot be read, a bug: nothing is lost by trying again, in
                # smaller batches in case memory was the reason
                self._is("waiting", said(error))
                await _first_of(stop.wait(), asyncio.sleep(self._backoff_s[min(failures, len(self._backoff_s) - 1)]))
                failures, self._records = failures + 1, max(1, self._records // 2)
                if not isinstance(error, LogError):  # reading the log harms no store: who reads it keeps its cursors
                    await self._try_recover()
        await self._drop_ahead()

    def resume(self) -> None:
        """Go on after a halt, with the count of dead records at zero."""
        self._guard.forgive()
        self._guarded = self._guard.mark()
        self._resumed.set()

    async def _try_recover(self) -> None:
        try:
            await self.recover()
        except StoreDamaged:
            raise
        except StoreError as error:
            self._is("waiting", said(error))

    def _is(self, state: State, reason: str = "") -> None:
        if state != self.status.state or reason != self.status.reason:
            log.log(logging.INFO if state == "running" else logging.WARNING, "folding is %s %s", state, reason)
        self.status.state, self.status.reason = state, reason
        self._resumed.clear()

    async def _news(self, stop: asyncio.Event) -> bool:
        """Wait for records, for a while; whether there are some."""
        token = self.store.token()
        await _first_of(stop.wait(), self.log.wait(token, self._idle_s))
        return not token.covers(await self.log.end())

    async def _gather(self, stop: asyncio.Event) -> None:
        """Let a trickle of data gather: a commit costs the same for one record as for a thousand.

        Anything in the ledger, which commands wait for, and any read that waits end it.
        """
        others = {place: NEVER for place in self._places if place.stream != LEDGER}
        ledger = Token({**self.store.token().as_dict(), **others})
        await _first_of(stop.wait(), self.store.wanted(), self.log.wait(ledger, self._gather_s))

    async def _idle(self) -> None:
        await asyncio.to_thread(self.store.tidy)

    # ------------------------------------------------------------------------------------------------- once more

    async def replay_dead_letters(self) -> tuple[int, int]:
        """Try the records set aside again, through the same code, each on its own.

        A record is applied late: ties and sums may differ in the last bit from a rebuild, which puts it in its
        place. Do not call while `run` or `step` is at work in another task.

        Returns:
            How many were applied now, and how many remain.
        """
        with self.store.reading() as con:
            letters = con.execute("SELECT stream, part, off, attempts FROM dead_letters ORDER BY ALL").fetchall()
        await self._drop_ahead()
        applied = 0
        for stream, part, off, attempts in letters:
            batch = await self.log.read(Place(stream, part), off, records=1)
            applied += await asyncio.to_thread(self._replay, decode(batch), attempts)
        return applied, len(letters) - applied

    def _replay(self, batch: Decoded, attempts: int) -> bool:
        """Fold one dead record; it was counted as applied when it was set aside, so the offsets stay."""
        fold = self._folds[batch.place.stream]
        events = [event for event in batch.events if event.event.TYPE in fold.types]
        with self.store.reading() as con:
            fold.load(con, events)
        folded, bad = sift(lambda part: fold.fold(batch.place, part), events)
        reasons = [letter.reason for letter in batch.dead] + list(bad.values())
        letters = dead_rows([Dead(batch.records[0], reason, attempts + 1) for reason in reasons])
        key = ("stream", "part", "off")
        if reasons:
            changes = Changes(replace={"dead_letters": [Rows(key, letters)]})
        else:
            gone = dead_rows([Dead(batch.records[0], "")])
            changes = Changes.merged(
                [folded.changes, Changes(delete={"dead_letters": [Rows(key, gone)]}), rejected_rows(folded.rejected)]
            )
            fold.advance(folded)
        try:
            self.store.commit(changes, {})
        except BaseException:
            self._forget()
            raise
        return not reasons


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Wait until one is done, and let go of the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _last_row(batch: Decoded) -> pa.Table:
    """The row of `meta` by which a store knows its log again."""
    last = batch.records[-1]
    return pa.table({"key": [last_key(batch.place)], "value": [f"{last.position.offset} {last.envelope.id}"]})
