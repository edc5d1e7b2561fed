"""The folder that a download fills: nothing is ever written outside of it, whatever the manifest or the folder says.

Every folder on the way is opened by itself, without following links, and files are made by name within that open
folder. So a link that someone plants while the download runs leads nowhere either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from icecore.errors import Invalid, UsageError
from icecore.manifest import same_where_case_does_not_count

STAGING: Final = ".icecore-parts-"
"""How the folder's name begins where files are until they are whole, within the target; each download has its own."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DRAFT: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_STALE_S: Final = 3600
_CLONE: Final = 0x40049409
"""Linux's FICLONE."""
_CLONE_FROM: Final = 64 * 1024
_COPY: Final = 1 << 20


class Target:
    """A folder to download into, for `with`.

    Args:
        root: the folder; made when it is not there. It may be a link itself: the caller chose it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._fd = -1
        self._staging = -1
        self._numbers = itertools.count(1)
        self._clones = True
        self._mark = uuid.uuid4().hex[:8]

    def check(self, paths: Collection[str]) -> None:
        """See that all these files can be written; nothing is, here.

        Raises:
            Invalid: a link or another kind of thing is in the way, or two names are one on this file system.
        """
        # Whether anything is there is asked first: another download may make the folder between the two questions.
        if os.path.lexists(self.root):
            if not self.root.is_dir():
                raise UsageError(f"expected a folder to download into, got {self.root}, which is none")
            self._check_way(paths)
        if not self._tells_case():
            both = same_where_case_does_not_count(paths)
            if both:
                raise Invalid(
                    f"expected names that this file system tells apart, got {both[0]!r} and {both[1]!r}",
                    hint="download to a file system that tells upper from lower case, or use path_prefix",
                )

    def _check_way(self, paths: Collection[str]) -> None:
        folders: dict[str, bool] = {}
        for path in paths:
            home, _, name = path.rpartition("/")
            if name and home in folders:  # as nearly all are
                if folders[home]:
                    self._is(path, stat.S_ISREG, "a file")
                continue
            whole = path.removesuffix("/")
            folder = whole if path.endswith("/") else whole.rpartition("/")[0]
            there = self._check_folder(folder, folders)
            if there and not path.endswith("/"):
                self._is(path, stat.S_ISREG, "a file")

    def _check_folder(self, folder: str, known: dict[str, bool]) -> bool:
        """Whether a folder is there; `known` says so of those that were looked at."""
        if not folder:
            return True
        if folder not in known:
            above = folder.rpartition("/")[0]
            known[folder] = self._check_folder(above, known) and self._is(folder, stat.S_ISDIR, "a folder")
        return known[folder]

    def _is(self, path: str, kind: Callable[[int], bool], name: str) -> bool:
        try:
            mode = os.lstat(f"{self.root}/{path}").st_mode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Invalid(f"expected {name} or nothing at {self.root / path}, got: {error.strerror}") from error
        if not kind(mode):
            raise Invalid(
                f"expected {name} or nothing at {self.root / path}, got {'a link' if stat.S_ISLNK(mode) else 'else'}",
                hint="nothing was written: remove it, or download to another folder",
            )
        return True

    def _tells_case(self) -> bool:
        """Whether the file system of the folder tells upper from lower case."""
        home = self.root
        while not home.is_dir():
            home = home.parent
        probe = home / f".icecore-Case-{self._mark}"
        try:
            probe.touch(exist_ok=False)
        except OSError:
            return True  # cannot be written: what comes next says so
        try:
            return not os.path.lexists(home / probe.name.upper())
        finally:
            probe.unlink(missing_ok=True)

    # ---- writing

    def __enter__(self) -> Self:
        """Open the folder, made where it is not there."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._clean()
            self._staging = self._step(self._fd, STAGING + self._mark)
        except OSError as error:
            self.__exit__()
            raise _cannot_write(self.root, error) from error
        return self

    def _clean(self) -> None:
        """Delete what downloads left that were killed."""
        with os.scandir(self._fd) as found:
            old = [entry.name for entry in found if entry.name.startswith(STAGING) and _is_stale(entry)]
        for name in old:
            with contextlib.suppress(OSError):
                descriptor = os.open(name, _FOLDER, dir_fd=self._fd)
                try:
                    for draft in os.listdir(descriptor):  # noqa: PTH208 - Path knows no open folders
                        os.unlink(draft, dir_fd=descriptor)
                finally:
                    os.close(descriptor)
                os.rmdir(name, dir_fd=self._fd)

    def __exit__(self, *_: object) -> None:
        if self._staging >= 0:
            os.close(self._staging)
            with contextlib.suppress(OSError):
                os.rmdir(STAGING + self._mark, dir_fd=self._fd)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._staging = -1

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """A folder below the root, made where it is not there, open.

        Raises:
            Invalid: a link or a file is in the way.
        """
        descriptor = os.dup(self._fd)
        try:
            for part in path.split("/") if path else ():
                deeper = self._step(descriptor, part)
                os.close(descriptor)
                descriptor = deeper
            yield descriptor
        except OSError as error:
            raise _cannot_write(self.root / path, error) from error
        finally:
            os.close(descriptor)

    def _step(self, above: int, name: str) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=above)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
            return os.open(name, _FOLDER, dir_fd=above)

    def write(self, folder: int, name: str, data: bytes) -> None:
        """Put a file with these bytes into an open folder of `self.folder`; it appears whole."""
        if os.access(name, os.F_OK, dir_fd=folder) and _holds(folder, name, data):
            return  # another download was here: a file in the place of another is what disks take longest for
        draft = f"{self._mark}-{next(self._numbers)}"
        descriptor = os.open(draft, _DRAFT, 0o666, dir_fd=self._staging)
        try:  # as `_draft`, without what a context manager costs 100,000 times
            try:
                if os.write(descriptor, data) != len(data):
                    os.truncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    _write_all(descriptor, data)
            finally:
                os.close(descriptor)
            os.rename(draft, name, src_dir_fd=self._staging, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=self._staging)
            raise

    def stream(self, folder: int, name: str, chunks: Iterable[bytes]) -> None:
        """Put a file with these bytes into an open folder, as they come; nothing where they end with an error."""
        with self._draft(folder, name) as descriptor:
            for chunk in chunks:
                _write_all(descriptor, chunk)

    def copy(self, folder: int, name: str, source: int) -> None:
        """Put a copy of the open file `source` into an open folder; without writing its bytes where that goes."""
        with self._draft(folder, name) as descriptor:
            if self._clones and os.fstat(source).st_size >= _CLONE_FROM:
                try:
                    fcntl.ioctl(descriptor, _CLONE, source)
                except OSError:
                    self._clones = False
                else:
                    return
            at = 0
            while chunk := os.pread(source, _COPY, at):
                _write_all(descriptor, chunk)
                at += len(chunk)

    @contextlib.contextmanager
    def _draft(self, folder: int, name: str) -> Iterator[int]:
        draft = f"{self._mark}-{next(self._numbers)}"
        descriptor = os.open(draft, _DRAFT, 0o666, dir_fd=self._staging)
        try:
            try:
                yield descriptor
            finally:
                os.close(descriptor)
            os.rename(draft, name, src_dir_fd=self._staging, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=self._staging)
            raise


def _holds(folder: int, name: str, data: bytes) -> bool:
    """Whether a file in an open folder has these bytes."""
    with contextlib.suppress(OSError):
        descriptor = os.open(name, _READ, dir_fd=folder)
        try:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_size == len(data):
                with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                    return file.read() == data
        finally:
            os.close(descriptor)
    return False


def _is_stale(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S
    return False


def by_folder(paths: Collection[str]) -> Mapping[str, list[str]]:
    """Paths by the folder they are in; empty folders by themselves, with none."""
    found: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        names = found.setdefault(folder, [])
        if name:
            names.append(path)
    return found


def _write_all(descriptor: int, data: bytes) -> None:
    done = os.write(descriptor, data) if data else 0
    while done < len(data):
        done += os.write(descriptor, memoryview(data)[done:])


def _cannot_write(path: Path, error: OSError) -> UsageError | Invalid:
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return Invalid(
            f"expected folders on the way to {path}, got a link or a file",
            hint="remove it, or download to another folder",
        )
    hint = "free some space, then download again: what is there stays" if error.errno == errno.ENOSPC else ""
    return UsageError(f"expected a folder that can be written at {path}, got: {error.strerror or error}", hint=hint)
