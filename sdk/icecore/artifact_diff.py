"""What differs between two versions, and why: their files and metadata, and all that differed upstream.

Pure but for `Source`, which asks the server: the same comparison can be tried on made documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

from icecore.artifact_names import Name
from icecore.errors import NotFound

if TYPE_CHECKING:
    from icecore.api import Api
    from icecore.manifest import Entry

DEPTH_MOST: Final = 4
"""Inputs of inputs that are compared."""
PAIRS_MOST: Final = 40
"""Pairs of versions that are compared in all."""
_NODES: Final = 2_000
_MISSING: Final = object()

Changes = dict[str, dict[str, Any]]
"""Dotted path -> `before` and `after`; one of them is left out where there was nothing."""

_ENVIRONMENT: Final = (
    "host", "os", "python", "python_implementation", "cpu_model", "cpu_count", "cpu_count_logical", "memory_bytes",
    "gpu_count", "gpu_driver", "cuda", "user",
)  # fmt: skip


class Source(Protocol):
    """What a comparison asks."""

    def version(self, name: Name) -> dict[str, Any]:
        """A version."""
        ...

    def entries(self, version: Mapping[str, Any]) -> Mapping[str, Entry]:
        """Its files by path."""
        ...

    def above(self, name: Name) -> dict[str, Any]:
        """Its lineage, two steps up."""
        ...

    def run(self, path: str) -> dict[str, Any] | None:
        """A run; None where it is not there any more."""
        ...


@dataclass
class ServerSource:
    """A server as the source."""

    api: Api

    @cached_property
    def _home(self) -> Any:
        from icecore.artifact_home import Home

        return Home(self.api.settings)

    def version(self, name: Name) -> dict[str, Any]:
        """A version."""
        found: dict[str, Any] = self.api.client.ask("GET", f"{name.route}/{quote(name.ref, safe='')}")
        return found

    def entries(self, version: Mapping[str, Any]) -> Mapping[str, Entry]:
        """Its files by path."""
        found: Mapping[str, Entry] = self._home.downloader().manifest(version["digest"])
        return found

    def above(self, name: Name) -> dict[str, Any]:
        """Its lineage, two steps up."""
        query = {"direction": "up", "depth": 2, "limit": _NODES}
        found: dict[str, Any] = self.api.client.ask(
            "GET", f"{name.route}/{quote(name.ref, safe='')}/lineage", query=query
        )
        return found

    def run(self, path: str) -> dict[str, Any] | None:
        """A run; None where it is not there any more."""
        try:
            return self.api.run(path).load().as_dict()
        except NotFound:
            return None


class ArtifactDiff:
    """What differs between two versions.

    Args:
        document: as `icecore artifact diff --json` prints it.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = dict(document)

    @property
    def before(self) -> str:
        """The first version, in full."""
        return str(self._document["before"])

    @property
    def after(self) -> str:
        """The second."""
        return str(self._document["after"])

    @property
    def files(self) -> dict[str, Any]:
        """`added`, `removed`, `changed`, `renamed` (each by bytes, the most first), `unchanged`, `bytes`."""
        return dict(self._document["files"])

    @property
    def metadata(self) -> Changes:
        """Dotted path -> `before` and `after`."""
        return dict(self._document["metadata"])

    @property
    def upstream(self) -> dict[str, Any] | None:
        """What differed upstream: `runs inputs code config packages environment command results`; None: not asked."""
        found = self._document.get("lineage")
        return dict(found) if found is not None else None

    def to_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(self._document)

    def __str__(self) -> str:
        from icecore.artifact_diff_text import lines

        return "\n".join(lines(self._document))

    def __repr__(self) -> str:
        return f"<ArtifactDiff {self.before} -> {self.after}>"


def compare(api: Api, before: Name, after: Name, *, lineage: bool) -> ArtifactDiff:
    """Compare two versions on a server."""
    return ArtifactDiff(Comparison(ServerSource(api)).versions(before, after, lineage=lineage))


