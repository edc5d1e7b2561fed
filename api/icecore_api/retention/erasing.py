"""Erasing what nobody needs, with receipts that agree with the bytes also after a kill.

1. The versions of the plan are said to be erased (`artifact.erased`); the fold declines where somebody restored one.
2. The plan is made anew from what the fold decided, and `blob.erasing` says which blobs are to go. A version that was
   deleted meanwhile waits for the next plan: it can be restored until the log says that it is erased.
3. The blobs go, and `blob.erased` says which went, and their bytes.
A process that is killed between 2 and 3 leaves a plan without its last receipt: the next one writes it, from what is
gone, and takes what is left into its own plan.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from icecore.codec import decode_event
from icecore.errors import Conflict, Unavailable
from icecore.events import Event, uuid7
from icecore.position import LEDGER, Place
from icecore.retention_events import ArtifactErased, BlobErased, BlobErasing
from icecore_api.context import Context, Principal, Report
from icecore_api.deps import reading_now
from icecore_api.queries.retention import Retention
from icecore_api.retention.clock import RetentionClock
from icecore_api.retention.contents import Contents
from icecore_api.retention.planning import Plan, make_plan
from icecore_api.submit import Commands

GRACE_S: Final = 7 * 86400.0
_DIGESTS: Final = 8_000
"""Digests of one event: half of what an event may hold."""
_VERSIONS: Final = 200
"""Events that are appended at once."""


class Eraser:
    """Plans, and carries them out, one at a time."""

    def __init__(self, context: Context, commands: Commands, clock: RetentionClock) -> None:
        self._context = context
        self._commands = commands
        self._clock = clock
        self._turn = asyncio.Lock()
        self.contents = Contents(context.blobs)
        self._committing: Counter[str] = Counter()
        """Manifests that are being committed -> by how many."""

    @contextlib.contextmanager
    def committing(self, manifest: str) -> Iterator[None]:
        """While a manifest is checked and becomes a version, what it names is needed."""
        self._committing[manifest] += 1
        try:
            yield
        finally:
            self._committing -= Counter([manifest])

    async def plan(self, grace_s: float) -> Plan:
        """What would be erased now.

        Raises:
            Unavailable: the clock jumped, and is not believed yet.
            BlobDamaged: the manifest of a version that is there cannot be read.
        """
        async with self._turn:
            return await self._plan(f"gc-{uuid7()}", grace_s, await self._begun())

    async def run(self, who: Principal, grace_s: float, report: Report) -> dict[str, Any]:
        """Erase what nobody needs. Answers the plan and what was freed.

        Raises:
            Unavailable, BlobDamaged: as in `plan`. Nothing was erased.
        """
        async with self._turn:
            begun = await self._recover(who)
            name = f"gc-{uuid7()}"
            plan = await self._plan(name, grace_s, begun)
            said = plan.as_json()
            if plan.versions.due:
                await self._say_erased(who, plan)
                plan = await self._plan(name, grace_s, begun, said=True)
            freed = await self._carry_out(who, plan, report)
            return {**said, **freed}

    # ------------------------------------------------------------------------------------------------- a plan

    async def _plan(self, name: str, grace_s: float, begun: Mapping[str, int], *, said: bool = False) -> Plan:
        now = self._clock.now_ms()
        if now is None and grace_s > 0:
            wait = self._clock.believed_in_s
            raise Unavailable(
                f"expected a clock that goes evenly, this server's has jumped; it is believed again in {wait:.0f} s",
                hint="try again then; `--grace 0s` asks no clock",
                retry_after=wait,
            )
        return await make_plan(
            self._context,
            self.contents,
            self._committing,
            plan=name,
            now_ms=self._context.clock_ms() if now is None else now,
            grace_s=grace_s,
            begun=begun,
            said=said,
        )

    async def _say_erased(self, who: Principal, plan: Plan) -> None:
        keys = plan.versions.due
        for first in range(0, len(keys), _VERSIONS):
            events: list[Event] = [
                ArtifactErased(artifact=key.artifact, version=key.version, plan=plan.id)
                for key in keys[first : first + _VERSIONS]
            ]
            try:
                await self._commands.submit(who, events)
            except Conflict:  # somebody restored one, or keeps it, in between: the plan is made anew
                continue

    async def _carry_out(self, who: Principal, plan: Plan, report: Report) -> dict[str, Any]:
        if not plan.digests and not plan.orphans:
            return {"freed": 0, "erased": 0, "receipts": []}
        orphans = [orphan.name for orphan in plan.orphans]
        for part, first in enumerate(range(0, max(len(plan.digests), 1), _DIGESTS)):
            digests = list(plan.digests[first : first + _DIGESTS])
            event = BlobErasing(
                plan=plan.id, part=part, bytes=plan.bytes, digests=digests, orphans=[] if part else orphans
            )
            await self._commands.submit(who, [event])
        gone: list[str] = []
        bytes_, freed, erased, receipts = 0, 0, 0, []
        async for some in self._context.blobs.erase(plan.digests, not_touched_since=plan.at):
            gone += [one.digest for one in some]
            bytes_ += sum(one.freed for one in some)
            erased += len(some)
            report({"done": erased, "total": len(plan.digests), "stage": "erasing"})
            while len(gone) >= _DIGESTS:
                receipt = BlobErased(plan=plan.id, digests=gone[:_DIGESTS], bytes=bytes_)
                receipts.append(str(await self._commands.submit(who, [receipt])))
                gone, freed, bytes_ = gone[_DIGESTS:], freed + bytes_, 0
        oldest = min((orphan.age_s for orphan in plan.orphans), default=0.0)
        removed = await self._context.blobs.remove_orphans(oldest) if plan.orphans else []
        left = sum(orphan.bytes for orphan in removed)
        last = BlobErased(plan=plan.id, digests=gone, orphans=[o.name for o in removed], bytes=bytes_ + left, done=True)
        receipts.append(str(await self._commands.submit(who, [last])))
        return {"freed": freed + bytes_ + left, "erased": erased, "receipts": receipts}

    # ---------------------------------------------------------------------------------------------- after a kill

    async def _begun(self) -> dict[str, int]:
        """What plans were to erase that were begun and not ended: digest -> when, ms since 1970."""
        found: dict[str, int] = {}
        for _, offsets, _, _ in await self._unfinished():
            for event, ts in await self._events(offsets):
                if isinstance(event, BlobErasing):
                    found.update(dict.fromkeys(event.digests, ts))
        return found

    async def _recover(self, who: Principal) -> dict[str, int]:
        """Write the last receipts of plans that were cut off. Answers what they have left to do."""
        begun: dict[str, int] = {}
        for plan, offsets, planned, freed in await self._unfinished():
            wanted: dict[str, int] = {}
            told: set[str] = set()
            orphans: set[str] = set()
            for event, ts in await self._events(offsets):
                if isinstance(event, BlobErasing):
                    wanted.update(dict.fromkeys(event.digests, ts))
                    orphans |= set(event.orphans)
                elif isinstance(event, BlobErased):
                    told |= set(event.digests)
            there = await self._there([digest for digest in wanted if digest not in told])
            gone = [digest for digest in wanted if digest not in told and digest not in there]
            waiting = [orphan for orphan in await self._context.blobs.orphans() if orphan.name in orphans]
            weight = await self._context.blobs.weigh(there)
            left = planned - freed - weight.reclaimable - sum(orphan.bytes for orphan in waiting)
            orphans -= {orphan.name for orphan in waiting}
            await self._receipts(who, plan, gone, sorted(orphans), max(left, 0))
            begun.update({digest: wanted[digest] for digest in there})
        return begun

    async def _receipts(self, who: Principal, plan: str, gone: list[str], orphans: list[str], freed: int) -> None:
        while len(gone) > _DIGESTS:
            await self._commands.submit(who, [BlobErased(plan=plan, digests=gone[:_DIGESTS])])
            gone = gone[_DIGESTS:]
        last = BlobErased(plan=plan, digests=gone, orphans=orphans, bytes=freed, done=True)
        await self._commands.submit(who, [last])

    async def _there(self, digests: list[str]) -> set[str]:
        """Those of some blobs that are there; looked at without touching them."""
        wanted, found = set(digests), set()
        async for some in self._context.blobs.all_blobs():
            found |= {blob.digest for blob in some if blob.digest in wanted}
        return found

    async def _unfinished(self) -> list[tuple[str, list[int], int, int]]:
        async with reading_now(self._context) as reading:
            return await run_in_threadpool(Retention(reading.cursor).unfinished)

    async def _events(self, offsets: list[int]) -> list[tuple[Event, int]]:
        """Events of the ledger, and when they were taken."""
        found = []
        for offset in offsets:
            batch = await self._context.log.read(Place(LEDGER, 0), offset, records=1)
            decoded = [(decode_event(one.envelope, one.payload), one.envelope.ts_server) for one in batch.records[:1]]
            found += [(event, ts) for event, ts in decoded if event is not None]
        return found
