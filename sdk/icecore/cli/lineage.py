"""Lineage drawn: as a tree in a terminal, as Mermaid, and as DOT."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from icecore.cli.output import clean

if TYPE_CHECKING:
    from rich.tree import Tree

SIBLINGS_MOST: Final = 12
"""More nodes than that beside each other become one line that counts them."""

Graph = Mapping[str, Any]


def as_tree(graph: Graph) -> Iterator[Tree]:
    """Two trees from the start, up and down, each where there is something."""
    from rich.tree import Tree

    nodes = {node["id"]: node for node in graph["nodes"]}
    start = next((node for node in graph["nodes"] if node["distance"] == 0), None)
    if start is None:
        return
    for title, near, far in (("made from", "to", "from"), ("used for", "from", "to")):
        neighbours: dict[str, list[str]] = {}
        for edge in graph["edges"]:
            neighbours.setdefault(edge[near], []).append(edge[far])
        if neighbours.get(start["id"]):
            tree = Tree(f"{_label(start)}  {title}")
            _grow(tree, start["id"], nodes, neighbours, {start["id"]})
            yield tree
    if not graph["edges"]:
        yield Tree(f"{_label(start)}  made from nothing that was logged, used for nothing")


def _grow(tree: Tree, at: str, nodes: Mapping[str, Any], neighbours: Mapping[str, list[str]], above: set[str]) -> None:
    beside = [one for one in neighbours.get(at, []) if one in nodes and one not in above]
    for one in beside[:SIBLINGS_MOST]:
        _grow(tree.add(_label(nodes[one])), one, nodes, neighbours, above | {one})
    if len(beside) > SIBLINGS_MOST:
        tree.add(f"… and {len(beside) - SIBLINGS_MOST} more")


def as_mermaid(graph: Graph) -> str:
    """A flowchart: runs are round, versions square."""
    names = {node["id"]: f"n{index}" for index, node in enumerate(graph["nodes"])}
    lines = ["flowchart LR"]
    for node in graph["nodes"]:
        text = _label(node).replace('"', "#quot;").replace("\n", " ")
        lines.append(
            f'  {names[node["id"]]}("{text}")' if node["kind"] == "run" else f'  {names[node["id"]]}["{text}"]'
        )
    lines += [f"  {names[edge['from']]} --> {names[edge['to']]}" for edge in graph["edges"]]
    return "\n".join(lines)


def as_dot(graph: Graph) -> str:
    """A directed graph for Graphviz."""
    lines = ["digraph lineage {", "  rankdir=LR;"]
    for node in graph["nodes"]:
        shape = "ellipse" if node["kind"] == "run" else "box"
        lines.append(f"  {json.dumps(node['id'])} [shape={shape}, label={json.dumps(_label(node))}];")
    lines += [f"  {json.dumps(edge['from'])} -> {json.dumps(edge['to'])};" for edge in graph["edges"]]
    return "\n".join([*lines, "}"])


def _label(node: Mapping[str, Any]) -> str:
    if node["kind"] == "run":
        what = f" ({node['job_type']})" if node.get("job_type") else ""
        commit = f" @{node['commit'][:8]}" if node.get("commit") else ""
        return clean(f"run {node.get('name') or node['id']}{what}{commit}")
    named = f" [{', '.join(node['aliases'])}]" if node.get("aliases") else ""
    return clean(f"{node['id']} ({node['type']}){named}")
