"""The folds of the ledger, one beside the other: they never touch the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from icecore.position import LEDGER, Place
from icecore_projections.artifact_state import ArtifactsFold
from icecore_projections.erasures import ErasuresFold
from icecore_projections.folds import Applied, Changes
from icecore_projections.streams import Folded, RunsFold, StreamFold


class LedgerFold:
    """Runs, artifacts, and bytes that went. Each event belongs to one of them."""

    stream = LEDGER

    def __init__(self) -> None:
        self._parts: tuple[StreamFold, ...] = (RunsFold(), ArtifactsFold(), ErasuresFold())
        self.types = frozenset().union(*(part.types for part in self._parts))

    def load(self, con: duckdb.DuckDBPyConnection, events: Sequence[Applied]) -> None:
        """Take in what the store says about the subjects of `events`."""
        for part in self._parts:
            part.load(con, _of(part, events))

    def fold(self, place: Place, events: Sequence[Applied]) -> Folded:
        """Fold the events of the ledger."""
        found = [part.fold(place, _of(part, events)) for part in self._parts]
        rejected = sorted((one for folded in found for one in folded.rejected), key=lambda one: one[0].position.offset)
        return Folded(Changes.merged([folded.changes for folded in found]), rejected, found)

    def advance(self, folded: Folded) -> None:
        """Make a result the state of the next fold."""
        if isinstance(folded.result, list):
            for part, own in zip(self._parts, folded.result, strict=True):
                part.advance(own)

    @property
    def full(self) -> bool:
        """Whether one of them remembers too much."""
        return any(part.full for part in self._parts)

    def trim(self) -> None:
        """Drop what is too much."""
        for part in self._parts:
            part.trim()

    def forget(self) -> None:
        """Drop the states."""
        for part in self._parts:
            part.forget()


def _of(part: StreamFold, events: Sequence[Applied]) -> list[Applied]:
    return [event for event in events if event.event.TYPE in part.types]
