"""`icecore history`: a run's metrics in the terminal, or streamed to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from icecore.api import Api
from icecore.cli.output import clean, draw, examples, json_option, on_terminal, print_json, table, terminal
from icecore.errors import NotFound, UsageError
from icecore.readout import CLOCK, thin

FORMATS: Final = {"parquet": "parquet", "csv": "csv", "arrow": "arrow", "json": "json", "jsonl": "ndjson"}
ROWS_SHOWN: Final = 12
CHARTED: Final = 3
CHART_POINTS: Final = 400
CHUNK: Final = 1 << 18


@click.command(
    epilog=examples(
        "icecore history ENTITY/PROJECT/RUN",
        "icecore history ENTITY/PROJECT/RUN --keys loss,val/loss",
        "icecore history ENTITY/PROJECT/RUN --out history.parquet",
        "icecore history ENTITY/PROJECT --out everything.csv",
    )
)
@click.argument("path", metavar="RUN")
@click.option("--keys", default=None, help="Keys, separated by commas; else every one.")
@click.option(
    "--out",
    default=None,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to FILE.parquet, .csv, .arrow, .json or .jsonl.",
)
@click.option("--min-step", default=None, type=int, help="The first step.")
@click.option("--max-step", default=None, type=int, help="The last step.")
@click.option("--system", is_flag=True, help="The machine's metrics instead of the logged ones.")
@json_option
def history(
    path: str,
    keys: str | None,
    out: Path | None,
    min_step: int | None,
    max_step: int | None,
    system: bool,
    as_json: bool,
) -> None:
    """Show a run's metrics as a table and a chart, or write every row to a file.

    With --out, RUN may also be ENTITY/PROJECT: all its runs in rows of run, key, step, timestamp and value.
    """
    chosen = [key for key in (keys or "").split(",") if key] or None
    query = {"keys": chosen, "min_step": min_step, "max_step": max_step, "kind": "system" if system else None}
    api = Api()
    if out is not None:
        written = _write(api, path, query, out)
        print_json(written) if as_json else click.echo(f"{written['bytes']} bytes in {out}")
        return
    found = api.run(path)
    stream = "system" if system else "default"
    rows = list(found.rows(chosen, stream=stream, min_step=min_step, max_step=max_step))
    if as_json:
        print_json({"path": found.path, "rows": rows})
        return
    _show(found.name or found.id, rows, chosen)
    absent = [key for key in chosen or [] if not any(key in row for row in rows)]
    if absent:
        others = [] if system else [name for name in found.summary if not name.startswith("_")][:ROWS_SHOWN]
        has = f"; the run has {', '.join(others)}" if others else ""
        click.echo(clean(f"no values of {', '.join(absent)}{has}"), err=True)


def _show(name: str, rows: list[dict[str, Any]], chosen: list[str] | None) -> None:
    names = chosen or list(dict.fromkeys(key for row in rows for key in row if key not in CLOCK))
    console = terminal()
    columns = names[: max(1, (console.width - 30) // 14)]
    body = [
        [row.get("_step"), row.get("_runtime"), *(row.get(key) for key in columns)] for row in thin(rows, ROWS_SHOWN)
    ]
    console.print(table(["_step", "_runtime", *columns], body, right=["_step", "_runtime", *columns]))
    if len(rows) > ROWS_SHOWN or len(columns) < len(names):
        click.echo(
            f"{len(body)} of {len(rows)} rows, {len(columns)} of {len(names)} keys; --out FILE has all",
            err=True,
        )
    if on_terminal():
        for key in columns[:CHARTED]:
            points = [(float(row["_step"]), float(row[key])) for row in rows if _is_number(row.get(key))]
            draw(console, f"{key} of {name}", {key: thin(points, CHART_POINTS)})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _write(api: Api, path: str, query: dict[str, Any], out: Path) -> dict[str, Any]:
    """Stream to a file beside the one asked for, then give it its name: a file with that name is whole."""
    kind = FORMATS.get(out.suffix.lstrip(".").lower())
    if kind is None:
        raise UsageError(f"expected --out to end in .parquet, .csv, .arrow, .json or .jsonl, got {out.name!r}")
    parts = [part for part in path.split("/") if part]
    try:
        address = api.run(path).api_path
    except NotFound:
        if len(parts) != 2:
            raise
        address = f"projects/{quote(parts[0], safe='')}/{quote(parts[1], safe='')}"
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    size = 0
    try:
        with (
            api.client.stream("GET", f"{address}/history", query={**query, "format": kind}, accept="*/*") as response,
            part.open("wb") as file,
            _progress(out.name) as advance,
        ):
            for chunk in api.client.chunks(response, CHUNK):
                file.write(chunk)
                size += len(chunk)
                advance(len(chunk))
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return {"file": str(out), "bytes": size, "format": kind}


@contextmanager
def _progress(name: str) -> Iterator[Any]:
    """A bar on stderr that says how much has come; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _size: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda size: bar.advance(task, size)
