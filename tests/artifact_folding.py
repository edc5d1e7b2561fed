"""Events of artifacts, and what the fold makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from icecore.artifact_events import AliasMoved, ArtifactCommitted
from icecore.codec import encode_event
from icecore.events import Envelope, Event
from icecore.log import Record
from icecore.position import LEDGER, Position
from icecore.testing.memory_log import MemoryLog
from icecore_projections.folds import Applied
from icecore_projections.folds.artifacts import ArtifactChanges, ArtifactState, fold
from icecore_projections.rebuild import digest_of
from icecore_projections.runner import Runner
from icecore_projections.store import Store

NAME: Final = "ann/digits/cnn"
RUN: Final = "ann/digits/r1"


def commit(digest: str = "d0", **fields: Any) -> ArtifactCommitted:
    """A version of the artifact."""
    given = {"artifact": NAME, "type": "model", "files": 2, "size": 10, "run": RUN, **fields}
    return ArtifactCommitted(digest=digest, **given)


def move(alias: str, version: int | None, **fields: Any) -> AliasMoved:
    """A move of an alias of the artifact."""
    return AliasMoved(artifact=NAME, alias=alias, version=version, **fields)


def applied(events: Sequence[Event], start: int = 0) -> list[Applied]:
    """Events as a fold sees them, a millisecond apart, the first at 1000 ms."""
    return [
        Applied(
            Position(LEDGER, 0, offset),
            Envelope(f"id-{offset}", event.TYPE, 1, "p", offset, 0, 1000 + offset, "ann", "key-1"),
            event.key,
            event,
        )
        for offset, event in enumerate(events, start)
    ]


def folded(*events: Event) -> ArtifactChanges:
    """What events make of nothing."""
    return fold(ArtifactState(), applied(events))


def reasons(changes: ArtifactChanges) -> list[str]:
    """Why events were rejected."""
    return [reason for _, reason in changes.rejected]


async def stored(folder: Path, events: Sequence[Event], pieces: Sequence[int]) -> tuple[str, list[Any]]:
    """The digest of a store that folded the events in pieces, a new runner for each; and its rejections."""
    log = MemoryLog()
    store = Store.open(folder / "s.duckdb", log_id=log.log_id)
    with contextlib.closing(store):
        start = 0
        for end in [*sorted(pieces), len(events)]:
            records = [
                Record(
                    event.key, Envelope(f"id-{seq}", event.TYPE, 1, "p", seq, 0, 1000 + seq, "ann"), encode_event(event)
                )
                for seq, event in enumerate(events[start:end], start)
            ]
            if records:
                await log.append(LEDGER, records)
                await Runner(log, store).catch_up()
            start = max(start, end)
        with store.reading() as con:
            rejected = con.execute("SELECT off, reason FROM rejections ORDER BY off").fetchall()
        return digest_of(store).hex, rejected
