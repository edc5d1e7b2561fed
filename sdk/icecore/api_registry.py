"""Registries with `icecore.Api`: collections, what they ask, links and promotions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from icecore.artifact_names import LATEST, REGISTRY, Name, registry_name, registry_route
from icecore.errors import UsageError
from icecore.http import JsonClient
from icecore.settings import Settings

if TYPE_CHECKING:
    from icecore.artifact import Artifact
    from icecore.artifact_home import Home


class RegistryQueries:
    """The part of `icecore.Api` that is about registries."""

    client: JsonClient
    settings: Settings

    @cached_property
    def artifact_home(self) -> Home:
        """The server and cache of its artifacts."""
        from icecore.artifact_home import Home

        return Home(self.settings)

    def registries(self) -> list[RegistryCollection]:
        """The collections of registries, and other artifacts that somebody set up, by path."""
        found = self.client.ask("GET", "registry")["collections"]
        return [RegistryCollection(self, document) for document in found]

    def registry(self, path: str) -> RegistryCollection:
        """One collection: `registry/model/churn`, or any artifact in full.

        Raises:
            NotFound: there is none.
        """
        at = _full(path)
        return RegistryCollection(self, self.client.ask("GET", registry_route(at)))

    def create_registry(self, path: str, type: str = "model", **settings: Any) -> RegistryCollection:  # noqa: A002
        """Make a collection without versions, or set one up that is there.

        Args:
            path: `registry/model/churn`.
            type: of all its versions.
            **settings: as of `RegistryCollection.set`.

        Raises:
            Conflict: it is there, with another type.
        """
        at = _full(path)
        document = self.client.ask("PATCH", registry_route(at), body={"type": type, **_settings(settings)})
        return RegistryCollection(self, document)

    def promotions(self, path: str | None = None, state: str | None = None) -> list[Promotion]:
        """Promotions, the last first.

        Args:
            path: only those of a collection.
            state: only those that are requested, approved, rejected, applied or rolled_back.
        """
        address = f"{registry_route(_full(path))}/promotions" if path else "promotions"
        found = self.client.ask("GET", address, query={"state": state})["promotions"]
        return [Promotion(self.client, document) for document in found]

    def promotion(self, name: str) -> Promotion:
        """A promotion by its id.

        Raises:
            NotFound: there is none.
        """
        return Promotion(self.client, self.client.ask("GET", f"promotions/{quote(name, safe='')}"))


class RegistryCollection:
    """What a collection is for, and what it asks of its versions."""

    def __init__(self, api: RegistryQueries, document: Mapping[str, Any]) -> None:
        self._api = api
        self._take(document)

    def _take(self, document: Mapping[str, Any]) -> None:
        self.path, self.type = str(document["path"]), str(document["type"])
        self.name = self.path.rpartition("/")[2]
        self.description, self.owner = str(document["description"]), str(document["owner"])
        self.tags, self.stages = list(document["tags"]), list(document["stages"])
        self.required = list(document["required"])
        """Keys that a version's metadata must have."""
        self.checks = {alias: list(checks) for alias, checks in document["checks"].items()}
        """By alias: what must hold before a version is promoted there."""
        self.aliases = dict(document["aliases"])
        """Alias -> version."""
        self.template = str(document["template"])
        """The model card's template."""
        self.open = list(document["open"])
        """Ids of promotions that wait."""

    @property
    def _route(self) -> str:
        return registry_route(_full(self.path))

    def set(self, **settings: Any) -> None:
        """Change what it asks; what is left out stays.

        Args:
            **settings: `description`, `tags`, `owner`, `stages`, `required`, `template`, `checks`, `checks_of` and
                `reason`. `checks` are those of all aliases; with `checks_of` the aliases that it does not name keep
                theirs.

        Raises:
            UsageError: another name. Invalid: a check cannot be read.
        """
        self._take(self._api.client.ask("PATCH", self._route, body=_settings(settings)))

    def card(self, ref: str = LATEST) -> str:
        """The model card of a version, rendered; empty where there is no template."""
        return str(self._api.client.ask("GET", self._route, query={"ref": ref})["card"] or "")

    def artifact(self, ref: str = LATEST) -> Artifact:
        """The version that an alias or a number names."""
        from icecore.artifact import Artifact

        home = self._api.artifact_home
        return Artifact.of(home, home.version(_full(self.path)._replace(ref=ref)))

    def link(self, source: Artifact | str, aliases: Sequence[str] | str | None = None) -> Artifact:
        """Put a version of another artifact into it; see `Artifact.link`.

        Args:
            source: an artifact, or its name in full with an alias or version.
            aliases: names that it is to have here, besides `latest`.
        """
        from icecore.artifact import Artifact

        name = source.qualified_name if isinstance(source, Artifact) else str(source)
        names = [aliases] if isinstance(aliases, str) else list(aliases or ())
        document = self._api.client.ask("POST", f"{self._route}/links", body={"source": name, "aliases": names})
        self._take(self._api.client.ask("GET", self._route))
        return Artifact.of(self._api.artifact_home, document)

    def promote(self, version: str, to: str, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
        """Ask that an alias names a version; it does at once, where no check asks for an approval.

        Args:
            version: `v5`, or an alias.
            to: the alias.
            reason: why; kept for ever.
            dry_run: only say what would happen.

        Returns:
            `outcome` (applied, waits or refused), `checks` with `check`, `ok` and `found`, and `promotion`.

        Raises:
            Conflict: a check fails.
        """
        body = {"version": version, "to": to, "reason": reason, "dry_run": dry_run}
        answer: dict[str, Any] = self._api.client.ask("POST", f"{self._route}/promotions", body=body)
        return answer

    def rollback(self, to: str, reason: str = "") -> dict[str, Any]:
        """Let an alias name again what it named before the last promotion: `alias`, `version` and `before`.

        Raises:
            Conflict: there is no promotion that could be rolled back.
        """
        body = {"to": to, "reason": reason}
        answer: dict[str, Any] = self._api.client.ask("POST", f"{self._route}/rollback", body=body)
        return answer

    def promotions(self, state: str | None = None) -> list[Promotion]:
        """Its promotions, the last first."""
        return self._api.promotions(self.path, state)

    def __repr__(self) -> str:
        return f"<RegistryCollection {self.path}>"


class Promotion:
    """A promotion, with all that happened to it."""

    def __init__(self, client: JsonClient, document: Mapping[str, Any]) -> None:
        self._client = client
        self._take(document)

    def _take(self, document: Mapping[str, Any]) -> None:
        self.id, self.path = str(document["promotion"]), str(document["path"])
        self.version, self.alias = str(document["version"]), str(document["alias"])
        self.state, self.reason = str(document["state"]), str(document["reason"])
        self.requested_by, self.approved_by = str(document["requested_by"]), document["approved_by"]
        self.steps: list[dict[str, Any]] = list(document["steps"])
        """Each with `step`, `at`, `user`, `credential`, `reason`, `checks` and `position`."""

    def approve(self, reason: str = "") -> None:
        """Approve and apply it.

        Raises:
            Conflict: it is closed, a check fails, or the credential is the requester's.
        """
        self._take(self._client.ask("POST", f"promotions/{quote(self.id, safe='')}/approve", body={"reason": reason}))

    def reject(self, reason: str = "") -> None:
        """Refuse it.

        Raises:
            Conflict: it is closed.
        """
        self._take(self._client.ask("POST", f"promotions/{quote(self.id, safe='')}/reject", body={"reason": reason}))

    def __repr__(self) -> str:
        return f"<Promotion {self.id}: {self.path}:{self.version} to {self.alias}, {self.state}>"


_SETTINGS = frozenset(
    {"description", "tags", "owner", "stages", "required", "template", "checks", "checks_of", "reason"}
)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(given.keys() - _SETTINGS):
        raise UsageError(f"expected {', '.join(sorted(_SETTINGS))}, got {', '.join(unknown)}")
    return {name: value for name, value in given.items() if value is not None}


def _full(path: str) -> Name:
    """A collection by its whole path; `model/churn` is of the registry."""
    whole = f"{REGISTRY}/{path}" if path.count("/") == 1 and not path.startswith("wandb-") else path
    if whole.count("/") == 0:
        raise UsageError(f"expected a collection such as registry/model/churn, got {path[:200]!r}")
    return registry_name(whole, "", "")
