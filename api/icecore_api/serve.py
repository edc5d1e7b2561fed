"""The store as a process: it owns the DuckDB file, folds the log into it, and answers queries on a Unix socket."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from icecore import journal, tracing
from icecore.errors import IcecoreError
from icecore.journal import say
from icecore.lifeline import end_with_parent
from icecore_api.app import create_app
from icecore_api.blobs.direct import Direct
from icecore_api.blobs.opening import blobs_of, open_blobs
from icecore_api.blobs.store import BlobStore
from icecore_api.context import CRASHED_AFTER_S, Context
from icecore_api.folding import Folding
from icecore_api.operations import LiveOperations
from icecore_api.supervise import Lock, choose_log, prepare, remember_log
from icecore_ingest.identities import Identities, found_owner
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_ingest.logs.opening import is_kafka, open_log
from icecore_ingest.metric_defs import Metrics
from icecore_ingest.serving import DRAIN_S, Server, collect_seldom, listen, quiet_uvicorn


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen."""

    data: Path
    log: str = ""
    """A folder or kafka://…; without it DATA/log."""
    url: str = ""
    """The address people reach the server by."""
    blobs: str = ""
    """A bucket for the bytes of artifacts: s3://…; without it what was chosen before, or DATA/blobs."""
    listener: socket.socket | None = None
    """Where to listen; without it the socket in DATA/run."""
    crashed_after_s: float = CRASHED_AFTER_S
    alone: bool = False
    """No supervisor holds the folder and makes the owner: this process does."""
    chunks: bool = False
    """Large blobs that come into DATA/blobs are kept in chunks."""

    @property
    def log_address(self) -> str | Path:
        """The log to open."""
        return self.log or self.data / "log"


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM; answers the exit code.

    Raises:
        LogError, StoreError: the log or the store cannot be opened.
    """
    data = settings.data
    log = await open_log(settings.log_address)
    metrics = Metrics("store")
    folding = Folding(data, settings.log_address, say=lambda what: say(what, "warning"), metrics=metrics)
    await folding.start()
    if settings.alone:  # now that the store has found the log to be its own
        remember_log(data, settings.log)
        chosen = _chosen_key()
        made = await found_owner(log, secret=chosen)
        if made and not chosen:
            _leave_key(made, data / "owner-key")
    identities = await Identities.open(log, data / "run" / "identities.store.json")
    follower = asyncio.create_task(identities.follow())
    blobs = await asyncio.to_thread(open_blobs, data, settings.blobs, owner=log.log_id, chunked=settings.chunks)
    context = Context(
        log=log,
        current_store=lambda: folding.store,
        identities=identities,
        operations=LiveOperations(data, settings.log_address, folding),
        producer=str(uuid.uuid4()),
        data=data,
        blobs=blobs,
        processes=lambda: {**processes(data), **_where(settings), "folding": folding.report()},
        crashed_after_s=settings.crashed_after_s,
        metrics=metrics,
    )
    app = create_app(context)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=DRAIN_S,
    )
    quiet_uvicorn()
    beside = [follower, *map(asyncio.create_task, (app.state.expiry.run(), _greet(blobs)))]
    try:
        await Server(config).serve(sockets=[settings.listener or _own_socket(data)])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await asyncio.to_thread(folding.stop)
        blobs.close()
        await log.close()
    return 0


async def _greet(blobs: BlobStore) -> None:
    """Say early what is wrong with a bucket. The server serves without it: events do not need it."""
    if isinstance(blobs, Direct):
        try:
            await blobs.greet()
        except IcecoreError as error:
            say("blobs cannot be had", "warning", **error.body()["error"])


def _where(settings: Settings) -> dict[str, Any]:
    """What `status` says: where the log and the blobs are, and whether one lost disk would be a lost log."""
    where, blobs = settings.log_address, blobs_of(settings.data).partition("?")[0]
    words: dict[str, Any] = {"log_at": str(where), "blobs_at": blobs or str(settings.data / "blobs")}
    if isinstance(where, str) and is_kafka(where):
        words["single_replica"] = KafkaSettings.parse(where).single_replica
    return words


def _chosen_key() -> str:
    """The owner's key, where whoever set this up has chosen one."""
    if file := os.environ.get("ICECORE_OWNER_KEY_FILE", ""):
        return Path(file).read_text("utf-8").strip()
    return os.environ.get("ICECORE_OWNER_KEY", "")


