"""Where the nodes of a drawing lie: in layers from left to right, each after all that it came of.

The usual four steps: edges that go back are turned, layers by the longest path, an order within layers by the means of
neighbours so that few edges cross, then places. An edge over several layers has a point in each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_SWEEPS: Final = 8
_SETTLES: Final = 12


@dataclass(frozen=True)
class Box:
    """A node's place: its left upper corner and its size, in px."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The height of its middle."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """Places of nodes, and the points that edges go through, from the start to the end."""

    boxes: Mapping[str, Box]
    routes: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
    width: float
    height: float


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    pairs: Sequence[tuple[str, str]],
    *,
    between: float = 70,
    beside: float = 16,
    margin: float = 20,
) -> Layout:
    """Place nodes.

    Args:
        sizes: width and height of each node, px.
        pairs: the edges, (start, end), each once; both are nodes.
        between: px from layer to layer.
        beside: px between neighbours of a layer.
        margin: px around everything.
    """
    forward = _forward(list(sizes), pairs)
    layer = _layers(list(sizes), forward)
    chains: dict[tuple[str, str], list[str]] = {}
    of_layer: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in sizes:
        of_layer[layer[node]].append(node)
    size = dict(sizes)
    steps: list[tuple[str, str]] = []
    for number, (start, end) in enumerate(forward):
        points = [f"\0{number}:{at}" for at in range(layer[start] + 1, layer[end])]
        for at, point in enumerate(points, layer[start] + 1):
            of_layer[at].append(point)
            size[point] = (0, 4)
        chains[start, end] = [start, *points, end]
        steps += zip(chains[start, end], chains[start, end][1:], strict=False)
    before: dict[str, list[str]] = {one: [] for one in size}
    after: dict[str, list[str]] = {one: [] for one in size}
    for start, end in steps:
        after[start].append(end)
        before[end].append(start)
    _order(of_layer, before, after)
    middles = _middles(of_layer, size, before, after, beside)
    lefts, x = list[float](), margin
    for nodes in of_layer:
        lefts.append(x)
        x += max((size[one][0] for one in nodes), default=0) + between
    top = min((middles[one] - size[one][1] / 2 for one in size), default=0) - margin
    boxes = {}
    for nodes, left in zip(of_layer, lefts, strict=True):
        wide = max((size[one][0] for one in nodes), default=0)
        for one in nodes:
            width, height = size[one] if one in sizes else (wide, 0)
            boxes[one] = Box(left + (wide - width) / 2, middles[one] - height / 2 - top, width, height)
    routes = {
        pair: _route(
            [boxes[one] for one in chains.get(pair) or chains[pair[1], pair[0]][::-1]], back=pair not in chains
        )
        for pair in pairs
        if pair[0] != pair[1]
    }
    bottom = max((box.y + box.height for box in boxes.values()), default=0)
    return Layout({one: boxes[one] for one in sizes}, routes, max(x - between, 0) + margin, bottom + margin)


def _route(boxes: Sequence[Box], *, back: bool) -> list[tuple[float, float]]:
    """From side to side, straight through the layers that lie between."""
    first, last = boxes[0], boxes[-1]
    ends = (first.x, last.x + last.width) if back else (first.x + first.width, last.x)
    sides = [(box.x, box.x + box.width) for box in boxes[1:-1]]
    between = [
        (x, box.middle)
        for box, pair in zip(boxes[1:-1], sides, strict=True)
        for x in (reversed(pair) if back else pair)
    ]
    return [(ends[0], first.middle), *between, (ends[1], last.middle)]


