"""Receipts of bytes that were erased: a row for what was to go, and one for what went. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from icecore.position import LEDGER, Place
from icecore.retention_events import BlobErased, BlobErasing
from icecore_projections.folds import Applied, Changes
from icecore_projections.streams import Folded


class ErasuresFold:
    """Keeps no state: each event is a row."""

    stream = LEDGER
    types = frozenset({BlobErasing.TYPE, BlobErased.TYPE})
    full = False

    def load(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Nothing is needed."""

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:  # noqa: ARG002 - one partition
        """The events' rows."""
        rows = [row for applied in events if (row := _row(applied)) is not None]
        if not rows:
            return Folded(Changes(), [], None)
        return Folded(Changes(append={"erasures": [pa.Table.from_pylist(rows)]}), [], None)

    def advance(self, folded: Folded) -> None:
        """Nothing is remembered."""

    def trim(self) -> None:
        """Nothing is remembered."""

    def forget(self) -> None:
        """Nothing is remembered."""


def _row(applied: Applied) -> dict[str, object] | None:
    event = applied.event
    if not isinstance(event, BlobErasing | BlobErased):
        return None
    return {
        "plan": event.plan,
        "kind": "erasing" if isinstance(event, BlobErasing) else "erased",
        "off": applied.position.offset,
        "ts": applied.envelope.ts_server,
        "username": applied.envelope.actor,
        "blobs": len(event.digests),
        "bytes": event.bytes,
        "done": isinstance(event, BlobErased) and event.done,
    }
