"""The command line `icecore`: questions go to the server through `icecore.api`, answers to people or as JSON.

Nothing is imported before it is needed, so that `icecore --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from icecore.errors import IcecoreError, SettingsError, UsageError

EXIT_CODES: Final[dict[int, str]] = {
    0: "done, and nothing is wrong",
    1: "done, and something is wrong; or it could not be done",
    2: "the command was written wrongly",
    3: "no server answers",
    4: "refused: no key, a wrong key, or not allowed",
    5: "nothing of that name",
    6: "the server failed, or is too busy",
    130: "interrupted",
}
"""What the command line ends with, and when."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `icecore ARGUMENTS` and end the process with one of `EXIT_CODES`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(words))


def run(words: Sequence[str]) -> int:
    """Run a command; errors are said as "error: …" and "next: …" on stderr. Returns the exit code."""
    import click

    from icecore.cli.group import cli

    as_json = "--json" in words
    help_at = next((f"icecore {word} --help" for word in words if not word.startswith("-")), "icecore --help")
    try:
        status = cli.main(list(words), prog_name="icecore", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "icecore"
        return _fail(UsageError(error.format_message(), hint=f"{where} --help"), as_json)
    except click.ClickException as error:
        return _fail(IcecoreError(error.format_message()), as_json)
    except IcecoreError as error:
        if not error.hint and exit_code_of(error) == 2:
            error.hint = help_at
        return _fail(error, as_json)
    except ModuleNotFoundError as error:
        return _fail(_missing(error, words), as_json)
    except BrokenPipeError:  # `icecore … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    except UnicodeError as error:
        return _fail(UsageError(f"expected text in UTF-8, got: {error}", hint=help_at), as_json)
    except OSError as error:
        return _fail(IcecoreError(f"expected the file system to take or give it, got {error}"), as_json)
    return status if isinstance(status, int) else 0


def exit_code_of(error: IcecoreError) -> int:
    """The exit code for an error."""
    if error.code == "server_unreachable":
        return 3
    if isinstance(error, (UsageError, SettingsError)) or error.status in {400, 413, 422}:
        return 2
    if error.code == "error":
        return 1
    return {401: 4, 403: 4, 404: 5, 409: 1}.get(error.status, 6)


def _fail(error: IcecoreError, as_json: bool) -> int:
    """Say an error: on stderr, and as the one document on stdout where JSON was asked for."""
    from icecore.cli.output import clean, print_json

    sys.stdout.flush()
    if as_json:
        print_json(error.body())
    sys.stderr.write(f"error: {clean(error.message)}\n")
    if error.hint:
        sys.stderr.write(f"next: {clean(error.hint)}\n")
    return exit_code_of(error)


def _missing(error: ModuleNotFoundError, words: Sequence[str]) -> IcecoreError:
    command = next((word for word in words if not word.startswith("-")), "")
    return UsageError(
        f"`icecore {command}` needs the server: expected the module {error.name}, got none",
        hint="pip install 'icecore[server]'",
    )
