"""Texts and booleans of history: `texts` rows, and their share of the series' statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from icecore.errors import Invalid
from icecore_projections import arrow
from icecore_projections.folds.columns import Block, PerSegment, SlotOf
from icecore_projections.folds.series import NewSeries, SeriesState

_KINDS: Final[arrow.Columns] = {
    "series": pa.int32(),
    "step": pa.int64(),
    "ts": pa.int64(),
    "text": pa.string(),
    "off": pa.int64(),
}


class Texts:
    """Gathers the text or bool columns of a batch. Few points: plain Python."""

    def __init__(self) -> None:
        self._slots: list[int] = []
        self._steps: list[int] = []
        self._ts: list[int] = []
        self._texts: list[str] = []
        self._offs: list[int] = []
        self._segments: list[tuple[int, int, int, int, int, int]] = []
        self._last: list[tuple[int, int, str]] = []

    def add(
        self,
        columns: Mapping[str, Sequence[Any]],
        kind: type[str | bool],
        block: Block,
        off: int,
        slot_of: SlotOf,
    ) -> int:
        """Add the columns of a block with rows; how many values they hold.

        Raises:
            Invalid: a column's length is not the block's, or a value is of another kind.
        """
        steps, ts = block.steps.tolist(), block.ts.tolist()
        rows = len(steps)
        first = min(range(rows), key=lambda row: (steps[row], row))
        last = max(range(rows), key=lambda row: (steps[row], row))
        for key, column in columns.items():
            if len(column) != rows or set(map(type, column)) != {kind}:
                raise Invalid(f"expected {rows} values of {key!r}, each a {kind.__name__}")
            slot = slot_of(key)
            texts = list(column) if kind is str else ["true" if value else "false" for value in column]
            self._slots += [slot] * rows
            self._steps += steps
            self._ts += ts
            self._texts += texts
            self._offs += [off] * rows
            self._segments.append((slot, rows, off, steps[first], steps[last], ts[last]))
            self._last.append((slot, steps[last], texts[last]))
        return rows * len(columns)

    def __bool__(self) -> bool:
        return bool(self._slots)

    def table(self, new: NewSeries) -> pa.Table:
        """The rows of `texts`."""
        return arrow.table(_KINDS, [new.number(self._slots), self._steps, self._ts, self._texts, self._offs])

    def segments(self) -> PerSegment:
        """Statistics of each column: no least, most or total."""
        slot, rows, off, first_step, last_step, last_ts = np.array(self._segments, np.int64).T.copy()
        none = np.full(len(slot), np.nan)
        zero = np.zeros(len(slot), np.int64)
        return PerSegment(
            slot=slot,
            rows=rows,
            off=off,
            nans=zero,
            least=none,
            most=none,
            total=none * 0,
            first_step=first_step,
            first=none,
            last_step=last_step,
            last=none,
            last_ts=last_ts,
        )

    def last_texts(self, state: SeriesState) -> dict[int, str]:
        """The text at the highest step of each series touched, of equals the later."""
        at: dict[int, tuple[int, str]] = {}
        for slot, step, text in self._last:
            before = at.get(slot)
            if before is None and slot in state.last_text:
                before = at[slot] = (int(state.statistics["last_step"][slot]), state.last_text[slot])
            if before is None or step >= before[0]:
                at[slot] = (step, text)
        return {slot: text for slot, (_, text) in at.items()}
