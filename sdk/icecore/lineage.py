"""The lineage of a version as an object: nodes, edges, paths between them, and pictures of it.

graph = icecore.Api().lineage("team/nlp/bert:production", direction="up")
print(graph.to_mermaid())
for node in graph.path("support-tickets:v0", "bert:v3").nodes:
    print(node.kind, node.id)
"""

from __future__ import annotations

import difflib
import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from icecore.errors import NotFound

Kind = Literal["version", "bundle", "run", "reference"]
Direction = Literal["up", "down", "both"]


@dataclass(frozen=True)
class Node:
    """A run, a version, a bundle or a reference; or many of them that are drawn as one."""

    id: str
    """A run's path, entity/project/name:v3, or a URI."""
    kind: Kind
    distance: int = 0
    """Steps from the version that was asked for."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the server tells of it: of a run `name job_type state user commit dirty config created_at`, of a version
    `path version type aliases state size files digest user created_at`."""
    members: tuple[str, ...] = ()
    """Of many drawn as one: their ids."""
    hidden: Mapping[str, int] = field(default_factory=dict)
    """`up` or `down` -> how many of its neighbours that way were left out of the answer."""

    @property
    def group(self) -> str:
        """What it is beside others of its kind: a run's job type, a version's artifact, the store of a reference."""
        if self.kind == "run":
            return str(self.facts.get("job_type") or "")
        if self.kind == "reference":
            return "/".join(self.id.split("/")[:3])
        return str(self.facts.get("path") or self.id.rpartition(":")[0])


@dataclass(frozen=True)
class Edge:
    """From what was there first to what came of it."""

    start: str
    end: str
    kind: str
    """logged, used, refers (files lie at a URI), part (of a bundle) or linked (into a collection)."""
    count: int = 1
    """How many edges are drawn as this one."""


