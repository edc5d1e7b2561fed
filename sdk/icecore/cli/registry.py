"""`icecore registry …` and `icecore promote …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from icecore.api import Api
from icecore.artifact_names import Name, parse_name, registry_route
from icecore.cli.output import examples, json_option, print_json, say, table, terminal
from icecore.errors import NotFound, UsageError

_AS_OF: Final = click.option("--as-of", default=None, metavar="TIME|POSITION", help="As it was at a moment.")
_COLLECTION: Final = "[[ENTITY/]PROJECT/]NAME"
_VERSION: Final = "[[ENTITY/]PROJECT/]NAME:VERSION"
_REASON: Final = click.option("--reason", default="", help="Why; kept for ever.")


@click.group(epilog=examples("icecore registry list", "icecore registry show registry/model/churn"))
def registry() -> None:
    """Collections of versions: what they ask, and what is linked into them."""


@registry.command("list", epilog=examples("icecore registry list", "icecore registry list --json"))
@_AS_OF
@json_option
def list_(as_of: str | None, as_json: bool) -> None:
    """List collections of registries, and other artifacts that were set up."""
    found = Api().client.ask("GET", "registry", query={"as_of": as_of})["collections"]
    if as_json:
        print_json({"collections": found})
        return
    rows = [[one["path"], one["type"], one["versions"], _aliases(one["aliases"]), one["owner"]] for one in found]
    terminal().print(table(["collection", "type", "versions", "aliases", "owner"], rows, right=["versions"]))
    if not found:
        say("no collections here; next: icecore registry set registry/model/NAME --type model", err=True)


@registry.command(
    epilog=examples(
        "icecore registry show registry/model/churn", "icecore registry show registry/model/churn:production --json"
    )
)
@click.argument("name", metavar=f"{_COLLECTION}[:ALIAS]")
@_AS_OF
@json_option
def show(name: str, as_of: str | None, as_json: bool) -> None:
    """Show what a collection asks, and the model card of a version."""
    api = Api()
    at = _name(api, name)
    query = {"ref": at.ref if ":" in name else None, "as_of": as_of}
    found = api.client.ask("GET", registry_route(at), query=query)
    if as_json:
        print_json(found)
        return
    told = {**found, "aliases": _aliases(found["aliases"]), "checks": _checks(found["checks"])}
    plain = {field: ", ".join(value) if isinstance(value, list) else value for field, value in told.items()}
    rows = [[field, plain[field]] for field in _SHOWN if plain[field] not in (None, "")]
    terminal().print(table([found["path"], ""], rows))
    if found["card"]:
        say(f"\n{found['card']}")


_SHOWN: Final = (
    "type", "description", "owner", "tags", "stages", "required", "checks", "aliases", "versions", "open", "created_at",
    "user",
)  # fmt: skip


@registry.command(
    "set",
    epilog=examples(
        "icecore registry set registry/model/churn --type model --owner risk --require f1 --stages dev,production",
        "icecore registry set registry/model/churn --check production 'metadata.f1 >= 0.85' "
        "--check production 'evaluated by eval' --check production approved",
        "icecore registry set registry/model/churn --card card.md",
    ),
)
@click.argument("name", metavar=_COLLECTION)
@click.option("--type", "kind", default="", help="Makes the collection where it is not there yet: model, dataset, …")
@click.option("--description", default=None, help="What it is for.")
@click.option("--owner", default=None, help="A user or team.")
@click.option("--tags", default=None, help="Short labels, by comma; empty for none.")
@click.option("--stages", default=None, help="The only aliases it has besides latest, by comma; empty for any.")
@click.option("--require", default=None, help="Keys that metadata must have, by comma; empty for none.")
@click.option("--card", default=None, metavar="FILE", help="The model card's template, with {metadata.f1}; - is stdin.")
@click.option(
    "--check", "checks", nargs=2, multiple=True, metavar="ALIAS CHECK", help="What must hold to be promoted there."
)
@click.option("--no-checks", multiple=True, metavar="ALIAS", help="Take an alias's checks away.")
@_REASON
@json_option
def set_(
    name: str, checks: tuple[tuple[str, str], ...], no_checks: tuple[str, ...], as_json: bool, **said: Any
) -> None:
    """Say what a collection is for, and what it asks of its versions. What is not named stays.

    Checks are `metadata.f1 >= 0.85`, `evaluated by eval` (a run with that job type used the version), `evaluated by
    eval with f1 >= 0.8` and `approved` (by another credential than the requester's). Those given for an alias replace
    the ones it has; such an alias moves by `icecore promote` only.
    """
    api = Api()
    at = _name(api, name)
    body: dict[str, Any] = {"type": said["kind"], "description": said["description"], "owner": said["owner"]}
    body |= {"tags": _listed(said["tags"]), "stages": _listed(said["stages"]), "required": _listed(said["require"])}
    if said["card"] is not None:
        body["template"] = sys.stdin.read() if said["card"] == "-" else Path(said["card"]).read_text(encoding="utf-8")
    if checks or no_checks:
        changed: dict[str, list[str]] = {}
        for alias, check in checks:
            changed.setdefault(alias, []).append(check)
        body["checks_of"] = {**changed, **{alias: [] for alias in no_checks}}
    body = {field: value for field, value in {**body, "reason": said["reason"]}.items() if value is not None}
    found = api.client.ask("PATCH", registry_route(at), body=body)
    if as_json:
        print_json(found)
    else:
        say(f"{found['path']}: set")


@registry.command(epilog=examples("icecore registry link team/nlp/churn:v5 registry/model/churn --alias staging"))
@click.argument("source", metavar=_VERSION)
@click.argument("name", metavar=_COLLECTION)
@click.option("--alias", "aliases", multiple=True, help="A name it is to have there; repeatable.")
@json_option
def link(source: str, name: str, aliases: tuple[str, ...], as_json: bool) -> None:
    """Put a version into a collection, too. No byte is copied."""
    api = Api()
    body = {"source": str(_name(api, source)), "aliases": list(aliases)}
    found = api.client.ask("POST", f"{registry_route(_name(api, name))}/links", body=body)
    if as_json:
        print_json(found)
    else:
        say(f"{body['source']} is {found['path']}:{found['version']}")


@registry.command(epilog=examples("icecore registry unlink team/nlp/churn:v5 registry/model/churn --reason 'leaks'"))
@click.argument("source", metavar=_VERSION)
@click.argument("name", metavar=_COLLECTION)
@click.option("--with-aliases", is_flag=True, help="Its aliases go too.")
@_REASON
@json_option
def unlink(source: str, name: str, with_aliases: bool, reason: str, as_json: bool) -> None:
    """Take a version out of a collection; where it came from it stays."""
    api = Api()
    query = {
        "source": str(_name(api, source)),
        "with_aliases": True if with_aliases else None,
        "reason": reason or None,
    }
    found = api.client.ask("DELETE", f"{registry_route(_name(api, name))}/links", query=query)
    if as_json:
        print_json(found)
    else:
        say(f"{found['path']}:{found['version']} is no longer {query['source']}")


# ---------------------------------------------------------------------------------------------------- promotions


class _Promote(click.Group):
    """A group whose first word may be a version: then it is `request`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that is meant."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["request", *args]
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Promote,
    epilog=examples(
        "icecore promote bert:v5 --to production --reason 'f1 0.91'",
        "icecore promote bert:v5 --to production --dry-run",
        "icecore promote approve 3f2a9c0d1e4b --reason 'seen the report'",
        "icecore promote rollback bert --to production --reason 'v5 fails on long texts'",
    ),
)
def promote() -> None:
    """Let an alias name a version, if its checks hold: `icecore promote NAME:VERSION --to ALIAS`."""


