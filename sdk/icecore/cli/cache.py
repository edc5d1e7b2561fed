"""`icecore cache …`: the files of artifacts that are kept on this machine."""

from __future__ import annotations

import sys

import click

from icecore.blob_cache import BlobCache, CacheStat
from icecore.cli.output import examples, json_option, print_json, table, terminal
from icecore.errors import UsageError
from icecore.settings import Settings


@click.group(epilog=examples("icecore cache stat", "icecore cache clear --yes"))
def cache() -> None:
    """The files of artifacts that are kept on this machine for the next download."""


@cache.command(epilog=examples("icecore cache stat", "icecore cache stat --json"))
@json_option
def stat(as_json: bool) -> None:
    """Say what the cache holds, how large it may be, and how often it had what was wanted."""
    found = _cache()
    held = found.stat()
    said = _document(found, held)
    if as_json:
        print_json(said)
        return
    rate = "not known yet" if said["hit_rate"] is None else f"{said['hit_rate']:.0%} of {said['asked']} files"
    rows: list[list[object]] = [
        ["files", said["files"]],
        ["size", f"{held.bytes / 1e6:.1f} MB"],
        ["limit", f"{held.most / 1e9:.1f} GB (ICECORE_ARTIFACT_CACHE_MAX)"],
        ["found here", rate],
    ]
    terminal().print(table([str(said["folder"]), ""], rows))


@cache.command(epilog=examples("icecore cache clear", "icecore cache clear --yes --json"))
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
def clear(yes: bool, as_json: bool) -> None:
    """Delete all of it. What is wanted again is fetched again; nothing else is lost."""
    found = _cache()
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("expected --yes, as nobody is there to be asked", hint="icecore cache clear --yes")
        held = found.stat()
        if not click.confirm(f"Delete {held.files} files, {held.bytes / 1e6:.1f} MB, in {found.folder}?"):
            return
    before = found.clear()
    if as_json:
        print_json({"folder": str(found.folder), "files": before.files, "bytes": before.bytes})
    else:
        click.echo(f"deleted {before.files} files, {before.bytes / 1e6:.1f} MB, in {found.folder}")


def _cache() -> BlobCache:
    settings = Settings.load()
    return BlobCache(settings.artifact_cache, settings.artifact_cache_max)


def _document(cache: BlobCache, held: CacheStat) -> dict[str, object]:
    asked = held.hits + held.misses
    return {
        "folder": str(cache.folder),
        "files": held.files,
        "bytes": held.bytes,
        "limit": held.most,
        "asked": asked,
        "hit_rate": held.hits / asked if asked else None,
    }
