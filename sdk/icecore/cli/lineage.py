"""`icecore artifact lineage`, `icecore artifact diff` and `icecore artifact impact`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from icecore.api import Api
from icecore.cli.output import examples, json_option, print_json, table, terminal
from icecore.errors import UsageError

if TYPE_CHECKING:
    from rich.tree import Tree

    from icecore.lineage import Lineage, Node

TREE_MOST: Final = 12
"""More nodes than that beside each other in a tree become one line that counts them."""
_NAME: Final = "[[ENTITY/]PROJECT/]NAME:ALIAS"
_AS_OF: Final = click.option("--as-of", default=None, metavar="TIME|POSITION", help="As it was at a moment.")
_FORMATS: Final = ("tree", "json", "mermaid", "dot", "svg")


@click.command(
    epilog=examples(
        "icecore artifact lineage bert:production",
        "icecore artifact lineage bert:v3 --up --depth 10 --format mermaid",
        "icecore artifact lineage bert:production --format svg --out lineage.svg",
        "icecore artifact lineage bert:v3 --to support-tickets:v0",
    )
)
@click.argument("name", metavar=_NAME)
@click.option("--up", is_flag=True, help="What it was made from; with --down, or neither, both.")
@click.option("--down", is_flag=True, help="What was made from it.")
@click.option("--depth", default=6, show_default=True, type=click.IntRange(0, 100), help="Steps from node to node.")
@click.option("--limit", default=300, show_default=True, type=click.IntRange(1, 10_000), help="Nodes at most.")
@click.option("--format", "style", default=None, type=click.Choice(_FORMATS), help="[default: tree]")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Draw many alike nodes as one.")
@click.option("--group-by", default=None, type=click.Choice(["job_type"]), help="Runs of a job type as one node.")
@click.option("--to", "other", default=None, metavar="NODE", help="Only the shortest way to another node.")
@click.option("--focus", default=None, metavar="NODE", help="Only what a node came of, and what came of it.")
@click.option("--out", default=None, type=click.Path(dir_okay=False, writable=True), help="Write to a file.")
@_AS_OF
@json_option
def lineage(
    name: str,
    up: bool,
    down: bool,
    depth: int,
    limit: int,
    style: str | None,
    fold: bool,
    group_by: str | None,
    other: str | None,
    focus: str | None,
    out: str | None,
    as_of: str | None,
    as_json: bool,
) -> None:
    """Show what a version was made from, and what was made from it."""
    if as_json and style not in (None, "json"):
        raise UsageError(f"expected --json or --format {style}, got both")
    graph = Api().lineage(name, "both" if up == down else "up" if up else "down", depth, as_of, limit)
    alone: list[str] = []
    if other is not None:
        graph = graph.path(graph.start, other)
        alone = [node.id for node in graph.nodes]
    if focus is not None:
        graph = graph.focus(focus)
        alone = [graph.start]
    shown = graph.folded(group_by, alone) if fold or group_by else graph
    if as_json or style == "json":
        print_json(_document(graph if style is None and not group_by else shown))
    elif style in (None, "tree") and out is None:
        for tree in trees(shown):
            terminal().print(tree)
    else:
        _write(shown, style or "svg", out)
    if graph.truncated:
        click.echo(f"there is more than {limit} nodes; --limit shows more of it, a smaller --depth less", err=True)


def _write(graph: Lineage, style: str, out: str | None) -> None:
    if style == "tree":
        raise UsageError("expected --out with --format mermaid, dot or svg, got a tree")
    text = {"mermaid": graph.to_mermaid, "dot": graph.to_dot, "svg": graph.to_svg}[style]()
    if out is None:
        click.echo(text)
        return
    Path(out).write_text(text, encoding="utf-8")
    click.echo(f"{out}: {len(graph.nodes)} nodes", err=True)


def _document(graph: Lineage) -> dict[str, Any]:
    """A graph as JSON, as the server tells it; what is drawn as one has `members`."""
    return {
        "start": graph.start,
        "nodes": [
            {
                "id": node.id,
                "kind": node.kind,
                "distance": node.distance,
                **node.facts,
                **({"members": list(node.members)} if node.members else {}),
                **({"hidden": dict(node.hidden)} if node.hidden else {}),
            }
            for node in graph.nodes
        ],
        "edges": [
            {"from": edge.start, "to": edge.end, "kind": edge.kind, **({"count": edge.count} if edge.count > 1 else {})}
            for edge in graph.edges
        ],
        "truncated": graph.truncated,
    }


# -------------------------------------------------------------------------------------------------------- a tree


def trees(graph: Lineage) -> Iterator[Tree]:
    """Two trees from the start, up and down, each where there is something."""
    from rich.tree import Tree

    nodes = {node.id: node for node in graph.nodes}
    start = nodes[graph.start]
    found = False
    for title, ends in (("made from", ("end", "start")), ("used for", ("start", "end"))):
        neighbours: dict[str, list[str]] = {}
        for edge in graph.edges:
            near, far = getattr(edge, ends[0]), getattr(edge, ends[1])
            neighbours.setdefault(near, []).append(far)
        if neighbours.get(start.id):
            found = True
            tree = Tree(f"{_label(graph, start)}  {title}")
            _grow(graph, tree, start.id, nodes, neighbours, {start.id})
            yield tree
    if not found:
        yield Tree(f"{_label(graph, start)}  made from nothing that was logged, used for nothing")


def _grow(
    graph: Lineage,
    tree: Tree,
    at: str,
    nodes: Mapping[str, Node],
    neighbours: Mapping[str, Sequence[str]],
    drawn: set[str],
) -> None:
    """Add what is next to a node; what stands in the tree already is named, and not gone into again."""
    beside = list(dict.fromkeys(neighbours.get(at, ())))
    for one in beside[:TREE_MOST]:
        if one in drawn:
            more = "  (above)" if neighbours.get(one) else ""
            tree.add(f"{_label(graph, nodes[one])}{more}")
            continue
        drawn.add(one)
        _grow(graph, tree.add(_label(graph, nodes[one])), one, nodes, neighbours, drawn)
    if len(beside) > TREE_MOST:
        tree.add(f"… and {len(beside) - TREE_MOST:,} more")


def _label(graph: Lineage, node: Node) -> str:
    from icecore.lineage_text import label

    told = label(graph, node)
    return f"{told.title}  ({'; '.join(told.lines)})" if told.lines else told.title


# ---------------------------------------------------------------------------------------------- diff and impact


@click.command(
    epilog=examples(
        "icecore artifact diff bert:v11 bert:v12",
        "icecore artifact diff bert:v11 :v12 --lineage",
        "icecore artifact diff bert:production bert:latest --lineage --json",
    )
)
@click.argument("before", metavar=_NAME)
@click.argument("after", metavar=f"{_NAME}|:ALIAS")
@click.option("--lineage", "upstream", is_flag=True, help="What differed upstream, too: data, code, config, packages.")
@json_option
def diff(before: str, after: str, upstream: bool, as_json: bool) -> None:
    """Say what differs between two versions, and with --lineage why."""
    found = Api().artifact_diff(before, after, lineage=upstream)
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(str(found))


@click.command(epilog=examples("icecore artifact impact support-tickets:v0", "icecore artifact impact bert:v3 --json"))
@click.argument("name", metavar=_NAME)
@_AS_OF
@json_option
def impact(name: str, as_of: str | None, as_json: bool) -> None:
    """Say what would be hurt if a version were bad: all that came of it, what serves it, whom to tell."""
    from icecore.lineage_text import legible

    found = Api().impact(name, as_of)
    if as_json:
        print_json(found)
        return
    console = terminal()
    versions, runs = f"{found['versions_count']:,} versions", f"{found['runs_count']:,} runs"
    click.echo(f"{legible(found['start'])}: {versions} and {runs} came of it")
    if found["served_by"]:
        rows = [[one["alias"], one["version"], one["type"], one["distance"]] for one in found["served_by"]]
        console.print(table(["served as", "version", "type", "steps away"], rows, right=["steps away"]))
    else:
        click.echo("no alias but latest names any of it")
    if found["tell"]:
        rows = [[one["user"], one["runs"], one["versions"]] for one in found["tell"]]
        console.print(table(["tell", "runs", "versions"], rows, right=["runs", "versions"]))
    kinds: dict[str, int] = {}
    for run in found["runs"]:
        kinds[run["job_type"] or "none"] = kinds.get(run["job_type"] or "none", 0) + 1
    listed = [[one["id"], one["type"], ", ".join(one["aliases"]), one["distance"]] for one in found["versions"][:20]]
    if listed:
        console.print(table(["version", "type", "aliases", "steps away"], listed, right=["steps away"]))
    if kinds:
        click.echo(f"runs by job type: {', '.join(f'{legible(kind)} {count:,}' for kind, count in kinds.items())}")
    if found["versions_count"] > len(listed):
        click.echo(f"… and {found['versions_count'] - len(listed):,} more versions; --json lists 1,000", err=True)
    if found["truncated"]:
        click.echo("there is more than was counted", err=True)
