"""What artifacts weigh, exactly: by team, project, collection, type or user.

All bytes are those of blobs as they were sent, manifests among them; only `disk…` are those of the blob store's files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

import duckdb
import numpy as np

from icecore_api.blobs.store import BlobStore
from icecore_api.retention.contents import Known, Numbers

By = Literal["team", "project", "collection", "type", "user"]
GROWTH_MS: Final = 30 * 86_400_000
"""Growth is what was added in so long."""
GB: Final = 1e9

_KEYS: Final[dict[By, str]] = {
    "team": "c.entity",
    "project": "concat_ws('/', c.entity, c.project)",
    "collection": "concat_ws('/', c.entity, c.project, c.name)",
    "type": "c.type",
    "user": "v.username",
}


class Held(NamedTuple):
    """A version whose bytes are there."""

    group: str
    digest: str
    size: int
    """Of its files, each as often as it has a name."""
    deleted: bool
    created_ts: int


def held(cursor: duckdb.DuckDBPyConnection, by: By) -> list[Held]:
    """The versions that are not erased, deleted ones among them."""
    found = cursor.execute(
        f"SELECT {_KEYS[by]}, v.digest, v.size, v.deleted, v.created_ts "  # noqa: S608 - texts of ours
        "FROM current_versions v JOIN current_collections c USING (artifact) "
        "WHERE coalesce(v.doc->>'$.ended.how', '') <> 'erased' ORDER BY v.off_first"
    ).fetchall()
    return [Held(*row) for row in found]


class Table:
    """Groups of versions and their bytes.

    Args:
        known: the manifests of all versions.
        versions: those whose bytes are there.
        now_ms: growth counts from here back.
        price: of a GB (1,000,000,000 bytes) for a month.
    """

    def __init__(self, known: Known, versions: Sequence[Held], now_ms: int, price: float) -> None:
        self._known = known
        self._sizes = known.sizes
        self._versions = versions
        self._since = now_ms - GROWTH_MS
        self._price = price
        self._live = self._numbers(versions, deleted=False)
        self._groups: dict[str, list[Held]] = {}
        for version in versions:
            self._groups.setdefault(version.group, []).append(version)
        self._owners = np.zeros(len(self._sizes), np.int64)
        for some in self._groups.values():
            self._owners[self._numbers(some, deleted=False)] += 1

    def rows(self) -> list[dict[str, Any]]:
        """A row for each group, the largest first."""
        rows = [
            {"group": name, **self._row(some, self._numbers(some, deleted=False))}
            for name, some in self._groups.items()
        ]
        return sorted(rows, key=lambda row: (-row["unique"], row["group"]))

    async def total(self, blobs: BlobStore) -> dict[str, Any]:
        """All of it, and what the disk says."""
        row = {"group": "", **self._row(self._versions, self._live)}
        usage = await blobs.usage()
        hidden = self._only_deleted(self._versions)
        weight = await blobs.weigh(self._known.digests(hidden.tolist()))
        return {
            **row,
            "blobs": usage.blobs,
            "stored": usage.logical,
            "uncommitted": usage.logical - row["unique"] - row["reclaimable"],
            "disk": usage.disk,
            "disk_reclaimable": weight.reclaimable,
            "price": usage.disk / GB * self._price,
        }

    def _row(self, some: Sequence[Held], live: Numbers) -> dict[str, Any]:
        old = self._known.of(version.digest for version in some if version.created_ts <= self._since)
        added = np.setdiff1d(self._known.of(version.digest for version in some), old, assume_unique=True)
        unique = self._bytes(live)
        return {
            "versions": sum(not version.deleted for version in some),
            "deleted": sum(version.deleted for version in some),
            "logical": sum(version.size for version in some if not version.deleted),
            "unique": unique,
            "shared": self._bytes(live[self._owners[live] > 1]),
            "reclaimable": self._bytes(self._only_deleted(some)),
            "growth": self._bytes(added),
            "price": unique / GB * self._price,
        }

    def _only_deleted(self, some: Iterable[Held]) -> Numbers:
        """Blobs of deleted versions that no version needs which is there."""
        return np.setdiff1d(self._numbers(some, deleted=True), self._live, assume_unique=True)

    def _numbers(self, some: Iterable[Held], *, deleted: bool) -> Numbers:
        return self._known.of(version.digest for version in some if version.deleted == deleted)

    def _bytes(self, numbers: Numbers) -> int:
        return int(self._sizes[numbers].sum())
