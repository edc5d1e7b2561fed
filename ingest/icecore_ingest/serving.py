"""uvicorn as every process of icecore runs it: quiet, ended by a signal with exit code 0, and ready in one line."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Final

import orjson
import uvicorn

from icecore.errors import SettingsError

DRAIN_S: Final = 10
"""How long SIGTERM waits for requests in flight."""
BACKLOG: Final = 2048


class Server(uvicorn.Server):
    """The server of uvicorn, which ends with exit code 0 on SIGTERM and SIGINT."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT. uvicorn would raise them again when it has stopped."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so in one line on stdout: `{"ready": true, "pid": N, "port": N or null}`."""
        await super().startup(sockets)
        if not self.started:
            return
        ports = [one.getsockname()[1] for one in sockets or () if one.family != socket.AF_UNIX]
        line = {"ready": True, "pid": os.getpid(), "port": ports[0] if ports else None}
        os.write(1, orjson.dumps(line) + b"\n")

    def stop(self) -> None:
        """Accept no more; answer what is in flight."""
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one.

    Raises:
        SettingsError: the address is not ours, or taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server((host, port), family=found[0][0], backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"expected to listen on {host}:{port}, got: {error.strerror or error}", hint="choose another --port"
        ) from error


def collect_seldom() -> None:
    """Look for garbage in cycles less often: what was imported stays, and requests and batches make next to none.

    With Python's own thresholds a twentieth of a gateway's time went into looking.
    """
    gc.freeze()  # without a last look, which took 50 ms and found nothing
    gc.set_threshold(20_000, 20, 20)


def quiet_uvicorn() -> None:
    """What uvicorn logs is about clients that hang up; what a person must know we say ourselves."""
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        logger.setLevel(logging.ERROR)
