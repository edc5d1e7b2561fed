"""Lineage as an object: parts of it, nodes drawn as one, and every format against any name."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecore.errors import NotFound
from icecore.lineage import Edge, Lineage, Node
from icecore.lineage_layout import lay_out
from icecore.lineage_text import cut, label, legible

E = "team/nlp"


def version(name: str, distance: int = 0, **facts: Any) -> Node:
    given = {"path": f"{E}/{name.partition(':')[0]}", "type": "model", "size": 1_500_000, "aliases": [], **facts}
    return Node(f"{E}/{name}", "version", distance, given)


def run(name: str, distance: int, job_type: str = "train", **facts: Any) -> Node:
    return Node(f"{E}/{name}", "run", distance, {"name": name, "job_type": job_type, "user": "ann", **facts})


def edge(start: str, end: str, kind: str = "used") -> Edge:
    return Edge(start if "://" in start else f"{E}/{start}", f"{E}/{end}", kind)


def sweep(evals: int = 37, tunes: int = 20) -> Lineage:
    """A model with what it came of, many evaluations, and many models tuned from it."""
    nodes = [
        version("net:v0", aliases=["production", "latest"]),
        run("train", 1, commit="c0ffee1234567", dirty=True),
        version("data:v3", 2, type="dataset"),
        Node("s3://bucket/raw/", "reference", 3),
        Node(f"{E}/vqa:v0", "bundle", 1, {"path": f"{E}/vqa", "type": "bundle", "size": 9}),
        *(run(f"eval-{n}", 1, "eval") for n in range(evals)),
        *(run(f"tune-{n}", 1) for n in range(tunes)),
        *(version(f"tuned:v{n}", 2) for n in range(tunes)),
    ]
    edges = [
        edge("train", "net:v0", "logged"),
        edge("data:v3", "train"),
        edge("s3://bucket/raw/", "data:v3", "refers"),
        edge("net:v0", "vqa:v0", "part"),
        *(edge("net:v0", f"eval-{n}") for n in range(evals)),
        *(edge("net:v0", f"tune-{n}") for n in range(tunes)),
        *(edge(f"tune-{n}", f"tuned:v{n}", "logged") for n in range(tunes)),
    ]
    return Lineage(f"{E}/net:v0", nodes, edges)


def titles(graph: Lineage) -> list[str]:
    return [label(graph, node).title for node in graph.nodes]


def named(name: str) -> Lineage:
    """Two nodes and an edge; everything that people name is `name`."""
    facts = {"name": name, "job_type": name, "user": name, "commit": name, "config": {name: name}}
    nodes = [
        version("net:v0", aliases=[name], type=name),
        Node(f"{E}/{name}", "run", 1, facts),
        Node(f"s3://{name}", "reference", 1),
    ]
    return Lineage(
        nodes[0].id, nodes, [Edge(nodes[1].id, nodes[0].id, "logged"), Edge(nodes[2].id, nodes[0].id, "refers")]
    )


# --------------------------------------------------------------------------------------------------- parts of it


def test_alike_nodes_are_drawn_as_one() -> None:
    """Runs of one kind between the same nodes become one, the versions they logged another, with their count."""
    folded = sweep().folded()

    assert titles(folded) == [
        "net:v0",
        "run train",
        "vqa:v0",
        "37 runs of job_type eval",
        "20 runs of job_type train",
        "data:v3",
        "20 versions of tuned",
        "s3://bucket/raw/",
    ]
    assert sorted(one.count for one in folded.edges) == [1, 1, 1, 1, 20, 20, 37]
    assert sum(len(node.members) for node in folded.nodes) == 77


def test_few_or_different_nodes_stay() -> None:
    """Three alike nodes are shown one by one; one with another input, or one that an alias serves, by itself."""
    few = sweep(evals=3, tunes=0)
    assert len(few.folded()) == len(few)
    graph = sweep(evals=6, tunes=4)
    graph.nodes += [version("test-set:v0", 2)]
    graph.edges += [edge("test-set:v0", "eval-0")]
    shown = titles(Lineage(graph.start, graph.nodes, graph.edges).folded(keep=[f"{E}/eval-1"]))
    assert {"run eval-0", "run eval-1", "4 runs of job_type eval"} <= set(shown)


def test_grouping_by_job_type() -> None:
    """All runs of a job type above, and all below the start, become one each."""
    grouped = titles(sweep().folded("job_type"))

    assert grouped.count("37 runs of job_type eval") == 1
    assert "20 runs of job_type train" in grouped
    assert "run train" in grouped


def test_a_path_is_the_shortest_way() -> None:
    """Along the edges where one came of the other, in either order; over a common node else; or none."""
    graph = sweep()
    down = graph.path("data:v3", "tuned:v7")
    up = graph.path("tuned:v7", "data:v3")

    assert titles(down) == ["data:v3", "run train", "net:v0", "run tune-7", "tuned:v7"]
    assert [node.id for node in up.nodes] == [node.id for node in down.nodes][::-1]
    assert len(down.edges) == 4
    assert titles(graph.path("eval-1", "eval-2")) == ["run eval-1", "net:v0", "run eval-2"]
    lonely = Lineage(graph.start, [*graph.nodes, run("alone", 9)], graph.edges)
    with pytest.raises(NotFound, match="expected a way"):
        lonely.path("alone", "net:v0")
    with pytest.raises(NotFound, match="got none"):
        graph.path("net:v0", "nobody")


def test_focus_leaves_what_is_beside_out() -> None:
    """Only what a node came of and what came of it."""
    found = sweep().focus("tune-3")

    assert set(titles(found)) == {"s3://bucket/raw/", "data:v3", "run train", "net:v0", "run tune-3", "tuned:v3"}
    assert found.start == f"{E}/tune-3"


def test_an_answer_becomes_a_graph() -> None:
    """Facts, hidden neighbours and what was truncated are kept."""
    told = {
        "start": f"{E}/net:v0",
        "nodes": [{"id": f"{E}/net:v0", "kind": "version", "distance": 0, "type": "model", "path": f"{E}/net"}],
        "edges": [],
        "truncated": True,
        "hidden": [{"node": f"{E}/net:v0", "direction": "down", "count": 1234}],
    }
    graph = Lineage.of_answer(told)

    assert graph.truncated
    assert label(graph, graph.nodes[0]).lines == ("model", "… 1,234 more after it")
    assert "net:v0" in graph
    assert "net:v1" not in graph


# -------------------------------------------------------------------------------------------------------- formats


def test_mermaid_as_it_is_written() -> None:
    """Runs are round, versions square, bundles double, references lean; what is one of many says how many."""
    assert sweep(evals=5, tunes=0).folded().to_mermaid().splitlines() == [
        "flowchart LR",
        '  n0["net:v0<br/>model · #91;production#93; · 1.5 MB"]',
        '  n1("run train<br/>train · ann · @c0ffee12*")',
        '  n2[["vqa:v0<br/>bundle · 9 B"]]',
        '  n3("5 runs of job_type eval<br/>ann")',
        '  n4["data:v3<br/>dataset · 1.5 MB"]',
        '  n5[/"s3://bucket/raw/"/]',
        "  n1 --> n0",
        "  n4 --> n1",
        "  n5 --> n4",
        "  n0 --> n2",
        '  n0 -->|"5"| n3',
        "  style n0 stroke-width:3px",
    ]


def test_dot_as_it_is_written() -> None:
    """The same for Graphviz."""
    assert sweep(evals=5, tunes=0).folded().to_dot().splitlines() == [
        "digraph lineage {",
        "  rankdir=LR;",
        '  node [fontname="sans-serif", fontsize=11];',
        f'  n0 [shape=box, label="net:v0\\nmodel · [production] · 1.5 MB", tooltip="{E}/net:v0", penwidth=3];',
        f'  n1 [shape=ellipse, label="run train\\ntrain · ann · @c0ffee12*", tooltip="{E}/train"];',
        f'  n2 [shape=box3d, label="vqa:v0\\nbundle · 9 B", tooltip="{E}/vqa:v0"];',
        f'  n3 [shape=ellipse, label="5 runs of job_type eval\\nann", tooltip="{E}/eval-0 and 4 more"];',
        f'  n4 [shape=box, label="data:v3\\ndataset · 1.5 MB", tooltip="{E}/data:v3"];',
        '  n5 [shape=note, label="s3://bucket/raw/", tooltip="s3://bucket/raw/"];',
        "  n1 -> n0;",
        "  n4 -> n1;",
        "  n5 -> n4;",
        "  n0 -> n2;",
        '  n0 -> n3 [label="5"];',
        "}",
    ]


def test_a_drawing_has_every_node_in_its_place() -> None:
    """Each node is written, edges go from left to right, no two nodes lie over each other, all within the picture."""
    graph = sweep(evals=9, tunes=7)
    drawn = ET.fromstring(graph.to_svg())
    space = {"s": "http://www.w3.org/2000/svg"}
    written = [text.text for text in drawn.iterfind("s:g/s:text[@font-weight]", space)]
    sizes = {node.id: (100.0, 40.0) for node in graph.nodes}
    layout = lay_out(sizes, [(one.start, one.end) for one in graph.edges])
    boxes = list(layout.boxes.values())

    assert sorted(filter(None, written)) == sorted(titles(graph))
    assert all(layout.boxes[one.start].x + 100 < layout.boxes[one.end].x for one in graph.edges)
    apart = [
        a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y + 0.01 or b.y + b.height <= a.y + 0.01
        for index, a in enumerate(boxes)
        for b in boxes[:index]
    ]
    assert all(apart)
    assert all(min(b.x, b.y) >= 0 and b.x + b.width <= layout.width and b.y + b.height <= layout.height for b in boxes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=25))
def test_any_graph_can_be_laid_out(pairs: list[tuple[int, int]]) -> None:
    """Circles, loops and edges over many layers too: every node gets a place, every edge a way from end to end."""
    sizes = {str(n): (50.0, 20.0) for n in range(10)}
    given_pairs = list(dict.fromkeys((str(a), str(b)) for a, b in pairs))
    layout = lay_out(sizes, given_pairs)

    assert layout.boxes.keys() == sizes.keys()
    assert layout.routes.keys() == {pair for pair in given_pairs if pair[0] != pair[1]}
    for (start, end), points in layout.routes.items():
        assert points[0][1] == pytest.approx(layout.boxes[start].middle)
        assert points[-1][1] == pytest.approx(layout.boxes[end].middle)


HOSTILE = st.text(min_size=1, max_size=60) | st.sampled_from(
    [
        '"]; evil["', "`code`", "<script>alert(1)</script>", "]]>", "a%%b", "#quot;", "&lt;", "\\", '\\"', "\\N",
        "--> n0",
        "end", "click n0 href", "\u202e\u2066", "\x00\x1b[31m", "\ud800", "\n\n", "{{x}}", "</text>", "\ufffe", "|x|",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(HOSTILE)
def test_no_name_breaks_a_drawing(name: str) -> None:
    """Whatever a run, an alias or a config is called: the SVG is XML without scripts, and its labels come back."""
    graph = named(name)
    text = graph.to_svg()
    drawn = ET.fromstring(text.encode())
    written = [element.text for element in drawn.iter() if element.tag.endswith("}text")]

    assert {element.tag.rpartition("}")[2] for element in drawn.iter()} <= {
        "svg", "title", "defs", "marker", "path", "g", "rect", "text",
    }  # fmt: skip
    assert cut(legible(f"run {name}")) in written
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}g"))) == 3


@settings(max_examples=150, deadline=None)
@given(HOSTILE)
def test_no_name_breaks_mermaid(name: str) -> None:
    """Between quotation marks are letters, digits and numbers of characters only, which give the name back."""
    lines = named(name).to_mermaid().split("\n")
    (found,) = (re.fullmatch(r'  n1\("(.*)"\)', line) for line in lines if line.startswith("  n1("))

    assert len(lines) == 7
    assert found is not None
    title = found[1].split("<br/>")[0]
    assert not re.search(r"[\"`<>\[\]{}|\\&;%]", re.sub(r"#\d+;", "", title))
    assert re.sub(r"#(\d+);", lambda code: chr(int(code[1])), title) == legible(f"run {name}")


@settings(max_examples=150, deadline=None)
@given(HOSTILE)
def test_no_name_breaks_dot(name: str) -> None:
    """A label is one string of DOT, which gives the name back."""
    lines = named(name).to_dot().split("\n")
    (line,) = (line for line in lines if line.startswith("  n1 ["))
    found = re.match(r'  n1 \[shape=ellipse, label="((?:[^"\\]|\\.)*)", tooltip="((?:[^"\\]|\\.)*)"\];$', line)

    assert len(lines) == 9
    assert found is not None
    title = re.split(r"(?<!\\)(?:\\\\)*\\n", found[1])[0]
    plain = re.sub(r"\\(.)", r"\1", found[2])
    for entity, letter in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        plain = plain.replace(entity, letter)
    assert plain == legible(f"{E}/{name}")
    assert title
