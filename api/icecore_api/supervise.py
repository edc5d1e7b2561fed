"""`icecore up`: one folder, one port, two processes kept alive.

The supervisor binds the port itself and hands it to the gateway, so that a connection made while the gateway is
being restarted waits instead of being refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import parse_qsl, urlsplit

from icecore.errors import SettingsError, Unavailable
from icecore.events import Event
from icecore.position import LEDGER

BACK_OFF_S: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before the n-th restart in a row; a child that lived for `STEADY_S` starts again from the first."""
AFTER_READY: Final = 2
"""The longest back-off (as a place in `BACK_OFF_S`) of a child that was ready before it died: it is back within 2 s."""
STEADY_S: Final = 10.0
READY_WITHIN_S: Final = 60.0
STOP_WITHIN_S: Final = 30.0
LOOK_S: Final = 0.5
"""How often brokers of our own are looked at."""
LOGIN_LINK_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: the data folder, the address, and the name people reach it by."""

    data: Path
    host: str
    port: int
    public_hosts: tuple[str, ...] = ()
    """Names and addresses, besides loopback's, that requests may be made to."""
    log: str = ""
    """The log, where it is not in the data folder: kafka://…"""
    with_kafka: bool = False
    """Start a Kafka broker of our own, in the data folder."""
    blobs: str = ""
    """A bucket for the bytes of artifacts, where they are not in the data folder: s3://…"""
    chunks: bool = False
    """Keep large blobs in the data folder in chunks."""

    @property
    def log_address(self) -> str | Path:
        """The log to open."""
        return self.log or self.data / "log"

    @property
    def url(self) -> str:
        """The address to give to clients."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::", "localhost"} else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def log_of(data: Path) -> str | Path:
    """The log of a data folder: the one it was served with, or the one in it."""
    try:
        return (data / "LOG").read_text("utf-8").strip() or data / "log"
    except OSError:
        return data / "log"


def choose_log(data: Path, where: str) -> str:
    """The address of a log that is not in the data folder: `where`, or without one what was remembered.

    Raises:
        SettingsError: the folder belongs to another log already.
    """
    before = log_of(data)
    embedded = (data / "log" / "LOG_ID").exists()
    if where and (embedded or (isinstance(before, str) and not same_log(before, where))):
        raise SettingsError(
            f"expected the log of {data}, {'its own' if embedded else before}, got {where}",
            hint="choose another --data; `icecore log copy` moves a log",
        )
    return where or (before if isinstance(before, str) else "")


def remember_log(data: Path, where: str) -> None:
    """Keep the address of a log that is not in the data folder, so that whoever works on the folder later finds it.

    Only of a log that is served: an address with a mistake in it must not bind the folder.
    """
    if where:
        (data / "LOG").write_text(where + "\n", "utf-8")


def same_log(one: str, other: str) -> bool:
    """Whether two addresses name the same topics; brokers come and go, and the store's log id is the last word."""
    return _prefix(one) == _prefix(other)


def _prefix(where: str) -> str:
    return dict(parse_qsl(urlsplit(where).query)).get("prefix", "icecore")


@dataclass(slots=True)
class Child:
    """One supervised process and its history."""

    name: str
    command: list[str]
    pass_fds: tuple[int, ...] = ()
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    state: str = "starting"
    last_exit: str = ""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gave_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it keeps dying: at the start of `icecore up` that ends it; later it is tried on and on."""

    def report(self) -> dict[str, Any]:
        """What `status` says of it."""
        pid = self.process.pid if self.process and self.process.returncode is None else None
        return {"pid": pid, "state": self.state, "restarts": self.restarts, "last_exit": self.last_exit}


class Lock:
    """The lock that keeps a second `icecore up` off a data folder. Its content says who holds it."""

    def __init__(self, data: Path) -> None:
        self._path = data / "lock"
        self._file: TextIO = self._path.open("a+", encoding="utf-8")
        self._path.chmod(0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            raise Unavailable(
                f"expected {data} to be free, but {holder} serves it",
                hint="use that one, stop it, or choose another folder with --data",
            ) from None

    def write(self, holder: dict[str, Any]) -> None:
        """Say who holds the folder."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(holder))
        self._file.flush()

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()


def prepare(data: Path) -> None:
    """Make the data folder, readable by its owner only.

    Raises:
        SettingsError: it cannot be made or written.
    """
    try:
        for folder in (data, data / "run", data / "store"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = data / "run" / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"expected a folder that can be written, got {data}: {error.strerror}",
            hint="choose another with --data, or free space",
        ) from error


