"""A version's files into a folder: from the cache where they are, else from the server; all of them checked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from icecore import manifest
from icecore.blob_cache import BlobCache
from icecore.collecting import collecting_later
from icecore.errors import Invalid, ServerFailed, ServerUnreachable, UsageError
from icecore.hashing import hash_descriptor, hash_files
from icecore.manifest import Entry
from icecore.progress_line import shown
from icecore.references import fetch
from icecore.stat_cache import StatCache
from icecore.target import STAGING, Target, by_folder
from icecore.transfer import ATTEMPTS, PACK_BYTES, PACKED_MOST, PART_BYTES, BlobClient, Progress, parallel

_BATCH: Final = 500


class Wanted(NamedTuple):
    """A blob, and the paths where it is wanted."""

    digest: str
    size: int
    paths: list[str]


@dataclass(slots=True)
class Downloader:
    """Where blobs come from."""

    client: BlobClient
    cache: BlobCache
    stats: StatCache
    progress: Progress = field(default_factory=Progress)
    silent: bool = True
    """Whether a terminal is told nothing."""

    def manifest(self, digest: str) -> dict[str, Entry]:
        """A version's entries.

        Raises:
            Invalid: the manifest names what may not be written.
        """
        data = self._cached(digest)
        if data is None:
            data = _checked(digest, self.client.whole(digest))
            self.cache.add(digest, data)
            self.cache.settle()
        return manifest.decode(data)

    def fill(self, root: Path, entries: Mapping[str, Entry]) -> None:
        """Put files into a folder; those that are there already, with the same bytes, are left alone.

        Raises:
            Invalid: a path is refused, or something in the folder is in the way; nothing was written.
            UsageError: the folder cannot be written, or a reference cannot be followed.
            ServerFailed: a blob's bytes are not its digest's.
        """
        checker = manifest.PathChecker()
        for path in entries:
            if checker.check(path).startswith(STAGING):
                raise Invalid(f"expected no path in {STAGING}…, where files are until they are whole, got {path!r}")
        manifest.check_tree(entries.keys())
        target = Target(root)
        target.check(entries.keys())
        absent = self._absent(root, entries)
        with target, collecting_later(), shown(self.progress, f"downloading to {root}", silent=self.silent):
            for folder in by_folder([path for path in absent if path.endswith("/")]):
                with target.folder(folder):
                    pass
            self._blobs(target, {path: entries[path] for path in absent if not path.endswith("/")})
        self.cache.settle()

    def _absent(self, root: Path, entries: Mapping[str, Entry]) -> list[str]:
        """The paths whose files are not yet there as they should be."""
        there = {}
        if root.is_dir():
            for path, entry in entries.items():
                if entry.digest and path[-1:] != "/":
                    with contextlib.suppress(OSError):
                        size = os.lstat(f"{root}/{path}").st_size
                        if size == (size if entry.size is None else entry.size):
                            there[path] = f"{root}/{path}"
        # what another download, or whoever has the folder, replaces meanwhile is not there yet
        found = hash_files(list(there.values()), self.stats, str(root), may_go=True) if there else []
        right = {path for path, file in zip(there, found, strict=True) if file.digest == entries[path].digest}
        return [path for path in sorted(entries) if path not in right]

    def _blobs(self, target: Target, entries: Mapping[str, Entry]) -> None:
        wanted: dict[str, Wanted] = {}
        references = []
        for path, entry in entries.items():
            if not entry.is_blob:
                references.append(path)
            elif (known := wanted.get(entry.digest)) is None:
                wanted[entry.digest] = Wanted(entry.digest, entry.size or 0, [path])
            else:
                known.paths.append(path)
        self.progress.expect(sum(one.size for one in wanted.values()))
        absent = self._packed(target, wanted)
        self.cache.used(len(wanted) - len(absent), 0)
        parallel(lambda batch: self._batch(target, batch), _batches(absent))
        for one in absent:
            if one.size > PART_BYTES:
                self._large(target, one)
        for path in references:
            entry = entries[path]
            folder, _, name = path.rpartition("/")
            with target.folder(folder) as descriptor:
                target.stream(descriptor, name, fetch(entry.ref, entry.digest, entry.size))

    # ---- small and middling blobs

    def _packed(self, target: Target, wanted: Mapping[str, Wanted]) -> list[Wanted]:
        """Put small files that the cache has into the target; the wanted ones that are left.

        In one thread: what takes time is calls that are too short to gain by another one.
        """
        left = dict(wanted)
        damaged = []
        found = self.cache.packs.find([one.digest for one in wanted.values() if one.size <= PACKED_MOST])
        with _Placer(target) as placer:
            for pack, places in found.items():
                for place, data in self.cache.packs.read(pack, places):
                    if hashlib.sha256(data).hexdigest() != place.digest:
                        damaged.append(place.digest)
                    elif place.digest in left:
                        self._placed(placer, left.pop(place.digest), data)
        if damaged:
            self.cache.packs.drop(damaged)
        return list(left.values())

    def _batch(self, target: Target, batch: Sequence[Wanted]) -> None:
        absent = {}
        with _Placer(target) as placer:
            for one in batch:
                data = self._cached(one.digest) if one.size > PACKED_MOST else None
                if data is None or len(data) != one.size:
                    absent[one.digest] = one
                else:
                    self._placed(placer, one, data)
            self.cache.used(len(batch) - len(absent), len(absent))
            small = []
            for digest, data in self._fetched(absent):
                if len(data) > PACKED_MOST:
                    self.cache.add(digest, data)
                else:
                    small.append((digest, data))
                self._placed(placer, absent[digest], data)
            self.cache.add_small(small)

    def _placed(self, placer: _Placer, one: Wanted, data: bytes) -> None:
        for path in one.paths:
            placer.put(path, data)
        self.progress.add(one.size)

    def _cached(self, digest: str) -> bytes | None:
        """A blob from the cache, checked; a damaged one is dropped."""
        descriptor = self.cache.open(digest)
        if descriptor is None:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        self.cache.drop(digest)
        return None

    def _fetched(self, absent: Mapping[str, Wanted]) -> Iterator[tuple[str, bytes]]:
        """Blobs from the server, checked; an answer that ends early is asked for again, from there on."""
        left = dict(absent)
        if len(left) == 1:
            (one,) = left.values()
            yield one.digest, _checked(one.digest, self.client.whole(one.digest))
            return
        attempts = 0
        while left:
            try:
                for digest, data in self.client.read(list(left)):
                    if left.pop(digest, None) is None:
                        raise ServerFailed(f"expected the blobs that were asked for, got {digest}")
                    yield digest, _checked(digest, data)
            except ServerUnreachable:
                attempts += 1
                if attempts == ATTEMPTS:
                    raise

    # ---- large blobs

    def _large(self, target: Target, one: Wanted) -> None:
        """One that does not go through memory."""
        descriptor = self.cache.open(one.digest)
        if descriptor is not None and hash_descriptor(descriptor, one.size) != one.digest:
            os.close(descriptor)
            self.cache.drop(one.digest)
            descriptor = None
        if descriptor is None:
            descriptor = self._fetch_large(one)
        else:
            self.progress.add(one.size)
        try:
            for path in one.paths:
                folder, _, name = path.rpartition("/")
                with target.folder(folder) as home:
                    target.copy(home, name, descriptor)
        finally:
            os.close(descriptor)

    def _fetch_large(self, one: Wanted) -> int:
        """A descriptor of the blob, checked; parts that an earlier download brought are kept."""
        try:
            draft = self.cache.partial(one.digest)
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"expected a folder that can be written at {self.cache.folder}, got: {error.strerror}",
                hint="set ICECORE_ARTIFACT_CACHE to another one",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # another process may be fetching it: then it is here afterwards
            kept = self.cache.open(one.digest)
            if kept is not None:
                os.close(descriptor)
                return kept
            parts = draft.with_suffix(".parts")
            self._fetch_parts(one, descriptor, parts)
            if hash_descriptor(descriptor, one.size) != one.digest:
                draft.unlink(missing_ok=True)
                parts.unlink(missing_ok=True)
                raise _damaged(one.digest)
            parts.unlink(missing_ok=True)
            if not self.cache.adopt(one.digest, draft, one.size):
                draft.unlink(missing_ok=True)  # stays readable for as long as it is open here
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"expected room for {one.size} bytes in {self.cache.folder}, got: {error.strerror or error}",
                hint="free some space, or set ICECORE_ARTIFACT_CACHE to another folder: what has come is kept",
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _fetch_parts(self, one: Wanted, descriptor: int, noted: Path) -> None:
        there = {int(line) for line in noted.read_text().split()} if noted.exists() else set()
        count = -(-one.size // PART_BYTES)
        self.progress.add(min(len(there) * PART_BYTES, one.size))
        with noted.open("a") as notes:

            def work(number: int) -> None:
                start = number * PART_BYTES
                stop = min(start + PART_BYTES, one.size)
                data = self.client.get(one.digest, start, stop)
                _write_at(descriptor, data, start)
                notes.write(f"{number}\n")
                notes.flush()
                self.progress.add(stop - start)

            parallel(work, (number for number in range(count) if number not in there))


class _Placer:
    """Puts files into a target; the folder of the last one stays open for the next."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._open = contextlib.ExitStack()
        self._folder: str | None = None
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)  # the folder explains what its file system refused

    def put(self, path: str, data: bytes) -> None:
        """Write one file."""
        folder, _, name = path.rpartition("/")
        if folder != self._folder:
            self._open.close()
            self._descriptor = self._open.enter_context(self._target.folder(folder))
            self._folder = folder
        self._target.write(self._descriptor, name, data)


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    """All of `data`: a disk that is nearly full takes some, and only then says so."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, memoryview(data)[done:], at + done)


def _batches(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Blobs up to a part's size, in batches of a request each."""
    batch: list[Wanted] = []
    size = 0
    for one in wanted:
        if one.size > PART_BYTES:
            continue
        if one.size > PACKED_MOST:
            yield [one]
            continue
        if batch and (len(batch) >= _BATCH or size + one.size > PACK_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one.size
    if batch:
        yield batch


def _checked(digest: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(digest)
    return data


def _damaged(digest: str) -> ServerFailed:
    return ServerFailed(
        f"expected the bytes of blob {digest}, got others",
        hint="the server's copy is damaged, or something on the way changes answers; nothing of it was written",
        digest=digest,
    )
