"""Which blobs versions name: manifests, read once and remembered as numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from icecore.errors import BlobDamaged, NotFound
from icecore_api.blobs.store import BlobStore

REMEMBERED: Final = 4_000_000
"""Numbers of blobs, and of entries of manifests, that are remembered between two questions."""
_AT_ONCE: Final = 8

Numbers = npt.NDArray[np.int64]
_NONE: Final[Numbers] = np.zeros(0, np.int64)


class Known:
    """Numbers for digests, and for each manifest the numbers of its blobs, itself included. It only ever grows."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._digests: list[bytes] = []
        self._sizes: list[int] = []
        self._manifests: dict[str, Numbers] = {}
        self._entries = 0

    def __len__(self) -> int:
        """Numbers of blobs, and of entries of manifests, that it holds."""
        return len(self._digests) + self._entries

    def unread(self, manifests: Iterable[str]) -> list[str]:
        """Those of some manifests that are not there, or damaged."""
        return [digest for digest in manifests if digest not in self._manifests]

    def of(self, manifests: Iterable[str]) -> Numbers:
        """The blobs of some manifests that were read, each once."""
        found = [self._manifests.get(digest, _NONE) for digest in manifests]
        return np.unique(np.concatenate(found)) if found else _NONE

    @property
    def sizes(self) -> Numbers:
        """Bytes of each blob, by number."""
        return np.array(self._sizes, np.int64)

    def number(self, digest: str) -> int | None:
        """A blob's number; None where no manifest that was read names it."""
        return self._numbers.get(bytes.fromhex(digest))

    def digests(self, numbers: Iterable[int]) -> list[str]:
        """Blobs by their numbers."""
        return [self._digests[number].hex() for number in numbers]

    def take(self, digest: str, data: bytes) -> None:
        """Take in a manifest."""
        entries: dict[str, dict[str, Any]] = orjson.loads(data)["entries"]
        named = {entry["digest"]: entry["size"] for entry in entries.values() if "ref" not in entry}
        numbers = [self._number(bytes.fromhex(digest), len(data))]
        numbers += [self._number(bytes.fromhex(blob), size) for blob, size in named.items()]
        self._manifests[digest] = np.unique(np.array(numbers, np.int64))
        self._entries += len(self._manifests[digest])

    def _number(self, digest: bytes, size: int) -> int:
        number = self._numbers.setdefault(digest, len(self._digests))
        if number == len(self._digests):
            self._digests.append(digest)
            self._sizes.append(size)
        return number


class Contents:
    """Reads manifests, one question after the other, and remembers them for the next one."""

    def __init__(self, blobs: BlobStore, remembered: int = REMEMBERED) -> None:
        self._blobs = blobs
        self._remembered = remembered
        self._known = Known()
        self._turn = asyncio.Lock()

    async def read(self, manifests: Collection[str]) -> Known:
        """Take in manifests; those that are not there, or damaged, name nothing.

        What is answered stays whole for whoever asked, also where the next question finds it too large and begins anew.
        """
        async with self._turn:
            if len(self._known) > self._remembered:
                self._known = Known()
            known = self._known
            wanted = known.unread(dict.fromkeys(manifests))
            for first in range(0, len(wanted), _AT_ONCE):
                some = wanted[first : first + _AT_ONCE]
                for digest, data in zip(some, await asyncio.gather(*map(self._data, some)), strict=True):
                    if data is not None:
                        await asyncio.to_thread(known.take, digest, data)
            return known

    async def _data(self, digest: str) -> bytes | None:
        try:
            return await self._blobs.read(digest)
        except (NotFound, BlobDamaged):
            return None
