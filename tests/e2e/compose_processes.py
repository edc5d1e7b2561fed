"""compose.yaml without containers: each service of icecore's as a process, with the command and environment it says.

Names of services become ports on loopback, volumes and memory file systems become folders. The brokers are whoever
the caller has started. The proxy is HAProxy with the file of deploy/ where HAProxy is installed; else a stand-in that
reads the same list of gateways from it and passes connections on in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import yaml

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final = ROOT / "compose.yaml"
HAPROXY: Final = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
READY_S: Final = 90.0
_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_LIFETIME: Final = re.compile(r"(\d+)s")


def read_compose(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """compose.yaml with its variables filled in, as Compose fills them: from here, else their default."""
    given = variables or {}
    text = _VARIABLE.sub(lambda found: given.get(found[1]) or found[2] or "", COMPOSE.read_text("utf-8"))
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def env_file(path: Path) -> dict[str, str]:
    """The variables of a file for `docker compose --env-file`."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def last_stage() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile's last stage: (name, rest), lines that go on joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    start = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in lines[start:])]


def image_environment() -> dict[str, str]:
    """What the image sets, less its paths."""
    words = " ".join(rest for name, rest in last_stage() if name == "ENV").split()
    return {name: value for name, value in (word.split("=", 1) for word in words) if name not in {"PATH", "HOME"}}


