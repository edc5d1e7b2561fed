"""A cluster of real processes to be hurt: three brokers, gateways, a store, and every line between them.

    gateway-1 ─┐                 ┌─ broker-1
    gateway-2 ─┼── log (Kafka) ──┼─ broker-2      all reach each other through `Lines`
    store ─────┘                 └─ broker-3

`Topology.heal` brings everything back, whatever was done to it. The parts are started as people start them:
`icecore topics create`, `icecore serve store`, `icecore serve gateway`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from disks import Disk
from icecore.log import StoredRecord
from icecore_api.broker import Broker, Cluster
from icecore_ingest.logs.opening import open_log
from lines import Lines
from servers import clean_env, wait_until
from wrong_clock import WrongClock

HANGS_S = 120.0
"""Whatever has not come by then never will."""
CHECKS_S = 1200.0
"""A command may read all that a long soak has written."""
PARTITIONS = 4
BROKER_SESSION_S = 4.0
"""After so long without a heartbeat a broker leads nothing."""
_PORTS = range(12_000, 20_000)  # below those given to outgoing connections: a part comes back on its own port


@dataclass
class Part:
    """One process of icecore's, `icecore serve …`, started again on the same port."""

    name: str
    words: list[str]
    env: Mapping[str, str]
    folder: Path
    clock: WrongClock
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    starts: int = 0
    paused: bool = False
    _ready: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def pid(self) -> int:
        """Its process id; 0 while it does not run."""
        return self.process.pid if self.process is not None and self.running else 0

    @property
    def running(self) -> bool:
        """Whether its process exists; a paused one does."""
        return self.process is not None and self.process.poll() is None

    @property
    def said(self) -> Path:
        """What it wrote to stderr, over all its starts."""
        return self.folder / f"{self.name}.stderr"

    def start(self) -> None:
        """Start it if it does not run, without waiting until it is ready."""
        if self.running:
            return
        self._forget()
        self.starts += 1
        self._ready = threading.Event()
        with self.said.open("a", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "icecore", *self.words, "--port", str(self.port)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
                env={**self.env, **self.clock.env},
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, by a pointer that is there
            )
        threading.Thread(target=self._listen, args=(self.process, self._ready), daemon=True).start()

    def wait_ready(self) -> None:
        """Wait until it serves; where it ended by itself, start it again, as systemd or Kubernetes would."""

        def ready() -> bool:
            if not self.running:
                self.start()
            return self._ready.wait(0.2)

        words = f"the {self.name} to be ready; its last words: "
        try:
            wait_until(ready, HANGS_S, self.name)
        except AssertionError as error:
            raise AssertionError(words + self.said.read_text("utf-8")[-2000:]) from error

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.running:
            assert self.process is not None
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once (-9)."""
        self.signal(signal.SIGKILL)
        self._forget()

    def pause(self) -> None:
        """Stop it in its tracks: its sockets stay open, nothing answers."""
        self.signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)
        self.paused = False

    def _forget(self) -> None:
        if self.process is not None:
            self.process.wait(HANGS_S)
            self.process = None
            self.paused = False

    @staticmethod
    def _listen(process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith('{"ready"'):
                    ready.set()


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: not between fork and exec


def _end_with_parent() -> None:
    """Have Linux kill this process when the tests' own process is gone, however that ended."""
    if _prctl is not None:
        _prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