def _leave_key(key: str, file: Path) -> None:
    """Keep a new owner's key where only this user can read it: what a process says ends up in logs."""
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(key + "\n", "utf-8")
    say("the owner was made", key_is_in=str(file))


def _own_socket(data: Path) -> socket.socket:
    """The socket that only this user's processes can connect to."""
    path = data / "run" / "store.sock"
    path.unlink(missing_ok=True)
    os.umask(0o177)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.setblocking(False)  # noqa: FBT003 - the library's signature
    return listener


def processes(data: Path) -> Mapping[str, Any]:
    """The supervisor's word on itself and its children: pids, states, restarts."""
    try:
        report = json.loads((data / "run" / "status.json").read_text(encoding="utf-8"))
        children: dict[str, dict[str, Any]] = report["children"]
    except (OSError, ValueError, KeyError):
        return {"store": os.getpid()}
    return {
        "supervisor": report["supervisor"],
        **({"brokers": report["brokers"]} if report.get("brokers") else {}),
        **{name: child["pid"] for name, child in children.items()},
        "states": {name: child["state"] for name, child in children.items()},
        "restarts": {name: child["restarts"] for name, child in children.items()},
        "last_exits": {name: child["last_exit"] for name, child in children.items() if child["last_exit"]},
    }


def _hold(data: Path, log: str, url: str, listener: socket.socket | None) -> str:
    """Take the folder for as long as this process lives; answers the log's address.

    Raises:
        SettingsError: the folder cannot be written, or belongs to another log.
        Unavailable: another process serves it.
    """
    prepare(data)
    lock = Lock(data)
    host, port = listener.getsockname()[:2] if listener else ("", 0)
    lock.write({"pid": os.getpid(), "url": url or f"http://{host}:{port}"})
    _held.append(lock)
    return choose_log(data, log)


_held: list[Lock] = []
"""Until the process ends."""


class _NoPandas(MetaPathFinder):
    """Finds no pandas, wherever it is installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG002 - the protocol's
        """Refuse pandas at once; leave all else to others."""
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not for the server", name=fullname)


def forgo_pandas() -> None:
    """Let pandas be as if it were not installed, before DuckDB is asked anything.

    DuckDB imports it with the first parameter of a statement, 0.3 s and 30 MB that nothing here uses; and where it is
    not installed, looks for it in every folder of the path with every parameter.
    """
    sys.meta_path.insert(0, _NoPandas())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit code: 0 after SIGTERM, 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m icecore_api.serve", description="icecore's store")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument("--log", default="", help="the log: a folder or kafka://…; by default DATA/log")
    parser.add_argument("--blobs", default="", help="the bytes of artifacts: s3://BUCKET/PREFIX; by default DATA/blobs")
    parser.add_argument("--chunks", action="store_true", help="keep large blobs of DATA/blobs in chunks")
    parser.add_argument("--url", default="", help="the address people reach the server by")
    parser.add_argument("--host", default="", help="listen on this address instead of the socket in DATA/run")
    parser.add_argument("--port", type=int, default=0, help="with --host: the port; 0 picks a free one")
    parser.add_argument("--alone", action="store_true", help="hold the folder, and make the owner of a new log")
    given = parser.parse_args(arguments)
    if not given.alone:
        end_with_parent()
    after = float(os.environ.get("ICECORE_CRASHED_AFTER", CRASHED_AFTER_S))
    try:
        journal.begin("store")
        if why := tracing.begin("store"):
            say("no traces", "warning", why=why)
        listener = listen(given.host, given.port) if given.host else None
        log = _hold(given.data, given.log, given.url, listener) if given.alone else given.log
        settings = Settings(given.data, log, given.url, given.blobs, listener, after, given.alone, given.chunks)
        collect_seldom()
        forgo_pandas()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(settings))
    except IcecoreError as error:
        say("cannot start", "error", **error.body()["error"])
        return 2
    except Exception as error:  # noqa: BLE001 - a bug: the supervisor starts us again, and the words say where it is
        say("failed", "error", error=repr(error), at=journal.places(error))
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