class Processes:
    """The services of icecore's own and the proxy. Ends everything it started when the block is left.

    Args:
        folder: for their data, secrets and words.
        kafka: each broker's HOST:PORT in compose.yaml, and the one it really has.
        variables: what Compose would be given by `--env-file`.
        secrets: the content of each secret's file.
    """

    def __init__(
        self,
        folder: Path,
        kafka: Mapping[str, str],
        variables: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.services: dict[str, dict[str, Any]] = read_compose(variables)["services"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._secrets = dict(secrets or {})
        self._stand_in: RoundRobin | None = None
        self._addresses = dict(kafka)
        for name in self.own:
            port = self._inner_port(name)
            if port:
                self._addresses[f"{name}:{port}"] = f"127.0.0.1:{_free_port()}"

    @property
    def own(self) -> list[str]:
        """The services that are processes here."""
        return [name for name, service in self.services.items() if "build" in service or name == "proxy"]

    def url(self, name: str) -> str:
        """Where a service answers."""
        return f"http://{self._addresses[f'{name}:{self._inner_port(name)}']}"

    def words(self, name: str) -> str:
        """What a service has written."""
        return (self.folder / f"{name}.txt").read_text("utf-8", "replace")[-4000:]

    def up(self) -> None:
        """Start everything in the order that `depends_on` asks for, each condition met."""
        done: set[str] = set(self.services) - set(self.own)
        while left := [name for name in self.own if name not in done]:
            ready = [name for name in left if done.issuperset(self._needs(name))]
            assert ready, f"expected an order among {left}"
            for name in ready:
                self.start(name)
            for name in ready:
                self.wait(name)
                done.add(name)

    def start(self, name: str) -> None:
        """Start one service's process."""
        service = self.services[name]
        if name == "proxy" and not HAPROXY:
            self._stand_in = RoundRobin(self._proxy_settings())
            return
        with (self.folder / f"{name}.txt").open("ab") as said:
            self.running[name] = subprocess.Popen(
                self._command(name, service),
                env=self._environment(name, service),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def wait(self, name: str, within: float = READY_S) -> None:
        """Return when a service's health check passes, or, where it is there to end, when it has ended well."""
        check = self.services[name]["healthcheck"]
        if check.get("disable"):
            assert self.running[name].wait(within) == 0, self.words(name)
            return
        until = time.monotonic() + within
        while not self.healthy(name):
            process = self.running.get(name)
            assert process is None or process.poll() is None, f"{name} ended:\n{self.words(name)}"
            assert time.monotonic() < until, f"{name} is not healthy:\n{self.words(name)}"
            time.sleep(0.1)

    def healthy(self, name: str) -> bool:
        """Whether a service's own health check passes: Python ones as they are, those of wget by their address."""
        _, *words = [self._mapped(word, name) for word in self.services[name]["healthcheck"]["test"]]
        if words[0] == "python":
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, timeout=30, check=False)
            return done.returncode == 0
        try:
            with urllib.request.urlopen(words[-1], timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return self._stand_in is not None and name == "proxy"

    def kill(self, name: str) -> None:
        """End a process as kill -9 does."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def down(self) -> dict[str, int]:
        """Stop all, the last started first, with the time they ask for; answers each exit status."""
        codes: dict[str, int] = {}
        if self._stand_in:
            self._stand_in.close()
            self._stand_in = None
        for name, process in reversed(list(self.running.items())):
            process.send_signal(signal.SIGUSR1 if name == "proxy" else signal.SIGTERM)
            grace = _LIFETIME.fullmatch(self.services[name].get("stop_grace_period", "10s"))
            assert grace
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(float(grace[1]))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            codes[name] = process.wait(10)
        self.running.clear()
        return codes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # ------------------------------------------------------------------------------------------- from file to process

    def _needs(self, name: str) -> list[str]:
        needs: dict[str, dict[str, Any]] = self.services[name].get("depends_on", {})
        return [other for other, how in needs.items() if how.get("required", True) or other in self.own]

    def _inner_port(self, name: str) -> str:
        if name == "proxy":
            return str(self.services[name]["ports"][0].rsplit(":", 1)[1])
        return str(self.services[name].get("environment", {}).get("ICECORE_PORT", ""))

    def _mapped(self, text: str, name: str = "") -> str:
        """With loopback addresses instead of services' names, and this service's own port instead of the inner one."""
        for inner, outer in self._addresses.items():
            text = re.sub(rf"(?<![\w.-]){re.escape(inner)}(?!\d)", outer, text)
        if name and (port := self._inner_port(name)):
            text = text.replace(f"127.0.0.1:{port}", self._addresses[f"{name}:{port}"])
        return text

    def _command(self, name: str, service: dict[str, Any]) -> list[str]:
        if name == "proxy":
            assert HAPROXY
            return [HAPROXY, "-db", "-f", str(self._proxy_settings())]
        assert dict(last_stage())["ENTRYPOINT"] == '["icecore"]'
        return [sys.executable, "-m", "icecore", *service["command"]]

    def _environment(self, name: str, service: dict[str, Any]) -> dict[str, str]:
        """The image's and the service's; nothing of ours but where programs and temporary files are."""
        given = {key: self._mapped(value) for key, value in service.get("environment", {}).items()}
        found = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **image_environment(), **given}
        if self._inner_port(name):
            found |= {"ICECORE_HOST": "127.0.0.1", "ICECORE_PORT": self.url(name).rsplit(":", 1)[1]}
        if data := self._data(name, service, found["ICECORE_DATA"]):
            found["ICECORE_DATA"] = str(data)
        for key, value in found.items():
            if value.startswith("/run/secrets/"):
                secret = value.rsplit("/", 1)[1]
                assert secret in service["secrets"], f"{name} has no secret {secret}"
                file = self.folder / secret
                file.write_text(self._secrets[secret] + "\n", "utf-8")
                found[key] = str(file)
        return found

    def _data(self, name: str, service: dict[str, Any], at: str) -> Path | None:
        """The folder of the volume at that path, or an empty one where it is in memory."""
        for volume in service.get("volumes", []):
            if volume.split(":")[1] == at:
                return self.folder / f"volume-{volume.split(':')[0]}"
        if any(one.split(":")[0] == at for one in service.get("tmpfs", [])):
            folder = self.folder / f"memory-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            return folder
        return None

    def _proxy_settings(self) -> Path:
        """deploy/haproxy.cfg with loopback addresses, as the file the service mounts."""
        source = self.services["proxy"]["volumes"][0].split(":")[0]
        text = self._mapped((ROOT / source).read_text("utf-8"))
        port = self._inner_port("proxy")
        outer = self._addresses[f"proxy:{port}"]
        assert f"bind :{port}\n" in text
        path = self.folder / "haproxy.cfg"
        path.write_text(text.replace(f"bind :{port}\n", f"bind {outer}\n"), "utf-8")
        return path


class RoundRobin:
    """Passes connections on to the servers of an HAProxy file in turn, past those that do not answer."""

    def __init__(self, settings: Path) -> None:
        text = settings.read_text("utf-8")
        self._servers = re.findall(r"^\s*server \S+ (\S+):(\d+)", text, re.MULTILINE)
        ((self._host, self._port),) = re.findall(r"^\s*bind (\S+):(\d+)", text, re.MULTILINE)
        self._turn = 0
        self._connections: set[asyncio.Task[Any]] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(10), f"nobody listens on {self._host}:{self._port}"

    def close(self) -> None:
        """Let go of the port and of every connection."""
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._serve, self._host, int(self._port)):
            self._started.set()
            await self._ending.wait()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        writers = [writer]
        with contextlib.suppress(asyncio.CancelledError):
            if theirs := await self._next():
                writers.append(theirs[1])
                await asyncio.gather(_pump(reader, theirs[1]), _pump(theirs[0], writer), return_exceptions=True)
        for one in writers:
            one.close()
            with contextlib.suppress(OSError):
                await one.wait_closed()
        self._connections.discard(task)

    async def _next(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to the next server that takes one."""
        for _ in self._servers:
            self._turn += 1
            host, port = self._servers[self._turn % len(self._servers)]
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, int(port))
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
