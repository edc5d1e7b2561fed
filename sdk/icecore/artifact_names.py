"""What people call a version of an artifact: `entity/project/name:alias`, with parts left out."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote

from icecore.errors import UsageError

LATEST: Final = "latest"
REGISTRY: Final = "registry"
"""The entity whose projects are registries."""
_WANDB: Final = "wandb-registry-"


class Name(NamedTuple):
    """A version by its name."""

    entity: str
    project: str
    name: str
    ref: str
    """An alias, or v3."""

    @property
    def path(self) -> str:
        """The artifact: entity/project/name."""
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def route(self) -> str:
        """Of the artifact, below /api/v1/."""
        return "artifacts/" + "/".join(quote(part, safe="") for part in (self.entity, self.project, self.name))

    def __str__(self) -> str:
        return f"{self.path}:{self.ref}"


def parse_name(text: str, entity: str, project: str, ref: str = LATEST) -> Name:
    """Read `name`, `name:ref`, `project/name:ref` or `entity/project/name:ref`.

    Args:
        text: what was typed.
        entity: where none is named.
        project: where none is named.
        ref: where none is named.

    Raises:
        UsageError: it is none of these, or a part that was left out is not known.
    """
    path, colon, named = text.rpartition(":")
    path, named = (path, named) if colon else (text, ref)
    parts = path.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts) or not named:
        raise UsageError(f"expected an artifact such as entity/project/name:latest, got {text[:200]!r}")
    if len(parts) < 2 and not project:
        raise UsageError(
            f"expected an artifact with its project, got {text[:200]!r}",
            hint="say project/name, or set ICECORE_PROJECT",
        )
    whose, where, name = [entity, project][: 3 - len(parts)] + parts
    return Name(whose, where, name, named)


def registry_name(target_path: str, kind: str, entity: str) -> Name:
    """The collection that people name: `registry/model/churn`; also `churn` alone, and wandb's names for it.

    Args:
        target_path: `churn` is in `registry/TYPE`, `wandb-registry-model/churn` is `registry/model/churn`,
            `project/churn` is of the entity, and three parts are as they stand.
        kind: the version's type.
        entity: the version's.

    Raises:
        UsageError: it is none of these.
    """
    path = target_path.partition(":")[0] if target_path.endswith(":latest") else target_path
    parts = path.split("/")
    if ":" in path or not 1 <= len(parts) <= 3 or not all(parts):
        raise UsageError(f"expected a collection such as registry/model/churn, got {target_path[:200]!r}")
    if len(parts) == 3 and parts[1].startswith(_WANDB):
        parts = parts[1:]
    if len(parts) == 1:
        parts = [REGISTRY, kind, *parts]
    elif len(parts) == 2 and parts[0].startswith(_WANDB):
        parts = [REGISTRY, parts[0].removeprefix(_WANDB), parts[1]]
    elif len(parts) == 2:
        parts = [entity, *parts]
    return Name(parts[0], parts[1], parts[2], LATEST)


def registry_route(at: Name) -> str:
    """Of a collection, below /api/v1/."""
    return "registry/" + "/".join(quote(part, safe="") for part in (at.entity, at.project, at.name))


def other_route(what: str, at: Name, *more: str) -> str:
    """Of a bundle, or of a version of several writers, below /api/v1/."""
    return "/".join([what, *(quote(part, safe="") for part in (at.entity, at.project, at.name, *more))])
