"""The server's commands: `icecore up demo rebuild fsck dead-letters bench` (found through entry points)."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from icecore.errors import SettingsError

DATA_DEFAULT = "~/.icecore/data"


def say(sentence: str) -> None:
    """A sentence for a person, aside from the output."""
    click.echo(f"icecore: {sentence}", err=True)


def _data_option(function: Any) -> Any:
    return click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        default=DATA_DEFAULT,
        show_default=True,
        envvar="ICECORE_DATA",
        help="The folder that holds everything.",
    )(function)


@click.command(
    epilog="""\b
Examples:
  icecore up
  icecore up --data ./ice --port 0 --json
  icecore up --host 0.0.0.0 --port 8700
"""
)
@_data_option
@click.option("--host", default="127.0.0.1", show_default=True, envvar="ICECORE_HOST", help="Address to listen on.")
@click.option("--port", default=8700, show_default=True, envvar="ICECORE_PORT", help="Port; 0 picks a free one.")
@click.option("--json", "as_json", is_flag=True, help='First line: {"url", "login_url", "api_key"}.')
def up(data: Path, host: str, port: int, as_json: bool) -> None:
    """Serve a data folder: one command, two processes, until Ctrl-C."""
    from icecore_api.supervise import FirstWords
    from icecore_api.supervise import up as serve

    def ready(words: FirstWords) -> None:
        if as_json:
            line = {"url": words.url, "login_url": words.login_url, "api_key": words.api_key}
            click.echo(json.dumps(line))
        else:
            click.echo(f"icecore serves {data.expanduser()} at {words.url}")
            if words.api_key:
                click.echo(f"  your API key, shown once and saved for this user: {words.api_key}")
            click.echo(f"  log in (once, within a day): {words.login_url}")
            click.echo("  next: `import icecore` in a script, or `icecore demo`; Ctrl-C stops")
        sys.stdout.flush()

    asyncio.run(serve(data.expanduser().absolute(), host, port, ready=ready, say=say))


@click.command(
    epilog="""\b
Examples:
  icecore demo
  icecore demo --data /tmp/demo --port 0 --no-stay
"""
)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=None, help="Default: a new folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, help="Port; 0 picks a free one.")
@click.option("--stay/--no-stay", default=None, help="Go on serving until Ctrl-C (default: on a terminal).")
def demo(data: Path | None, host: str, port: int, stay: bool | None) -> None:
    """Start a server, train real models in parallel, kill one, resume it, and look at them."""
    try:
        import sklearn  # type: ignore[import-untyped]  # noqa: F401 - asked for here to say what is missing
    except ImportError as error:
        raise SettingsError("expected scikit-learn to be installed", hint="pip install 'icecore[demo]'") from error
    from icecore_api.demo.play import play

    folder = data.expanduser().absolute() if data else Path(tempfile.mkdtemp(prefix="icecore-data-"))
    play(folder, host, port, stay=sys.stdout.isatty() if stay is None else stay)
