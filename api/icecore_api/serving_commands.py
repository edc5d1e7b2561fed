"""`icecore serve gateway` and `icecore serve store`: the parts of a cluster, each as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from icecore.errors import SettingsError
from icecore_api.commands import DATA_DEFAULT, blobs_option, chunks_option

F = TypeVar("F", bound=Callable[..., Any])


@click.group(
    epilog="""\b
Examples:
  icecore serve store --log kafka://broker:9092 --host 0.0.0.0 --port 8701
  icecore serve gateway --log kafka://broker:9092 --store http://store:8701 --host 0.0.0.0 --port 8700
`icecore up` runs both on one machine.
"""
)
def serve() -> None:
    """Run one part of a cluster: any number of gateways, and a store."""


def _options(port: int) -> Callable[[F], F]:
    """The options both parts have, with this port by default."""

    def add(function: F) -> F:
        for option in reversed(
            [
                click.option("--log", required=True, envvar="ICECORE_LOG", help="kafka://HOST:PORT,…, or a folder."),
                click.option(
                    "--data",
                    type=click.Path(path_type=Path, file_okay=False),
                    default=DATA_DEFAULT,
                    show_default=True,
                    envvar="ICECORE_DATA",
                    help="The folder for what this process keeps.",
                ),
                click.option(
                    "--host",
                    default="127.0.0.1",
                    show_default=True,
                    envvar="ICECORE_HOST",
                    help="Address to listen on.",
                ),
                click.option(
                    "--port",
                    type=click.IntRange(0, 65535),
                    default=port,
                    show_default=True,
                    envvar="ICECORE_PORT",
                    help="Port; 0 picks a free one.",
                ),
            ]
        ):
            function = option(function)
        return function

    return add


@serve.command(
    epilog="""\b
Examples:
  icecore serve gateway --log kafka://broker:9092 --store http://store:8701 --host 0.0.0.0
The first line on stdout, when ready: {"ready": true, "pid": N, "port": N}.
"""
)
@_options(8700)
@click.option("--store", required=True, envvar="ICECORE_STORE", help="The store's address: http://HOST:PORT.")
@click.option(
    "--public-host",
    multiple=True,
    envvar="ICECORE_PUBLIC_HOSTS",
    help="A name or address clients call it by; * takes any. Repeatable.",
)
def gateway(log: str, data: Path, host: str, port: int, store: str, public_host: tuple[str, ...]) -> None:
    """Take events into the log, and pass everything else on to the store."""
    if not store.startswith(("http://", "https://")):
        raise SettingsError(f"expected --store http://HOST:PORT, got {store!r}")
    public = [word for name in public_host for word in ("--public-host", name)]
    _become("icecore_ingest.gateway", log, data, host, port, ["--store", store, *public])


@serve.command(
    epilog="""\b
Examples:
  icecore serve store --log kafka://broker:9092 --data /data --host 0.0.0.0
The first line on stdout, when ready: {"ready": true, "pid": N, "port": N}.
On a log without users it makes the owner; the key is ICECORE_OWNER_KEY, or else one is written to DATA/owner-key.
"""
)
@_options(8701)
@blobs_option
@chunks_option
@click.option("--url", default="", envvar="ICECORE_PUBLIC_URL", help="The address people reach the gateways by.")
def store(log: str, data: Path, host: str, port: int, blobs: str, chunks: bool, url: str) -> None:
    """Fold the log into a store in the data folder, and answer queries from it. One for each data folder."""
    more = ["--url", url, "--blobs", blobs, "--alone", *(["--chunks"] if chunks else [])]
    _become("icecore_api.serve", log, data, host, port, more)


def _become(module: str, log: str, data: Path, host: str, port: int, more: list[str]) -> None:
    """Be the process, so that signals and exit codes are its own."""
    folder = str(data.expanduser().absolute())
    words = ["--data", folder, "--log", log, "--host", host, "--port", str(port), *more]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *words])  # noqa: S606 - our own interpreter and module
