"""`icecore hold …`, `icecore gc`, `icecore storage …`, and `icecore artifact ttl|protect|delete|restore`."""

from __future__ import annotations

import sys
import time
from typing import Any, Final
from urllib.parse import quote

import click

from icecore.api import Api
from icecore.artifact_names import Name, parse_name
from icecore.cli.output import duration, examples, json_option, print_json, say, table, terminal
from icecore.errors import Unavailable, UsageError
from icecore.util import parse_time, ttl_seconds

POLL_S: Final = 0.1
_NAME: Final = "[[ENTITY/]PROJECT/]NAME[:ALIAS]"
_SCOPES: Final = (
    click.option("--project", "project", default=None, metavar="[ENTITY/]PROJECT", help="A whole project."),
    click.option("--team", "team", default=None, metavar="ENTITY", help="All projects of a team or user."),
)


def _scoped(function: Any) -> Any:
    """Name a version, an artifact, a project or a team."""
    for option in _SCOPES:
        function = option(function)
    return click.argument("name", metavar=_NAME, required=False)(function)


def scope_of(api: Api, name: str | None, project: str | None, team: str | None) -> str:
    """What somebody means: `NAME` is an artifact, `NAME:v3` or `NAME:alias` a version.

    Raises:
        UsageError: it is not one of them.
    """
    if sum(given is not None for given in (name, project, team)) != 1:
        raise UsageError("expected one of NAME, --project and --team", hint="icecore … --help shows examples")
    if project is not None:
        return project if "/" in project else f"{api.default_entity}/{project}"
    if name is None:
        if "/" in str(team):
            raise UsageError(f"expected a team, got {team!r}", hint="--project names a project")
        return str(team)
    at = named(api, name)
    if ":" not in name:
        return at.path
    found = api.client.ask("GET", f"{at.route}/{quote(at.ref, safe='')}/retention")
    return f"{found['path']}:{found['version']}"


