"""From records to events: what cannot be decoded is dead, what is not known here is skipped."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from icecore.codec import decode_event, parse_json
from icecore.events import NEWEST, Event, MetricsLogged, SystemLogged
from icecore.log import Batch, StoredRecord
from icecore.position import Place
from icecore_projections.folds import Applied
from icecore_projections.folds.metrics import packed
from icecore_projections.poison import Dead, said

_COLUMNAR: Final[dict[tuple[str, int], type[MetricsLogged | SystemLogged]]] = {
    (cls.TYPE, cls.VERSION): cls for cls in (MetricsLogged, SystemLogged) if NEWEST[cls.TYPE] is cls
}


@dataclass(slots=True)
class Decoded:
    """A batch of one partition, decoded."""

    place: Place
    next_offset: int
    ts_server: int
    records: Sequence[StoredRecord]
    events: list[Applied] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    skipped: list[StoredRecord] = field(default_factory=list)
    """Of types or versions that this release does not know."""


def decode(batch: Batch) -> Decoded:
    """Decode the records of a batch; what cannot be decoded is dead, and what is not known here is skipped."""
    decoded = Decoded(batch.place, batch.next_offset, 0, batch.records)
    for record in batch.records:
        envelope = record.envelope
        decoded.ts_server = max(decoded.ts_server, envelope.ts_server)
        try:
            event = _decode(record)
        except Exception as error:  # noqa: BLE001 - an upcaster may fail in any way; the others must go on
            decoded.dead.append(Dead(record, said(error)))
            continue
        if event is None:
            decoded.skipped.append(record)
        else:
            decoded.events.append(Applied(record.position, envelope, record.key, event))
    return decoded


def _decode(record: StoredRecord) -> Event | None:
    """`decode_event`, but the columns that nearly all of the metrics stream consists of become arrays at once.

    An event with a block that breaks a rule stays as it is: the fold says what is wrong with it.
    """
    cls = _COLUMNAR.get((record.envelope.type, record.envelope.v))
    if cls is None:
        return decode_event(record.envelope, record.payload)
    body = parse_json(record.payload)
    run, blocks = body.get("run"), body.get("blocks")
    if len(body) == 2 and type(run) is str and type(blocks) is list and all(type(block) is dict for block in blocks):
        event = cls(run=run, blocks=blocks)
        with contextlib.suppress(Exception):
            event = cls(run=run, blocks=packed(event))  # type: ignore[arg-type]
        return event
    return decode_event(record.envelope, body)
