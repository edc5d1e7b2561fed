"""Blobs to the server: only those it lacks, small ones together, large ones in parts that outlive a kill."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from icecore.errors import Conflict, DigestMismatch, IcecoreError, UsageError
from icecore.hashing import LocalFile
from icecore.transfer import PACK_BLOBS, PACK_BYTES, PACKED_MOST, PART_BYTES, BlobClient, Progress, parallel

_PARTS_MOST: Final = 9_000
"""Below what servers and S3 take."""
_ASKED_OF_SEEN: Final = 1_000
_HELD_FILES: Final = 64
_HELD_BYTES: Final = 64 << 20
"""What memory is for, of all uploads of a process: checkpoints that the next one will be written over."""

Task = Callable[[], None]


def part_size(size: int) -> int:
    """Bytes of a part of a blob of so many: the same for every upload of it, so that they can go on from each other."""
    smallest = -(-size // _PARTS_MOST)
    return max(PART_BYTES, -(-smallest // (1 << 20)) << 20)


class Source(NamedTuple):
    """Where a blob's bytes come from: a file, or memory, which may hold what was in a file."""

    digest: str
    size: int
    file: LocalFile | None = None
    data: bytes = b""

    def part(self, start: int, size: int) -> bytes:
        """Some of the bytes; UsageError where the file has changed."""
        if self.file is None or self.data:
            return self.data[start : start + size]
        return self.file.read_part(start, size)

    def whole(self) -> bytes:
        """All bytes, checked."""
        if self.file is not None and self.file.held is not None and not self.data:
            kept = self.file.held.take(self.digest)
            if kept is not None:
                return kept
        data = self.part(0, self.size)
        if self.file is not None and hashlib.sha256(data).hexdigest() != self.digest:
            raise self.file.changed("other bytes")
        return data

    def explain(self, error: IcecoreError) -> IcecoreError:
        """What the server's refusal of these bytes means here."""
        if self.file is not None and isinstance(error, DigestMismatch):
            return self.file.changed("other bytes")
        return error


class Holding:
    """Files read before they are sent, within a bound, so that scripts may write over them meanwhile."""

    def __init__(self, most: int = _HELD_BYTES) -> None:
        self._left = most
        self._lock = threading.Lock()

    def hold(self, sources: dict[str, Source]) -> int:
        """Read an upload's files into memory, where they are few and small; how many bytes `let_go` is to be told."""
        size = sum(source.size for source in sources.values() if source.file is not None)
        with self._lock:
            if len(sources) > _HELD_FILES or size > self._left:
                return 0
            self._left -= size
        for digest, source in sources.items():
            with contextlib.suppress(UsageError):  # it is another file already: said when it is to be sent
                sources[digest] = source._replace(data=source.part(0, source.size))
        return size

    def let_go(self, size: int) -> None:
        """So many bytes are needed no more."""
        with self._lock:
            self._left += size


HOLDING: Final = Holding()
"""This process's."""


@dataclass
class _Large:
    """A large blob under way."""

    source: Source
    step: int
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


def upload(client: BlobClient, sources: Mapping[str, Source], progress: Progress) -> int:
    """Send the blobs that the server lacks, several at once; how many bytes those were.

    Of files that were hashed before it is asked about some: where it has those, it is taken to have the others. Whoever
    makes a version of them is told of what is not there.

    Raises:
        UsageError: a file is not what it was when it was hashed; the server keeps none of it.
        IcecoreError: the server refused or stayed away.
    """
    seen = [digest for digest, source in sources.items() if source.file is not None and source.file.seen]
    asked = seen[:_ASKED_OF_SEEN]
    skipped = frozenset(seen[_ASKED_OF_SEEN:])
    absent = client.missing([digest for digest in sources if digest not in skipped] if skipped else sources)
    if skipped and not absent.isdisjoint(asked):
        absent |= client.missing(skipped)
    return send(client, [sources[digest] for digest in absent], progress)


def send(client: BlobClient, sources: Iterable[Source], progress: Progress) -> int:
    """Send these blobs; as `upload`, without asking."""
    wanted = sorted(sources, key=lambda source: source.size)
    total = sum(source.size for source in wanted)
    progress.expect(total)
    parallel(lambda task: task(), _tasks(client, wanted, progress))
    return total


def _tasks(client: BlobClient, sources: list[Source], progress: Progress) -> Iterator[Task]:
    """What is to be done, in an order that keeps large blobs, which take longest, from being last alone."""
    small = [source for source in sources if source.size <= PACKED_MOST]
    for source in reversed(sources[len(small) :]):
        if source.size <= PART_BYTES:
            yield _one(client, source, progress)
        else:
            yield from _parts(client, source, progress)
    for pack in _packs(small):
        yield _pack(client, pack, progress)


def _packs(sources: Iterable[Source]) -> Iterator[list[Source]]:
    pack: list[Source] = []
    size = 0
    for source in sources:
        if pack and (size + source.size > PACK_BYTES or len(pack) >= PACK_BLOBS):
            yield pack
            pack, size = [], 0
        pack.append(source)
        size += source.size + 40
    if pack:
        yield pack


def _pack(client: BlobClient, pack: list[Source], progress: Progress) -> Task:
    def work() -> None:
        blobs = [(source.digest, source.whole()) for source in pack]
        client.put_pack(blobs)
        progress.add(sum(len(data) for _, data in blobs))

    return work


def _one(client: BlobClient, source: Source, progress: Progress) -> Task:
    def work() -> None:
        try:
            client.put(source.digest, source.whole())
        except UsageError:
            raise
        except IcecoreError as error:
            raise source.explain(error) from error
        progress.add(source.size)

    return work


def _parts(client: BlobClient, source: Source, progress: Progress) -> Iterator[Task]:
    step = part_size(source.size)
    count = -(-source.size // step)
    there = client.parts(source.digest, source.size, step)
    todo = [number for number in range(count) if number not in there]
    progress.add(sum(min(step, source.size - number * step) for number in there if number < count), moved=False)
    large = _Large(source, step, len(todo))
    if not todo:
        yield lambda: _finish(client, large)
    for number in todo:
        yield _part(client, large, number, progress)


def _part(client: BlobClient, large: _Large, number: int, progress: Progress) -> Task:
    def work() -> None:
        source, step = large.source, large.step
        data = source.part(number * step, min(step, source.size - number * step))
        try:
            client.put_part(source.digest, number, data, source.size, step)
        except Conflict:
            if client.missing([source.digest]):
                raise
            # another client brought all of it meanwhile
        progress.add(len(data))
        with large.lock:
            large.left -= 1
            last = large.left == 0
        if last:
            _finish(client, large)

    return work


def _finish(client: BlobClient, large: _Large) -> None:
    source, step = large.source, large.step
    for last in (False, True):
        try:
            client.finish(source.digest, source.size, step)
            return
        except Conflict as lacking:  # parts have gone since they were sent: an upload that was taken for a dead one
            again = [int(number) for number in lacking.facts.get("parts", ())]
            if last or not again:
                raise
            for number in again:
                data = source.part(number * step, min(step, source.size - number * step))
                client.put_part(source.digest, number, data, source.size, step)
        except IcecoreError as error:
            raise source.explain(error) from error
