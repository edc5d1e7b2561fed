"""Folds: pure functions from (state, events) to changes. No I/O, no clock, no randomness.

What a fold returns is data: rows to append, rows that replace others, columns to update. The store writes them in
one transaction with the offsets; the runner keeps the state between batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from icecore.events import Envelope, Event
from icecore.position import Position


@dataclass(frozen=True, slots=True)
class Applied:
    """One event as a fold sees it: decoded, at its newest version, never seen before."""

    position: Position
    envelope: Envelope
    key: str
    event: Event


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that meet those of a table by their key columns."""

    key: tuple[str, ...]
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Changes:
    """What a batch does to the tables; the store applies `delete`, `update`, `replace` and `append`, in this order."""

    append: Mapping[str, list[pa.Table]] = field(default_factory=dict)
    """Rows to add."""
    update: Mapping[str, list[Rows]] = field(default_factory=dict)
    """Rows whose other columns are set; every key is already there, once."""
    replace: Mapping[str, list[Rows]] = field(default_factory=dict)
    """Rows to insert in place of all rows with the same key."""
    delete: Mapping[str, list[Rows]] = field(default_factory=dict)
    """Keys whose rows go away."""

    @property
    def nbytes(self) -> int:
        """The bytes of all rows, as they are in memory."""
        keyed = (self.update, self.replace, self.delete)
        rows = sum(one.rows.nbytes for tables in keyed for parts in tables.values() for one in parts)
        return rows + sum(table.nbytes for tables in self.append.values() for table in tables)

    @staticmethod
    def merged(parts: Iterable[Changes]) -> Changes:
        """The changes of several folds, which never touch the same rows, as one."""
        parts = list(parts)
        return Changes(
            _joined(part.append for part in parts),
            _joined(part.update for part in parts),
            _joined(part.replace for part in parts),
            _joined(part.delete for part in parts),
        )


T = TypeVar("T")


def _joined(parts: Iterable[Mapping[str, list[T]]]) -> dict[str, list[T]]:
    whole: dict[str, list[T]] = {}
    for part in parts:
        for table, rows in part.items():
            whole.setdefault(table, []).extend(rows)
    return whole
