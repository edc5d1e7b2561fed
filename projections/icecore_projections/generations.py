"""The folder of the store: one generation in use, named by `CURRENT`; those that cannot be used are set aside."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from icecore.errors import StoreDamaged, StoreTooNew
from icecore_projections.store import Store

log = logging.getLogger(__name__)

CURRENT: Final = "CURRENT"
SUFFIX: Final = ".duckdb"
DAMAGED_KEPT: Final = 3
"""Stores set aside that are kept to be looked at; older ones are removed."""


class Opened(NamedTuple):
    """A store ready for the runner, and what a person should know about how it came to be."""

    store: Store
    notice: str
    """Empty where all is as it was left."""


class Stores:
    """The store folder `DATA/store`.

    Args:
        folder: made where it is missing.
        settings: what `Store.open` takes: `memory_limit`, `threads`.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self._settings: Mapping[str, Any] = settings

    def current(self) -> Path | None:
        """The file in use; None where there is none yet."""
        try:
            name = (self.folder / CURRENT).read_text().strip()
        except FileNotFoundError:
            return None
        path = self.folder / name
        return path if path.parent == self.folder and path.suffix == SUFFIX and path.is_file() else None

    def open(self, log_id: str) -> Opened:
        """Open the generation in use. One that is damaged or too new is set aside, and an empty one takes its place.

        Raises:
            StoreLocked: another process holds it.
            StoreAhead: it is of another log.
            StoreError: the folder cannot be used.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.current()
        if path is None:
            return Opened(self.begin(log_id), "")
        try:
            return Opened(Store.open(path, log_id=log_id, **self._settings), "")
        except (StoreDamaged, StoreTooNew) as error:
            return Opened(*self.replace(path, log_id, error.message))

    def replace(self, path: Path, log_id: str, reason: str) -> tuple[Store, str]:
        """Set `path` aside, which must be closed, and begin an empty generation; with what to tell a person."""
        aside = self.set_aside(path)
        notice = f"the store was set aside to {aside} and is being rebuilt from the log, which is whole: {reason}"
        log.warning("%s", notice)
        return self.begin(log_id), notice

    def begin(self, log_id: str) -> Store:
        """An empty generation, in use from now on."""
        path = self.fresh()
        store = Store.open(path, log_id=log_id, **self._settings)
        self.switch(path)
        return store

    def fresh(self) -> Path:
        """A path for a new generation; `switch` puts it to use."""
        taken = {path.name for path in self.folder.glob(f"*{SUFFIX}*")}
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        n = 0
        while any(name.startswith(f"{stamp}-{n}{SUFFIX}") for name in taken):
            n += 1
        return self.folder / f"{stamp}-{n}{SUFFIX}"

    def switch(self, path: Path) -> None:
        """Make `path` the generation in use: by a rename, so that a kill leaves the old or the new one."""
        beside = self.folder / f"{CURRENT}.{os.getpid()}.tmp"
        with beside.open("w") as file:
            file.write(path.name + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.folder / CURRENT)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def set_aside(self, path: Path) -> Path:
        """Move a file and its write-ahead log into `damaged-TIME`; the folder's path."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside, n = self.folder / f"damaged-{stamp}", 0
        while aside.exists():
            n += 1
            aside = self.folder / f"damaged-{stamp}-{n}"
        aside.mkdir()
        for file in self._files(path):
            file.rename(aside / file.name)
        for old in sorted(self.folder.glob("damaged-*"))[:-DAMAGED_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return aside

    def remove_leftovers(self) -> list[Path]:
        """Remove generations that are not in use: those of a rebuild that was killed. Call with no rebuild at work."""
        keep = self.current()
        gone = [path for path in self.folder.glob(f"*{SUFFIX}") if keep is not None and path != keep]
        for path in gone:
            for file in self._files(path):
                file.unlink(missing_ok=True)
        return gone

    def _files(self, path: Path) -> list[Path]:
        """The file and what DuckDB keeps beside it."""
        return sorted(file for file in self.folder.glob(f"{path.name}*") if file.is_file())
