"""A real `icecore up` for tests: its own folder, port and environment, ended by its own process id."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

READY_S = 60.0


def clean_env(config_dir: Path, **extra: str) -> dict[str, str]:
    """This process's environment without any ICECORE_* of the user's, and with a config folder of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ICECORE_", "WANDB_"))}
    return {**env, "ICECORE_CONFIG_DIR": str(config_dir), "PYTHONUTF8": "1", "NO_COLOR": "1", **extra}


@dataclass
class Server:
    """A running `icecore up` and all that a client needs to reach it."""

    data: Path
    config_dir: Path
    port: int = 0
    arguments: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables of the server, besides the usual ones."""
    url: str = ""
    login_url: str = ""
    api_key: str = ""
    process: subprocess.Popen[str] | None = None
    _stderr: IO[str] | None = field(default=None, repr=False)

    @property
    def log_file(self) -> Path:
        """What the server wrote to its stderr."""
        return self.config_dir.parent / "server-stderr.txt"

    def start(self) -> Server:
        """Start it, and return when it says that it is ready."""
        self.config_dir.mkdir(parents=True, exist_ok=True)
        self._stderr = self.log_file.open("a", encoding="utf-8")
        command = [sys.executable, "-m", "icecore", "up", "--data", str(self.data), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--json", *self.arguments],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            stdin=subprocess.DEVNULL,
            text=True,
            env=clean_env(self.config_dir, **self.settings),
            start_new_session=True,
        )
        ready = json.loads(self._first_line())
        self.url, self.login_url = ready["url"], ready["login_url"]
        self.api_key = ready["api_key"] or self.api_key
        self.port = int(self.url.rsplit(":", 1)[1].strip("/"))
        return self

    def _first_line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        stdout = self.process.stdout
        lines: queue.Queue[str] = queue.Queue()

        def drain() -> None:
            for line in stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=drain, daemon=True).start()
        try:
            line = lines.get(timeout=READY_S)
        except queue.Empty:
            line = ""
        if not line.startswith("{"):
            self.stop(kill=True)
            said = self.log_file.read_text(encoding="utf-8")[-4000:]
            raise RuntimeError(f"expected icecore up to say that it is ready, got {line!r}; stderr:\n{said}")
        return line

    def env(self, **extra: str) -> dict[str, str]:
        """The environment of a client of this server."""
        return clean_env(
            self.config_dir,
            ICECORE_URL=self.url,
            ICECORE_API_KEY=self.api_key,
            ICECORE_DIR=str(self.config_dir.parent / "client"),
            **extra,
        )

    def run(self, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a client's process (`python`, or any command) to its end, in the environment of this server."""
        words = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
        folder = self.config_dir.parent
        done = subprocess.run(
            words, env=self.env(**extra), cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `icecore ARGUMENTS` against this server."""
        return self.run("python", "-m", "icecore", *arguments, check=check)

    def stop(self, *, kill: bool = False) -> int:
        """End it (SIGTERM, or SIGKILL for its whole session) and return its exit status."""
        process = self.process
        if process is None:
            return 0
        if not kill:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own: only what this server started
        status = process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
        if self._stderr is not None:
            self._stderr.close()
        self.process = None
        return status


@contextlib.contextmanager
def running_server(folder: Path, *arguments: str, **settings: str) -> Iterator[Server]:
    """A server with its data in `folder`, ended when the block is left."""
    server = Server(data=folder / "data", config_dir=folder / "config", arguments=arguments, settings=settings)
    try:
        yield server.start()
    finally:
        server.stop()


def wait_until(condition: Callable[[], Any], within: float = 20.0, what: str = "the condition") -> Any:
    """The first true value of `condition()`; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"expected {what} within {within} s, last value {value!r}")
        time.sleep(0.02)