@promote.command(
    epilog=examples(
        "icecore promote bert:v5 --to production --reason 'f1 0.91'", "icecore promote bert:staging --to production"
    )
)
@click.argument("name", metavar=_VERSION)
@click.option("--to", "alias", required=True, help="The alias.")
@_REASON
@click.option("--dry-run", is_flag=True, help="Only say what would happen, check by check.")
@json_option
def request(name: str, alias: str, reason: str, dry_run: bool, as_json: bool) -> int:
    """Ask that an alias names a version. Exit code 1: a check fails."""
    api = Api()
    at = _name(api, name)
    if ":" not in name:
        raise UsageError(f"expected a version such as {name}:v5, got {name!r}")
    body = {"version": at.ref, "to": alias, "reason": reason, "dry_run": dry_run}
    found = api.client.ask("POST", f"{registry_route(at)}/promotions", body=body)
    if as_json:
        print_json(found)
        return int(found["outcome"] == "refused")
    for one in found["checks"]:
        say(f"{'ok' if one['ok'] else 'NO':3} {one['check']}: {one['found']}")
    would = " would be" if dry_run else " is" if found["outcome"] == "applied" else ""
    where = f"{at.path}:{alias}"
    if found["outcome"] == "applied":
        say(f"{where}{would} {found['version']} (before: {found['before'] or 'nothing'})")
    elif found["outcome"] == "refused":
        say(f"{where} would stay {found['before'] or 'nothing'}: refused")
    else:
        name = f" {found['promotion']['promotion']}" if found["promotion"] else ""
        say(f"{where} waits for another credential's approval: icecore promote approve{name or ' ID'}")
    return int(found["outcome"] == "refused")


