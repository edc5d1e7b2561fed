"""Reading artifacts with `icecore.Api`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from icecore.api_registry import RegistryQueries
from icecore.artifact_names import Name, parse_name
from icecore.errors import NotFound, UsageError

if TYPE_CHECKING:
    from icecore.artifact import Artifact
    from icecore.artifact_home import Home


class ArtifactQueries(RegistryQueries):
    """The part of `icecore.Api` that is about artifacts."""

    def artifact(self, name: str, type: str | None = None) -> Artifact:  # noqa: A002 - the name people know
        """A version by `name`, `name:alias`, `project/name:v3` or `entity/project/name:alias`.

        Args:
            name: which; `latest` where no alias or version is named.
            type: what it must be.

        Raises:
            NotFound: there is none.
            UsageError: the name is no artifact's, or it is of another type.
        """
        from icecore.artifact import Artifact

        at = self._artifact_name(name)
        found = self.artifact_home.version(at)
        if type is not None and found["type"] != type:
            raise UsageError(f"expected {at} to be of type {type!r}, got {found['type']!r}")
        return Artifact.of(self.artifact_home, found)

    def artifact_exists(self, name: str, type: str | None = None) -> bool:  # noqa: A002 - the name people know
        """Whether there is such a version."""
        try:
            found = self.artifact_home.version(self._artifact_name(name))
        except NotFound:
            return False
        return type in (None, found["type"])

    def artifacts(
        self,
        type_name: str,
        name: str,
        per_page: int = 50,
        tags: str | Sequence[str] | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> Versions:
        """The versions of an artifact, newest first, fetched page by page as they are looked at.

        Args:
            type_name: what it must be.
            name: `name`, `project/name` or `entity/project/name`.
            per_page: versions a request.
            tags: only versions with all of these.
            filters: as for runs, e.g. `{"metadata.f1": {"$gt": 0.8}}`; on metadata, version, created_at, tags, aliases.

        Raises:
            UsageError: the name is no artifact's, or it is of another type.
        """
        at = self._artifact_name(name)
        asked = [dict(filters)] if filters else []
        asked += [{"tags": tag} for tag in ([tags] if isinstance(tags, str) else tags or ())]
        return Versions(self.artifact_home, at, type_name, {"$and": asked} if asked else {}, per_page)

    def artifact_collections(self, project_name: str | None, type_name: str | None = None) -> list[Collection]:
        """The artifacts of a project, by name.

        Args:
            project_name: `entity/project`, or `project` of the default entity; else ICECORE_PROJECT.
            type_name: only those of a type.
        """
        at = self._artifact_name(f"{project_name}/x" if project_name else "x")
        address = f"artifacts/{quote(at.entity, safe='')}/{quote(at.project, safe='')}"
        found = self.client.ask("GET", address, query={"type": type_name})["artifacts"]
        return [Collection(self, document) for document in found]

    def artifact_collection(self, type_name: str, name: str) -> Collection:
        """One artifact with all its versions.

        Raises:
            NotFound: there is none of that name and type.
        """
        at = self._artifact_name(name)
        for found in self.artifact_collections(f"{at.entity}/{at.project}", type_name):
            if found.name == at.name:
                return found
        raise NotFound(f"expected an artifact {at.path} of type {type_name!r}, got none")

    def artifact_collection_exists(self, name: str, type: str) -> bool:  # noqa: A002 - the name people know
        """Whether there is an artifact of that name and type."""
        try:
            return bool(self.artifact_collection(type, name))
        except NotFound:
            return False

    def artifact_types(self, project: str | None = None) -> list[ArtifactType]:
        """The types of a project's artifacts."""
        types = sorted({found.type for found in self.artifact_collections(project)})
        return [ArtifactType(self, kind, project) for kind in types]

    def artifact_type(self, type_name: str, project: str | None = None) -> ArtifactType:
        """One type of a project's artifacts.

        Raises:
            NotFound: the project has none of that type.
        """
        types = self.artifact_types(project)
        for found in types:
            if found == type_name:
                return found
        raise NotFound(f"expected a type of {project or 'the project'}, got {type_name!r}", hint=", ".join(types))

    def _artifact_name(self, text: str) -> Name:
        parts = text.split("/")
        owner = "" if len(parts) == 3 else str(getattr(self, "default_entity", ""))
        project = self.settings.project
        if "/" in project:
            owner, _, project = project.partition("/") if len(parts) == 1 else (owner, "", project)
        return parse_name(text, owner, project)


class ArtifactType(str):
    """A type of a project's artifacts: its name, with what there is of it."""

    __slots__ = ("_api", "_project")
    _api: ArtifactQueries
    _project: str | None

    def __new__(cls, api: ArtifactQueries, name: str, project: str | None) -> Self:
        """A type by its name."""
        self = super().__new__(cls, name)
        self._api, self._project = api, project
        return self

    @property
    def name(self) -> str:
        """The type itself."""
        return str(self)

    def collections(self) -> list[Collection]:
        """The project's artifacts of this type, by name."""
        return self._api.artifact_collections(self._project, self.name)


class Collection:
    """An artifact: all its versions."""

    def __init__(self, api: ArtifactQueries, document: Mapping[str, Any]) -> None:
        self._api = api
        self.name = str(document["name"])
        self.path = str(document["path"])
        self.type = str(document["type"])
        self.aliases = sorted(document.get("aliases") or ())
        """All aliases in use."""
        self.created_at = str(document.get("created_at") or "")

    def artifacts(self, per_page: int = 50) -> Versions:
        """Its versions, newest first."""
        return self._api.artifacts(self.type, self.path, per_page)

    versions = artifacts

    def __repr__(self) -> str:
        return f"<Collection {self.path}>"


class Versions(Sequence["Artifact"]):
    """Versions of an artifact, newest first, fetched as they are needed."""

    def __init__(self, home: Home, at: Name, kind: str, filters: Mapping[str, Any], per_page: int) -> None:
        if per_page < 1:
            raise UsageError(f"expected per_page of at least 1, got {per_page}")
        self._home, self._at, self._kind = home, at, kind
        self._query = {"filters": dict(filters) or None, "limit": per_page}
        self._found: list[Artifact] = []
        self._cursor: str | None = None
        self._more = True

    def _reach(self, index: int | None) -> bool:
        """Fetch until number `index` is here (None: all); whether it is."""
        from icecore.artifact import Artifact

        while self._more and (index is None or len(self._found) <= index):
            answer = self._home.client.ask("GET", self._at.route, query={**self._query, "cursor": self._cursor})
            for document in answer["versions"]:
                if document["type"] != self._kind:
                    raise UsageError(f"expected {self._at.path} of type {self._kind!r}, got {document['type']!r}")
                self._found.append(Artifact.of(self._home, document))
            self._cursor = answer.get("cursor")
            self._more = bool(self._cursor)
        return index is None or index < len(self._found)

    def __len__(self) -> int:
        self._reach(None)
        return len(self._found)

    def __iter__(self) -> Iterator[Artifact]:
        index = 0
        while self._reach(index):
            yield self._found[index]
            index += 1

    def __getitem__(self, index: Any) -> Any:
        self._reach(index if isinstance(index, int) and index >= 0 else None)
        return self._found[index]

    def __repr__(self) -> str:
        return f"<Versions {self._at.path}>"
