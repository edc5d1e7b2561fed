"""`icecore artifacts`, `icecore artifact …` and `icecore alias …`."""

from __future__ import annotations

from typing import Any, Final

import click

from icecore.api import Api
from icecore.artifact_names import Name, other_route, parse_name
from icecore.cli.lineage import diff, impact, lineage
from icecore.cli.output import examples, json_option, print_json, say, shown, table, terminal
from icecore.cli.retention import amount, delete, life_of, protect, restore, ttl
from icecore.errors import NotFound, UsageError

_AS_OF: Final = click.option("--as-of", default=None, metavar="TIME|POSITION", help="As it was at a moment.")
_NAME: Final = "[[ENTITY/]PROJECT/]NAME:ALIAS"
_WIDE: Final = 60
"""Characters of metadata in a list."""


@click.command(
    epilog=examples("icecore artifacts ENTITY/PROJECT", "icecore artifacts ENTITY/PROJECT --type model --json")
)
@click.argument("path", metavar="[ENTITY/]PROJECT")
@click.option("--type", "kind", default=None, help="Only those of a type: model, dataset, …")
@_AS_OF
@json_option
def artifacts(path: str, kind: str | None, as_of: str | None, as_json: bool) -> None:
    """List the artifacts of a project."""
    api = Api()
    entity, _, project = path.rpartition("/")
    at = Name(entity or api.default_entity, project, "x", "")
    found = api.client.ask("GET", at.route.rpartition("/")[0], query={"type": kind, "as_of": as_of})["artifacts"]
    if as_json:
        print_json({"artifacts": found})
        return
    rows = [[a["name"], a["type"], a["versions"], _aliases(a["aliases"]), a["created_at"]] for a in found]
    terminal().print(table(["name", "type", "versions", "aliases", "created"], rows, right=["versions"]))
    if not found:
        say("no artifacts here; next: run.log_artifact(…) in a script", err=True)


def _aliases(named: dict[str, str]) -> str:
    return ", ".join(f"{alias}={version}" for alias, version in named.items())


@click.group(epilog=examples("icecore artifact show bert:production", "icecore artifact lineage bert:production --up"))
def artifact() -> None:
    """Look at versions of artifacts and at what they were made from."""


@artifact.command(
    epilog=examples(
        "icecore artifact show bert:production", "icecore artifact show team/nlp/bert:v3 --as-of 2026-03-03T14:00"
    )
)
@click.argument("name", metavar=_NAME)
@_AS_OF
@json_option
def show(name: str, as_of: str | None, as_json: bool) -> None:
    """Show one version."""
    api = Api()
    at = _name(api, name)
    found = api.client.ask("GET", f"{at.route}/{_quoted(at.ref)}", query={"as_of": as_of})
    standing = api.client.ask("GET", f"{at.route}/{found['version']}/retention", query={"as_of": as_of})
    if as_json:
        print_json({**found, "retention": standing})
        return
    rows = [[field, _words(field, found[field])] for field in _SHOWN if found[field] not in (None, "", [], {})]
    rows += [[field, text] for field, text in life_of(standing).items() if text]
    terminal().print(table([f"{found['path']}:{found['version']}", ""], rows))


_SHOWN: Final = (
    "type",
    "aliases",
    "state",
    "description",
    "metadata",
    "tags",
    "files",
    "size",
    "digest",
    "parts",
    "sources",
    "run",
    "user",
    "created_at",
    "updated_at",
)


def _words(field: str, value: Any) -> Any:
    """A field of a version as people read it."""
    if field == "parts":
        return "\n".join(f"{key}: {name}" for key, name in value.items())
    if field == "size":
        return f"{value} bytes ({amount(value)})"
    return ", ".join(value) if isinstance(value, list) else value


@artifact.command(
    epilog=examples(
        "icecore artifact versions bert", """icecore artifact versions bert --filter '{"metadata.f1": {"$gt": 0.8}}'"""
    )
)
@click.argument("name", metavar="[[ENTITY/]PROJECT/]NAME")
@click.option("--filter", "filters", default=None, help="A filter as JSON, in the style of MongoDB.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@_AS_OF
@json_option
def versions(name: str, filters: str | None, limit: int, as_of: str | None, as_json: bool) -> None:
    """List the versions of an artifact, newest first."""
    api = Api()
    at = _name(api, name)
    page = api.client.ask("GET", at.route, query={"filters": filters, "limit": limit, "as_of": as_of})
    if as_json:
        print_json(page)
        return
    rows = [
        [
            v["version"],
            ", ".join(v["aliases"]),
            v["files"],
            amount(v["size"]),
            _shortened(v["metadata"]),
            v["created_at"],
            v["user"],
        ]
        for v in page["versions"]
    ]
    head = ["version", "aliases", "files", "size", "metadata", "created", "by"]
    terminal().print(table(head, rows, right=["files", "size"]))
    if page["cursor"]:
        say("there are older ones; --limit shows more", err=True)


def _shortened(metadata: dict[str, Any]) -> str:
    """What a line has room for."""
    text = shown(metadata) if metadata else ""
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 1]}…"


