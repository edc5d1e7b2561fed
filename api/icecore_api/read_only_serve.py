"""`icecore up --read-only`: one process that answers questions about a folder and changes nothing in it.

python -m icecore_api.read_only_serve --data DIR --fd N --url URL [--public-host NAME …]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from icecore import journal
from icecore.codec import encode_event
from icecore.errors import IcecoreError, SettingsError
from icecore.events import Event, KeyCreated, LoginOffered, UserCreated, now_ms
from icecore.http import forget_position
from icecore.journal import say
from icecore.lifeline import end_with_parent
from icecore.limits import most
from icecore.log import Record
from icecore.settings import load_credentials, save_credentials
from icecore_api.answers import error_answer
from icecore_api.app import create_app
from icecore_api.blobs.opening import open_blobs
from icecore_api.context import CRASHED_AFTER_S, Context
from icecore_api.read_only import ReadOnlyLog, ReadOnlyOperations, ReadOnlyStore, as_of, open_store, refusal
from icecore_api.replaying import read_note
from icecore_api.serve import forgo_pandas, processes
from icecore_api.supervise import LOGIN_LINK_MS, Child, FirstWords, Lock, Plan, Supervisor, bind, log_of, prepare
from icecore_ingest.gateway import EVENTS_PATH
from icecore_ingest.identities import OWNER, Identities, system_records
from icecore_ingest.identity import new_key, new_login_offer, sha256_hex
from icecore_ingest.logs.opening import open_log
from icecore_ingest.security import Security, SecurityPolicy
from icecore_ingest.serving import DRAIN_S, Server, quiet_uvicorn

DOOR: Final = "door.json"
"""In DATA/run: the events by which people come in, with hashes of secrets only."""
_DOOR_EVENTS: Final = (UserCreated, KeyCreated, LoginOffered)


def refuse_copy(data: Path) -> None:
    """Keep a copy as of a moment from being served as if it were the log itself: it would go its own way.

    Raises:
        SettingsError: the folder is such a copy.
    """
    note = read_note(data)
    if note is not None:
        raise SettingsError(
            f"expected a data folder of its own, got a copy as of {note.moment} in {data}",
            hint="icecore up --read-only serves it; icecore backup and restore make a folder that goes on",
        )


# ---------------------------------------------------------------------------------------------- the supervisor


async def up_read_only(plan: Plan, *, ready: Callable[[FirstWords], None], say: Callable[[str], None]) -> None:
    """Serve a folder read-only until SIGTERM or SIGINT; as `supervise.up`, with one process.

    Raises:
        IcecoreError: the folder has no log, is served already, the port is taken, or the process does not start.
    """
    if not (plan.data / "log").is_dir() and isinstance(log_of(plan.data), Path):
        raise SettingsError(f"expected a data folder with a log in it, got {plan.data}", hint="name it with --data")
    prepare(plan.data)
    lock = Lock(plan.data)
    listener = bind(plan.host, plan.port)
    plan = replace(plan, port=listener.getsockname()[1])
    lock.write({"pid": os.getpid(), "url": plan.url})
    words = await make_door(plan.data, plan.url)
    supervisor = Supervisor(plan, [_child(plan, listener)], say=say)
    await supervisor.start()
    ready(words)
    await supervisor.run()
    listener.close()
    lock.close()


def _child(plan: Plan, listener: socket.socket) -> Child:
    public = [word for name in plan.public_hosts for word in ("--public-host", name)]
    command = [sys.executable, "-m", "icecore_api.read_only_serve", "--data", str(plan.data), "--url", plan.url]
    return Child("store", [*command, "--fd", str(listener.fileno()), *public], (listener.fileno(),))


async def make_door(data: Path, url: str) -> FirstWords:
    """Offer a login link, and a key where the local client has none that is good at the moment of the copy.

    Nothing of it goes into the log. The events wait in DATA/run, with hashes of secrets only, for the process that
    serves.
    """
    log = await open_log(log_of(data), readonly=True)
    try:
        state = (await Identities.open(log)).state
    finally:
        await log.close()
    user = OWNER if OWNER in state.users or not state.users else min(state.users)
    events: list[Event] = [] if user in state.users else [UserCreated(user=user)]
    known = state.keys.get(sha256_hex(load_credentials(url).get("api_key", "")))
    if known is None or known.revoked:
        key, created = new_key(user, f"local client of a copy at {url}")
        events.append(created)
        save_credentials(url, key, user)
    token, offer = new_login_offer(user, LOGIN_LINK_MS)
    events.append(offer)
    forget_position(url)
    _save_door(data / "run" / DOOR, events)
    return FirstWords(url=url, login_url=f"{url}/login#token={token}", api_key=None)


def _save_door(path: Path, events: Sequence[Event]) -> None:
    told = [{"type": event.TYPE, "payload": json.loads(encode_event(event))} for event in events]
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        file.write(orjson.dumps(told))


def _load_door(path: Path) -> list[Record]:
    kinds: dict[str, type[Event]] = {kind.TYPE: kind for kind in _DOOR_EVENTS}
    try:
        told = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return []
    return system_records([msgspec.convert(one["payload"], kinds[one["type"]]) for one in told])


# ------------------------------------------------------------------------------------------------- the process


class RefuseEvents:
    """ASGI: who sends events is told that nothing is taken here, once they have shown who they are."""

    def __init__(self, app: ASGIApp, identities: Identities, moment: str) -> None:
        self._app = app
        self._identities = identities
        self._moment = moment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != EVENTS_PATH:
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            self._identities.authenticate(headers.get(b"authorization"), headers.get(b"cookie"))
            error: IcecoreError = refusal(self._moment)
        except IcecoreError as unknown:
            error = unknown
        await _read_away(receive)
        await error_answer(error)(scope, receive, send)


async def _read_away(receive: Receive) -> None:
    """Take a request's body and forget it: a client that is cut off while it sends never sees the answer."""
    left = most("request_bytes")
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


