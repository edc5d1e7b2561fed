"""The help of all commands as Markdown: `python -m icecore.cli.docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from icecore.cli import EXIT_CODES
from icecore.cli.group import CLIENT_COMMANDS, HEADINGS, Commands, cli


def render() -> str:
    """Every command's help as `icecore NAME --help` prints it 100 columns wide, then the exit codes."""
    parts = [_section("icecore", cli, None)]
    root = click.Context(
        cli, info_name="icecore", max_content_width=100, terminal_width=100, help_option_names=["-h", "--help"]
    )
    group = cli
    if not isinstance(group, Commands):
        raise TypeError("expected the group of commands")
    for commands in HEADINGS.values():
        for name in commands:
            command = group.get_command(root, name)
            if command is not None:
                parts += _sections(f"icecore {name}", name, command, root)
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    parts.append("\n".join(["## Exit codes", "", "| code | when |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _sections(title: str, name: str, command: click.Command, parent: click.Context) -> list[str]:
    found = [_section(title, command, parent, name)]
    if isinstance(command, click.Group):
        context = click.Context(
            command,
            info_name=name,
            parent=parent,
            max_content_width=100,
            terminal_width=100,
            help_option_names=["-h", "--help"],
        )
        for inner in command.list_commands(context):
            inside = command.get_command(context, inner)
            if inside is not None:
                found += _sections(f"{title} {inner}", inner, inside, context)
    return found


def _section(title: str, command: click.Command, parent: click.Context | None, name: str = "icecore") -> str:
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        max_content_width=100,
        terminal_width=100,
        help_option_names=["-h", "--help"],
    )
    return f"## {title}\n\n```\n{command.get_help(context).rstrip()}\n```"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its path, as `icecore runs`."""
    waiting: list[tuple[str, click.Command, click.Context | None]] = [("icecore", cli, None)]
    while waiting:
        path, command, parent = waiting.pop(0)
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
            found = ((name, command.get_command(context, name)) for name in command.list_commands(context))
            waiting += [(f"{path} {name}", inner, context) for name, inner in found if inner is not None]


def client_command_names() -> list[str]:
    """The commands that work without the server."""
    return list(CLIENT_COMMANDS)


if __name__ == "__main__":
    sys.stdout.write(render())
