"""Large blobs that come in parts: a file with holes, and beside it which parts of it are durable.

    DATA/blobs/uploads/DIGEST-SIZE-PARTSIZE/bytes     every part at its place
    DATA/blobs/uploads/DIGEST-SIZE-PARTSIZE/parts     one byte a part: 1 once it is durable

A part's byte is written after the part is synced. So whenever the process ends, what is marked is there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from icecore.errors import Conflict, Invalid, TooLarge
from icecore.limits import LimitName, most
from icecore_api.blobs.drafts import make_folder
from icecore_api.blobs.packs import mismatch
from icecore_api.blobs.prefix import Prefix
from icecore_api.blobs.refusals import wrong_size
from icecore_api.blobs.store import Parts, UnderWay, check_digest
from icecore_ingest.logs.segments import sync_folder

_PREFIXES: Final = 64
"""Uploads of which it is remembered how far they were hashed."""
_NAME: Final = re.compile(r"([0-9a-f]{64})-([0-9]{1,16})-([0-9]{1,16})")


def check_parts(parts: Parts) -> Parts:
    """`parts` themselves, if they can be.

    Raises:
        Invalid, TooLarge: no digest, no bytes, or over a limit.
    """
    check_digest(parts.digest)
    if parts.size < 1 or parts.part_size < 1:
        raise Invalid(f"expected a size and a part size of at least 1, got {parts.size} and {parts.part_size}")
    if parts.size > most("blob_bytes"):
        raise _over("blob_bytes", parts.size)
    if parts.part_size > most("upload_part_bytes"):
        raise _over("upload_part_bytes", parts.part_size)
    if parts.number > most("upload_parts"):
        raise Invalid(
            f"expected at most {most('upload_parts')} parts, got {parts.number}",
            hint="make the parts larger",
            limit="upload_parts",
            most=most("upload_parts"),
            value=parts.number,
        )
    return parts


def _over(limit: LimitName, value: int) -> TooLarge:
    return TooLarge(f"expected at most {most(limit)} bytes, got {value}", limit=limit, most=most(limit), value=value)


class Upload:
    """One upload by parts. Used by many threads at once; ended by one.

    Args:
        folder: of all uploads.
        parts: what it is.
        prefix: how far it was hashed already.
    """

    def __init__(self, folder: Path, parts: Parts, prefix: Prefix | None = None) -> None:
        self.parts = parts
        self._prefix = prefix or Prefix()
        self.folder = folder / f"{parts.digest}-{parts.size}-{parts.part_size}"
        self.users = 0
        """Requests that hold it: kept by `Uploads`."""
        self._lock = threading.Condition()
        self._writing: Counter[int] = Counter()
        """Part -> by how many it is written now."""
        self._ended = False
        self.gone = False
        """Whether its files are, so that another may begin in its place."""
        self._bytes = self._marks = -1
        self._there: bytearray = bytearray()

    def begin(self) -> None:
        """Open its files; make them where they are not there."""
        make_folder(self.folder)
        self._bytes, new = _file(self.folder / "bytes", self.parts.size)
        self._marks, new_marks = _file(self.folder / "parts", self.parts.number, anew=new)
        if new or new_marks:
            self._prefix.reset()
            os.fsync(self._bytes)
            os.fsync(self._marks)
            sync_folder(self.folder)
            sync_folder(self.folder.parent)
        self._there = bytearray(os.pread(self._marks, self.parts.number, 0))

    def close(self) -> None:
        """Close its files."""
        for handle in (self._bytes, self._marks):
            if handle >= 0:
                os.close(handle)
        self._bytes = self._marks = -1

    def there(self) -> tuple[int, ...]:
        """The parts that are durable."""
        return tuple(i for i, mark in enumerate(self._there) if mark)

    def write(self, part: int, offset: int, pieces: Sequence[bytes]) -> None:
        """Write bytes of a part, at an offset in it. What is durable already stays as it is.

        Raises:
            Conflict: the upload is being completed.
        """
        with self._may_write(part):
            if self._there[part]:
                return
            at = part * self.parts.part_size + offset
            for piece in pieces:
                with memoryview(piece) as view:
                    done = 0
                    while done < len(view):
                        done += os.pwrite(self._bytes, view[done:], at + done)
                at += len(piece)

    def keep(self, part: int) -> None:
        """Make a part durable, all of whose bytes are written.

        Raises:
            Conflict: the upload is being completed.
        """
        with self._may_write(part):
            if not self._there[part]:
                os.fdatasync(self._bytes)
                os.pwrite(self._marks, b"\1", part)
                os.fdatasync(self._marks)
                self._there[part] = 1
        self._prefix.go_on(self._bytes, self.parts, self._is_settled)

    def _is_settled(self, part: int) -> bool:
        """Whether a part does not change any more: it is durable, and whoever began to write to it before has ended."""
        with self._lock:
            return bool(self._there[part]) and not self._writing[part] and not self._ended

    def complete(self, publish: Callable[[Path], None]) -> None:
        """Check all bytes; `publish` gives their file its name. Nobody writes meanwhile, nor afterwards.

        Whoever comes second waits for the first.

        Raises:
            Conflict: parts are not there, or it was completed meanwhile.
            DigestMismatch: the bytes have another digest; the parts are forgotten.
        """
        with self._lock:
            self._lock.wait_for(lambda: self.gone or not self._ended)
            self._check_open()
            absent = [i for i, mark in enumerate(self._there) if not mark]
            if absent:
                raise Conflict(
                    f"expected all {self.parts.number} parts, {len(absent)} are not there, the first is {absent[0]}",
                    hint="send them, then complete the upload",
                    parts=absent[:1000],
                )
            self._ended = True
            self._lock.wait_for(lambda: not self._writing.total())
        try:
            got = self._prefix.finish(self._bytes, self.parts)
            if got != self.parts.digest:
                self.forget()
                raise mismatch(self.parts.digest, got)
            os.fsync(self._bytes)
            publish(self.folder / "bytes")
            self.forget()
        finally:
            with self._lock:
                self._ended = self.gone
                self._lock.notify_all()

    def forget(self) -> None:
        """Remove it, whatever it holds."""
        self._ended = True
        self._prefix.reset()
        (self.folder / "bytes").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.gone = True

    @contextlib.contextmanager
    def _may_write(self, part: int) -> Iterator[None]:
        with self._lock:
            self._check_open()
            self._writing[part] += 1
        try:
            yield
        finally:
            with self._lock:
                self._writing[part] -= 1
                self._lock.notify_all()

    def _check_open(self) -> None:
        if self._ended:
            raise Conflict(
                "expected an upload that is under way, it is being completed",
                hint="ask for the blob: it may be there already",
            )


class PartComing:
    """The bytes of a part as they come: never more than it has."""

    def __init__(self, upload: Upload, part: int, expected: int) -> None:
        self._upload = upload
        self._part = part
        self._expected = expected
        self._got = 0

    def take(self, pieces: Sequence[bytes]) -> None:
        """Write some.

        Raises:
            Invalid: it would be too many. Conflict: the upload is being completed.
        """
        at = self._got
        self._got += sum(map(len, pieces))
        if self._got > self._expected:
            self.check()
        self._upload.write(self._part, at, pieces)

    def check(self) -> None:
        """See that all came.

        Raises:
            Invalid: others than expected.
        """
        if self._got != self._expected:
            raise wrong_size(self._part, self._expected, self._got)


class Uploads:
    """The uploads of one folder, each open once while requests use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._open: dict[Parts, Upload] = {}
        self._prefixes: dict[Parts, Prefix] = {}
        """Of uploads that no request may be using just now."""

    def take(self, parts: Parts) -> Upload:
        """An upload, for as long as a request needs it: until `give_back`.

        Raises:
            OSError: its files cannot be made.
        """
        with self._lock:
            upload = self._open.get(parts)
            if upload is None or upload.gone:
                prefix = self._prefixes.pop(parts, None) or Prefix()
                while len(self._prefixes) >= _PREFIXES:
                    del self._prefixes[next(iter(self._prefixes))]
                self._prefixes[parts] = prefix
                upload = Upload(self.folder, parts, prefix)
                try:
                    upload.begin()
                except BaseException:
                    upload.close()
                    raise
                self._open[parts] = upload
            upload.users += 1
            return upload

    def give_back(self, upload: Upload) -> None:
        """A request needs it no more."""
        with self._lock:
            upload.users -= 1
            if not upload.users:
                upload.close()
                if self._open.get(upload.parts) is upload:
                    del self._open[upload.parts]

    def under_way(self, digest: str) -> list[UnderWay]:
        """The uploads of a digest, the one last written to first."""
        found = [(path, parts) for path, parts in self.all() if parts.digest == digest]
        found.sort(key=lambda one: _written(one[0]), reverse=True)
        return [UnderWay(parts, tuple(i for i, mark in enumerate(_marks(path)) if mark)) for path, parts in found]

    def all(self) -> list[tuple[Path, Parts]]:
        """Every upload that has been begun, by its folder."""
        names = [(path, _NAME.fullmatch(path.name)) for path in sorted(self.folder.glob("*"))]
        return [(path, Parts(name[1], int(name[2]), int(name[3]))) for path, name in names if name]

    def remove(self, parts: Parts) -> bool:
        """Remove an upload that no request uses."""
        with self._lock:
            if parts in self._open and not self._open[parts].gone:
                return False
            Upload(self.folder, parts, self._prefixes.pop(parts, None)).forget()
            return True

    def in_use(self, parts: Parts) -> bool:
        """Whether a request uses it."""
        with self._lock:
            return parts in self._open


def _file(path: Path, size: int, *, anew: bool = False) -> tuple[int, bool]:
    """A file of just that size, open; and whether its content was made now. Made of holes, so it takes no space."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    new = anew or os.fstat(handle).st_size != size
    if new:
        os.ftruncate(handle, 0)
        os.ftruncate(handle, size)
    return handle, new


def _marks(folder: Path) -> bytes:
    try:
        return (folder / "parts").read_bytes() if (folder / "bytes").exists() else b""
    except OSError:
        return b""


def _written(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)
    return 0.0
