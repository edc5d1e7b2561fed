"""Folds: pure functions from (state, events) to changes. No I/O, no clock, no randomness.

What a fold returns is data: rows to append, rows that replace others, columns to update. The store writes them in
one transaction with the offsets; the runner keeps the state between batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

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

    @staticmethod
    def merged(parts: Iterable[Changes]) -> Changes:
        """The changes of several folds, which never touch the same rows, as one."""
        whole = Changes({}, {}, {}, {})
        for part in parts:
            for mine, theirs in (
                (whole.append, part.append),
                (whole.update, part.update),
                (whole.replace, part.replace),
                (whole.delete, part.delete),
            ):
                for table, rows in theirs.items():
                    mine.setdefault(table, []).extend(rows)  # type: ignore[attr-defined]
        return whole
