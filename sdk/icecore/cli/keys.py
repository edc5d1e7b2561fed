"""`icecore key create|list|revoke`."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from icecore.cli.output import examples, json_option, print_json, say, table, terminal
from icecore.errors import NotFound, UsageError
from icecore.http import JsonClient
from icecore.settings import Settings


@click.group(epilog=examples("icecore key create ci", "icecore key list", "icecore key revoke ci"))
def key() -> None:
    """API keys of the owner: one a person, machine or job, so that each can be told apart and revoked."""


@key.command(epilog=examples("icecore key create ci", "icecore key create reviewer --json"))
@click.argument("name")
@json_option
def create(name: str, as_json: bool) -> None:
    """Make a key. It is shown now and never again; the server keeps its SHA-256."""
    found = _client().ask("POST", "keys", body={"name": name})
    if as_json:
        print_json(found)
        return
    click.echo(found["key"])
    say(f"{found['name']} is {found['id']}; the key above is not shown again", err=True)
    click.echo("next: ICECORE_API_KEY=… or `icecore login --key -`, where it is to be used", err=True)


@key.command("list", epilog=examples("icecore key list", "icecore key list --all --json"))
@click.option("--all", "everything", is_flag=True, help="Those that are revoked, too.")
@json_option
def list_(everything: bool, as_json: bool) -> None:
    """List the keys in force; no secrets."""
    found = [one for one in _keys(_client()) if everything or one["state"] == "active"]
    if as_json:
        print_json({"keys": found})
        return
    rows = [
        [one["id"], one["name"], one["user"], one["state"] + (", this one" if one["current"] else ""),
         one["created_at"], one["revoked_at"]]
        for one in found
    ]  # fmt: skip
    terminal().print(table(["id", "name", "user", "state", "made", "revoked"], rows))


@key.command(epilog=examples("icecore key revoke ci", "icecore key revoke key_3f2a9c0d1e4b5a69 --json"))
@click.argument("name", metavar="NAME|ID")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """Revoke a key: it is refused at once, everywhere. The last one cannot be revoked."""
    client = _client()
    found = client.ask("DELETE", f"keys/{quote(_id_of(client, name), safe='')}")
    if as_json:
        print_json(found)
    else:
        say(f"{found['id']} ({found['name']}) is revoked")
    if found["current"]:
        click.echo("this was the key that this command uses; next: icecore login, with another", err=True)


def _client() -> JsonClient:
    settings = Settings.load()
    return JsonClient(settings.url, settings.key)


def _keys(client: JsonClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.ask("GET", "keys")["keys"]
    return found


def _id_of(client: JsonClient, name: str) -> str:
    """The id of the key that is meant: by its id, or by the name of one in force."""
    keys = _keys(client)
    if any(one["id"] == name for one in keys):
        return name
    named = [one["id"] for one in keys if one["name"] == name and one["state"] == "active"]
    if not named:
        raise NotFound(f"no such key: expected a key in force, got {name!r}", hint="icecore key list")
    if len(named) > 1:
        raise UsageError(f"expected the name of one key, {name!r} is that of {', '.join(named)}", hint="use an id")
    return str(named[0])
