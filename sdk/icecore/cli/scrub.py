"""`icecore scrub`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click

from icecore.cli.output import clean, examples, json_option, print_json, terminal
from icecore.errors import Unavailable
from icecore.http import JsonClient
from icecore.settings import Settings

POLL_S: Final = 0.2
BYTES: Final = "read every blob"
"""The stage whose progress is bytes."""


@click.command(epilog=examples("icecore scrub", "icecore scrub --json", "icecore scrub || echo 'something is hurt'"))
@json_option
def scrub(as_json: bool) -> int:
    """Read every blob again, and name those that are damaged or missing and the versions they hurt.

    A hurt blob heals when the same file is logged again, from wherever it still is. Nothing is changed otherwise.
    """
    settings = Settings.load()
    with _bar() as report:
        found = _run(JsonClient(settings.url, settings.key), report)
    if as_json:
        print_json(found)
        return int(not found["ok"])
    words = f"{found['blobs']:,} blobs ({found['bytes']:,} bytes) of {found['versions']:,} versions"
    click.echo(f"read {words} in {found['seconds']:.1f} s: {'all well' if found['ok'] else 'NOT all well'}")
    for hurt in found["hurt"]:
        where = f" in {hurt['where']}" if hurt["where"] else ""
        what = f"{hurt['state']}: {hurt['digest']} ({hurt['size']:,} bytes){where}"
        click.echo(f"{what}: {clean(hurt['problem'])}", err=True)
        for version in hurt["versions"]:
            files = ", ".join(version["files"][:3]) + (", …" if version["files_total"] > 3 else "")
            click.echo(f"    hurts {clean(version['name'])} ({version['state']}): {clean(files)}", err=True)
        if not hurt["versions"]:
            click.echo("    no version needs it", err=True)
    if not found["ok"]:
        click.echo("next: log the same files again (run.log_artifact), or bring them back from a backup", err=True)
    return int(not found["ok"])


def _run(client: JsonClient, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    client.ask("POST", "scrub")
    while True:
        job: dict[str, Any] = client.ask("GET", "scrub")
        if job.get("progress"):
            report(job["progress"])
        if job["state"] == "done":
            return dict(job["result"])
        if job["state"] == "failed":
            raise Unavailable(f"expected the server's scrub to end well, got: {job.get('error')}")
        time.sleep(POLL_S)


@contextmanager
def _bar() -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A progress bar on stderr, on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = terminal(stderr=True)
    words, rate = TextColumn("{task.description}"), TransferSpeedColumn()
    columns = (words, BarColumn(), DownloadColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scrub", total=None)

        def report(told: Mapping[str, Any]) -> None:
            progress.update(task, description=f"scrub: {told['stage']}")
            if told["stage"] == BYTES:
                progress.update(task, completed=told["done"], total=told["total"] or None)

        yield report
