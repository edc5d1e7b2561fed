"""The files of a version: listed, downloaded, and compared with a folder."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icecore.artifact_draft import AnyPath
from icecore.artifact_facts import Facts
from icecore.artifact_file import ArtifactFile
from icecore.artifact_home import default_folder
from icecore.errors import NotFound, UsageError
from icecore.hashing import hash_files, scan
from icecore.manifest import Entry
from icecore.references import fetch


class Folder(Facts):
    """What is known of an artifact, and its files."""

    def files(self, names: Sequence[str] | None = None) -> list[ArtifactFile]:
        """Its files, by path.

        Args:
            names: only these.
        """
        listed = self._listed()
        return [ArtifactFile(self, path, listed[path]) for path in sorted(listed) if _is_asked(path, names)]

    def get_entry(self, name: AnyPath) -> ArtifactFile:
        """One of its files by its path.

        Raises:
            NotFound: there is none.
        """
        path = unicodedata.normalize("NFC", os.fspath(name))
        entry = self._listed().get(path)
        if entry is None or path.endswith("/"):
            raise NotFound(f"expected a file of {self.name}, got {path!r}", hint="files() lists them")
        return ArtifactFile(self, path, entry)

    get_path = get_entry

    @property
    def manifest(self) -> Mapping[str, Entry]:
        """Path -> digest, size and reference."""
        return dict(self._listed())

    def __contains__(self, path: str) -> bool:
        return path in self._listed()

    def download(
        self,
        root: AnyPath | None = None,
        allow_missing_references: bool = False,
        skip_cache: bool | None = None,
        path_prefix: AnyPath | None = None,
        **elsewhere: Any,
    ) -> str:
        """Put its files into a folder. Files that are there already with the same bytes are left alone.

        Args:
            root: the folder; by default `./artifacts/NAME:VERSION`.
            allow_missing_references: leave out references that cannot be followed.
            skip_cache: accepted; the cache checks itself.
            path_prefix: only files below this path, or that one file.
            **elsewhere: accepted, as scripts for wandb give more.

        Returns:
            The folder.

        Raises:
            Invalid: a file would lie outside of the folder, or something in it is in the way; nothing was written.
            IcecoreError: the server refused or stayed away; what was written stays, and the next call goes on.
        """
        del skip_cache, elsewhere
        self._logged()
        folder = Path(root if root is not None else default_folder(self.name)).absolute()
        prefix = unicodedata.normalize("NFC", os.fspath(path_prefix)).strip("/") if path_prefix else ""
        chosen = {path: entry for path, entry in self._listed().items() if _is_below(path, prefix)}
        if prefix and not chosen:
            raise NotFound(f"expected files of {self.name} below {prefix!r}, got none", hint="files() lists them")
        if allow_missing_references:
            chosen = {path: entry for path, entry in chosen.items() if entry.is_blob or _can_follow(entry)}
        self._here().downloader().fill(folder, chosen)
        return str(folder)

    def file(self, root: AnyPath | None = None) -> str:
        """Download its only file; the file's path.

        Raises:
            UsageError: it has another number of files.
        """
        files = self.files()
        if len(files) != 1:
            raise UsageError(f"expected {self.name} to have one file, got {len(files)}", hint="use download()")
        return files[0].download(root)

    def checkout(self, root: AnyPath | None = None) -> str:
        """Download it, and delete what else is in the folder."""
        folder = Path(self.download(root))
        wanted = {path.removesuffix("/") for path in self._listed()}
        for path, where in scan(str(folder)).files:
            if path not in wanted:
                Path(where).unlink()
        return str(folder)

    def verify(self, root: AnyPath | None = None) -> None:
        """See that a folder holds exactly its files. References are not looked at.

        Raises:
            UsageError: a file is missing, is different, or is not in the artifact; the message names it.
        """
        folder = os.path.realpath(root if root is not None else default_folder(self.name))
        if not Path(folder).is_dir():
            raise UsageError(f"expected {self.name} in {folder}, which is no folder", hint="download() makes it")
        found = scan(folder).files
        files = hash_files([where for _, where in found], self._here().stats, folder)
        there = {path: file.digest for (path, _), file in zip(found, files, strict=True)}
        blobs = {path: entry for path, entry in self._listed().items() if not path.endswith("/")}
        for path, entry in sorted(blobs.items()):
            if entry.is_blob and there.get(path) != entry.digest:
                state = "other bytes" if path in there else "nothing"
                raise UsageError(f"expected {path} of {self.name} in {folder}, got {state}", hint="download() mends it")
        if extra := sorted(there.keys() - blobs.keys()):
            raise UsageError(f"expected only files of {self.name} in {folder}, got {extra[0]} too")


def _is_asked(path: str, names: Sequence[str] | None) -> bool:
    return not path.endswith("/") and (names is None or path in names)


def _is_below(path: str, prefix: str) -> bool:
    return not prefix or path.removesuffix("/") == prefix or path.startswith(f"{prefix}/")


def _can_follow(entry: Entry) -> bool:
    """Whether something answers where a reference points to."""
    try:
        for _ in fetch(entry.ref, "", None):
            return True
    except UsageError:
        return False
    return True
