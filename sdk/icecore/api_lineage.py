"""Lineage, differences and impact with `icecore.Api`, and what a run logged and used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from icecore.artifact_names import Name
from icecore.http import JsonClient

if TYPE_CHECKING:
    from icecore.artifact import Artifact
    from icecore.artifact_diff import ArtifactDiff
    from icecore.lineage import Direction, Lineage


class LineageQueries:
    """The part of `icecore.Api` that is about lineage."""

    client: JsonClient

    def lineage(
        self,
        name: str,
        direction: Direction = "both",
        depth: int = 6,
        as_of: str | None = None,
        limit: int | None = None,
    ) -> Lineage:
        """What a version was made from (up), and what was made from it (down).

        Args:
            name: `name:alias`, `project/name:v3` or in full.
            direction: `up`, `down` or `both`.
            depth: steps, each from one node to the next: a version, the run that made it, what that used, and so on.
            as_of: a position or a time; else now.
            limit: nodes at most; else the server's 300. Where there are more, `truncated` is true.

        Raises:
            NotFound: there is no such version.
        """
        from icecore.lineage import Lineage

        query = {"direction": direction, "depth": depth, "as_of": as_of, "limit": limit}
        return Lineage.of_answer(self._of_version(name, "lineage", query))

    def impact(self, name: str, as_of: str | None = None) -> dict[str, Any]:
        """Everything that came of a version: `versions`, `runs`, `served_by` (aliases), and `tell` (users).

        Args:
            name: as for `lineage`.
            as_of: a position or a time; else now.

        Raises:
            NotFound: there is no such version.
        """
        return self._of_version(name, "impact", {"as_of": as_of})

    def artifact_diff(self, before: str, after: str, lineage: bool = False) -> ArtifactDiff:
        """What differs between two versions: files, metadata, and with `lineage` all that differed upstream.

        Args:
            before: as for `lineage`.
            after: another; `:v12` is one of the same artifact.
            lineage: compare the runs that made them, too: inputs, code, config, packages, host.

        Raises:
            NotFound: there is no such version.
        """
        from icecore.artifact_diff import compare

        first = self._named(before)
        second = first._replace(ref=after[1:]) if after.startswith(":") else self._named(after)
        return compare(cast("Any", self), first, second, lineage=lineage)

    def _of_version(self, name: str, what: str, query: dict[str, Any]) -> dict[str, Any]:
        at = self._named(name)
        answer: dict[str, Any] = self.client.ask("GET", f"{at.route}/{quote(at.ref, safe='')}/{what}", query=query)
        return answer

    def _named(self, name: str) -> Name:
        found: Name = cast("Any", self)._artifact_name(name)  # noqa: SLF001 - of the other part
        return found


class RunLineage:
    """The part of a run that is about artifacts."""

    _client: JsonClient

    def logged_artifacts(self, per_page: int = 100) -> list[Artifact]:
        """The versions it made, in the order it made them.

        Args:
            per_page: accepted for scripts that give it; the answer is one.
        """
        del per_page
        return self._artifacts("logged")

    def used_artifacts(self, per_page: int = 100) -> list[Artifact]:
        """The versions it took as inputs, in the order it took them.

        Args:
            per_page: accepted for scripts that give it; the answer is one.
        """
        del per_page
        return self._artifacts("used")

    def _artifacts(self, kind: str) -> list[Artifact]:
        from icecore.artifact import Artifact
        from icecore.artifact_home import Home
        from icecore.settings import Settings

        home = Home(Settings.load({"url": self._client.url, "api_key": self._client.key}))
        found = self._client.ask("GET", f"{cast('Any', self).api_path}/artifacts")
        return [Artifact.of(home, document) for document in found[kind]]