def bind(host: str, port: int, *, within: float = 3.0) -> socket.socket:
    """A listening socket; waits a moment where an earlier server is just letting go of the port.

    Raises:
        SettingsError: the address is not ours or stays taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + within
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            if time.monotonic() > deadline or port == 0:
                raise SettingsError(
                    f"expected to listen on {host}:{port}, got: {error.strerror}",
                    hint="choose another with --port (0 picks a free one)",
                ) from error
            time.sleep(0.1)
            continue
        listener.listen(2048)
        listener.set_inheritable(True)
        return listener


class Supervisor:
    """Starts the children, waits until they are ready, restarts those that die, and stops them all."""

    def __init__(
        self,
        plan: Plan,
        children: list[Child],
        *,
        say: Callable[[str], None],
        brokers: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self._plan = plan
        self._children = children
        self._say = say
        self._brokers = brokers
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start all children and return when each is ready.

        Raises:
            Unavailable: one is not ready in time; its own words are on stderr.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self._tasks = [asyncio.create_task(self._keep(child)) for child in self._children]
        for child in self._children:
            waits = [asyncio.create_task(event.wait()) for event in (child.ready, child.gave_up, self._stopping)]
            await asyncio.wait(waits, timeout=READY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if not child.ready.is_set() and not self._stopping.is_set():
                await self.stop()
                raise Unavailable(
                    f"expected the {child.name} to be ready within {READY_WITHIN_S:.0f} s, "
                    f"got {child.restarts} starts that ended with {child.last_exit or 'nothing yet'}",
                    hint="its own words are above",
                )

    async def run(self) -> None:
        """Keep the children alive until SIGTERM or SIGINT, then stop them."""
        said = list(self._brokers())
        look_s = LOOK_S if said else None
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), look_s)
            if said != (said := list(self._brokers())):
                self._write_status()
        await self.stop()

    async def _keep(self, child: Child) -> None:
        row = 0
        while not self._stopping.is_set():
            await asyncio.sleep(BACK_OFF_S[min(row, len(BACK_OFF_S) - 1)])
            began = time.monotonic()
            code = await self._live(child)
            if self._stopping.is_set():
                return
            steady = time.monotonic() - began > STEADY_S
            row = 0 if steady else min(row + 1, AFTER_READY) if child.state == "running" else row + 1
            child.restarts += 1
            child.last_exit = f"signal {-code}" if code < 0 else f"exit code {code}"
            child.state = "keeps dying" if row > AFTER_READY else "restarting"
            if row > AFTER_READY:
                child.gave_up.set()
            self._write_status()
            self._say(f"the {child.name} ended with {child.last_exit}; starting it again")

    async def _live(self, child: Child) -> int:
        child.process = process = await asyncio.create_subprocess_exec(
            *child.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=child.pass_fds,
            start_new_session=True,
        )
        child.state = "starting"
        self._write_status()
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b'{"ready"'):
                child.state = "running"
                child.ready.set()
                self._write_status()
        return await process.wait()

    async def stop(self) -> None:
        """Stop the children: SIGTERM, then SIGKILL for those that do not end in time."""
        self._stopping.set()
        alive = [c.process for c in self._children if c.process and c.process.returncode is None]
        for process in alive:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await asyncio.gather(*(process.wait() for process in alive))
        except TimeoutError:
            for process in alive:
                if process.returncode is None:
                    process.kill()
        for task in self._tasks:
            task.cancel()
        (self._plan.data / "run" / "status.json").unlink(missing_ok=True)

    def _write_status(self) -> None:
        path = self._plan.data / "run" / "status.json"
        report = {
            "supervisor": os.getpid(),
            "url": self._plan.url,
            "brokers": list(self._brokers()),
            "children": {c.name: c.report() for c in self._children},
        }
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(report), encoding="utf-8")
            part.replace(path)
        except OSError as error:  # a full disk must not take the supervisor down
            self._say(f"could not write {path}: {error.strerror}")


def child_processes(plan: Plan, listener: socket.socket) -> list[Child]:
    """The gateway and the store of one machine."""
    python = [sys.executable, "-m"]
    data = ["--data", str(plan.data), *(("--log", plan.log) if plan.log else ())]
    blobs = [*(("--blobs", plan.blobs) if plan.blobs else ()), *(("--chunks",) if plan.chunks else ())]
    fd = listener.fileno()
    public = [word for name in plan.public_hosts for word in ("--public-host", name)]
    return [
        Child("store", [*python, "icecore_api.serve", *data, "--url", plan.url, *blobs]),
        Child(
            "gateway", [*python, "icecore_ingest.gateway", *data, "--host", plan.host, "--fd", str(fd), *public], (fd,)
        ),
    ]


@dataclass(frozen=True, slots=True)
class FirstWords:
    """What a person is told when the server is ready; `api_key` only when the log was just made."""

    url: str
    login_url: str
    api_key: str | None
    made_key: str | None = None
    """A key that was made just now, and which the server's processes may not have read of yet."""