def amount(count: float) -> str:
    """Bytes for people: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def life_of(standing: dict[str, Any]) -> dict[str, str]:
    """What people read of how long a version lives, and of what keeps it."""
    lives = standing["lives"]
    return {
        "lives": f"{duration(lives)}, says {standing['lives_by']}" if lives else "for ever",
        "expires_at": standing["expires_at"] or "",
        "kept_by": ", ".join(
            f"{keep['kind']} {keep['by']}{' (' + keep['why'] + ')' if keep['why'] else ''}"
            for keep in standing["kept_by"]
        ),
    }


def named(api: Api, text: str) -> Name:
    """A version as it was typed, with what was left out."""
    return parse_name(text, api.default_entity if text.count("/") < 2 else "", api.settings.project)


# ------------------------------------------------------------------------------------------------- artifact …


@click.command(
    epilog=examples(
        "icecore artifact ttl bert:v3 7d",
        "icecore artifact ttl bert never",
        "icecore artifact ttl --project team/nlp 90d",
        "icecore artifact ttl bert:v3 inherit",
    )
)
@_scoped
@click.argument("time", metavar="TIME|inherit|never", required=False)
@json_option
def ttl(name: str | None, time: str | None, project: str | None, team: str | None, as_json: bool) -> None:
    """Say how long versions live, from when they were made: the narrowest scope counts."""
    if time is None and name is not None and (project or team):
        name, time = None, name  # with --project or --team the one argument is the time
    if time is None:
        raise UsageError("expected a time such as 7d, or `inherit`, or `never`, got none")
    api = Api()
    seconds = {"inherit": None, "never": 0}[time] if time in ("inherit", "never") else ttl_seconds(parse_time(time))
    scope = scope_of(api, name, project, team)
    found = api.client.ask("PUT", "retention/ttl", body={"scope": scope, "seconds": seconds})
    if as_json:
        print_json(found)
    else:
        said = {None: "as the wider scopes say", 0: "for ever"}.get(seconds) or duration(seconds)
        say(f"versions of {scope} live {said}" if ":" not in scope else f"{scope} lives {said}")


@click.command(
    epilog=examples("icecore artifact protect bert production staging", "icecore artifact protect bert --none")
)
@click.argument("name", metavar="[[ENTITY/]PROJECT/]NAME")
@click.argument("aliases", metavar="ALIAS", nargs=-1)
@click.option("--none", "nothing", is_flag=True, help="Protect no alias.")
@json_option
def protect(name: str, aliases: tuple[str, ...], nothing: bool, as_json: bool) -> None:
    """Let aliases keep the version that they name: it neither expires nor can it be deleted."""
    if bool(aliases) == nothing:
        raise UsageError("expected aliases to protect, or --none")
    api = Api()
    found = api.client.ask(
        "PUT", "retention/protected", body={"artifact": named(api, name).path, "protected": list(aliases)}
    )
    if as_json:
        print_json(found)
    else:
        say(f"{found['scope']}: protected are {', '.join(found['protected']) or 'no aliases'}")


@click.command(epilog=examples("icecore artifact delete bert:v3", "icecore artifact delete bert:v3 --with-aliases"))
@click.argument("name", metavar=_NAME)
@click.option("--with-aliases", is_flag=True, help="Its aliases go, too.")
@json_option
def delete(name: str, with_aliases: bool, as_json: bool) -> None:
    """Hide a version. It can be restored until `icecore gc` has erased its bytes."""
    _change(name, "DELETE", "", {"with_aliases": with_aliases or None}, as_json)


@click.command(epilog=examples("icecore artifact restore bert:v3"))
@click.argument("name", metavar=_NAME)
@json_option
def restore(name: str, as_json: bool) -> None:
    """Bring a deleted or expired version back, as long as its bytes are there."""
    _change(name, "POST", "/restore", None, as_json)


def _change(name: str, method: str, what: str, query: dict[str, Any] | None, as_json: bool) -> None:
    api = Api()
    if ":" not in name:
        raise UsageError(f"expected a version such as {name}:v3, got {name!r}")
    at = named(api, name)
    found = api.client.ask(method, f"{at.route}/{quote(at.ref, safe='')}{what}", query=query)
    if as_json:
        print_json(found)
    else:
        say(f"{found['path']}:{found['version']} is {found['state']}")


# ------------------------------------------------------------------------------------------------------ hold …


@click.group(epilog=examples("icecore hold add bert:v3 --reason 'case 7'", "icecore hold list"))
def hold() -> None:
    """Legal holds: what is held is neither deleted nor erased, whatever else is said."""


@hold.command(
    epilog=examples(
        "icecore hold add bert:production --reason 'case 7'",
        "icecore hold add bert --reason 'case 7'",
        "icecore hold add --project team/nlp --id case-7",
    )
)
@_scoped
@click.option("--reason", default="", help="Why; kept for ever.")
@click.option("--id", "hold_id", default="", help="A name for it; one is made where none is given.")
@json_option
def add(name: str | None, project: str | None, team: str | None, reason: str, hold_id: str, as_json: bool) -> None:
    """Hold a version, an artifact, a project or a team, with all versions to come."""
    api = Api()
    body = {"scope": scope_of(api, name, project, team), "reason": reason, "hold": hold_id}
    found = api.client.ask("POST", "holds", body=body)
    if as_json:
        print_json(found)
    else:
        say(f"{found['hold']} holds {found['scope']}")


@hold.command("list", epilog=examples("icecore hold list", "icecore hold list --json"))
@json_option
def list_holds(as_json: bool) -> None:
    """List the holds in force."""
    found = Api().client.ask("GET", "holds")
    if as_json:
        print_json(found)
        return
    rows = [[one["hold"], one["scope"], one["reason"], one["user"], one["since"]] for one in found["holds"]]
    terminal().print(table(["hold", "scope", "reason", "by", "since"], rows))
    if not rows:
        say("nothing is held", err=True)


@hold.command(epilog=examples("icecore hold release case-7 --reason settled"))
@click.argument("hold_id", metavar="HOLD")
@click.option("--scope", default=None, help="Where several holds have this id.")
@click.option("--reason", default="", help="Why; kept for ever.")
@json_option
def release(hold_id: str, scope: str | None, reason: str, as_json: bool) -> None:
    """Release a hold."""
    query = {"scope": scope, "reason": reason or None}
    found = Api().client.ask("DELETE", f"holds/{quote(hold_id, safe='')}", query=query)
    if as_json:
        print_json(found)
    else:
        say(f"{hold_id} is released; {len(found['holds'])} holds are left")


# --------------------------------------------------------------------------------------------------------- gc


@click.command(
    epilog=examples("icecore gc --dry-run", "icecore gc --yes", "icecore gc --grace 0s --yes --json")
    + "\n\nA version that was deleted or has expired goes once the grace is over, with the bytes that no other needs."
)
@click.option("--dry-run", is_flag=True, help="Only say what would go, and how many bytes that frees.")
@click.option("--grace", default="7d", show_default=True, help="How long after its deletion a version stays.")
@click.option("--yes", is_flag=True, help="Erase without asking.")
@json_option
def gc(dry_run: bool, grace: str, yes: bool, as_json: bool) -> None:
    """Erase the bytes that nobody needs any more. Each is named by a receipt in the log."""
    api = Api()
    grace_s = parse_time(grace).total_seconds()
    if dry_run or not yes:
        plan = _gc(api, grace_s, dry_run=True)
        if not as_json:
            _show_plan(plan)
        if dry_run or not _agreed(plan, as_json=as_json):
            if as_json:
                print_json(plan)
            return
    done = _gc(api, grace_s, dry_run=False)
    if as_json:
        print_json(done)
        return
    if yes:
        _show_plan(done)
    say(f"freed {done['freed']} bytes ({amount(done['freed'])}); {done['erased']} blobs are gone")


def _gc(api: Api, grace_s: float, *, dry_run: bool) -> dict[str, Any]:
    api.client.ask("POST", "gc", body={"grace_s": grace_s, "dry_run": dry_run})
    while True:
        job: dict[str, Any] = api.client.ask("GET", "gc")
        if job["state"] == "done":
            return dict(job["result"])
        if job["state"] == "failed":
            raise Unavailable(f"expected the server's gc to end well, got: {job.get('error')}")
        time.sleep(POLL_S)


def _agreed(plan: dict[str, Any], *, as_json: bool) -> bool:
    if not plan["bytes"] and not plan["versions"]:
        return False
    if as_json or not sys.stdin.isatty():
        say("nothing was erased; next: the same with --yes", err=True)
        return False
    return click.confirm(f"Erase {amount(plan['bytes'])} for good?")


def _show_plan(plan: dict[str, Any]) -> None:
    named = ", ".join(plan["versions"][:10]) + (", …" if len(plan["versions"]) > 10 else "")
    rows = [
        ["frees", f"{plan['bytes']} bytes ({amount(plan['bytes'])})"],
        ["blobs", f"{plan['blobs']}, {plan['uncommitted']} of them of no version"],
        ["versions", f"{len(plan['versions'])}: {named}" if named else "0"],
        ["interrupted uploads", f"{plan['orphans']} ({amount(plan['orphan_bytes'])})"],
        ["deleted, within the grace", str(plan["waiting"])],
        ["deleted, but kept", str(plan["kept"])],
        ["blobs under way", str(plan["under_way"])],
    ]
    terminal().print(table(["plan", ""], rows))


# ---------------------------------------------------------------------------------------------------- storage …


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "icecore storage", "icecore storage --by collection --json", "icecore storage policy --keep-last 5 --simulate"
    ),
)
@click.option(
    "--by",
    default="project",
    show_default=True,
    type=click.Choice(["team", "project", "collection", "type", "user"]),
)
@click.option(
    "--price",
    default=0.023,
    show_default=True,
    type=click.FloatRange(0),
    envvar="ICECORE_STORAGE_PRICE",
    help="Of a GB for a month.",
)
@json_option
@click.pass_context
def storage(context: click.Context, by: str, price: float, as_json: bool) -> None:
    """Say what artifacts weigh: all files, each blob once, what is shared, what could be freed, what came lately."""
    if context.invoked_subcommand is not None:
        return
    found = Api().client.ask("GET", "storage", query={"by": by, "price": price})
    if as_json:
        print_json(found)
        return
    total = {**found["total"], "group": "all"}
    cells = ("logical", "unique", "shared", "reclaimable", "growth")
    rows = [
        [row["group"], row["versions"], *(amount(row[cell]) for cell in cells), f"{row['price']:.2f}"]
        for row in [*found["rows"], total]
    ]
    head = [by, "versions", "logical", "unique", "shared", "reclaimable", "30 days", "a month"]
    terminal().print(table(head, rows, right=head[1:]))
    free, loose = amount(total["disk_reclaimable"]), amount(total["uncommitted"])
    say(f"on the disk: {total['disk']} bytes ({amount(total['disk'])}) in {total['blobs']} blobs")
    say(f"`icecore gc` could free {free}; {loose} belong to no version")


@storage.command(
    epilog=examples(
        "icecore storage policy --keep-last 5 --keep-aliased --simulate",
        "icecore storage policy --keep-last 3 --keep-aliased --type model --yes",
    )
)
@click.option("--keep-last", required=True, type=click.IntRange(1), help="So many of the newest versions stay.")
@click.option("--keep-aliased", is_flag=True, help="Versions with an alias stay, too.")
@click.option(
    "--scope", default="", metavar="ENTITY[/PROJECT[/NAME]]", help="Only of a team, a project or an artifact."
)
@click.option("--type", "kind", default="", help="Only artifacts of a type.")
@click.option("--simulate", is_flag=True, help="Only say what would go, and what it would free.")
@click.option("--yes", is_flag=True, help="Delete the others. `icecore gc` erases them once the grace is over.")
@json_option
def policy(keep_last: int, keep_aliased: bool, scope: str, kind: str, simulate: bool, yes: bool, as_json: bool) -> None:
    """Keep some versions of each artifact, and delete the others; what is held, linked or protected stays."""
    if simulate == yes:
        raise UsageError("expected --simulate or --yes", hint="--simulate says what would go")
    body = {"keep_last": keep_last, "keep_aliased": keep_aliased, "scope": scope, "type": kind, "simulate": simulate}
    found = Api().client.ask("POST", "retention/policy", body=body)
    if as_json:
        print_json(found)
        return
    verb = "would delete" if simulate else "deleted"
    say(f"{verb} {len(found['versions'])} versions, which frees {found['bytes']} bytes ({amount(found['bytes'])})")
    for version in found["versions"]:
        say(f"  {version}")
    for version, why in found["kept"].items():
        say(f"kept {version}: {', '.join(why)}")