@dataclass
class Comparison:
    """One comparison with everything upstream; a pair of versions is compared once."""

    source: Source
    seen: set[tuple[str, str]] = field(default_factory=set)

    def versions(self, before: Name, after: Name, *, lineage: bool, depth: int = DEPTH_MOST) -> dict[str, Any]:
        """The document of two versions."""
        old, new = self.source.version(before), self.source.version(after)
        first, second = _full(old), _full(new)
        self.seen.add((str(first), str(second)))
        files = (
            changed_files(self.source.entries(old), self.source.entries(new)) if old["digest"] != new["digest"] else {}
        )
        return {
            "before": str(first),
            "after": str(second),
            "same_content": old["digest"] == new["digest"],
            "files": files or {**_NO_FILES, "unchanged": old["files"]},
            "metadata": changes(old["metadata"], new["metadata"]),
            "lineage": self.upstream(old, new, depth) if lineage else None,
        }

    def upstream(self, old: Mapping[str, Any], new: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """What differed in how two versions came about."""
        runs = (self._run(old), self._run(new))
        one, other = (run or {} for run in runs)
        facts = [dict(run.get("metadata") or {}) for run in (one, other)]
        packages = [dict(_mapping(each.get("packages"))) for each in facts]
        inputs = self._inputs(old, new, depth)
        return {
            "runs": {"before": old.get("run"), "after": new.get("run")},
            **inputs,
            "code": changes(*(_code(each) for each in facts)),
            "config": changes(*(_mapping(run.get("config")) for run in (one, other))),
            "config_same": _same(*(_mapping(run.get("config")) for run in (one, other))),
            "packages": changes(*packages),
            "packages_same": _same(*packages),
            "environment": changes(*(_environment(each) for each in facts)),
            "environment_same": {
                name: value
                for name, value in _environment(facts[1]).items()
                if _environment(facts[0]).get(name) == value
            },
            "command": changes(*(_command(each) for each in facts)),
            "results": changes(*(_results(run) for run in (one, other))),
            "missing": [
                path for path, run in zip((old.get("run"), new.get("run")), runs, strict=True) if path and not run
            ],
        }

    def _run(self, version: Mapping[str, Any]) -> dict[str, Any] | None:
        return self.source.run(str(version["run"])) if version.get("run") else None

    def _inputs(self, old: Mapping[str, Any], new: Mapping[str, Any], depth: int) -> dict[str, Any]:
        """Inputs of the runs, parts of bundles and references: those of one artifact beside each other."""
        (before, refs_before), (after, refs_after) = (
            inputs_of(self.source.above(_full(version)), version) for version in (old, new)
        )
        differing: list[dict[str, Any]] = []
        for artifact in sorted({*before, *after}):
            gone = sorted(before.get(artifact, set()) - after.get(artifact, set()))
            come = sorted(after.get(artifact, set()) - before.get(artifact, set()))
            for index in range(max(len(gone), len(come))):
                pair = (_at(gone, index), _at(come, index))
                differing.append(self._input(artifact, *pair, depth))
        same = sorted(
            f"{artifact}:v{number}" for artifact in before.keys() & after.keys()
            for number in before[artifact] & after[artifact]
        )  # fmt: skip
        references = [{"after": uri} for uri in sorted(refs_after - refs_before)]
        references += [{"before": uri} for uri in sorted(refs_before - refs_after)]
        return {"inputs": differing, "inputs_same": same, "references": references}

    def _input(self, artifact: str, before: int | None, after: int | None, depth: int) -> dict[str, Any]:
        told: dict[str, Any] = {"artifact": artifact}
        told |= {} if before is None else {"before": f"v{before}"}
        told |= {} if after is None else {"after": f"v{after}"}
        if before is None or after is None or depth < 1 or len(self.seen) >= PAIRS_MOST:
            return told
        pair = (f"{artifact}:v{before}", f"{artifact}:v{after}")
        if pair in self.seen:
            return told
        entity, project, name = artifact.split("/")
        names = [Name(entity, project, name, f"v{number}") for number in (before, after)]
        try:
            return {**told, "differs": self.versions(names[0], names[1], lineage=True, depth=depth - 1)}
        except NotFound:  # deleted since
            return told


# ------------------------------------------------------------------------------------------------------- the parts

_NO_FILES: Final[Mapping[str, Any]] = {
    "added": [], "removed": [], "changed": [], "renamed": [], "unchanged": 0,
    "bytes": {"added": 0, "removed": 0, "changed": 0},
}  # fmt: skip


def changed_files(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> dict[str, Any]:
    """Files that came, went, changed or have another name, those with the most bytes first.

    `bytes` of what changed are those of the new files.
    """
    gone = {path: before[path] for path in before.keys() - after.keys()}
    come = {path: after[path] for path in after.keys() - before.keys()}
    by_digest: dict[tuple[str, str], list[str]] = {}
    for path in sorted(gone):
        by_digest.setdefault((gone[path].digest, gone[path].ref), []).append(path)
    renamed: list[dict[str, Any]] = []
    for path in sorted(come):
        same = by_digest.get((come[path].digest, come[path].ref)) if come[path].size and come[path].digest else None
        if same:
            old = same.pop(0)
            renamed.append({"path": path, "from": old, "size": come[path].size or 0})
            del come[path], gone[old]
    both = before.keys() & after.keys()
    changed: list[dict[str, Any]] = [
        {"path": path, "before": before[path].size or 0, "after": after[path].size or 0}
        for path in both
        if before[path] != after[path]
    ]
    told: dict[str, Any] = {
        "added": _by_bytes({"path": path, "size": entry.size or 0} for path, entry in come.items()),
        "removed": _by_bytes({"path": path, "size": entry.size or 0} for path, entry in gone.items()),
        "changed": sorted(changed, key=lambda one: (-max(one["before"], one["after"]), one["path"])),
        "renamed": _by_bytes(renamed),
        "unchanged": len(both) - len(changed),
    }
    sizes = {name: sum(one["size"] for one in told[name]) for name in ("added", "removed")}
    return {**told, "bytes": {**sizes, "changed": sum(one["after"] for one in changed)}}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Leaves that differ, by dotted path."""
    old, new = dict(leaves(before)), dict(leaves(after))
    found: Changes = {}
    for path in sorted(old.keys() | new.keys()):
        was, now = old.get(path, _MISSING), new.get(path, _MISSING)
        if was is _MISSING or now is _MISSING or not _equal(was, now):
            found[path] = {name: value for name, value in (("before", was), ("after", now)) if value is not _MISSING}
    return found


def leaves(tree: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Dotted path and value of everything that is no object with keys; lists are values."""
    stack: list[tuple[str, Any]] = [(str(name), value) for name, value in tree.items()]
    while stack:
        path, value = stack.pop()
        if isinstance(value, Mapping) and value:
            stack += [(f"{path}.{name}", inner) for name, inner in value.items()]
        else:
            yield path, value


def inputs_of(graph: Mapping[str, Any], version: Mapping[str, Any]) -> tuple[dict[str, set[int]], set[str]]:
    """What a version was made from: numbers of versions by artifact, and references; out of its lineage upwards."""
    start, run = graph["start"], version.get("run")
    kinds = {node["id"]: node["kind"] for node in graph["nodes"]}
    inputs: dict[str, set[int]] = {}
    references: set[str] = set()
    for edge in graph["edges"]:
        mine = (edge["kind"] == "used" and edge["to"] == run) or (
            edge["kind"] in ("part", "linked") and edge["to"] == start
        )
        if mine and kinds.get(edge["from"]) in ("version", "bundle"):
            artifact, _, number = edge["from"].rpartition(":v")
            inputs.setdefault(artifact, set()).add(int(number))
        elif edge["kind"] == "refers" and edge["to"] == start:
            references.add(edge["from"])
    return inputs, references


def _full(version: Mapping[str, Any]) -> Name:
    return Name(version["entity"], version["project"], version["name"], version["version"])


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other and isinstance(one, bool) == isinstance(other, bool)) or repr(one) == repr(other)


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    old = dict(leaves(before))
    return sum(path in old and _equal(old[path], value) for path, value in leaves(after))


def _by_bytes(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(found, key=lambda one: (-one["size"], one["path"]))


def _at(numbers: list[int], index: int) -> int | None:
    return numbers[index] if index < len(numbers) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _code(facts: Mapping[str, Any]) -> dict[str, Any]:
    git = _mapping(facts.get("git"))
    told = {name: git[name] for name in ("commit", "branch", "remote", "dirty") if name in git}
    return {**told, **({"uncommitted": git["diff"]} if git.get("diff") else {})}


def _environment(facts: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: facts[name] for name in _ENVIRONMENT if name in facts}
    gpus = facts.get("gpus")
    names = [gpu.get("name") for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
    return {**told, **({"gpus": names} if names else {})}


def _command(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("program", "args") if name in facts}


def _results(run: Mapping[str, Any]) -> dict[str, Any]:
    summary = _mapping(run.get("summary"))
    return {name: value for name, value in summary.items() if not name.startswith("_")}