@artifact.command(
    epilog=examples(
        "icecore artifact parts team/nlp/corpus epoch-5",
        "icecore artifact parts corpus epoch-5 --withdraw 3f2a9c0d1e4b",
    )
)
@click.argument("name", metavar="[[ENTITY/]PROJECT/]NAME")
@click.argument("distributed_id")
@click.option("--withdraw", default="", metavar="PART", help="Take a part back: the beginning of its digest is enough.")
@click.option("--reason", default="", help="Why; kept for ever.")
@json_option
def parts(name: str, distributed_id: str, withdraw: str, reason: str, as_json: bool) -> None:
    """List the parts that several writers sent of a version which nobody has finished, or take one back."""
    api = Api()
    at = _name(api, name)
    route = other_route("parts", at, distributed_id)
    found = api.client.ask("GET", route)
    if withdraw:
        meant = [one["manifest"] for one in found["parts"] if one["manifest"].startswith(withdraw)]
        if len(meant) != 1:
            kind = NotFound if not meant else UsageError
            raise kind(f"expected the beginning of one part's digest, got {withdraw!r}, which is that of {len(meant)}")
        found = api.client.ask("DELETE", route, query={"part": meant[0], "reason": reason or None})
    if as_json:
        print_json(found)
    elif withdraw:
        say(f"{found['manifest']} is taken back; {found['parts']} parts are left")
    else:
        terminal().print(table(["part", "run"], [[one["manifest"], one["run"]] for one in found["parts"]]))


for _command in (lineage, diff, impact, ttl, protect, delete, restore):
    artifact.add_command(_command)


@click.group(epilog=examples("icecore alias move bert:production v5", "icecore alias history bert:production"))
def alias() -> None:
    """Move aliases, and see where they were."""


@alias.command(
    epilog=examples(
        "icecore alias move bert:production v5 --reason 'f1 0.91'", "icecore alias move bert:production v5 --expect v4"
    )
)
@click.argument("name", metavar=_NAME)
@click.argument("version", metavar="VERSION")
@click.option("--expect", default=None, metavar="VERSION", help="Move only from there; `none` where it must not exist.")
@click.option("--reason", default="", help="Why; kept with the move for ever.")
@json_option
def move(name: str, version: str, expect: str | None, reason: str, as_json: bool) -> None:
    """Let an alias name another version; `none` takes it away."""
    api = Api()
    at = _alias(api, name)
    _move(api, at, _or_none(version), reason, as_json, **({} if expect is None else {"expected": _or_none(expect)}))


@alias.command(epilog=examples("icecore alias revert bert:production --reason 'v5 fails on long texts'"))
@click.argument("name", metavar=_NAME)
@click.option("--reason", default="", help="Why; kept with the move for ever.")
@json_option
def revert(name: str, reason: str, as_json: bool) -> None:
    """Move an alias back to what it named before."""
    api = Api()
    at = _alias(api, name)
    moves = _history(api, at, None)
    if not moves:
        raise NotFound(f"expected an alias that was moved, got {at}", hint="`icecore artifact versions` lists aliases")
    last = moves[0]
    _move(api, at, last["before"], reason or "revert", as_json, expected=last["version"])


@alias.command(epilog=examples("icecore alias history bert:production", "icecore alias history bert:production --json"))
@click.argument("name", metavar=_NAME)
@_AS_OF
@json_option
def history(name: str, as_of: str | None, as_json: bool) -> None:
    """Say who moved an alias, when, from where, to where and why."""
    api = Api()
    at = _alias(api, name)
    moves = _history(api, at, as_of)
    if as_json:
        print_json({"alias": str(at), "history": moves})
        return
    rows = [[m["at"], m["before"], m["version"], m["user"], m["reason"], m["position"]] for m in moves]
    terminal().print(table(["when", "from", "to", "by", "reason", "position"], rows))
    if not rows:
        say(f"{at} never named a version; next: icecore artifact versions {at.path}", err=True)


def _history(api: Api, at: Name, as_of: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.ask(
        "GET", f"{at.route}/aliases/{_quoted(at.ref)}", query={"as_of": as_of}
    )["history"]
    return found


def _move(api: Api, at: Name, version: str | None, reason: str, as_json: bool, **expected: str | None) -> None:
    body = {"version": version, "reason": reason, **expected}
    found = api.client.ask("PUT", f"{at.route}/aliases/{_quoted(at.ref)}", body=body)
    if as_json:
        print_json(found)
    else:
        say(f"{at}: {found['before'] or 'nothing'} -> {found['version'] or 'nothing'}")


def _name(api: Api, text: str) -> Name:
    return parse_name(text, api.default_entity if text.count("/") < 2 else "", api.settings.project)


def _alias(api: Api, text: str) -> Name:
    at = _name(api, text)
    if ":" not in text:
        raise UsageError(f"expected an alias such as {text}:production, got {text!r}")
    return at


def _or_none(version: str) -> str | None:
    return None if version == "none" else version


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")