@promote.command(
    epilog=examples(
        "icecore promote approve 3f2a9c0d1e4b --reason 'seen the report'", "icecore promote approve bert:v5"
    )
)
@click.argument("promotion", metavar="ID|NAME:VERSION")
@_REASON
@json_option
def approve(promotion: str, reason: str, as_json: bool) -> None:
    """Approve a promotion and apply it: by its id, or the one that waits of a version."""
    _decide(promotion, "approve", reason, as_json)


@promote.command(
    epilog=examples("icecore promote reject 3f2a9c0d1e4b --reason 'no report'", "icecore promote reject bert:v5")
)
@click.argument("promotion", metavar="ID|NAME:VERSION")
@_REASON
@json_option
def reject(promotion: str, reason: str, as_json: bool) -> None:
    """Refuse a promotion, or take one's own back: by its id, or the one that waits of a version."""
    _decide(promotion, "reject", reason, as_json)


def _decide(promotion: str, decision: str, reason: str, as_json: bool) -> None:
    api = Api()
    if ":" in promotion:
        promotion = _waiting(api, promotion)
    api.promotion(promotion)  # an id that is none is told as such
    found = api.client.ask("POST", f"promotions/{quote(promotion, safe='')}/{decision}", body={"reason": reason})
    if as_json:
        print_json(found)
    else:
        say(f"{found['path']}:{found['version']} to {found['alias']}: {found['state']}")


def _waiting(api: Api, text: str) -> str:
    """The id of the one open promotion of a version."""
    at = _name(api, text)
    version = api.client.ask("GET", f"{at.route}/{quote(at.ref, safe='')}")["version"]
    found = api.client.ask("GET", f"{registry_route(at)}/promotions")["promotions"]
    ids = [one["promotion"] for one in found if one["version"] == version and one["state"] in ("requested", "approved")]
    if not ids:
        raise NotFound(f"no such promotion: none of {at.path}:{version} waits", hint=f"icecore promote list {at.path}")
    if len(ids) > 1:
        raise UsageError(f"expected one promotion of {at.path}:{version} that waits, found {', '.join(ids)}")
    return str(ids[0])


@promote.command("list", epilog=examples("icecore promote list", "icecore promote list bert --state requested"))
@click.argument("name", metavar=f"[{_COLLECTION}]", required=False)
@click.option(
    "--state", default=None, type=click.Choice(["requested", "approved", "rejected", "applied", "rolled_back"])
)
@_AS_OF
@json_option
def promotions(name: str | None, state: str | None, as_of: str | None, as_json: bool) -> None:
    """List promotions, the last first."""
    api = Api()
    address = f"{registry_route(_name(api, name))}/promotions" if name else "promotions"
    found = api.client.ask("GET", address, query={"state": state, "as_of": as_of})["promotions"]
    if as_json:
        print_json({"promotions": found})
        return
    rows = [
        [
            one["promotion"], f"{one['path']}:{one['version']}", one["alias"], one["state"], one["requested_by"],
            one["approved_by"], one["reason"], one["steps"][-1]["at"],
        ]
        for one in found
    ]  # fmt: skip
    terminal().print(table(["id", "version", "to", "state", "asked by", "approved by", "reason", "when"], rows))


@promote.command(epilog=examples("icecore promote rollback bert --to production --reason 'v5 fails on long texts'"))
@click.argument("name", metavar=_COLLECTION)
@click.option("--to", "alias", required=True, help="The alias.")
@_REASON
@json_option
def rollback(name: str, alias: str, reason: str, as_json: bool) -> None:
    """Let an alias name again what it named before the last promotion."""
    api = Api()
    at = _name(api, name)
    found = api.client.ask("POST", f"{registry_route(at)}/rollback", body={"to": alias, "reason": reason})
    if as_json:
        print_json(found)
    else:
        say(f"{at.path}:{alias}: {found['before']} -> {found['version']}")


def _name(api: Api, text: str) -> Name:
    return parse_name(text, api.default_entity if text.count("/") < 2 else "", api.settings.project)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _aliases(named: dict[str, str]) -> str:
    return ", ".join(f"{alias}={version}" for alias, version in named.items())


def _checks(checks: dict[str, list[str]]) -> str:
    return "; ".join(f"{alias}: {', '.join(those)}" for alias, those in checks.items())
