"""`icecore sync`: send offline runs, and what processes that were killed left behind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from icecore.cli.output import examples, json_option, print_json, table, terminal
from icecore.errors import Unauthenticated
from icecore.http import JsonClient
from icecore.settings import Settings
from icecore.sync import Synced
from icecore.sync import sync as send_all


@click.command(epilog=examples("icecore sync", "icecore sync ./offline-runs", "icecore sync --json"))
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option("--patience", default=60.0, show_default=True, help="Seconds without progress before it gives up.")
@json_option
def sync(folder: Path | None, patience: float, as_json: bool) -> int:
    """Send what is waiting on this machine: offline runs, and the spools of processes that were killed.

    DIR is where they wait, ICECORE_DIR by default. Exit code 1 where something was damaged or refused.
    """
    settings = Settings.load()
    if not settings.key:
        raise Unauthenticated(
            f"expected a key for {settings.url}, got none", hint=f"icecore login --url {settings.url}"
        )
    console = terminal(stderr=True)
    with console.status("sending …", spinner="dots") as status:

        def tell(synced: Synced) -> None:
            status.update(f"sending {synced.run}: {synced.events} events, {synced.bytes} bytes")

        results = send_all(folder or settings.dir, settings.url, settings.key, tell, patience=patience)
        if results:
            # a read waits until what this process sent is folded: the next command must find the runs
            status.update("waiting until the server shows it …")
            JsonClient(settings.url, settings.key, patience).ask("GET", "projects")
    wrong = any(result.corrupt or result.refused or not result.done for result in results)
    if as_json:
        print_json({"url": settings.url, "spools": [asdict(result) for result in results]})
        return int(wrong)
    if not results:
        click.echo("nothing is waiting")
        return 0
    head = ["run", "events", "bytes", "damaged", "refused", "done"]
    rows = [[r.run, r.events, r.bytes, r.corrupt, r.refused, r.done] for r in results]
    terminal().print(table(head, rows, right=head[1:5]))
    return int(wrong)
