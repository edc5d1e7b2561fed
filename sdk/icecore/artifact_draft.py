"""What goes into a version: files and references by path, hashed as they are added and copied nowhere."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

from icecore import manifest
from icecore.artifact_home import Home
from icecore.collecting import collecting_later
from icecore.errors import Invalid, UsageError
from icecore.hashing import Held, LocalFile, hash_files, scan
from icecore.manifest import EMPTY_DIGEST, Entry, PathChecker
from icecore.references import look_at
from icecore.settings import Settings
from icecore.uploads import Source

if TYPE_CHECKING:
    import tempfile

AnyPath = str | os.PathLike[str]

P = ParamSpec("P")
T = TypeVar("T")


def plainly(check: Callable[P, T], *values: P.args, **more: P.kwargs) -> T:
    """What a check answers; what it refuses is the caller's mistake here, not a request's.

    Raises:
        UsageError: it refuses.
    """
    try:
        return check(*values, **more)
    except Invalid as error:
        raise UsageError(error.message, hint=error.hint) from error


class Draft:
    """The files of an artifact that is being put together."""

    def __init__(self) -> None:
        self._home: Home | None = None
        self._entries: dict[str, Entry] | None = {}
        self._sources: dict[str, Source] = {}
        self._origins: dict[str, str] = {}
        self._checker = PathChecker()
        self._held = Held()
        self._staging: tempfile.TemporaryDirectory[str] | None = None

    def _here(self) -> Home:
        if self._home is None:
            self._home = Home(Settings.load())
        return self._home

    def _listed(self) -> dict[str, Entry]:
        """Path -> entry."""
        return self._entries or {}

    def _open_to_changes(self) -> None:
        """Raise UsageError where it is no draft any more."""

    def add_file(
        self, local_path: AnyPath, name: str | None = None, is_tmp: bool | None = False, **elsewhere: Any
    ) -> Entry:
        """Add a file as it is now. It is read here, and again when it is sent: leave it alone until then.

        Where the artifact's files are few, and of at most 64 MiB together, until it is logged: they are in memory then.

        Args:
            local_path: the file.
            name: its path in the artifact; by default its own name.
            is_tmp: accepted for scripts that give it.
            **elsewhere: accepted, as scripts for wandb give more.

        Raises:
            UsageError: it is no file, or there is another one of that name already.
        """
        del is_tmp, elsewhere
        path = os.path.realpath(local_path)
        if Path(path).is_dir():
            raise UsageError(f"expected a file, got the folder {local_path}", hint="add_dir adds folders")
        (file,) = hash_files([path], self._here().stats, path)
        return self._add(name or Path(local_path).name, file)

    def add_dir(self, local_path: AnyPath, name: str | None = None, **elsewhere: Any) -> None:
        """Add all files below a folder. Links are followed as long as they stay inside of it.

        Args:
            local_path: the folder.
            name: the folder's path in the artifact; by default its files lie at the top.
            **elsewhere: accepted, as scripts for wandb give more.

        Raises:
            UsageError: it is no folder, a link leads out of it, or a name cannot be kept.
        """
        del elsewhere
        root = os.path.realpath(local_path)
        if not Path(root).is_dir():
            raise UsageError(f"expected a folder, got {local_path}", hint="add_file adds single files")
        prefix = f"{name.strip('/')}/" if name and name.strip("/") else ""
        with collecting_later():
            found = scan(root)
            files = hash_files([where for _, where in found.files], self._here().stats, root, self._held)
            plainly(self._add_all, prefix, zip(found.files, files, strict=True))
        for folder in found.empty_folders:
            self._put(f"{prefix}{folder}", Entry(EMPTY_DIGEST, 0), folder)
            self._sources[EMPTY_DIGEST] = Source(EMPTY_DIGEST, 0)

    def add_reference(
        self, uri: AnyPath, name: str | None = None, checksum: bool | str = True, max_objects: int | None = None
    ) -> list[Entry]:
        """Add a file that stays where it is: `file://`, `http://`, `https://`, `s3://` or `gs://`.

        Args:
            uri: where it is; a local folder or a bucket's prefix means all files below it.
            name: its path in the artifact; by default the URI's last part.
            checksum: whether to find out what the bytes are now; or a text that says what they are.
            max_objects: the most that are added where a bucket's prefix is meant; by default 10,000.

        Raises:
            UsageError: nothing answers there.
        """
        found = look_at(os.fspath(uri), name, checksum, max_objects)
        for path, entry in found.items():
            self._put(path, entry, entry.ref)
        return list(found.values())

    @contextlib.contextmanager
    def new_file(self, name: str, mode: str = "x", encoding: str | None = None) -> Iterator[IO[Any]]:
        """A file of the artifact to write to, for `with`; it is added at the end of the block.

        Args:
            name: its path in the artifact.
            mode: as of `open`, for writing.
            encoding: as of `open`.
        """
        if self._staging is None:
            self._staging = self._here().staging()
        path = plainly(manifest.check_path, unicodedata.normalize("NFC", name))
        self._open_to_changes()
        where = Path(self._staging.name) / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if "b" not in mode and encoding is None:
            encoding = "utf-8"
        with where.open(mode.replace("x", "w"), encoding=encoding) as file:
            yield file
        if path in self._listed():
            self.remove(path)
        self.add_file(where, path)

    def add(self, obj: Any, name: str, overwrite: bool = False) -> Entry:
        """Add an object as a file: a dict or list as JSON, a numpy array, a pandas DataFrame or a PIL image.

        Args:
            obj: what to add; it is written now.
            name: its path in the artifact; `.json`, `.npy`, `.parquet` or `.png` is added where it has another ending.
            overwrite: whether it may take the place of another file.

        Raises:
            UsageError: it is none of these, or there is another file of that name.
        """
        from icecore.artifact_objects import path_of, write_object

        self._open_to_changes()
        if self._staging is None:
            self._staging = self._here().staging()
        path = path_of(obj, plainly(manifest.check_path, unicodedata.normalize("NFC", name)))
        if path in self._listed():
            if not overwrite:
                raise UsageError(f"expected a new file, got {path!r} again", hint="overwrite=True replaces it")
            self.remove(path)
        where = Path(self._staging.name) / path
        where.parent.mkdir(parents=True, exist_ok=True)
        write_object(obj, where)
        return self.add_file(where, path)

    def remove(self, item: str | AnyPath | Entry) -> None:
        """Take a file, or all files of a folder, out of a draft.

        Raises:
            UsageError: there is none of that path.
        """
        self._open_to_changes()
        entries = self._listed()
        if isinstance(item, Entry):
            gone = [path for path, entry in entries.items() if entry is item]
        else:
            path = os.fspath(item).strip("/")
            gone = [found for found in entries if found == path or found.startswith(f"{path}/")]
        if not gone:
            raise UsageError(f"expected a path in the artifact, got {item!r}")
        for path in gone:
            del entries[path]
            self._origins.pop(path, None)

    def _add(self, path: str, file: LocalFile) -> Entry:
        entry = Entry(file.digest, file.stamp.size)
        self._put(path, entry, file.path)
        self._sources[file.digest] = Source(file.digest, file.stamp.size, file)
        return entry

    def _add_all(self, prefix: str, files: Iterable[tuple[tuple[str, str], LocalFile]]) -> None:
        """As `_add` of each ((path, where), file): there may be a million."""
        self._open_to_changes()
        entries, origins, sources, check = self._listed(), self._origins, self._sources, self._checker.check
        for (inside, _), file in files:
            where, stamp, digest, _, _ = file
            path = prefix + inside
            if path in entries or not path.isascii():
                self._add(path, file)
                continue
            check(path)
            entries[path] = Entry(digest, stamp[0])
            origins[path] = where
            sources[digest] = Source(digest, stamp[0], file)

    def _put(self, path: str, entry: Entry, origin: str) -> None:
        """Note an entry. Two files that would lie at one path are an error, the same one again is not."""
        self._open_to_changes()
        path = path if path.isascii() else unicodedata.normalize("NFC", path)
        plainly(self._checker.check, path)
        entries = self._listed()
        known = entries.get(path)
        if known is not None and known != entry and self._origins.get(path) != origin:
            raise UsageError(
                f"expected one file for {path!r}, got {self._origins.get(path, 'one')} and {origin}",
                hint="remove(…) the first, or give one of them another name",
            )
        entries[path] = entry
        self._origins[path] = origin
