"""What nobody needs any more: a plan of versions and blobs to erase, with its exact bytes.

A blob is needed where the manifest of a version that is there names it; where that of a version names it that was
deleted or expired less than the grace ago, or that something keeps; where it is such a manifest itself; and where it
is under way: asked about or stored so lately that a commit may name it next.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
from starlette.concurrency import run_in_threadpool

from icecore.errors import BlobDamaged
from icecore_api.blobs.store import Orphan
from icecore_api.context import Context
from icecore_api.deps import reading_now
from icecore_api.queries.artifacts import Artifacts
from icecore_api.queries.retention import Retention
from icecore_api.retention.contents import Contents, Known, Numbers
from icecore_projections.folds.retention import VersionKey
from icecore_projections.schema import artifact_number

UNDER_WAY_S: Final = 300.0
"""A blob that belongs to no version, and the parts of one, count as under way for so long after they were touched, also
where the grace is shorter."""
PARTS_S: Final = 30 * 86_400.0
"""How long the parts of a version by several writers stay, until somebody finishes it."""
AGAIN_S: Final = 10.0
"""The same for a blob of a version that was deleted before it was touched: a client sends such a blob again if it
must."""


_PARTS: Final = """
WITH ends AS (
    SELECT artifact, distributed_id, max(upto) AS upto FROM draft_parts WHERE kind = 'finished' GROUP BY ALL
)
SELECT DISTINCT digest FROM (
    SELECT p.digest FROM draft_parts p LEFT JOIN ends USING (artifact, distributed_id)
    WHERE p.kind IN ('part', 'withdrawn') AND p.off >= coalesce(ends.upto, 0) AND p.ts >= $since
    GROUP BY artifact, distributed_id, p.digest HAVING arg_max(p.kind, p.off) = 'part'
)
"""


@dataclass(frozen=True, slots=True)
class Versions:
    """What the store says of versions, by manifest."""

    live: frozenset[str]
    """Manifests of versions that are there, or are kept, or were deleted within the grace."""
    dead: Mapping[str, int]
    """Manifests of the others -> when the last of their versions was deleted, ms since 1970."""
    due: tuple[VersionKey, ...]
    """Versions whose bytes are to go: dead, and not said to be erased yet."""
    waiting: int
    """Versions that were deleted within the grace, or after the log was told which are erased."""
    kept: int
    """Deleted versions that something keeps."""
    parts: frozenset[str]
    """Manifests of what several writers have made of versions that nobody finished yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to go."""

    id: str
    at: float
    """Seconds since 1970, before anything was looked at: what is touched later stays."""
    grace_s: float
    versions: Versions
    digests: tuple[str, ...]
    orphans: tuple[Orphan, ...]
    blob_bytes: int
    """By how much the files of the blob store become smaller."""
    under_way: int
    """Blobs that belong to no version, and are left alone for now."""
    uncommitted: int
    """Blobs of the plan that belong to no version."""

    @property
    def orphan_bytes(self) -> int:
        """Of what interrupted uploads have left."""
        return sum(orphan.bytes for orphan in self.orphans)

    @property
    def bytes(self) -> int:
        """All that is freed."""
        return self.blob_bytes + self.orphan_bytes

    def as_json(self) -> dict[str, Any]:
        """As it is answered."""
        return {
            "plan": self.id,
            "grace_s": self.grace_s,
            "bytes": self.bytes,
            "blob_bytes": self.blob_bytes,
            "orphan_bytes": self.orphan_bytes,
            "blobs": len(self.digests),
            "uncommitted": self.uncommitted,
            "orphans": len(self.orphans),
            "versions": [key.scope for key in self.versions.due],
            "waiting": self.versions.waiting,
            "kept": self.versions.kept,
            "under_way": self.under_way,
        }


async def make_plan(
    context: Context,
    contents: Contents,
    committing: Collection[str],
    *,
    plan: str,
    now_ms: int,
    grace_s: float,
    begun: Mapping[str, int] | None = None,
    said: bool = False,
) -> Plan:
    """Look at every version and every blob.

    Args:
        context: of the process that has the blobs.
        contents: reads manifests.
        committing: manifests that are being committed now; looked at before the versions are.
        plan: its id.
        now_ms: by a clock that is believed.
        grace_s: how long ago a version must have been deleted.
        begun: digests that an earlier plan was to erase -> when, ms since 1970.
        said: whether the log says already which versions are erased: the others can be restored, and stay.

    Raises:
        BlobDamaged: the manifest of a version that is there cannot be read, so that nobody knows what it needs.
    """
    at = time.time()
    coming = set(committing)
    async with reading_now(context) as reading:
        reading.without_limit()
        reading.begin()
        versions = await run_in_threadpool(look, reading.cursor, now_ms, grace_s, said=said)
    coming |= versions.parts
    known = await contents.read([*versions.live, *coming, *versions.dead])
    if unread := known.unread(versions.live):
        raise BlobDamaged(
            f"expected the manifests of all versions, got {len(unread)} that cannot be read, the first is {unread[0]}",
            hint="nothing was erased; `icecore scrub` says what is hurt",
            missing=unread[:100],
        )
    needed = await run_in_threadpool(_flags, known, [*versions.live, *coming])
    ended = await run_in_threadpool(_ended, known, versions.dead)
    chosen, under_way, uncommitted = [], 0, 0
    lately, again = at - max(grace_s, UNDER_WAY_S), at - max(grace_s, AGAIN_S)
    async for some in context.blobs.all_blobs():
        for blob in some:
            number = known.number(blob.digest)
            if (number is not None and number < len(needed) and needed[number]) or blob.digest in versions.live:
                continue
            since = ended.get(number) if number is not None else None
            since = max(since or 0, (begun or {}).get(blob.digest, 0)) or versions.dead.get(blob.digest)
            if blob.touched >= (lately if since is None else max(again, since / 1000)):
                under_way += 1
                continue
            chosen.append(blob.digest)
            uncommitted += since is None
    weight = await context.blobs.weigh(chosen)
    oldest = max(grace_s, UNDER_WAY_S)
    orphans = tuple(orphan for orphan in await context.blobs.orphans() if orphan.age_s >= oldest)
    return Plan(plan, at, grace_s, versions, tuple(chosen), orphans, weight.reclaimable, under_way, uncommitted)


def look(cursor: duckdb.DuckDBPyConnection, now_ms: int, grace_s: float, *, said: bool = False) -> Versions:
    """Which manifests are needed, as one state of the store says; `said` as in `make_plan`."""
    retention = Retention(cursor)
    hidden = retention.hidden(now_ms)
    found = Artifacts(cursor).by_number([(artifact_number(one.key.artifact), one.key.version) for one in hidden])
    standing = retention.of(list(found.values()))
    live = {
        digest
        for (digest,) in cursor.execute("SELECT DISTINCT digest FROM current_versions WHERE NOT deleted").fetchall()
    }
    dead: dict[str, int] = {}
    due, waiting, kept = [], 0, 0
    for one in hidden:
        if not one.erased and standing[one.key].kept:
            live.add(one.digest)
            kept += 1
        elif not one.erased and (said or one.since + grace_s * 1000 > now_ms):
            live.add(one.digest)
            waiting += 1
        else:
            dead[one.digest] = max(dead.get(one.digest, 0), one.since)
            due += [] if one.erased else [one.key]
    parts = cursor.execute(_PARTS, {"since": now_ms - round(max(grace_s, PARTS_S) * 1000)}).fetchall()
    gone = {digest: ts for digest, ts in dead.items() if digest not in live}
    return Versions(frozenset(live), gone, tuple(due), waiting, kept, frozenset(digest for (digest,) in parts))


def _flags(known: Known, manifests: Iterable[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    numbers: Numbers = known.of(manifests)
    flags = np.zeros(len(known.sizes), np.bool_)
    flags[numbers] = True
    return flags


def _ended(known: Known, dead: Mapping[str, int]) -> dict[int, int]:
    """Blob -> when the last version with it was deleted."""
    ended: dict[int, int] = {}
    for digest, since in dead.items():
        for number in known.of([digest]).tolist():
            ended[number] = max(ended.get(number, 0), since)
    return ended
