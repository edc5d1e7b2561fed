"""`icecore login` and `icecore status`."""

from __future__ import annotations

import sys
from typing import Any

import click

from icecore.cli.output import examples, json_option, print_json, table, terminal
from icecore.errors import UsageError
from icecore.http import JsonClient, forget_position
from icecore.settings import Settings, save_credentials


@click.command(
    epilog=examples(
        "icecore login",
        "icecore login --url https://ice.example.org",
        "pass show icecore | icecore login --url https://ice.example.org --key -",
    )
)
@click.option("--url", default=None, help="The server's URL; else ICECORE_URL.")
@click.option("--key", default=None, help="The API key; - reads it from standard input. Else it is asked for.")
@json_option
def login(url: str | None, key: str | None, as_json: bool) -> None:
    """Save the API key of a server for this user, after trying it."""
    settings = Settings.load({"url": url} if url else None)
    if key == "-" or (key is None and not sys.stdin.isatty()):
        key = sys.stdin.readline()
    elif key is None:
        key = click.prompt(f"API key for {settings.url}", hide_input=True, err=True)
    key = (key or "").strip()
    if not key:
        raise UsageError("expected an API key, got nothing", hint="`icecore up` shows one on its first start")
    forget_position(settings.url)
    found = JsonClient(settings.url, key).ask("GET", "viewer")["user"]
    user = str(found["name"] if isinstance(found, dict) else found)
    path = save_credentials(settings.url, key, user, settings.config_dir)
    if as_json:
        print_json({"url": settings.url, "user": user, "saved": str(path)})
    else:
        click.echo(f"logged in to {settings.url} as {user}; the key is in {path}")
        if url:
            click.echo(f"scripts find this server with ICECORE_URL={settings.url}")


@click.command(epilog=examples("icecore status", "icecore status --json", "icecore status --digest --json"))
@click.option("--digest", is_flag=True, help="Also the digest over all tables, at the position folded.")
@json_option
def status(digest: bool, as_json: bool) -> int:
    """Say how the server is: its processes, its log, how far it is folded.

    Exit code 1 where something is wrong; with --json 0, because the answer says it.
    """
    settings = Settings.load()
    client = JsonClient(settings.url, settings.key)
    found: dict[str, Any] = client.ask("GET", "status", query={"digest": 1 if digest else None})
    if as_json:
        print_json({"url": settings.url, **found})
        return 0
    rows: list[list[object]] = [["server", settings.url]]
    rows += [[name, _told(value)] for name, value in found.items()]
    terminal().print(table(["what", "is"], rows))
    wrong = _wrong(found)
    for line in wrong:
        click.echo(line, err=True)
    return int(bool(wrong))


def _wrong(found: dict[str, Any]) -> list[str]:
    """What a person should look at, a line each."""
    lines = []
    folding = found.get("folding") or {}
    if trouble := found.get("log_trouble"):
        lines.append(f"wrong: the log: {trouble}")
    if folding.get("state") in {"waiting", "halted"}:
        lines.append(f"wrong: folding is {folding['state']}: {folding.get('reason', '')}")
    if count := found.get("dead_letters"):
        lines.append(f"wrong: {count} records could not be folded; next: icecore dead-letters")
    return lines


def _told(value: object) -> object:
    if isinstance(value, dict):
        return "  ".join(f"{name}={part}" for name, part in value.items())
    return value
