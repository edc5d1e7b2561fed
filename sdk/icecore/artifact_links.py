"""A version in collections of registries, and the parts of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from icecore.artifact_folder import Folder
from icecore.artifact_names import LATEST, registry_name, registry_route
from icecore.errors import UsageError

if TYPE_CHECKING:
    from icecore.artifact import Artifact


class Linked(Folder):
    """What is known of an artifact, its files, and its links."""

    def link(self, target_path: str, aliases: Sequence[str] | str | None = None) -> Artifact:
        """Put this version into a collection of a registry, too; no byte is copied.

        Args:
            target_path: the collection, e.g. `registry/model/churn`; `churn` alone is in `registry/TYPE`.
            aliases: names that it is to have there, besides `latest`.

        Returns:
            The version as it is in the collection, with a number of its own.

        Raises:
            Conflict: the collection asks for metadata that is not there, has another type, or does not have
                such an alias, or moves it by promotion only.
        """
        from icecore.artifact import Artifact

        at = registry_name(target_path, self.type, self.entity)
        names = [aliases] if isinstance(aliases, str) else list(aliases or ())
        body = {"source": self.qualified_name, "aliases": [alias for alias in names if alias != LATEST]}
        return Artifact.of(self._here(), self._here().client.ask("POST", f"{registry_route(at)}/links", body=body))

    def unlink(self, delete_aliases: bool = False) -> None:
        """Take a version of a collection that came by a link out of it again; its sources stay as they are.

        Args:
            delete_aliases: its aliases go too; else it may have none but `latest`.

        Raises:
            UsageError: it came by no link. Conflict: it has aliases.
        """
        if not self.sources:
            raise UsageError(
                f"expected a version that was linked, got {self.qualified_name}, which was logged",
                hint="unlink what link() returned, or Api().artifact('registry/…')",
            )
        for source in self.sources:
            query = {"source": source, "with_aliases": True if delete_aliases else None}
            address = f"{registry_route(self._name())}/links"
            self._take(self._here().client.ask("DELETE", address, query=query))

    @property
    def is_link(self) -> bool:
        """Whether it is in this collection by a link."""
        return bool(self.sources)

    @property
    def sources(self) -> list[str]:
        """The versions that were linked here, as entity/project/name:v3; none of a version that was logged."""
        return list(self._logged().get("sources") or ())

    @property
    def source_name(self) -> str:
        """`bert:v3`, as it is called where it was logged."""
        return self.source_qualified_name.rpartition("/")[2]

    @property
    def source_qualified_name(self) -> str:
        """`entity/project/bert:v3`, where it was logged."""
        return self.sources[0] if self.sources else self.qualified_name

    @property
    def source_entity(self) -> str:
        """The user or team that owns it, where it was logged."""
        return self.source_qualified_name.split("/")[0]

    @property
    def source_project(self) -> str:
        """Its project, where it was logged."""
        return self.source_qualified_name.split("/")[1]

    @property
    def source_version(self) -> str:
        """Its number, where it was logged."""
        return self.source_qualified_name.rpartition(":")[2]

    @property
    def source_artifact(self) -> Artifact:
        """The version where it was logged; itself where it is no link."""
        from icecore.artifact import Artifact
        from icecore.artifact_names import parse_name

        name = parse_name(self.source_qualified_name, "", "")
        return Artifact.of(self._here(), self._here().version(name))

    # ---- bundles

    @property
    def parts(self) -> dict[str, str]:
        """Of a bundle: folder -> the version that it pins, as entity/project/name:v3; else empty."""
        return dict((self._doc or {}).get("parts") or {})

    def part(self, key: str) -> Artifact:
        """The version that a folder of a bundle is.

        Raises:
            UsageError: it has no such part.
        """
        from icecore.artifact import Artifact
        from icecore.artifact_names import parse_name

        self._logged()
        if key not in self.parts:
            raise UsageError(f"expected one of the parts {', '.join(self.parts) or '(none)'}, got {key!r}")
        return Artifact.of(self._here(), self._here().version(parse_name(self.parts[key], "", "")))
