"""What a benchmark says: one figure, its target, and what limits it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

Sense = Literal["at least", "at most", "report"]


@dataclass(frozen=True, slots=True)
class Result:
    """One measured figure.

    Args:
        name: the work, as in docs/performance.md.
        value: the figure.
        unit: its unit.
        target: the figure to reach, or None where it is only reported.
        sense: whether the target is a floor or a ceiling.
        limit_by: the resource that limits it, or what else a reader must know.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    sense: Sense = "report"
    limit_by: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.sense == "at least" else self.value <= self.target


def machine() -> str:
    """The machine, in a line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def table(results: Iterable[Result], title: str) -> Table:
    """The results as one table for a terminal."""
    drawn = Table(title=title, title_justify="left")
    for column in ("work", "measured", "target", "", "limited by"):
        drawn.add_column(column, justify="right" if column in {"measured", "target"} else "left", overflow="fold")
    for result in results:
        sign = {"at least": ">= ", "at most": "<= ", "report": ""}[result.sense]
        target = f"{sign}{figure(result.target)} {result.unit}" if result.target is not None else ""
        mark = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[result.reached]
        drawn.add_row(result.name, f"{figure(result.value)} {result.unit}", target, mark, result.limit_by)
    return drawn


def figure(value: float) -> str:
    """A figure with three significant digits."""
    if abs(value) >= 100_000:
        return f"{value / 1e6:.3g} M" if abs(value) >= 1e6 else f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_json(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The results for a program."""
    return [{**asdict(result), "reached": result.reached} for result in results]