async def introduce(where: str | Path, url: str) -> FirstWords:
    """Make the owner on a new log, offer a one-time login link, and see that the local client has a key.

    A key is only ever stored as its hash. So where the local client has none for this address (another port, another
    user's machine folder), it gets a new one, which the ledger shows like any other.
    """
    from icecore.settings import load_credentials, save_credentials
    from icecore_ingest.identities import OWNER, found_owner, system_records
    from icecore_ingest.identity import new_key, new_login_offer
    from icecore_ingest.logs.opening import open_log

    log = await open_log(where)
    try:
        first_key = await found_owner(log)
        token, offer = new_login_offer(OWNER, LOGIN_LINK_MS)
        events: list[Event] = [offer]
        local_key = first_key
        if first_key is None and not load_credentials(url).get("api_key"):
            local_key, created = new_key(OWNER, f"local client at {url}")
            events.append(created)
        await log.append(LEDGER, system_records(events))
    finally:
        await log.close()
    if local_key is not None:
        save_credentials(url, local_key, OWNER)
    return FirstWords(url, f"{url}/login#token={token}", first_key, local_key)


async def taken(url: str, key: str, within: float = READY_WITHIN_S) -> None:
    """Wait until gateway and store know a new key; each follows the ledger by itself. At most `within` seconds."""
    deadline = time.monotonic() + within
    for method, path in (("POST", "events"), ("GET", "viewer")):  # no events: the gateway refuses only their lack
        while await asyncio.to_thread(_status, method, f"{url}/api/v1/{path}", key) not in {200, 400}:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.02)


def _status(method: str, url: str, key: str) -> int:
    """The status of an answer; 0 where there is none."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request(method, parts.path, headers={"Authorization": f"Bearer {key}", "Content-Length": "0"})
        return connection.getresponse().status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


async def up(plan: Plan, *, ready: Callable[[FirstWords], None], say: Callable[[str], None]) -> None:
    """Serve a folder until SIGTERM or SIGINT.

    Args:
        plan: the folder, made if absent, and the address; port 0 picks a free one.
        ready: called once, when both processes answer.
        say: called with a sentence whenever something a person may want to know happens.

    Raises:
        IcecoreError: the folder is taken or cannot be written, the port is taken, a child does not start.
    """
    prepare(plan.data)
    lock = Lock(plan.data)
    listener = bind(plan.host, plan.port)
    plan = replace(plan, port=listener.getsockname()[1])
    lock.write({"pid": os.getpid(), "url": plan.url})
    async with _log_served(plan, say) as (log, brokers):
        plan = replace(plan, log=log)
        supervisor = Supervisor(plan, child_processes(plan, listener), say=say, brokers=brokers)
        starting = asyncio.create_task(supervisor.start())
        await asyncio.sleep(0)  # the children import their libraries while the owner is made
        try:
            if plan.log:  # another's log must not get as much as one event before the store has refused it
                await starting
            words = await introduce(plan.log_address, plan.url)
            await starting
        except BaseException:
            starting.cancel()
            await supervisor.stop()
            raise
        remember_log(plan.data, plan.log)
        running = asyncio.create_task(supervisor.run())
        if words.made_key:
            knowing = asyncio.create_task(taken(plan.url, words.made_key))
            await asyncio.wait({running, knowing}, return_when=asyncio.FIRST_COMPLETED)
            knowing.cancel()
        if not running.done():
            ready(words)
        await running
    listener.close()


@contextlib.asynccontextmanager
async def _log_served(plan: Plan, say: Callable[[str], None]) -> AsyncIterator[tuple[str, Callable[[], Sequence[int]]]]:
    """The address of the log, with a broker of our own where that is wanted; and the pids of such brokers."""
    own = plan.data / "kafka" / "cluster.json"
    if not plan.with_kafka and (plan.log or not own.exists()):
        yield choose_log(plan.data, plan.log), tuple
        return
    if not own.exists():  # before a broker is made: it would be the folder's from then on
        _need_no_log(plan.data)
    from icecore_api.own_kafka import own_kafka

    say("starting Kafka, which takes some seconds")
    async with own_kafka(plan.data, say) as (where, pids):
        yield choose_log(plan.data, where), pids


def _need_no_log(data: Path) -> None:
    """Refuse a broker of its own to a folder that has a log already.

    Raises:
        SettingsError: it has one.
    """
    before = log_of(data)
    if isinstance(before, str) or (before / "LOG_ID").exists():
        raise SettingsError(
            f"expected a data folder without a log, got {data}, whose log is {before}",
            hint="choose another --data; `icecore log copy` moves a log",
        )
