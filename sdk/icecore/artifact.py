"""A named, versioned set of files: `icecore.Artifact`.

artifact = icecore.Artifact("bert", type="model", metadata={"f1": 0.9})
artifact.add_file("model.pt")
run.log_artifact(artifact, aliases=["best"])
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson

from icecore import manifest
from icecore.artifact_draft import AnyPath, Draft, plainly
from icecore.artifact_file import ArtifactFile
from icecore.artifact_home import Home, default_folder
from icecore.artifact_names import LATEST, Name
from icecore.config import plain
from icecore.errors import Conflict, NotFound, UsageError
from icecore.events import check_path_part
from icecore.fields import check_notes
from icecore.hashing import hash_files, scan
from icecore.limits import most
from icecore.manifest import Entry
from icecore.pending import Pending
from icecore.references import fetch
from icecore.transfer import Progress

PENDING: Final = "PENDING"


class Artifact(Draft):
    """Files under a name. Add files and log it, or get one that was logged with `use_artifact` or `Api().artifact`.

    Args:
        name: the name, without a version.
        type: what it is: model, dataset, … The same for all versions.
        description: any text.
        metadata: any values that JSON can hold, up to 1 MB.

    Raises:
        UsageError: an argument makes no sense.
    """

    description: str
    """Any text; may be changed, then `save()`."""
    metadata: dict[str, Any]
    """Values by name; may be changed, then `save()`."""

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002 - the name people know
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **elsewhere: Any,
    ) -> None:
        if unknown := sorted(elsewhere.keys() - {"incremental", "use_as", "storage_region"}):
            raise UsageError(f"expected arguments of icecore.Artifact, got {', '.join(unknown)}")
        self._begin(plainly(check_path_part, "an artifact's name", name), str(type))
        if not self._type:
            raise UsageError("expected an artifact's type, got none", hint='say what it is: "model", "dataset", …')
        self.description = check_notes(description)
        self.metadata = check_metadata(metadata)

    def _begin(self, name: str, kind: str) -> None:
        super().__init__()
        self._base, self._type = name, kind
        self._doc: dict[str, Any] | None = None
        self._pending: Pending | None = None
        self.description = ""
        self.metadata = {}
        self.aliases: list[str] = []
        """Its aliases; may be changed, then `save()`."""
        self.tags: list[str] = []
        """Its tags; may be changed, then `save()`."""

    @classmethod
    def of(cls, home: Home, document: Mapping[str, Any]) -> Artifact:
        """A version as the server tells it."""
        self = cls.__new__(cls)
        self._begin(str(document["name"]), str(document["type"]))
        self._home = home
        self._entries = None
        self._take(document)
        return self

    def _take(self, document: Mapping[str, Any]) -> None:
        self._doc = dict(document)
        self.description = str(document.get("description") or "")
        self.metadata = orjson.loads(orjson.dumps(document.get("metadata") or {}))
        self.aliases = list(document.get("aliases") or ())
        self.tags = list(document.get("tags") or ())

    def _open_to_changes(self) -> None:
        if self._doc is not None or self._pending is not None:
            raise UsageError(f"expected a draft, got {self.name}, which was logged", hint="new_draft() begins the next")

    # ---- what it is

    def wait(self, timeout: float | None = None) -> Artifact:
        """Wait until it is logged.

        Raises:
            UsageError: a file has changed since it was added.
            IcecoreError: the server refused it, or stayed away.
        """
        if self._pending is not None:
            try:
                self._pending.wait(timeout)
            finally:
                if self._pending.done and self._doc is None:
                    self._pending = None  # a draft again: what was wrong can be mended
        return self

    def put_home(self, home: Home) -> None:
        """Which server and cache it is for, where none was chosen yet."""
        if self._home is None:
            self._home = home

    def log_to(
        self, home: Home, run: tuple[str, str, str], aliases: list[str], tags: list[str], *, logged: bool = True
    ) -> Pending | None:
        """Begin to log it as an output of a run; None where it is not to be kept.

        One that was logged before gets the aliases and tags, and the run is noted.
        """
        self.put_home(home)
        self.wait()
        if self._doc is None:  # else they are what they were when it was read: they may have moved since
            aliases = list(dict.fromkeys([*aliases, *(alias for alias in self.aliases if alias != LATEST)]))
        tags = list(dict.fromkeys([*self.tags, *tags]))
        entries = dict(self._listed())
        sources = {digest: self._sources[digest] for digest, _, _ in entries.values() if digest in self._sources}
        plainly(manifest.check_tree, entries.keys())
        where = Name(run[0], run[1], self._base, LATEST)
        if self._doc is not None:  # logged before, perhaps elsewhere: the same place again
            where = self._name()
        words = {
            "type": self._type,
            "description": self.description,
            "metadata": check_metadata(self.metadata),
            "aliases": aliases,
            "tags": tags,
            "run": "/".join(run),
        }

        def work(progress: Progress) -> None:
            self._take(home.commit(where, entries, sources, words, progress))
            if self._staging is not None:
                self._staging.cleanup()
                self._staging = None

        self._pending = Pending(work) if logged else None
        return self._pending

    def is_draft(self) -> bool:
        """Whether it is not (yet) logged."""
        return self._doc is None

    def _logged(self) -> dict[str, Any]:
        """What the server tells of it; waits for it where it is on its way."""
        if self._doc is None:
            self.wait()
        if self._doc is None:
            raise UsageError(f"expected an artifact that was logged, got the draft {self._base}", hint="log it first")
        return self._doc

    def _name(self) -> Name:
        doc = self._logged()
        return Name(str(doc["entity"]), str(doc["project"]), self._base, self.version)

    def _listed(self) -> dict[str, Entry]:
        """Path -> entry; asked of the server when first needed."""
        if self._entries is None:
            self._entries = self._here().downloader().manifest(self.digest)
        return self._entries

    @property
    def name(self) -> str:
        """`bert:v3`; of a draft `bert`."""
        return self._base if self._doc is None else f"{self._base}:{self._doc['version']}"

    @property
    def collection_name(self) -> str:
        """The name without the version."""
        return self._base

    @property
    def type(self) -> str:
        """What it is: model, dataset, and so on."""
        return self._type

    @property
    def version(self) -> str:
        """Its number: `v0`, `v1` and so on."""
        return str(self._logged()["version"])

    @property
    def entity(self) -> str:
        """The user or team that owns it."""
        return str(self._logged()["entity"])

    @property
    def project(self) -> str:
        """Its project."""
        return str(self._logged()["project"])

    @property
    def qualified_name(self) -> str:
        """`entity/project/bert:v3`."""
        return str(self._name())

    @property
    def id(self) -> str:
        """The same as `qualified_name`: a version has one name for ever."""
        return self.qualified_name

    @property
    def digest(self) -> str:
        """Hex SHA-256 of its manifest: the same files under the same names have the same."""
        if self._doc is not None:
            return str(self._doc["digest"])
        return manifest.digest_of(plainly(manifest.encode, self._listed()))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        if self._doc is not None:
            return int(self._doc["size"])
        return sum(entry.size or 0 for entry in self._listed().values() if entry.is_blob)

    @property
    def file_count(self) -> int:
        """How many files it has."""
        return len([path for path in self._listed() if not path.endswith("/")])

    @property
    def state(self) -> str:
        """PENDING, COMMITTED or DELETED."""
        return PENDING if self._doc is None else str(self._doc["state"]).upper()

    @property
    def created_at(self) -> str:
        """ISO 8601, UTC."""
        return str(self._logged()["created_at"] or "")

    @property
    def updated_at(self) -> str:
        """ISO 8601, UTC."""
        return str(self._logged()["updated_at"] or "")

    @property
    def url(self) -> str:
        """Where the API has it."""
        return f"{self._here().settings.url}/api/v1/{self._name().route}/{self.version}"

    def __repr__(self) -> str:
        return f"<Artifact {self.name if self._doc is None else self.qualified_name}>"

    # ---- files

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

    # ---- the next version, and changes

    def new_draft(self) -> Artifact:
        """A draft with the same files, to change and log as the next version."""
        self._logged()
        draft = Artifact(self._base, self._type, self.description, self.metadata)
        draft._home = self._home
        draft._entries = dict(self._listed())
        return draft

    def save(self) -> None:
        """Send what was changed: aliases, description, metadata, tags; a draft is logged to the current run.

        An alias that was taken off is taken away only if it still names this version.

        Raises:
            Conflict: somebody moved an alias in between; the message says where to.
        """
        if self._doc is None and self._pending is None:
            from icecore.init import the_run

            the_run("log_artifact").log_artifact(self)
            return
        doc, name, client = self._logged(), self._name(), self._here().client
        words = {"description": self.description, "metadata": check_metadata(self.metadata), "tags": self.tags}
        changes = {field: value for field, value in words.items() if value != (doc.get(field) or type(value)())}
        before, wanted = list(doc.get("aliases") or ()), list(dict.fromkeys(self.aliases))
        for alias in wanted:
            if alias not in before:
                self._move(alias, {"version": self.version})
        for alias in before:
            if alias not in wanted and alias != LATEST:
                self._move(alias, {"version": None, "expected": self.version})
        address = f"{name.route}/{self.version}"
        if changes:
            self._take(client.ask("PATCH", address, body=changes))
        elif wanted != before:
            self._take(client.ask("GET", address))

    def _move(self, alias: str, body: dict[str, Any]) -> None:
        try:
            self._here().client.ask("PUT", f"{self._name().route}/aliases/{quote(alias, safe='')}", body=body)
        except Conflict:
            self._take(self._here().version(self._name()))
            raise

    def delete(self, delete_aliases: bool = False) -> None:
        """Hide this version.

        Args:
            delete_aliases: its aliases go too; else it may have none but `latest`.

        Raises:
            Conflict: it has aliases.
        """
        query = {"with_aliases": True} if delete_aliases else None
        self._take(self._here().client.ask("DELETE", f"{self._name().route}/{self.version}", query=query))

    def restore(self) -> None:
        """Bring it back after `delete`."""
        self._take(self._here().client.ask("POST", f"{self._name().route}/{self.version}/restore"))

    # ---- lineage

    def logged_by(self) -> Any:
        """The run that made it first, as `Api().run` gives it; None where none did, or it is gone."""
        path = self._logged().get("run")
        return _run(self._here(), str(path)) if path else None

    def used_by(self) -> list[Any]:
        """The runs that took it as an input."""
        address = f"{self._name().route}/{self.version}/lineage"
        found = self._here().client.ask("GET", address, query={"direction": "down", "depth": 1})
        paths = [str(edge["to"]) for edge in found["edges"] if edge["kind"] == "used"]
        runs = [_run(self._here(), path) for path in dict.fromkeys(paths)]
        return [run for run in runs if run is not None]


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as it may be stored: what JSON has no word for becomes text, as in a config.

    Raises:
        UsageError: it is no mapping, or over its limit.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UsageError(f"expected metadata to be a dict, got {type(metadata).__qualname__}")
    told: dict[str, Any] = plain(dict(metadata or {}))
    size = len(orjson.dumps(told))
    if size > most("config_bytes"):
        raise UsageError(
            f"expected metadata of at most {most('config_bytes')} bytes as JSON, got {size}",
            hint="add what is large as a file",
        )
    return told


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


def _run(home: Home, path: str) -> Any:
    """A run by its path; None where it is not there any more."""
    from icecore.api import Api

    try:
        return Api(api_key=home.settings.key, overrides={"url": home.settings.url}).run(path)
    except NotFound:
        return None
