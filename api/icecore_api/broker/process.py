"""One broker: a folder, its ports, and the process that runs in it, to be started, stopped, killed or paused."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from icecore.errors import Unavailable
from icecore_api.broker import classes, keeper

STOP_S: Final = 15.0
FORMAT_S: Final = 120.0
_HERE: Final = Path(__file__).parent
# 315-350 MB resident. A fixed, small heap: the records lie in the page cache, not in the heap.
_JVM: Final = (
    "-Xms128m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # 2 s less CPU at each start, and no slower after it: the broker mostly moves bytes
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}",
)


@dataclass
class Broker:
    """A broker of a cluster; `Cluster` makes it.

    `advertised` may name, for a listener, another port than the broker's own: that of a proxy in front of it, to cut
    or slow the line. It counts from the next start on. `jvm` are the JVM's flags.
    """

    number: int
    folder: Path
    ports: Mapping[str, int]
    settings: Mapping[str, str] = field(repr=False)
    java: str = field(repr=False)
    classpath: str = field(repr=False)
    advertised: dict[str, int] = field(default_factory=dict)
    jvm: tuple[str, ...] = _JVM
    paused: bool = False
    _keeper: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _pid: int = 0
    _lock: int = -1

    @property
    def port(self) -> int:
        """The port of its first listener."""
        return next(iter(self.ports.values()))

    @property
    def pid(self) -> int:
        """The process id of its JVM.

        Raises:
            Unavailable: it does not run.
        """
        if not self.running:
            raise Unavailable(f"expected broker {self.number} to run, it does not", retry_after=1)
        return self._pid

    @property
    def running(self) -> bool:
        """Whether its process exists (a paused one does)."""
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def log_file(self) -> Path:
        """What Kafka says about itself."""
        return self.folder / "broker.log"

    def last_words(self) -> str:
        """The end of its log and of what its JVM wrote beside it, for people who look for a cause."""
        parts = []
        for path in (self.log_file, self.folder / "jvm.txt"):
            with contextlib.suppress(OSError):
                parts.append(path.read_text(encoding="utf-8", errors="replace")[-2000:].strip())
        return "\n".join(filter(None, parts))

    def format(self, cluster_id: str, scram: Sequence[str] = ()) -> None:
        """Make its folder a broker's of the cluster `cluster_id`; done once, and harmless when repeated."""
        done = self.folder / "formatted"
        if done.exists():
            return
        self._write_properties()
        words = ["format", f"--cluster-id={cluster_id}", "-c", str(self._properties), "--ignore-formatted"]
        for secret in scram:
            words += ["--add-scram", secret]
        ran = subprocess.run(
            self._command("kafka.tools.StorageTool", *words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORMAT_S,
            check=False,
        )
        if ran.returncode:
            said = (ran.stdout + ran.stderr)[-2000:]
            raise Unavailable(f"expected a folder for broker {self.number}, its format failed: {said}", retry_after=1)
        done.touch()

    def start(self, lock: int | None = None) -> None:
        """Start it; `Cluster.wait_ready` says when it serves. `lock` is a file to hold: that of the last start if None.

        The folder thus stays locked until the JVM is gone, not only whoever started it.
        """
        self._lock = self._lock if lock is None else lock
        if self.running:
            return
        self.wait(STOP_S)  # one that ended by itself still has its pipe
        self._write_properties()
        with (self.folder / "jvm.txt").open("wb") as said:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(keeper.__file__), *self._command("kafka.Kafka", self._properties)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C in a terminal is for icecore, which then stops its broker
                pass_fds=(self._lock,),
            )
        stdout = self._keeper.stdout
        assert stdout is not None
        with stdout:
            self._pid = int(stdout.readline() or 0)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask it to end, as an operator would; after `timeout_s` it is killed."""
        self.ask_to_stop()
        self.wait(timeout_s)

    def ask_to_stop(self) -> None:
        """Ask it to end, without waiting for it."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end; after `timeout_s` it is killed."""
        if self._keeper is None:
            return
        try:
            self._keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._keeper.wait()
        self.paused = False
        stdin = self._keeper.stdin
        if stdin is not None:
            stdin.close()
        self._keeper = None

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        self._signal(signal.SIGKILL)
        self.wait(STOP_S)

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): its sockets stay open, nothing answers."""
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """Let a paused broker go on."""
        self._signal(signal.SIGCONT)
        self.paused = False

    def listens(self) -> bool:
        """Whether all its ports take connections."""
        for port in self.ports.values():
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return False
        return True

    def _signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _write_properties(self) -> None:
        """Write Kafka's settings, readable by this user only: they may hold passwords."""
        advertised = {**self.ports, **self.advertised}
        own = {
            "node.id": str(self.number),
            "log.dirs": str(self.folder / "data"),
            "listeners": _addresses(self.ports),
            "advertised.listeners": _addresses({name: advertised[name] for name in self.ports}),
        }
        lines = "".join(f"{key}={value}\n".replace("\\", "\\\\") for key, value in {**self.settings, **own}.items())
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._properties.touch(mode=0o600)
        self._properties.write_text(lines, encoding="utf-8")

    def _command(self, main: str, *words: str | Path) -> list[str]:
        log = f"-Dicecore.log={self.log_file}"
        shared = classes.using(self.java, self.classpath, self.jvm)
        return [self.java, *self.jvm, *shared, log, "-cp", self.classpath, main, *map(str, words)]


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
