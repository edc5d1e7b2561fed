"""The store's folder: which file serves, which one is being built, which ones may go.

CURRENT                 the name of the serving file, written by rename: a kill leaves the old name or the new
NNNNNN.duckdb           generations; all but the serving one are left-overs of a kill or a switch
REBUILD                 flock of whoever builds a new generation
damaged-TIME-N/         files set aside because they could not be opened
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from icecore.errors import StoreDamaged, StoreLocked, StoreTooNew
from icecore_projections.store import Store

_NAME: Final = re.compile(r"(\d{6,})\.duckdb")
_USED: Final = re.compile(r"(\d{6,})(?:\.duckdb.*)?$")
"""The number in the name of a generation, of what lies beside it, or of the folder it was set aside in."""
_DAMAGED_KEPT: Final = 3
"""Folders of damaged stores kept for a person to look at: a disk that rots must not be filled by them as well."""


def current(folder: Path) -> Path | None:
    """The serving file; None where there is none yet, or its name or the file is lost."""
    try:
        name = (folder / "CURRENT").read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    path = folder / name
    return path if _NAME.fullmatch(name) and path.is_file() else None


def fresh(folder: Path) -> Path:
    """The path of a new generation: above every one there is, so a name is never used twice."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    numbers = [int(found[1]) for path in folder.iterdir() if (found := _USED.search(path.name))]
    return folder / f"{max(numbers, default=0) + 1:06d}.duckdb"


def switch(folder: Path, path: Path) -> None:
    """Make `path`, which is closed and whole on disk, the serving file from the next open on."""
    draft = folder / "CURRENT.new"
    with draft.open("w", encoding="ascii") as file:
        file.write(path.name + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / "CURRENT")
    _sync(folder)


def clean(folder: Path) -> list[str]:
    """Remove what no open store needs: generations other than the serving one, unless one is being built.

    Returns:
        The names of the files removed.
    """
    try:
        with building(folder):
            return _clean(folder)
    except StoreLocked:
        return []


def _clean(folder: Path) -> list[str]:
    serving = current(folder)
    removed = []
    for path in sorted(folder.iterdir()):
        found = _NAME.match(path.name)
        if found and (serving is None or found[0] != serving.name):
            discard(path)
            removed.append(path.name)
    (folder / "CURRENT.new").unlink(missing_ok=True)
    return removed


def discard(path: Path) -> None:
    """Remove a store's file or what lies beside it: its write-ahead log, its spilled sorts."""
    for name in (path, path.with_name(path.name + ".wal"), path.with_name(path.name + ".tmp")):
        if name.is_dir():
            shutil.rmtree(name, ignore_errors=True)
        else:
            name.unlink(missing_ok=True)


@contextlib.contextmanager
def building(folder: Path) -> Iterator[None]:
    """Hold the right to build or remove generations; it ends with the process, however that ends.

    Raises:
        StoreLocked: another process or task holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / "REBUILD", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(
                f"expected no other rebuild in {folder}, got one that is under way", hint="wait for it, or stop it"
            ) from error
        yield
    finally:
        os.close(handle)


def set_aside(folder: Path, path: Path) -> Path:
    """Move a store that cannot be opened into a folder of its own, and let go of the oldest such folders."""
    aside = folder / f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{path.stem}"
    aside.mkdir(mode=0o700, exist_ok=True)
    for name in (path.name, path.name + ".wal"):
        with contextlib.suppress(FileNotFoundError):
            (folder / name).replace(aside / name)
    _sync(folder)
    for old in sorted(folder.glob("damaged-*"))[:-_DAMAGED_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return aside


def open_current(folder: Path, *, log_id: str, say: Callable[[str], None] = lambda _: None, **settings: Any) -> Store:
    """Open the serving store for folding; where it cannot be read, set it aside and begin a new one.

    The new one is empty: the runner folds the log into it from the first event on.

    Args:
        folder: DATA/store.
        log_id: the log that is folded.
        say: told a sentence when a store was set aside.
        settings: what `Store.open` takes: `memory_limit`, `threads`.

    Raises:
        StoreLocked, StoreAhead, StoreFull: see `Store.open`; the store stays where it is.
    """
    path = current(folder)
    if path is not None:
        try:
            store = Store.open(path, log_id=log_id, **settings)
        except (StoreDamaged, StoreTooNew) as error:
            aside = set_aside(folder, path)
            say(f"{error.message}. It was set aside in {aside}, and is rebuilt from the log")
        else:
            clean(folder)
            return store
    made = fresh(folder)
    store = Store.open(made, log_id=log_id, **settings)
    switch(folder, made)
    clean(folder)
    return store


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