def _forward(nodes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges without circles: those that close one are turned round. Each once."""
    after: dict[str, list[str]] = {one: [] for one in nodes}
    for start, end in pairs:
        if start != end:
            after[start].append(end)
    state: dict[str, int] = {}
    turned: set[tuple[str, str]] = set()
    for root in nodes:
        stack = [(root, iter(after[root]))] if root not in state else []
        state.setdefault(root, 1)
        while stack:
            at, others = stack[-1]
            for other in others:
                if other not in state:
                    state[other] = 1
                    stack.append((other, iter(after[other])))
                    break
                if state[other] == 1:
                    turned.add((at, other))
            else:
                state[at] = 2
                stack.pop()
    found = ((end, start) if (start, end) in turned else (start, end) for start, end in pairs if start != end)
    return list(dict.fromkeys(found))


def _layers(nodes: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The length of the longest path to each node; nodes that nothing leads to lie close before what they lead to."""
    after: dict[str, list[str]] = {one: [] for one in nodes}
    waits = dict.fromkeys(nodes, 0)
    for start, end in pairs:
        after[start].append(end)
        waits[end] += 1
    sources = [one for one in nodes if not waits[one]]
    layer = dict.fromkeys(nodes, 0)
    ready = list(sources)
    for at in ready:
        for other in after[at]:
            layer[other] = max(layer[other], layer[at] + 1)
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    for one in sources:
        if after[one]:
            layer[one] = min(layer[other] for other in after[one]) - 1
    return layer


def _order(of_layer: list[list[str]], before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> None:
    """Sort each layer by the mean place of its neighbours, to and fro; the order with the fewest crossings stays."""
    best, fewest = [list(nodes) for nodes in of_layer], _crossings(of_layer, after)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        layers = range(1, len(of_layer)) if forward else range(len(of_layer) - 2, -1, -1)
        for at in layers:
            beside = of_layer[at - 1 if forward else at + 1]
            place = {one: index for index, one in enumerate(beside)}
            own = {one: index for index, one in enumerate(of_layer[at])}
            means = {
                one: sum(place[other] for other in others) / len(others) if (others := neighbours[one]) else own[one]
                for one in of_layer[at]
            }
            of_layer[at].sort(key=lambda one: (means[one], own[one]))
        crossings = _crossings(of_layer, after)
        if crossings < fewest:
            best, fewest = [list(nodes) for nodes in of_layer], crossings
    of_layer[:] = best


def _crossings(of_layer: Sequence[Sequence[str]], after: Mapping[str, list[str]]) -> int:
    """How many pairs of edges cross: inversions of their ends, layer by layer."""
    from bisect import bisect_right, insort

    count = 0
    for nodes, beside in itertools.pairwise(of_layer):
        place = {one: index for index, one in enumerate(beside)}
        seen: list[int] = []
        for one in nodes:
            ends = sorted(place[other] for other in after[one])
            count += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return count


def _middles(
    of_layer: Sequence[Sequence[str]],
    size: Mapping[str, tuple[float, float]],
    before: Mapping[str, list[str]],
    after: Mapping[str, list[str]],
    beside: float,
) -> dict[str, float]:
    """Heights: near the mean of the neighbours', in order, and never one over the other."""
    middle: dict[str, float] = {}
    for nodes in of_layer:
        y = -sum(size[one][1] + beside for one in nodes) / 2
        for one in nodes:
            middle[one] = y + size[one][1] / 2
            y += size[one][1] + beside
    for turn in range(_SETTLES):
        for nodes in of_layer if turn % 2 == 0 else list(reversed(of_layer)):
            wanted = []
            for one in nodes:
                others = (
                    [*before[one], *after[one]] if turn > _SETTLES // 2 else (before if turn % 2 == 0 else after)[one]
                )
                wanted.append(sum(middle[other] for other in others) / len(others) if others else middle[one])
            places = _apart(wanted, [size[one][1] for one in nodes], beside)
            middle.update(zip(nodes, places, strict=True))
    return middle


def _apart(wanted: Sequence[float], heights: Sequence[float], beside: float) -> list[float]:
    """Places in order and apart, as near to the wanted ones as can be: blocks that would overlap move as one."""
    offsets, at = [], 0.0
    for index, height in enumerate(heights):
        at += height / 2 + (heights[index - 1] / 2 + beside if index else 0)
        offsets.append(at)
    blocks: list[tuple[float, int]] = []  # mean of what is wanted less the offset, and how many
    for want, offset in zip(wanted, offsets, strict=True):
        mean, count = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    shifts = [mean for mean, count in blocks for _ in range(count)]
    return [shift + offset for shift, offset in zip(shifts, offsets, strict=True)]