class Topology:
    """Three brokers, gateways and a store. `start` it, hurt it, `heal` it, `close` it.

    Args:
        folder: holds everything; its path is printed, and it stays.
        gateways: how many.
    """

    def __init__(self, folder: Path, gateways: int = 2) -> None:
        self.folder = folder
        self.disks = {name: Disk(folder / name) for name in ("store", "broker-3")}
        self.lines = Lines(self.pids)
        self._broker_lines = [
            {door: self.lines.to(f"broker-{number}") for door in ("CLIENT", "INTERNAL", "CONTROLLER")}
            for number in (1, 2, 3)
        ]
        self.brokers = self._make_brokers()
        self.log = self._log_address()
        self._config_dir = folder / "config"
        self._config_dir.mkdir()
        self.api_key = ""
        self.store = self._part("store", "--data", str(folder / "store" / "data"))
        behind = self.lines.to("store")
        behind.upstream = self.store.port
        self.gateways, self.urls = [], []
        for number in range(1, gateways + 1):
            name = f"gateway-{number}"
            part = self._part(name, "--data", str(folder / name), "--store", f"http://127.0.0.1:{behind.port}")
            before = self.lines.to(name)
            before.upstream = part.port
            self.gateways.append(part)
            self.urls.append(f"http://127.0.0.1:{before.port}")

    def _part(self, name: str, *words: str) -> Part:
        kind = name.partition("-")[0]
        return Part(
            name,
            ["serve", kind, "--log", self.log, *words],
            clean_env(self._config_dir),
            self.folder,
            WrongClock(self.folder / f"{name}.clock"),
            free_port(),
        )

    def _make_brokers(self) -> Cluster:
        voters = ",".join(f"{n}@127.0.0.1:{own['CONTROLLER'].port}" for n, own in enumerate(self._broker_lines, 1))
        cluster = Cluster(
            self.folder / "kafka",
            nodes=3,
            settings={
                "controller.quorum.voters": voters,
                "broker.session.timeout.ms": str(int(BROKER_SESSION_S * 1000)),
                "broker.heartbeat.interval.ms": "1000",  # also how long a heartbeat may take on a busy machine
                "group.min.session.timeout.ms": "1000",
                "offsets.topic.num.partitions": "1",
            },
        )
        for broker, own in zip(cluster.brokers, self._broker_lines, strict=True):
            for door, line in own.items():
                line.upstream = broker.ports[door]
                if door != "CONTROLLER":
                    broker.advertised[door] = line.port
        cluster.brokers[2].folder = self.folder / "broker-3"
        return cluster

    def _log_address(self) -> str:
        servers = ",".join(f"127.0.0.1:{own['CLIENT'].port}" for own in self._broker_lines)
        return f"kafka://{servers}?partitions={PARTITIONS}&delivery_timeout_s=8&request_timeout_s=3&session_timeout_s=3"

    # --------------------------------------------------------------------------------------------------- as a server

    @property
    def url(self) -> str:
        """The address of the first gateway that runs."""
        return next((url for part, url in zip(self.gateways, self.urls, strict=True) if part.running), self.urls[0])

    @property
    def parts(self) -> list[Part]:
        """The store and the gateways."""
        return [self.store, *self.gateways]

    def pids(self) -> dict[str, int]:
        """The processes that run, by name."""
        found = {f"broker-{b.number}": b.pid for b in self.brokers.brokers if b.running}
        return found | {part.name: part.pid for part in self.parts if part.pid}

    def env(self, **extra: str) -> dict[str, str]:
        """The environment of a client of a gateway."""
        named = {"ICECORE_URL": self.url, "ICECORE_API_KEY": self.api_key, "ICECORE_DIR": str(self.folder / "client")}
        return clean_env(self._config_dir, **named, **extra)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `icecore ARGUMENTS` against a gateway."""
        words = [sys.executable, "-m", "icecore", *arguments]
        done = subprocess.run(
            words, env=self.env(), cwd=self.folder, capture_output=True, text=True, timeout=CHECKS_S, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    @property
    def patient_log(self) -> str:
        """The log's address for the tests themselves, which wait longer for an answer than those who serve."""
        servers = self.log.partition("?")[0]
        return f"{servers}?partitions={PARTITIONS}&delivery_timeout_s=60&request_timeout_s=30&session_timeout_s=3"

    def records(self) -> list[StoredRecord]:
        """Every record of the log, each partition's in order, read past icecore's own processes."""
        return asyncio.run(read_log(self.patient_log))

    # ---------------------------------------------------------------------------------------------------- its life

    def start(self) -> Topology:
        """Start everything, make the topics, and find the owner's key."""
        print(f"topology in {self.folder}")
        self.brokers.start()
        self.cli("topics", "create", "--log", self.log)
        for part in self.parts:
            part.start()
            part.wait_ready()
        self.api_key = (self.folder / "store" / "data" / "owner-key").read_text("ascii").strip()
        return self

    def heal(self) -> None:
        """Bring everything back: space, lines, processes. Returns when all serve."""
        for disk in self.disks.values():
            disk.empty()
        self.lines.heal()
        for part in self.parts:
            part.clock.jump(0)
        for one in [*self.brokers.brokers, *self.parts]:
            one.resume()
        self.start_brokers([broker for broker in self.brokers.brokers if not broker.running])
        for part in self.parts:
            part.start()
        self.brokers.wait_ready(HANGS_S)
        for part in self.parts:
            part.wait_ready()

    def keep(self) -> None:
        """Start again what ended by itself, as systemd or Kubernetes would: a gateway that found no log, say."""
        for part in self.parts:
            if part.process is not None and not part.running:
                part.start()

    @staticmethod
    def start_brokers(brokers: list[Broker]) -> None:
        """Start brokers, side by side, without waiting until they serve."""
        if brokers:
            with ThreadPoolExecutor(len(brokers)) as pool:
                list(pool.map(lambda broker: broker.start(), brokers))

    def close(self, *, keep: bool = False) -> None:
        """End everything at once; with `keep` what was on the small disks stays."""
        for part in self.parts:
            part.kill()
        self.brokers.kill()
        self.lines.close()
        for disk in self.disks.values():
            disk.close(keep=keep)


async def read_log(where: str | Path) -> list[StoredRecord]:
    """Every record of a log."""
    log = await open_log(where, readonly=True)
    found: list[StoredRecord] = []
    try:
        for place, end in (await log.end()).as_dict().items():
            start = 0
            while start < end:
                batch = await log.read(place, start)
                found += batch.records
                start = batch.next_offset
    finally:
        await log.close()
    return found


def free_port() -> int:
    """A port that nobody has."""
    for port in random.sample(_PORTS, 500):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"expected a free port in {_PORTS}")


def facts(topology: Topology) -> str:
    """What a failed test needs to be understood: pids, and where the words of each part are."""
    return json.dumps({"folder": str(topology.folder), "pids": topology.pids()})
