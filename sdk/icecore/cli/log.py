"""`icecore log`: the events themselves, as they lie in the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click

from icecore.api import Api
from icecore.cli.group import Shared
from icecore.cli.output import clean, examples, json_option, on_terminal, print_json, shown, table, terminal
from icecore.errors import NotFound, UsageError
from icecore.position import STREAMS

FOLLOW_S: Final = 0.5
PAGE: Final = 500
SHOWN_CHARS: Final = 100

stream_option = click.option(
    "--stream", default="ledger", show_default=True, type=click.Choice(STREAMS), help="Which stream."
)
partition_option = click.option("--partition", default=0, show_default=True, help="Which partition of it.")


@click.group(
    cls=Shared, epilog=examples("icecore log stat", "icecore log tail --stream metrics", "icecore log show ledger:0:12")
)
def log() -> None:
    """Look at the events themselves."""


@log.command(epilog=examples("icecore log stat", "icecore log stat --json"))
@json_option
def stat(as_json: bool) -> None:
    """How many events each partition has, and how far they are folded."""
    found = Api().client.ask("GET", "status")
    if as_json:
        print_json({name: found[name] for name in ("log", "folded", "lag", "dead_letters", "rejections", "skipped")})
        return
    rows = [[place, end, found["folded"].get(place, 0)] for place, end in sorted(found["log"].items())]
    terminal().print(table(["partition", "events", "folded"], rows, right=["events", "folded"]))
    names = ("lag", "dead_letters", "rejections", "skipped")
    click.echo("  ".join(f"{name.replace('_', ' ')}: {found[name]}" for name in names))


@log.command(epilog=examples("icecore log tail", "icecore log tail --stream metrics -n 5 --follow"))
@stream_option
@partition_option
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--follow", is_flag=True, help="Go on until Ctrl-C.")
@json_option
def tail(stream: str, partition: int, count: int, follow: bool, as_json: bool) -> None:
    """The last events of a partition."""
    if follow and as_json:
        raise UsageError("expected --follow or --json, got both: one JSON document has an end")
    api = Api()
    end = int(_page(api, stream, partition, 0, 1)["end"])
    start = max(0, end - count)
    found = list(_events(api, stream, partition, start, end))
    if as_json:
        print_json({"events": found, "end": end})
        return
    for event in found:
        _print(event)
    while follow:
        time.sleep(FOLLOW_S)
        for event in _events(api, stream, partition, end, None):
            _print(event)
            end = event["offset"] + 1
        sys.stdout.flush()


@log.command(epilog=examples("icecore log show ledger:0:12", "icecore log show metrics:0:0 --json"))
@click.argument("position", metavar="STREAM:PARTITION:OFFSET")
@json_option
def show(position: str, as_json: bool) -> None:
    """One event in full: its envelope and its payload."""
    parts = position.split(":")
    if len(parts) != 3 or parts[0] not in STREAMS or not (parts[1].isdigit() and parts[2].isdigit()):
        raise UsageError(f"expected a position such as ledger:0:12, got {position!r}")
    page = _page(Api(), parts[0], int(parts[1]), int(parts[2]), 1)
    found = page["events"]
    if not found or found[0]["offset"] != int(parts[2]):
        raise NotFound(f"expected an event at {position}, got the log's end at {page['end']}", hint="icecore log stat")
    if as_json or not on_terminal():
        print_json(found[0])
        return
    import orjson
    from rich.json import JSON

    terminal().print(JSON(orjson.dumps(found[0]).decode()))


def _page(api: Api, stream: str, partition: int, start: int, limit: int) -> dict[str, Any]:
    query = {"stream": stream, "partition": partition, "start": start, "limit": limit}
    found: dict[str, Any] = api.client.ask("GET", "log", query=query)
    return found


def _events(api: Api, stream: str, partition: int, start: int, end: int | None) -> Iterator[dict[str, Any]]:
    """Events from `start` to before `end` (None: as far as there are any)."""
    while end is None or start < end:
        page = _page(api, stream, partition, start, PAGE if end is None else min(PAGE, end - start))
        if not page["events"]:
            return
        yield from page["events"]
        start = page["next"]


def _print(event: dict[str, Any]) -> None:
    envelope = event["envelope"]
    when = datetime.fromtimestamp(envelope.get("ts_server", 0) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    said = clean(shown(event["payload"]))
    said = said if len(said) <= SHOWN_CHARS else f"{said[:SHOWN_CHARS]} … ({len(said)} characters)"
    place = f"{event['stream']}:{event['partition']}:{event['offset']}"
    click.echo(f"{place:<16} {when}  {clean(envelope.get('type', '')):<16} {clean(event['key'])}  {said}")
