"""What commands share: JSON or tables on stdout, progress on stderr, nothing of a run's text that steers a terminal."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import orjson

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from icecore.cli.chart import Points

EXACT: Final = 1e15
"""Below it a float64 holds every integer."""
COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue", "red")
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DIRECTION: Final = re.compile(r"[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What turns the direction of text around, or breaks a line, unseen: shown as its number."""

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`: every command has it."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and the infinities as the strings the API uses for them."""
    data = orjson.dumps(_speakable(document), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS, default=str)
    sys.stdout.write(_directed(data.decode()) + "\n")  # within JSON's strings the number is the character
    sys.stdout.flush()


def _speakable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): _speakable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_speakable(part) for part in value]
    return value


def on_terminal() -> bool:
    """Whether stdout is a person's terminal."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def terminal(*, stderr: bool = False) -> Console:
    """Where to print: colour only on a terminal and without NO_COLOR; wide where nobody's window is too narrow."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 240
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def clean(text: object, *, colours: bool = False) -> str:
    """Text of others without anything that steers a terminal or turns text around; colours stay where wanted."""
    kept = _ESCAPES.sub(lambda m: m[0] if colours and _COLOUR.fullmatch(m[0]) else "", _directed(str(text)))
    if not colours:
        return _CONTROL.sub("", kept)
    return "".join(part if _COLOUR.fullmatch(part) else _CONTROL.sub("", part) for part in _split_colours(kept))


def _directed(text: str) -> str:
    return _DIRECTION.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: object, *, err: bool = False) -> None:
    """A line on stdout or stderr, `clean`: for whatever has names in it."""
    click.echo(clean(text), err=err)


def _split_colours(text: str) -> list[str]:
    return re.split(r"(\x1b\[[0-9;:]*m)", text)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table; `right` names the columns of numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD if on_terminal() else None, header_style="bold", pad_edge=False)
    for column in columns:
        single = len(columns) > 2  # two columns are names and values, which may be long
        overflow: Any = "ellipsis" if single else "fold"
        justify: Any = "right" if column in right else "left"
        made.add_column(clean(column), justify=justify, overflow=overflow, no_wrap=single)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(clean(shown(cell))) for cell in row))
    return made


def fitting(columns: Sequence[str], rows: Sequence[Sequence[object]], width: int, kept: int) -> list[int]:
    """Which columns of a table fit in `width`: the first `kept`, and of the others as many as there is room for."""
    chosen: list[int] = []
    room = width
    for index, column in enumerate(columns):
        needed = max([len(clean(column)), *(len(clean(shown(row[index]))) for row in rows)]) + 3
        if index < kept or needed <= room:
            chosen.append(index)
            room -= needed
    return chosen


def shown(value: object) -> str:
    """A value in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if value.is_integer() and abs(value) < EXACT:
            return f"{value:.0f}"  # a count of tokens or bytes, of which every digit is known
        return f"{value:.10g}" if 1e4 <= abs(value) < EXACT else f"{value:.5g}"
    if isinstance(value, dict | list):
        return orjson.dumps(value, default=str).decode()
    return str(value)


def moment(ms: object) -> str:
    """Milliseconds since 1970 as a time in UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if isinstance(ms, int | float) else ""


def duration(seconds: object) -> str:
    """Seconds as 1d 2h, 3m 4s or 5.6s."""
    if not isinstance(seconds, int | float):
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"


def draw(console: Console, title: str, series: Mapping[str, Points]) -> None:
    """A line chart with its legend, as wide as the window."""
    from rich.text import Text

    from icecore.cli.chart import line_chart

    lines = line_chart(series, width=min(console.width - 1, 100))
    if not lines:
        return
    console.print(Text(clean(title), style="bold"))
    for line in lines:
        text = Text()
        for part, index in line:
            text.append(part, style=COLOURS[index % len(COLOURS)] if index >= 0 else "dim")
        console.print(text)
    legend = Text()
    for index, name in enumerate(series):
        legend.append(f"  ━ {clean(name)}", style=COLOURS[index % len(COLOURS)])
    console.print(legend)