async def serve(data: Path, listener: socket.socket, public_hosts: frozenset[str], crashed_after_s: float) -> int:
    """Serve until SIGTERM; answers the exit code.

    Raises:
        LogError, StoreError: the log or the store cannot be opened, or do not belong together.
    """
    where = log_of(data)
    inner = await open_log(where, readonly=True)
    store = await asyncio.to_thread(open_store, data, inner.log_id)
    await store.check_log(inner)
    shown = await asyncio.to_thread(as_of, data, store)
    log = ReadOnlyLog(inner, await inner.end(), shown["time"], _load_door(data / "run" / DOOR))
    identities = await Identities.open(log)
    follower = asyncio.create_task(identities.follow())
    seen = ReadOnlyStore(store, log)
    blobs = await asyncio.to_thread(open_blobs, data, refuse=lambda: refusal(shown["time"]))
    context = Context(
        log=log,
        current_store=lambda: seen,
        identities=identities,
        operations=ReadOnlyOperations(data, store, log, shown["time"]),
        producer=shown["log_id"],
        data=data,
        blobs=blobs,
        processes=lambda: {**processes(data), "log_at": str(where), "read_only": shown},
        clock_ms=now_ms if "asked" not in shown else lambda: int(shown["ts_ms"]),  # of a copy it stands still
        crashed_after_s=crashed_after_s,
    )
    app: Any = RefuseEvents(create_app(context), identities, shown["time"])
    try:
        await Server(_config(Security(app, SecurityPolicy(public_hosts)))).serve(sockets=[listener])
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        blobs.close()
        store.close()
        await log.close()
    return 0


def _config(app: Any) -> uvicorn.Config:
    quiet_uvicorn()
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Answers the exit code: 0 after SIGTERM, 2 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m icecore_api.read_only_serve", description="icecore, read-only")
    parser.add_argument("--data", type=Path, required=True, help="the data folder")
    parser.add_argument(
        "--fd", type=int, required=True, help="a listening socket; the process ends when its stdin does"
    )
    parser.add_argument("--url", default="", help="the address people reach the server by")
    parser.add_argument("--public-host", action="append", default=[], help="a name this server may be called by")
    given = parser.parse_args(arguments)
    end_with_parent()
    listener = socket.socket(fileno=given.fd)
    listener.setblocking(False)  # noqa: FBT003 - the library's signature
    hosts = frozenset(name.lower() for name in given.public_host)
    after = float(os.environ.get("ICECORE_CRASHED_AFTER", CRASHED_AFTER_S))
    try:
        journal.begin("store")
        forgo_pandas()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(given.data, listener, hosts, after))
    except IcecoreError as error:
        say("cannot start", "error", **error.body()["error"])
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
