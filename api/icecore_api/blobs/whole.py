"""Blobs that are files of their own: DATA/blobs/whole/ab/abcd….

When a blob was touched is its file's time of modification.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from icecore_api.blobs.store import Erased, Kept, check_digest
from icecore_ingest.logs.segments import sync_folder

_NAME: Final = re.compile(r"[0-9a-f]{64}")


class Whole:
    """The folder of them. May be used from any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._text = os.fspath(folder)
        self._touching = threading.Lock()
        """What is touched is not removed in the same moment."""

    def path(self, digest: str) -> Path:
        """Where a blob's file is, or would be."""
        return self.folder / check_digest(digest)[:2] / digest

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """Bytes of those that are there."""
        found = {}
        folders = self._folders()
        for digest in digests:
            if digest[:2] not in folders:
                continue
            path = f"{self._text}/{digest[:2]}/{digest}"  # as text: paths as objects take five times as long
            if os.path.exists(path):  # noqa: PTH110
                with contextlib.suppress(FileNotFoundError):
                    found[digest] = os.stat(path).st_size  # noqa: PTH116
        return found

    def _folders(self) -> frozenset[str]:
        """Those that are there: of 100,000 small blobs, which lie in packs, none is looked for in vain."""
        try:
            return frozenset(os.listdir(self._text))  # noqa: PTH208 - as above
        except FileNotFoundError:
            return frozenset()

    def touch(self, digests: Sequence[str], now: float) -> dict[str, int]:
        """Bytes of those that are there, which are touched."""
        with self._touching:
            found = self.sizes(digests)
            for digest in found:
                os.utime(self.path(digest), (now, now))
        return found

    def names(self) -> Iterator[Path]:
        """The files."""
        return (path for path in sorted(self.folder.glob("??/*")) if _NAME.fullmatch(path.name))

    def each(self) -> Iterator[list[Kept]]:
        """Every blob, by folder."""
        for folder in sorted(self.folder.glob("??")):
            found = []
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as files:
                for file in files:
                    if _NAME.fullmatch(file.name):
                        with contextlib.suppress(FileNotFoundError):
                            stat = file.stat()
                            found.append(Kept(file.name, stat.st_size, stat.st_size, stat.st_mtime))
            if found:
                yield found

    def erase(self, digests: Iterable[str], not_touched_since: float) -> list[Erased]:
        """Remove some, durably. The caller holds the right to names."""
        erased, folders = [], set()
        for digest in digests:
            path = self.path(digest)
            with self._touching, contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if stat.st_mtime < not_touched_since:
                    path.unlink()
                    erased.append(Erased(digest, stat.st_size, stat.st_size))
                    folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)
        return erased
