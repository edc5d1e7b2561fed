"""Applied once: for each producer, the set of sequence numbers that were applied.

A client retries until it hears a success, so the log may hold a record twice. (producer, seq) names the record; the
second is dropped and counted. A missing number is a gap: visible, and healed when the number comes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import duckdb
import orjson
import pyarrow as pa

from icecore.log import StoredRecord
from icecore.position import Place
from icecore_projections import arrow

CACHED: Final = 200_000
"""Producers remembered between batches; above it all are dropped and loaded again on demand."""

_KINDS: Final[arrow.Columns] = {
    "stream": pa.string(),
    "part": pa.int32(),
    "producer": pa.string(),
    "key": pa.string(),
    "intervals": pa.string(),
    "duplicates": pa.int64(),
}


class Intervals:
    """A set of whole numbers as sorted, disjoint, non-touching intervals [first, last]."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[Sequence[int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in pairs:
            self._firsts.append(first)
            self._lasts.append(last)

    def add(self, number: int) -> bool:
        """Add `number`; False when it was there already."""
        firsts, lasts = self._firsts, self._lasts
        at = len(firsts) if not lasts or number > lasts[-1] else bisect_right(firsts, number)
        if at and number <= lasts[at - 1]:
            return False
        joins_left = at > 0 and lasts[at - 1] == number - 1
        joins_right = at < len(firsts) and firsts[at] == number + 1
        if joins_left and joins_right:
            lasts[at - 1] = lasts[at]
            del firsts[at], lasts[at]
        elif joins_left:
            lasts[at - 1] = number
        elif joins_right:
            firsts[at] = number
        else:
            firsts.insert(at, number)
            lasts.insert(at, number)
        return True

    def gaps(self) -> list[tuple[int, int]]:
        """What is missing below the highest number: inclusive [first, last] pairs."""
        expected, missing = 0, []
        for first, last in self.pairs():
            if first > expected:
                missing.append((expected, first - 1))
            expected = last + 1
        return missing

    def pairs(self) -> list[tuple[int, int]]:
        """The intervals, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def dumps(self) -> str:
        """As JSON: [[first, last], …]."""
        return orjson.dumps(self.pairs()).decode()

    @classmethod
    def loads(cls, text: str) -> Intervals:
        """What `dumps` wrote."""
        return cls(orjson.loads(text))


@dataclass(slots=True)
class Seen:
    """What was applied of one producer in one partition."""

    key: str
    """The key of its first record: for a client, the run."""
    intervals: Intervals = field(default_factory=Intervals)
    duplicates: int = 0


class Dedupe:
    """The producers' state, cached in memory; its table is written in the transaction of the batch.

    `forget` after a failed commit: the next batch loads again what the store holds.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[Place, str], Seen] = {}

    def fresh(
        self, con: duckdb.DuckDBPyConnection, place: Place, records: Sequence[StoredRecord]
    ) -> tuple[list[StoredRecord], pa.Table]:
        """The records not applied before, in order, and the `producers` rows to write with them."""
        self._load(con, place, {record.envelope.producer for record in records})
        touched: dict[str, Seen] = {}
        kept = []
        for record in records:
            producer = record.envelope.producer
            seen = touched.get(producer)
            if seen is None:
                seen = self._seen.get((place, producer))
                if seen is None:
                    seen = self._seen[place, producer] = Seen(record.key)
                touched[producer] = seen
            if seen.intervals.add(record.envelope.seq):
                kept.append(record)
            else:
                seen.duplicates += 1
        return kept, _rows(place, touched)

    def forget(self) -> None:
        """Drop everything remembered."""
        self._seen.clear()

    @property
    def full(self) -> bool:
        """Whether so much is remembered that `trim` would drop it."""
        return len(self._seen) > CACHED

    def trim(self) -> None:
        """Drop what is too much; only while all that was given out by `fresh` is committed."""
        if self.full:
            self.forget()

    def _load(self, con: duckdb.DuckDBPyConnection, place: Place, producers: set[str]) -> None:
        wanted = [producer for producer in producers if (place, producer) not in self._seen]
        if not wanted:
            return
        found = con.execute(
            "SELECT producer, key, intervals, duplicates FROM producers "
            "WHERE stream = ? AND part = ? AND producer IN (SELECT unnest(?::VARCHAR[]))",
            [place.stream, place.partition, wanted],
        ).fetchall()
        for producer, key, intervals, duplicates in found:
            self._seen[place, producer] = Seen(key, Intervals.loads(intervals), duplicates)


def _rows(place: Place, touched: dict[str, Seen]) -> pa.Table:
    n = len(touched)
    return arrow.table(
        _KINDS,
        [
            [place.stream] * n,
            [place.partition] * n,
            list(touched),
            [seen.key for seen in touched.values()],
            [seen.intervals.dumps() for seen in touched.values()],
            [seen.duplicates for seen in touched.values()],
        ],
    )
