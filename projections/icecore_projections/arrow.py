"""Arrow tables made in one way: typed columns, from lists or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

Columns = Mapping[str, pa.DataType]
"""Names and types of a table's columns, in order."""


def table(kinds: Columns, columns: Sequence[Any]) -> pa.Table:
    """A table of lists or NumPy arrays, one for each column of `kinds`."""
    return pa.table([column(c, kind) for c, kind in zip(columns, kinds.values(), strict=True)], names=list(kinds))


def column(values: Any, kind: pa.DataType | None = None, mask: Any = None) -> Any:
    """One column; where `mask` is true it is NULL."""
    return pa.array(values, kind, mask=mask)
