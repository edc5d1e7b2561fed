"""Where a server command works: on a folder that nobody serves, or through the server that serves it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from icecore.errors import IcecoreError, NotFound, Unavailable
from icecore.http import JsonClient
from icecore.settings import Settings
from icecore_api.supervise import Lock

POLL_S: Final = 0.2
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Offline:
    """A folder that nobody serves; its lock is held while the command works."""

    data: Path


@dataclass(frozen=True, slots=True)
class Remote:
    """A running server."""

    client: JsonClient

    def run(self, operation: str, body: Mapping[str, Any], report: Report) -> dict[str, Any]:
        """Start a long operation and wait for its outcome.

        Raises:
            IcecoreError: the server's own error, or that it failed.
        """
        self.client.ask("POST", operation, body=dict(body))
        while True:
            found: dict[str, Any] = self.client.ask("GET", operation)
            if found.get("progress"):
                report(found["progress"])
            if found["state"] == "done":
                return dict(found["result"])
            if found["state"] == "failed":
                raise Unavailable(f"expected the server's {operation} to end well, got: {found.get('error')}")
            time.sleep(POLL_S)


@contextlib.contextmanager
def target(data: Path | None) -> Iterator[Offline | Remote]:
    """The folder, locked, or the server that serves it; without a folder the server at ICECORE_URL.

    Raises:
        NotFound: there is no such data folder.
        IcecoreError: the server cannot be reached.
    """
    if data is None:
        settings = Settings.load()
        yield Remote(JsonClient(settings.url, settings.key))
        return
    folder = data.expanduser().absolute()
    if not (folder / "LOG").exists() and not (folder / "log").is_dir():
        raise NotFound(f"expected a data folder with a log in it, got {folder}", hint="name another with --data")
    try:
        lock = Lock(folder)
    except Unavailable:
        yield Remote(_client_of(folder))
        return
    with contextlib.closing(lock):
        lock.write({"pid": "this", "url": "a command working on the folder"})
        yield Offline(folder)


def _client_of(folder: Path) -> JsonClient:
    try:
        url = str(json.loads((folder / "lock").read_text(encoding="utf-8"))["url"])
    except (ValueError, KeyError, TypeError) as error:
        raise IcecoreError(
            f"expected {folder / 'lock'} to say who serves the folder", hint="stop that process"
        ) from error
    settings = Settings.load({"url": url})
    return JsonClient(url, settings.key)
