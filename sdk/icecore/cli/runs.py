"""`icecore runs`, `icecore run` and `icecore console`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
import orjson

from icecore.api import Api, Run
from icecore.cli.output import (
    clean,
    draw,
    duration,
    examples,
    fitting,
    json_option,
    moment,
    on_terminal,
    print_json,
    table,
    terminal,
)
from icecore.errors import UsageError

if TYPE_CHECKING:
    from icecore.cli.chart import Points

STATE_STYLES: Final = {"running": "cyan", "finished": "green", "failed": "red", "crashed": "red", "killed": "yellow"}
COLUMNS_MOST: Final = 3
CHARTED: Final = 4
FOLLOW_S: Final = 1.0
CONSOLE_PAGE: Final = 5_000


@click.command(
    epilog=examples(
        "icecore runs",
        "icecore runs ENTITY/PROJECT --order -summary_metrics.accuracy --limit 10",
        """icecore runs ENTITY/PROJECT --filter '{"config.lr": {"$lt": 0.1}, "state": "finished"}' --json""",
    )
)
@click.argument("path", metavar="[ENTITY/PROJECT]", required=False)
@click.option("--filter", "filter_text", default=None, help="A filter as JSON, in the style of MongoDB.")
@click.option("--order", default="-created_at", show_default=True, help="A field, with + or - before it.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Runs to list.")
@click.option("--key", default=None, help="The metric to draw; else one that most runs have.")
@json_option
def runs(path: str | None, filter_text: str | None, order: str, limit: int, key: str | None, as_json: bool) -> None:
    """List the runs of a project. Without one: of ICECORE_PROJECT, else the projects."""
    import os

    api = Api()
    if path is None and not os.environ.get("ICECORE_PROJECT"):
        _projects(api, as_json)
        return
    found = api.runs(path, _filters(filter_text), order, per_page=min(limit, 200))
    listed = found[:limit]
    if as_json:
        print_json({"runs": [run.as_dict() for run in listed], "count": len(found)})
        return
    console = terminal()
    key = key or _ordered_key(order) or _common_key(listed)
    curves = _curves(api, listed, key) if on_terminal() else {}
    if not listed:
        click.echo("no runs here; `icecore runs` lists the projects", err=True)
    console.print(_runs_table(listed, key, curves, console.width))
    if len(listed) < len(found):
        click.echo(f"{len(listed)} of {len(found)} runs; --limit shows more", err=True)
    if key and curves:
        charted = {run.name or run.id: curves[run.path] for run in listed if run.path in curves}
        draw(console, key, dict(list(charted.items())[:CHARTED]))


def _projects(api: Api, as_json: bool) -> None:
    found = api.projects()
    if as_json:
        print_json({"projects": [vars(project) for project in found]})
        return
    rows = [[project.path, project.runs, moment(project.last_ts)] for project in found]
    terminal().print(table(["project", "runs", "last heard of"], rows, right=["runs"]))
    if not found:
        click.echo("no runs yet; next: `import icecore` in a script, or `icecore demo`", err=True)


def _filters(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        filters = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"expected --filter as JSON, got {text!r}: {error}", hint="icecore runs --help") from error
    if not isinstance(filters, dict):
        raise UsageError(f"expected --filter as a JSON object, got {text!r}", hint="icecore runs --help")
    return filters


def _ordered_key(order: str) -> str:
    """The metric that the runs are ordered by, if they are: it is what a person wants to see."""
    kind, _, key = order.lstrip("+-").partition(".")
    return key if kind in {"summary_metrics", "summary"} else ""


def _common_key(listed: Sequence[Run]) -> str:
    """The metric that most of the runs have; of equals the first one logged."""
    counts: dict[str, int] = {}
    for run in listed:
        for name, value in run.summary.items():
            if not name.startswith("_") and isinstance(value, float):
                counts[name] = counts.get(name, 0) + 1
    return max(counts, key=lambda name: counts[name], default="")


def _curves(api: Api, listed: Sequence[Run], key: str) -> dict[str, Points]:
    if not key or not listed:
        return {}
    body = {"runs": [run.path for run in listed], "keys": [key], "kind": "metric", "x": "_step", "buckets": 60}
    answer = api.client.ask("POST", "series", body=body)
    curves: dict[str, Points] = {}
    for series in answer["series"]:
        values = series.get("mean") or series["last"]
        curves[series["run"]] = [
            (float(x), float(y)) for x, y in zip(series["x"], values, strict=True) if y is not None
        ]
    return curves


def _runs_table(listed: Sequence[Run], key: str, curves: dict[str, Points], width: int) -> Any:
    """What fits of: the run, the drawn metric, the config values that differ, other summary values, dates."""
    from rich.text import Text

    from icecore.cli.chart import spark

    configs = _telling([run.config for run in listed])
    others = [name for name in _telling([run.summary for run in listed]) if name != key and not name.startswith("_")]
    summaries = [*([key] if key else []), *others][:COLUMNS_MOST]
    drawn = [f"{key} ~"] if curves else []
    head = ["name", "id", "state", *drawn, *summaries[:1], *configs, *summaries[1:], "last step", "runtime", "created"]
    rows: list[list[object]] = []
    for run in listed:
        values = [run.summary.get(name) for name in summaries]
        line = Text(spark([value for _, value in curves.get(run.path, [])]), style="cyan")
        rows.append(
            [
                *(run.name, run.id, Text(run.state, style=STATE_STYLES.get(run.state, ""))),
                *([line] if drawn else []),
                *values[:1],
                *(run.config.get(name) for name in configs),
                *values[1:],
                *(run.last_step, duration(run.summary.get("_runtime")), run.created_at[:19].replace("T", " ")),
            ]
        )
    fits = fitting(head, rows, width, kept=3)
    shown_rows = [[row[index] for index in fits] for row in rows]
    return table([head[index] for index in fits], shown_rows, right=["runtime", "last step", *configs, *summaries])


def _telling(documents: Sequence[Any]) -> list[str]:
    """The keys that tell the documents apart: plain values that differ, or all keys where there is one document."""
    values: dict[str, set[str]] = {}
    for document in documents:
        for name, value in document.items():
            if isinstance(value, str | int | float | bool):
                values.setdefault(name, set()).add(repr(value))
    telling = [name for name, found in values.items() if len(found) > 1]
    return (telling or (list(values) if len(documents) == 1 else []))[:COLUMNS_MOST]


@click.command(
    epilog=examples(
        "icecore run ENTITY/PROJECT/RUN",
        "icecore run show ENTITY/PROJECT/RUN",
        "icecore run ENTITY/PROJECT/RUN --json",
    )
)
@click.argument("words", metavar="[show] RUN", nargs=-1, required=True)
@json_option
def run(words: tuple[str, ...], as_json: bool) -> None:
    """Show one run: its state, config and summary."""
    parts = words[1:] if len(words) > 1 and words[0] == "show" else words
    if len(parts) != 1:
        raise UsageError(f"expected one run, got {' '.join(words)!r}", hint="icecore run ENTITY/PROJECT/RUN")
    found = Api().run(parts[0])
    if as_json:
        print_json(found.as_dict())
        return
    document = found.as_dict()
    plain = {name: document.get(name) for name in ("path", "name", "state", "exit_code", "error", "user", "group")}
    plain |= {name: document.get(name) for name in ("job_type", "tags", "notes", "created_at", "finished_at")}
    plain |= {"runtime": duration(document.get("runtime")), "points": document.get("points"), "url": found.url}
    rows = [[name, value] for name, value in plain.items() if value not in (None, "", [])]
    rows += [[f"config.{name}", value] for name, value in found.config.items()]
    rows += [[f"summary.{name}", value] for name, value in found.summary.items()]
    git = found.metadata.get("git") or {}
    rows += [[f"git.{name}", git[name]] for name in ("commit", "branch", "remote", "dirty") if name in git]
    terminal().print(table(["what", "is"], rows))


@click.command(epilog=examples("icecore console ENTITY/PROJECT/RUN", "icecore console ENTITY/PROJECT/RUN --follow"))
@click.argument("path", metavar="RUN")
@click.option("--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("--tail", default=None, type=click.IntRange(min=1), help="Only the last lines.")
@click.option("--search", default=None, help="Only lines with this text.")
@click.option("--stream", default=None, type=click.Choice(["stdout", "stderr"]), help="Only this stream.")
@json_option
def console(path: str, follow: bool, tail: int | None, search: str | None, stream: str | None, as_json: bool) -> None:
    """Print what a run printed."""
    api = Api()
    found = api.run(path)
    lines = _Pages(api, f"{found.api_path}/console", {"search": search, "stream": stream}, tail)
    if as_json:
        print_json({"path": found.path, "lines": [line for page in lines for line in page]})
        return
    _print_lines(lines)
    while follow and found.state == "running":
        time.sleep(FOLLOW_S)
        found.load(force=True)
        if found.state != "running":
            api.client.catch_up()  # lines are folded apart from the run's end, and its last ones may be behind it
        _print_lines(lines)


def _print_lines(pages: _Pages) -> None:
    for page in pages:
        for line in page:
            click.echo(clean(line["text"], colours=on_terminal()), err=line["stream"] == "stderr")


class _Pages:
    """The pages of a run's console, as far as there are any; asked again, what has come since."""

    def __init__(self, api: Api, address: str, query: dict[str, Any], tail: int | None) -> None:
        self._api, self._address, self._query, self._tail = api, address, query, tail
        self._after: str | None = None
        self._last = (-1, -1)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        more = True
        while more:
            given = {"tail": self._tail} if self._tail is not None else {"after": self._after, "limit": CONSOLE_PAGE}
            answer = self._api.client.ask("GET", self._address, query={**self._query, **given})
            self._tail = None
            # without a `next` the last page is asked for again: what was shown is left out
            lines = [line for line in answer["lines"] if (line["off"], line["line"]) > self._last]
            if lines:
                self._last = (lines[-1]["off"], lines[-1]["line"])
            more = bool(answer.get("next")) and answer["next"] != self._after
            self._after = answer.get("next") or self._after
            yield lines
