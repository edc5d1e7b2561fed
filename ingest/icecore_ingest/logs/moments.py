"""From a time to the place in the log: the token of everything that was accepted up to then."""

from __future__ import annotations

from typing import Final

from icecore.log import EventLog, StoredRecord
from icecore.position import Place, Token

SKEW_MS: Final = 60_000
"""How far the clocks of the gateways of one log may be apart: so far is looked around the place that is found."""
_RECORDS: Final = 1_000


async def token_at(log: EventLog, ts_ms: int, until: Token | None = None) -> Token:
    """For each partition the offset after its last record with `ts_server <= ts_ms`.

    Where several gateways append to a partition, its times go up only roughly. Some dozens of records are read of
    each partition, and those around the time asked for.

    Args:
        log: the log.
        ts_ms: milliseconds since 1970 UTC.
        until: look no further than this; the log's end where nothing is said.

    Raises:
        LogError: a record cannot be read.
    """
    until = until or await log.end()
    start = await log.start()
    return Token(
        {place: await _next(log, place, start.next_offset(place), n, ts_ms) for place, n in until.as_dict().items()}
    )


async def _next(log: EventLog, place: Place, start: int, end: int, ts_ms: int) -> int:
    """The offset after the last record of that time or before it."""
    late = await _first_after(log, place, start, end, ts_ms + SKEW_MS)
    while late > start:  # everything from `late` on is later; what is before it is looked at from behind
        first = max(start, late - _RECORDS)
        for record in reversed(await _read(log, place, first, late)):
            if record.envelope.ts_server <= ts_ms:
                return record.position.next_offset
        late = first
    return 0


async def _first_after(log: EventLog, place: Place, low: int, high: int, ts_ms: int) -> int:
    """An offset from which on every record is later than `ts_ms`, give or take the clocks."""
    while low < high:
        middle = (low + high) // 2
        (record,) = await _read(log, place, middle, middle + 1)
        if record.envelope.ts_server > ts_ms:
            high = middle
        else:
            low = middle + 1
    return low


async def _read(log: EventLog, place: Place, first: int, end: int) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    while first + len(found) < end:
        batch = await log.read(place, first + len(found), records=end - first - len(found))
        if not batch.records:
            break
        found += batch.records
    return found
