"""The store as a process: it owns the DuckDB file, folds the log into it, and answers queries on a Unix socket."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop

from icecore.errors import IcecoreError
from icecore.lifeline import end_with_parent
from icecore_api.app import create_app
from icecore_api.context import CRASHED_AFTER_S, Context
from icecore_api.folding import Folding
from icecore_api.operations import LiveOperations
from icecore_ingest.identities import Identities
from icecore_ingest.logs.sqlite import SQLiteLog

SOCKET_MODE: Final = 0o600
DRAIN_S: Final = 10


def say(event: str, **facts: Any) -> None:
    """One line of JSON on stderr."""
    sys.stderr.write(json.dumps({"process": "store", "event": event, **facts}) + "\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen."""

    data: Path
    url: str
    crashed_after_s: float = CRASHED_AFTER_S


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 on SIGTERM and says when it is ready."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT. uvicorn would raise them again when it has stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Start, then tell the supervisor."""
        await super().startup(sockets)
        if self.started:
            os.write(1, json.dumps({"ready": True, "pid": os.getpid()}).encode() + b"\n")


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM; answers the exit code.

    Raises:
        LogError, StoreError: the log or the store cannot be opened.
    """
    data = settings.data
    log = SQLiteLog.open(data / "log")
    folding = Folding(data, say=say)
    await folding.start()
    identities = await Identities.open(log, data / "run" / "identities.store.json")
    follower = asyncio.create_task(identities.follow())
    context = Context(
        log=log,
        current_store=lambda: folding.store,
        identities=identities,
        operations=LiveOperations(data, folding),
        producer=str(uuid.uuid4()),
        data=data,
        processes=lambda: {**processes(data), "folding": folding.report()},
        crashed_after_s=settings.crashed_after_s,
    )
    path = data / "run" / "store.sock"
    path.unlink(missing_ok=True)
    os.umask(0o177)
    config = uvicorn.Config(
        create_app(context),
        uds=str(path),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=DRAIN_S,
    )
    _quiet_uvicorn()
    try:
        await Server(config).serve()
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await asyncio.to_thread(folding.stop)
        await log.close()
    return 0


def processes(data: Path) -> Mapping[str, Any]:
    """The supervisor's word on itself and its children: pids, states, restarts."""
    try:
        report = json.loads((data / "run" / "status.json").read_text(encoding="utf-8"))
        children: dict[str, dict[str, Any]] = report["children"]
    except (OSError, ValueError, KeyError):
        return {"store": os.getpid()}
    return {
        "supervisor": report["supervisor"],
        **{name: child["pid"] for name, child in children.items()},
        "states": {name: child["state"] for name, child in children.items()},
        "restarts": {name: child["restarts"] for name, child in children.items()},
        "last_exits": {name: child["last_exit"] for name, child in children.items() if child["last_exit"]},
    }


def _quiet_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit code: 0 after SIGTERM, 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m icecore_api.serve", description="icecore's store")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--url", default="", help="the address people reach the server by")
    given = parser.parse_args(arguments)
    end_with_parent()
    after = float(os.environ.get("ICECORE_CRASHED_AFTER", CRASHED_AFTER_S))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(Settings(given.data, given.url, after)))
    except IcecoreError as error:
        say("cannot start", **error.body()["error"])
        return 2
    except Exception as error:  # noqa: BLE001 - a bug: the supervisor starts us again, and the words say where it is
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        say("failed", error=repr(error), at=[f"{frame.filename}:{frame.lineno}" for frame in frames])
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
