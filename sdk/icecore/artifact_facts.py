"""What is known of an artifact, logged or not: its name, type, version, digest and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import orjson

from icecore import manifest
from icecore.artifact_draft import Draft, plainly
from icecore.artifact_life import Lived
from icecore.artifact_names import Name
from icecore.errors import UsageError
from icecore.manifest import Entry
from icecore.pending import Pending

PENDING: Final = "PENDING"


class Facts(Lived, Draft):
    """A draft, or a version as the server tells it."""

    description: str
    """Any text; may be changed, then `save()`."""
    metadata: dict[str, Any]
    """Values by name; may be changed, then `save()`."""

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

    def _take(self, document: Mapping[str, Any]) -> None:
        self._doc = dict(document)
        self.description = str(document.get("description") or "")
        self.metadata = orjson.loads(orjson.dumps(document.get("metadata") or {}))
        self.aliases = list(document.get("aliases") or ())
        self.tags = list(document.get("tags") or ())

    def _open_to_changes(self) -> None:
        if self._doc is not None or self._pending is not None:
            raise UsageError(f"expected a draft, got {self.name}, which was logged", hint="new_draft() begins the next")

    def wait(self, timeout: float | None = None) -> Self:
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
