"""Small charts out of Unicode: a line chart of braille dots, and one-line sparks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row] of a braille cell
_BLANK: Final = 0x2800
_SPARKS: Final = "▁▂▃▄▅▆▇█"

Points = Sequence[tuple[float, float]]


def spark(values: Sequence[float], width: int = 16) -> str:
    """`values` as a line of bars, at most `width` wide; a value that is not finite is a blank."""
    step = max(1.0, len(values) / width)
    picked = [values[int(i * step)] for i in range(min(width, len(values)))]
    finite = [value for value in picked if math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((v - low) * scale)] if math.isfinite(v) else " " for v in picked)


def line_chart(series: Mapping[str, Points], width: int = 72, height: int = 10) -> list[list[tuple[str, int]]]:
    """Lines of text, each a list of (text, number of the series that coloured it, or -1).

    Args:
        series: name -> points (x, y), ordered by x; points that are not finite are left out.
        width: characters of the whole chart, the axis included.
        height: lines of the plot, without the axis.

    Returns:
        The plot with its y axis, then one line for the x axis; nothing where there is no point.
    """
    lines = [[(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for points in series.values()]
    everything = [point for points in lines for point in points]
    if not everything:
        return []
    x_low, x_high = min(p[0] for p in everything), max(p[0] for p in everything)
    y_low, y_high = min(p[1] for p in everything), max(p[1] for p in everything)
    labels = [number(y_high), number(y_low)]
    margin = max(map(len, labels)) + 1
    columns = max(8, width - margin - 1)
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for index, points in enumerate(lines):
        dots = [
            (_scaled(x, x_low, x_high, columns * 2 - 1), height * 4 - 1 - _scaled(y, y_low, y_high, height * 4 - 1))
            for x, y in points
        ]
        _draw(cells, dots, index)
    rows = []
    for row in range(height):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        parts = [(f"{label:>{margin}}│" if label else " " * margin + "│", -1)]
        for column in range(columns):
            bits, index = cells.get((column, row), (0, -1))
            parts.append((chr(_BLANK + bits) if bits else " ", index))
        rows.append(_joined(parts))
    left, right = number(x_low), number(x_high)
    rows.append([(f"{' ' * margin}└{left}{'─' * max(1, columns - len(left) - len(right))}{right}", -1)])
    return rows


def _joined(parts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Neighbours of one colour as one part."""
    return [("".join(text for text, _ in group), index) for index, group in groupby(parts, key=lambda part: part[1])]


def number(value: float) -> str:
    """A number in at most about nine characters."""
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.4g}"


def _scaled(value: float, low: float, high: float, most: int) -> int:
    return round((value - low) / (high - low) * most) if high > low else most // 2


def _draw(cells: dict[tuple[int, int], tuple[int, int]], dots: Sequence[tuple[int, int]], index: int) -> None:
    """Set the dots and the straight lines between them."""
    for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for step in range(steps + 1):
            x, y = round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)
            cell = (x // 2, y // 4)
            bits = cells.get(cell, (0, index))[0]
            cells[cell] = (bits | _DOTS[x % 2][y % 4], index)
