"""What is written on the nodes of a lineage; lineage as Mermaid and DOT. Names come from anybody: all is escaped."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from icecore.lineage import Lineage, Node

LINE_MOST: Final = 44
"""Characters of a line on a node; the whole text is beside it where the format has room for it."""

# controls, broken or unassigned code points, and what turns the direction of writing: none of them is for reading
_ILLEGIBLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U0001fffe\U0001ffff\U0002fffe\U0002ffff\U000e0000-\U000e0fff\U0010fffe\U0010ffff]"
)
_MERMAID_PLAIN: Final = re.compile(r"[^A-Za-z0-9 _./:,()+=@*\u00a0-\U0010ffff-]")
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


class Label(NamedTuple):
    """What is written on a node."""

    title: str
    lines: tuple[str, ...]


def legible(text: object) -> str:
    """Text with a mark in place of every character that is not for reading."""
    return _ILLEGIBLE.sub("\ufffd", str(text))


def label(graph: Lineage, node: Node) -> Label:
    """What is written on a node: its name, and what is known of it."""
    lines = [_run_line(node) if node.kind == "run" else _version_line(node)]
    for way, word in (("up", "before"), ("down", "after")):
        if count := node.hidden.get(way):
            lines.append(f"… {count:,} more {word} it")
    return Label(legible(_title(graph, node)), tuple(legible(line) for line in lines if line))


def _title(graph: Lineage, node: Node) -> str:
    if node.members:
        count = f"{len(node.members):,}"
        if node.kind == "run":
            return f"{count} runs of job_type {node.group}" if node.group else f"{count} runs"
        if node.kind == "reference":
            return f"{count} references at {node.group}"
        return f"{count} versions of {short(graph, node.group)}"
    if node.kind == "run":
        return f"run {node.facts.get('name') or short(graph, node.id)}"
    return short(graph, node.id)


def short(graph: Lineage, name: str) -> str:
    """A name without the entity and project that the graph's start has, too."""
    place = "/".join(graph.start.split("/")[:2])
    return name.removeprefix(f"{place}/") if "/" in place else name


def _run_line(node: Node) -> str:
    facts = node.facts
    state = facts.get("state")
    code = str(facts.get("commit") or "")[:8]
    parts = [
        "" if node.members else facts.get("job_type"),
        facts.get("user"),
        f"@{code}{'*' if facts.get('dirty') else ''}" if code else "",
        state if state != "finished" else "",
    ]
    return " · ".join(str(part) for part in parts if part)


def _version_line(node: Node) -> str:
    facts = node.facts
    aliases = [alias for alias in facts.get("aliases") or () if alias != "latest"]
    parts = [
        "bundle" if node.kind == "bundle" else facts.get("type"),
        f"[{', '.join(aliases)}]" if aliases else "",
        sized(facts["size"]) if "size" in facts else "",
        "deleted" if facts.get("state") == "deleted" else "",
    ]
    return " · ".join(str(part) for part in parts if part)


def sized(count: float) -> str:
    """Bytes for people."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def cut(text: str, most: int = LINE_MOST) -> str:
    """A text with at most so many characters, the end of it kept, where versions are told apart."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


# ------------------------------------------------------------------------------------------------------- Mermaid

_SHAPES: Final = {"run": ("(", ")"), "version": ("[", "]"), "bundle": ("[[", "]]"), "reference": ("[/", "/]")}


def mermaid(graph: Lineage) -> str:
    """A flowchart: runs are round, versions square, bundles have double sides, references lean."""
    names = {node.id: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        told = label(graph, node)
        text = "<br/>".join(mermaid_text(line) for line in (told.title, *told.lines))
        before, after = _SHAPES[node.kind]
        lines.append(f'  {names[node.id]}{before}"{text}"{after}')
    for edge in graph.edges:
        times = f'|"{edge.count}"|' if edge.count > 1 else ""
        lines.append(f"  {names[edge.start]} -->{times} {names[edge.end]}")
    if graph.start in names:
        lines.append(f"  style {names[graph.start]} stroke-width:3px")
    return "\n".join(lines)


def mermaid_text(text: str) -> str:
    """Text between quotation marks of Mermaid: what means anything to it, to HTML or to Markdown is a number."""
    return _MERMAID_PLAIN.sub(lambda found: f"#{ord(found[0])};", text)


# ----------------------------------------------------------------------------------------------------------- DOT

_DOT_SHAPES: Final = {"run": "ellipse", "version": "box", "bundle": "box3d", "reference": "note"}


def dot(graph: Lineage) -> str:
    """A directed graph for Graphviz."""
    names = {node.id: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [fontname="sans-serif", fontsize=11];']
    for node in graph.nodes:
        told = label(graph, node)
        text = "\\n".join(dot_text(line) for line in (told.title, *told.lines))
        width = ", penwidth=3" if node.id == graph.start else ""
        tip = dot_text(legible(node.id))
        lines.append(f'  {names[node.id]} [shape={_DOT_SHAPES[node.kind]}, label="{text}", tooltip="{tip}"{width}];')
    for edge in graph.edges:
        times = f' [label="{edge.count}"]' if edge.count > 1 else ""
        lines.append(f"  {names[edge.start]} -> {names[edge.end]}{times};")
    return "\n".join([*lines, "}"])


def dot_text(text: str) -> str:
    """Text between quotation marks of DOT."""
    return (
        text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
