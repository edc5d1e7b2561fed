"""The commands by name, each imported when it is called."""

from __future__ import annotations

import importlib
from typing import Final

import click

from icecore.cli import EXIT_CODES
from icecore.errors import UsageError

CLIENT_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "login": ("icecore.cli.session:login", "Save the API key of a server for this user."),
    "key": ("icecore.cli.keys:key", "Make, list and revoke API keys."),
    "status": ("icecore.cli.session:status", "Say how the server is: processes, log, lag."),
    "runs": ("icecore.cli.runs:runs", "List the runs of a project, or the projects."),
    "run": ("icecore.cli.runs:run", "Show one run."),
    "history": ("icecore.cli.history:history", "Show a run's metrics, or write them to a file."),
    "console": ("icecore.cli.runs:console", "Print what a run printed."),
    "artifacts": ("icecore.cli.artifacts:artifacts", "List the artifacts of a project."),
    "artifact": ("icecore.cli.artifacts:artifact", "Look at versions, and at what they were made from."),
    "alias": ("icecore.cli.artifacts:alias", "Move aliases, and see where they were."),
    "hold": ("icecore.cli.retention:hold", "Legal holds: what is neither deleted nor erased."),
    "gc": ("icecore.cli.retention:gc", "Erase the bytes that nobody needs any more."),
    "storage": ("icecore.cli.retention:storage", "Say what artifacts weigh."),
    "scrub": ("icecore.cli.scrub:scrub", "Read every blob again, and name what is hurt."),
    "registry": ("icecore.cli.registry:registry", "Collections of versions, and what they ask."),
    "promote": ("icecore.cli.registry:promote", "Let an alias name a version, if its checks hold."),
    "cache": ("icecore.cli.cache:cache", "The files of artifacts kept on this machine."),
    "sync": ("icecore.cli.sync:sync", "Send what is waiting on this machine."),
    "log": ("icecore.cli.log:log", "Look at the events themselves."),
}

SERVER_COMMANDS: Final[dict[str, str]] = {
    "up": "Serve a data folder until Ctrl-C.",
    "serve": "Run one part of a cluster: a gateway, or the store.",
    "demo": "Start a server, train real models, look at them.",
    "rebuild": "Fold the log anew and compare or switch.",
    "fsck": "Check every record, offset and table.",
    "dead-letters": "List or replay records that could not be folded.",
    "backup": "Back up a log, blobs and keys while they are served.",
    "restore": "Make a data folder from a backup.",
    "replay": "Make a second data folder as of a moment.",
    "bench": "Measure this machine.",
    "topics": "Make and check the topics of a log on Kafka.",
}
"""Found by entry points of the group `icecore.commands`, so that the client never imports the server."""

SHARED_COMMANDS: Final[dict[str, dict[str, str]]] = {
    "log": {"copy": "Copy a log into another one, of files or on Kafka."},
}
"""The server's commands in the client's groups, found in the same way as `icecore.commands.GROUP`."""

HEADINGS: Final[dict[str, dict[str, str]]] = {
    "Client": {name: said for name, (_, said) in CLIENT_COMMANDS.items()},
    "Server": SERVER_COMMANDS,
}


class Commands(click.Group):
    """A group that knows its commands' names and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Every name, in the order people meet them."""
        return [*SERVER_COMMANDS, *CLIENT_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now."""
        if cmd_name in CLIENT_COMMANDS:
            module, _, name = CLIENT_COMMANDS[cmd_name][0].partition(":")
            return _as_command(getattr(importlib.import_module(module), name))
        return server_command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The names and a line each, without importing them."""
        for heading, commands in HEADINGS.items():
            with formatter.section(f"{heading} commands"):
                formatter.write_dl(list(commands.items()))


class Shared(click.Group):
    """A group of the client's with commands of the server's, which are found as `icecore.commands.GROUP`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, the client's first."""
        return [*super().list_commands(ctx), *SHARED_COMMANDS[str(self.name)]]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; the server's are imported now."""
        own = super().get_command(ctx, cmd_name)
        return own or server_command(cmd_name, str(self.name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The names and a line each, without importing the server's."""
        own = {name: command.get_short_help_str(80) for name, command in sorted(self.commands.items())}
        with formatter.section("Commands"):
            formatter.write_dl([*own.items(), *SHARED_COMMANDS[str(self.name)].items()])
        del ctx


def server_command(name: str, group: str = "") -> click.Command | None:
    """A server's command, of a group where one is named; None where the name is nobody's.

    Raises:
        UsageError: the server is not installed.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=f"icecore.commands.{group}" if group else "icecore.commands", name=name):
        return _as_command(entry.load())
    if name in (SHARED_COMMANDS.get(group, {}) if group else SERVER_COMMANDS):
        raise UsageError(
            f"`icecore {f'{group} {name}'.strip()}` needs the server, which is not installed",
            hint="pip install 'icecore[server]'",
        )
    return None


def _as_command(found: object) -> click.Command:
    if not isinstance(found, click.Command):
        raise TypeError(f"expected a click.Command, got {found!r}")
    return found


def _exit_codes() -> str:
    rows = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    return f"\b\nExit codes:\n{rows}"


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{_exit_codes()}\n\n\b\nExamples:\n  icecore up\n  icecore runs\n  icecore history E/P/RUN --out h.parquet",
)
@click.version_option(package_name="icecore", message="icecore %(version)s")
def cli() -> None:
    """icecore: runs, metrics and models, in which everything is an immutable event."""
