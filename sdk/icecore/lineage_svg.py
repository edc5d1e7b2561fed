"""Lineage as a drawing: one SVG without scripts, links or fonts of its own, legible on light and on dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from icecore.lineage import Lineage, Node
from icecore.lineage_layout import Box, lay_out
from icecore.lineage_text import Label, cut, label, legible

_LINE: Final = 15.0
_PAD: Final = 9.0
_EDGE: Final = "#8b949e"
_COLOURS: Final = {
    # fill and border: each node has a ground of its own, so that it can be read on any page
    "run": ("#fff4d6", "#c98a00"),
    "version": ("#e3efff", "#2f6fd0"),
    "bundle": ("#efe6ff", "#7a4fd0"),
    "reference": ("#eceff1", "#6b7780"),
}
_TEXT, _FAINT = "#1b1f24", "#57606a"
_FONT: Final = "ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


def svg(graph: Lineage) -> str:
    """The graph from left to right: runs are round, versions square, edges point to what came of something."""
    labels = {node.id: label(graph, node) for node in graph.nodes}
    pairs = list(dict.fromkeys((edge.start, edge.end) for edge in graph.edges))
    counts = {pair: sum(edge.count for edge in graph.edges if (edge.start, edge.end) == pair) for pair in pairs}
    layout = lay_out({node.id: _size(labels[node.id]) for node in graph.nodes}, pairs)
    width, height = max(layout.width, 120), max(layout.height, 60)
    said = f"Lineage of {legible(graph.start)}: {len(graph.nodes)} nodes"
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" font-family="{_FONT}" font-size="12">'
        ),
        f"<title>{escape(said)}</title>",
        (
            '<defs><marker id="icecore-end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
            'markerUnits="userSpaceOnUse" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{_EDGE}"/></marker></defs>'
        ),
    ]
    lines += [_edge(points, counts[pair]) for pair, points in layout.routes.items()]
    for node in graph.nodes:
        lines.append(_node(node, labels[node.id], layout.boxes[node.id], is_start=node.id == graph.start))
    return "\n".join([*lines, "</svg>", ""])


def _size(told: Label) -> tuple[float, float]:
    longest = max(_wide(cut(told.title)) * 7.2, *(_wide(cut(line)) * 6.1 for line in told.lines or ("",)))
    return max(longest, 60) + 2 * _PAD, _LINE * (1 + len(told.lines)) + 2 * _PAD - 3


def _wide(text: str) -> float:
    """Its length in letters; those of East Asia take the room of two."""
    from unicodedata import east_asian_width

    return sum(1.8 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _edge(points: Sequence[tuple[float, float]], count: int) -> str:
    (x, y), *others = points
    path = f"M{x:.1f} {y:.1f}"
    for to_x, to_y in others:
        half = (x + to_x) / 2
        path += f"C{half:.1f} {y:.1f} {half:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    width = 1.3 if count == 1 else min(1.5 + count**0.5 / 3, 5)
    line = f'<path d="{path}" fill="none" stroke="{_EDGE}" stroke-width="{width:.1f}" marker-end="url(#icecore-end)"/>'
    if count == 1:
        return line
    (x, y), (to_x, to_y) = points[len(points) // 2 - 1], points[len(points) // 2]
    at = f'x="{(x + to_x) / 2:.1f}" y="{(y + to_y) / 2 - 4:.1f}"'
    return f'{line}<text {at} text-anchor="middle" font-size="10" fill="{_EDGE}">{count:,}</text>'


def _node(node: Node, told: Label, box: Box, *, is_start: bool) -> str:
    fill, border = _COLOURS[node.kind]
    round_ = box.height / 2 if node.kind == "run" else 4
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{round_:.1f}"'
    parts = [f"<g><title>{escape(_whole(node, told))}</title>"]
    if node.members or node.kind == "bundle":
        behind = f'x="{box.x + 4:.1f}" y="{box.y + 4:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
        parts.append(f'<rect {behind} rx="{round_:.1f}" fill="{fill}" stroke="{border}"/>')
    parts.append(f'<rect {place} fill="{fill}" stroke="{border}" stroke-width="{2.5 if is_start else 1.2}"/>')
    x, y = box.x + box.width / 2, box.y + _PAD + 10
    weight = ' font-weight="600"'
    parts.append(_text(told.title, x, y, f'fill="{_TEXT}"{weight}'))
    for number, line in enumerate(told.lines, 1):
        parts.append(_text(line, x, y + number * _LINE, f'font-size="10.5" fill="{_FAINT}"'))
    return "".join([*parts, "</g>"])


def _text(line: str, x: float, y: float, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" {style}>{escape(cut(line))}</text>'


def _whole(node: Node, told: Label) -> str:
    """What is shown of a node where one points at it: everything, uncut."""
    members = [legible(one) for one in node.members[:30]]
    more = [f"… {len(node.members) - 30:,} more"] if len(node.members) > 30 else []
    config = node.facts.get("config") or {}
    facts = [legible(f"{name}: {value}") for name, value in list(config.items())[:20]]
    return "\n".join([told.title, *([] if node.members else [legible(node.id)]), *told.lines, *facts, *members, *more])