class Lineage:
    """A part of the graph of runs, versions, bundles and references.

    Args:
        start: the id of the version that was asked for.
        nodes: the nearest first.
        edges: between them.
        truncated: whether there was more within the depth than the server was asked for.
    """

    def __init__(self, start: str, nodes: Iterable[Node], edges: Iterable[Edge], *, truncated: bool = False) -> None:
        self.start = start
        self.nodes = list(nodes)
        self.edges = list(edges)
        self.truncated = truncated
        self._by_id = {node.id: node for node in self.nodes}

    @classmethod
    def of_answer(cls, answer: Mapping[str, Any]) -> Lineage:
        """The server's answer."""
        hidden: dict[str, dict[str, int]] = {}
        for one in answer.get("hidden", ()):
            hidden.setdefault(one["node"], {})[one["direction"]] = one["count"]
        nodes = [
            Node(
                id=str(told["id"]),
                kind=told["kind"],
                distance=int(told["distance"]),
                facts={name: value for name, value in told.items() if name not in ("id", "kind", "distance")},
                hidden=hidden.get(told["id"], {}),
            )
            for told in answer["nodes"]
        ]
        edges = [Edge(told["from"], told["to"], told["kind"]) for told in answer["edges"]]
        return cls(str(answer["start"]), nodes, edges, truncated=bool(answer["truncated"]))

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, name: str) -> bool:
        return any(_is_called(node, name) for node in self.nodes)

    def __repr__(self) -> str:
        return f"<Lineage of {self.start}: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    def node(self, name: str) -> Node:
        """A node by its id, or by the end of it: `bert:v3`, a run's id or name.

        Raises:
            NotFound: there is none, or there are several.
        """
        if name in self._by_id:
            return self._by_id[name]
        found = [node for node in self.nodes if _is_called(node, name)]
        if len(found) == 1:
            return found[0]
        near = [node.id for node in found] or difflib.get_close_matches(name, self._by_id, 5, 0.3)
        count = f"{len(found)} of them" if found else "none"
        raise NotFound(
            f"expected one node called {name!r} in the lineage of {self.start}, got {count}",
            hint=f"there are {', '.join(near[:5])}" if near else "a greater depth may reach it",
        )

    # ---- parts of it

    def path(self, a: str, b: str) -> Lineage:
        """The shortest way between two nodes: along the edges where one came of the other, else through both.

        Args:
            a: a node, as `node` takes it.
            b: another.

        Raises:
            NotFound: one of them is not here, or nothing here connects them.
        """
        first, last = self.node(a).id, self.node(b).id
        down, up = self._neighbours(("start", "end")), self._neighbours(("end", "start"))
        either = {one: [*down.get(one, ()), *up.get(one, ())] for one in self._by_id}
        ways = (_shortest(down, first, last), _shortest(up, first, last), _shortest(either, first, last))
        way = next((found for found in ways if found), None)
        if way is None:
            raise NotFound(f"expected a way from {first} to {last}, got none", hint="a greater depth may find one")
        steps = {frozenset(pair) for pair in itertools.pairwise(way)}
        edges = [edge for edge in self.edges if frozenset((edge.start, edge.end)) in steps]
        return self._part(way, edges)

    def focus(self, name: str) -> Lineage:
        """Only what a node came of and what came of it, as far as it is here.

        Raises:
            NotFound: as `node`.
        """
        at = self.node(name).id
        above = _reach(self._neighbours(("end", "start")), at)
        below = _reach(self._neighbours(("start", "end")), at)
        edges = [
            edge for edge in self.edges if {edge.start, edge.end} <= above or {edge.start, edge.end} <= below
        ]  # fmt: skip
        kept = above | below
        part = self._part([node.id for node in self.nodes if node.id in kept], edges)
        part.start = at
        return part

    def above(self) -> set[str]:
        """The ids of what the start came of, itself among them."""
        return _reach(self._neighbours(("end", "start")), self.start)

    def folded(self, group_by: str | None = None, keep: Sequence[str] = ()) -> Lineage:
        """Nodes that are alike drawn as one: `37 runs of job_type eval`.

        Args:
            group_by: `job_type` puts all runs of a job type together, and all versions of an artifact; by default
                only those together that lie between the same nodes.
            keep: ids of nodes that stay by themselves; the start and what an alias serves always do.
        """
        from icecore.lineage_folding import fold

        return fold(self, group_by, keep)

    # ---- pictures of it

    def to_mermaid(self) -> str:
        """A flowchart in Mermaid's language."""
        from icecore.lineage_text import mermaid

        return mermaid(self)

    def to_dot(self) -> str:
        """A directed graph in Graphviz's language."""
        from icecore.lineage_text import dot

        return dot(self)

    def to_svg(self, path: str | Path | None = None) -> str:
        """A drawing, left to right; written to `path` where one is given."""
        from icecore.lineage_svg import svg

        text = svg(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    # Jupyter and its kin show the drawing of what is alike drawn as one
    def _repr_html_(self) -> str:
        return self.folded().to_svg()

    def _neighbours(self, ends: tuple[str, str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for edge in self.edges:
            found.setdefault(getattr(edge, ends[0]), []).append(getattr(edge, ends[1]))
        return found

    def _part(self, ids: Sequence[str], edges: Iterable[Edge]) -> Lineage:
        start = self.start if self.start in ids else ids[0]
        return Lineage(start, [self._by_id[one] for one in ids], edges, truncated=self.truncated)


def _is_called(node: Node, name: str) -> bool:
    return node.id == name or node.id.endswith(f"/{name}") or (node.kind == "run" and node.facts.get("name") == name)


def _reach(neighbours: Mapping[str, Sequence[str]], start: str) -> set[str]:
    seen, waiting = {start}, deque([start])
    while waiting:
        for other in neighbours.get(waiting.popleft(), ()):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


def _shortest(neighbours: Mapping[str, Sequence[str]], first: str, last: str) -> list[str] | None:
    came_from: dict[str, str] = {}
    seen, waiting = {first}, deque([first])
    while waiting:
        at = waiting.popleft()
        if at == last:
            way = [at]
            while way[-1] != first:
                way.append(came_from[way[-1]])
            return way[::-1]
        for other in neighbours.get(at, ()):
            if other not in seen:
                seen.add(other)
                came_from[other] = at
                waiting.append(other)
    return None
