"""Many nodes drawn as one, so that a graph of hundreds can be read.

Nodes are alike that are of one kind and group, at one distance, and lie between nodes that are alike: fifty runs of a
sweep and the fifty versions they logged become two nodes with one edge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Final

from icecore.errors import UsageError
from icecore.lineage import Edge, Lineage, Node

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIKE_LEAST: Final = 4
"""So many alike nodes become one; fewer stay."""
LEGIBLE_MOST: Final = 60
"""Where more nodes than that are left, those of one kind and group at one distance become one, too."""
GROUPS: Final = ("job_type",)
_ROUNDS_MOST: Final = 20


def fold(graph: Lineage, group_by: str | None, keep: Sequence[str]) -> Lineage:
    """The graph with alike nodes drawn as one. As `Lineage.folded`."""
    if group_by not in (None, *GROUPS):
        raise UsageError(f"expected to group by {', '.join(GROUPS)}, got {group_by!r}")
    alone = {graph.start, *keep, *(node.id for node in graph.nodes if _serves(node))}
    if group_by is not None:
        above = graph.above()
        return _drawn(graph, {node.id: (_colour(node, alone), node.id in above) for node in graph.nodes}, least=2)
    colours: dict[str, Hashable] = {node.id: (_colour(node, alone), node.distance) for node in graph.nodes}
    found = _drawn(graph, _refined(graph, colours), ALIKE_LEAST)
    return _drawn(graph, colours, ALIKE_LEAST) if len(found) > LEGIBLE_MOST else found


def _serves(node: Node) -> bool:
    return any(alias != "latest" for alias in node.facts.get("aliases") or ())


def _colour(node: Node, alone: set[str]) -> Hashable:
    return node.id if node.id in alone else (node.kind, node.group)


def _refined(graph: Lineage, colours: Mapping[str, Hashable]) -> dict[str, Hashable]:
    """Colours such that nodes of one colour have neighbours of the same colours."""
    now = _numbered(colours)
    for _ in range(_ROUNDS_MOST):
        around: dict[str, set[tuple[str, str, int]]] = {one: set() for one in now}
        for edge in graph.edges:
            around[edge.start].add(("down", edge.kind, now[edge.end]))
            around[edge.end].add(("up", edge.kind, now[edge.start]))
        finer = _numbered({one: (now[one], frozenset(around[one])) for one in now})
        if len(set(finer.values())) == len(set(now.values())):
            break
        now = finer
    return dict(now)


def _numbered(colours: Mapping[str, Hashable]) -> dict[str, int]:
    numbers: dict[Hashable, int] = {}
    return {one: numbers.setdefault(colour, len(numbers)) for one, colour in colours.items()}


def _drawn(graph: Lineage, colours: Mapping[str, Hashable], least: int) -> Lineage:
    """One node for each colour that at least `least` nodes have."""
    by_colour: dict[Hashable, list[Node]] = {}
    for node in graph.nodes:
        by_colour.setdefault(colours[node.id], []).append(node)
    nodes: list[Node] = []
    stands_for: dict[str, str] = {}
    for alike in by_colour.values():
        if len(alike) < least:
            nodes += alike
            stands_for |= {node.id: node.id for node in alike}
        else:
            one = _as_one(alike)
            nodes.append(one)
            stands_for |= {node.id: one.id for node in alike}
    counts = Counter((stands_for[edge.start], stands_for[edge.end], edge.kind) for edge in graph.edges)
    edges = [Edge(start, end, kind, count) for (start, end, kind), count in counts.items() if start != end]
    nodes.sort(key=lambda node: node.distance)
    return Lineage(graph.start, nodes, edges, truncated=graph.truncated)


def _as_one(alike: Sequence[Node]) -> Node:
    first = alike[0]
    hidden = sum((Counter(node.hidden) for node in alike), Counter())
    facts = {name: first.facts[name] for name in ("job_type", "type", "path") if name in first.facts}
    sizes = [node.facts["size"] for node in alike if "size" in node.facts]
    if sizes:
        facts["size"] = sum(sizes)
    users = {node.facts.get("user") for node in alike}
    if len(users) == 1:
        facts["user"] = users.pop()
    return Node(
        id=f"{first.id} and {len(alike) - 1} more",
        kind=first.kind,
        distance=min(node.distance for node in alike),
        facts=facts,
        members=tuple(node.id for node in alike),
        hidden=dict(hidden),
    )
