"""A named, versioned set of files: `icecore.Artifact`.

artifact = icecore.Artifact("bert", type="model", metadata={"f1": 0.9})
artifact.add_file("model.pt")
run.log_artifact(artifact, aliases=["best"])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson

from icecore import manifest
from icecore.artifact_draft import plainly
from icecore.artifact_home import Home
from icecore.artifact_links import Linked
from icecore.artifact_names import LATEST, Name, other_route
from icecore.config import plain
from icecore.errors import Conflict, NotFound, UsageError
from icecore.events import check_path_part
from icecore.fields import check_notes
from icecore.limits import most
from icecore.pending import Pending
from icecore.transfer import Progress
from icecore.uploads import HOLDING


class Artifact(Linked):
    """Files under a name. Add files and log it, or get one that was logged with `use_artifact` or `Api().artifact`.

    Args:
        name: the name, without a version.
        type: what it is: model, dataset, … The same for all versions.
        description: any text.
        metadata: any values that JSON can hold, up to 1 MB.

    Raises:
        UsageError: an argument makes no sense.
    """

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

    @classmethod
    def of(cls, home: Home, document: Mapping[str, Any]) -> Artifact:
        """A version as the server tells it."""
        self = cls.__new__(cls)
        self._begin(str(document["name"]), str(document["type"]))
        self._home = home
        self._entries = None
        self._take(document)
        return self

    def put_home(self, home: Home) -> None:
        """Which server and cache it is for, where none was chosen yet."""
        if self._home is None:
            self._home = home

    def log_to(
        self,
        home: Home,
        run: tuple[str, str, str],
        aliases: list[str],
        tags: list[str],
        *,
        logged: bool = True,
        after: Pending | None = None,
    ) -> Pending | None:
        """Begin to log it as an output of a run; None where it is not to be kept.

        One that was logged before gets the aliases and tags, and the run is noted. It waits until `after` has ended:
        versions of one name are numbered in the order in which a run logs them.
        """
        self.put_home(home)
        self.wait()
        if self._doc is None:  # else they are what they were when it was read: they may have moved since
            aliases = list(dict.fromkeys([*aliases, *(alias for alias in self.aliases if alias != LATEST)]))
        tags = list(dict.fromkeys([*self.tags, *tags]))
        parts = self._parts_for(Name(run[0], run[1], self._base, LATEST))
        entries = {} if parts else dict(self._listed())
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
            **self._ttl_words(),
        }
        held = HOLDING.hold(sources) if logged else 0

        def work(progress: Progress) -> None:
            try:
                while after is not None and not after.ended(60.0):
                    pass
                if parts:
                    self._take(home.client.ask("POST", other_route("bundles", where), body={**words, "parts": parts}))
                    self._entries = None  # the server put its manifest together
                else:
                    self._take(home.commit(where, entries, sources, words, progress))
            finally:
                sources.clear()
                self._held.clear()
                HOLDING.let_go(held)
            self._clear()

        self._pending = Pending(work) if logged else None
        return self._pending

    def _clear(self) -> None:
        """Let go of files that were made for it: their bytes are on the server."""
        if self._staging is not None:
            self._staging.cleanup()
            self._staging = None

    def send_part(
        self, home: Home, run: tuple[str, str, str], distributed_id: str, finish: list[str] | None = None
    ) -> None:
        """Send its files as one writer's of a version of several; durable when it returns.

        Args:
            home: where to.
            run: of this process.
            distributed_id: what the writers call the version to be.
            finish: make the version now, with these aliases; None leaves it open.
        """
        self.put_home(home)
        at = Name(run[0], run[1], self._base, LATEST)
        address, whose = other_route("parts", at, distributed_id), "/".join(run)
        entries = dict(self._listed())
        if entries or finish is None:
            plainly(manifest.check_tree, entries.keys())
            home.commit(at, entries, dict(self._sources), {"run": whose}, Progress(), address)
        self._clear()
        if finish is not None:
            words = {"type": self._type, "description": self.description, "metadata": check_metadata(self.metadata)}
            aliases = list(dict.fromkeys([*finish, *(alias for alias in self.aliases if alias != LATEST)]))
            body = {**words, "aliases": aliases, "tags": self.tags, "run": whose, **self._ttl_words()}
            self._take(home.client.ask("POST", f"{address}/finish", body=body))
            self._entries = None

    def _parts_for(self, run: Name) -> dict[str, str]:
        """Of a bundle: its parts in full, where names without a project are of the run's."""
        del run
        return self.parts

    # ---- the next version, and changes

    def new_draft(self) -> Artifact:
        """A draft with the same files, to change and log as the next version; of a bundle they are its parts' files."""
        self._logged()
        draft = Artifact(self._base, self._type, self.description, self.metadata)
        draft._home = self._home
        draft._entries = dict(self._listed())
        return draft

    def save(self) -> None:
        """Send what was changed: aliases, description, metadata, tags, ttl; a draft is logged to the current run.

        An alias that was taken off is taken away only if it still names this version. One that was added moves from
        wherever it is, as in wandb; `icecore alias move --expect` says from where.

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
        self._save_ttl()
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


def _run(home: Home, path: str) -> Any:
    """A run by its path; None where it is not there any more."""
    from icecore.api import Api

    try:
        return Api(api_key=home.settings.key, overrides={"url": home.settings.url}).run(path)
    except NotFound:
        return None
