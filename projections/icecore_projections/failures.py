"""What DuckDB's errors mean for a store."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import duckdb

from icecore.errors import StoreDamaged, StoreError, StoreFull, StoreLocked, StoreTooNew


def told(error: Exception, path: Path, *, opening: bool = False) -> StoreError:
    """What a DuckDB error means for the store; while opening, what is not otherwise known is damage."""
    text = str(error)
    low = text.lower()
    if "could not set lock" in low or "conflicting lock" in low or "already open" in low:
        return StoreLocked(
            f"expected to be the only process with {path}, got: {text[:300]}",
            hint="stop the other icecore on this folder; `icecore status` shows its processes",
        )
    if "no space left" in low or "disk quota" in low or "file too large" in low:
        return StoreFull(
            f"expected space for {path}, got: {text[:300]}", hint="free some space; folding goes on by itself"
        )
    if "newer version" in low or "we can only read version" in low:
        return StoreTooNew(
            f"expected a file of DuckDB {duckdb.__version__} or older, got: {text[:300]}",
            hint="it is set aside, and the store is rebuilt from the log",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return StoreError(f"expected the batch to fit in memory, got: {text[:300]}", hint="free some memory")
    if any(mark in low for mark in _REFUSED):
        return StoreError(f"expected to read and write {path}, got: {text[:300]}", hint="check the folder's rights")
    if opening or any(mark in low for mark in _DAMAGE):
        return StoreDamaged(
            f"expected a readable store, got: {text[:300]} ({path})",
            hint="it is set aside, and the store is rebuilt from the log",
        )
    return StoreError(f"expected {path} to take the batch, got {type(error).__name__}: {text[:300]}")


_DAMAGE: Final = ("corrupt", "checksum")
_REFUSED: Final = ("permission denied", "read-only", "too many open files", "input/output error", "is a directory")
