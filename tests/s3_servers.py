"""A real S3 server for tests: versitygw, built with Go once into the user's cache folder. Fixtures `s3` and `bucket`.

Where it cannot be had (no Go, or no network for the first build), their tests are skipped, and the end of the run says
so in red; with ICECORE_REQUIRE_S3=1 they fail instead. `python tests/s3_servers.py` builds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

VERSION = "v1.8.0"
MODULE = "github.com/versity/versitygw/cmd/versitygw"
REQUIRED = os.environ.get("ICECORE_REQUIRE_S3", "") not in {"", "0"}
NO_S3 = "no S3 server could be had"
BUILD_S = 900.0
BUCKET = "blobs"


class NotToBeHad(Exception):
    """Why there is no server."""


def program() -> Path:
    """The server's program, built where it is not there yet.

    Raises:
        NotToBeHad: it is not there and cannot be built.
    """
    home = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home) / "icecore" / f"versitygw-{VERSION.removeprefix('v')}"
    found = folder / "versitygw"
    if found.exists():
        return found
    go = shutil.which("go")
    if go is None:
        raise NotToBeHad("there is no Go to build versitygw with")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():  # another process may have built it meanwhile
            _build(go, folder)
    return found


def _build(go: str, folder: Path) -> None:
    """Build it aside, and give it its name at the end. Go checks the sources against its checksum database."""
    beside = folder / "building"
    environment = {**os.environ, "GOBIN": str(beside)}
    try:
        done = subprocess.run(
            [go, "install", f"{MODULE}@{VERSION}"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToBeHad(f"go install: {error}") from error
    if done.returncode:
        raise NotToBeHad(f"go install: {done.stderr.strip()[-500:]}")
    (beside / "versitygw").replace(folder / "versitygw")
    beside.rmdir()


@dataclass
class S3Server:
    """A server on loopback that keeps its objects in a folder."""

    folder: Path
    port: int = 0
    keys: tuple[str, str] = field(default_factory=lambda: ("AK" + uuid.uuid4().hex[:14].upper(), uuid.uuid4().hex))
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client finds its keys in."""
        return {"AWS_ACCESS_KEY_ID": self.keys[0], "AWS_SECRET_ACCESS_KEY": self.keys[1], "AWS_REGION": "us-east-1"}

    @property
    def access_log(self) -> Path:
        """A line for each request that it has answered."""
        return self.folder / "access"

    def address(self, prefix: str, *, endpoint: str = "", **more: str) -> str:
        """Where blobs are, as icecore is told."""
        words = "".join(f"&{name}={value}" for name, value in more.items())
        return f"s3://{BUCKET}/{prefix}?endpoint={endpoint or self.endpoint}{words}"

    def objects(self, prefix: str) -> Path:
        """The folder that objects below a prefix are in."""
        return self.folder / "objects" / BUCKET / prefix

    def start(self) -> S3Server:
        """Start it, and return once it answers."""
        (self.folder / "objects" / BUCKET).mkdir(parents=True, exist_ok=True)
        self.port = self.port or _free_port()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(program()),
                    *("--port", f"127.0.0.1:{self.port}", "--access-log", str(self.access_log)),
                    *("posix", str(self.folder / "objects")),
                ],
                env={**os.environ, "ROOT_ACCESS_KEY": self.keys[0], "ROOT_SECRET_KEY": self.keys[1]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"versitygw did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it, as a lost machine does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(frozen=True)
class Bucket:
    """A place in the shared server that is one test's own."""

    server: S3Server
    prefix: str

    @property
    def address(self) -> str:
        """As icecore is told."""
        return self.server.address(self.prefix)

    def files(self) -> dict[str, int]:
        """The objects in it and their sizes, as the server keeps them."""
        root = self.server.objects(self.prefix)
        found = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.stat().st_size for path in found}

    def sent(self, word: str) -> list[tuple[str, str]]:
        """The objects put that have a word in their keys, and the programs that sent them: refused ones left out."""
        lines = (line.split() for line in self.server.access_log.read_text().splitlines())
        found = [(line[8], line[17]) for line in lines if line[7:8] == ["s3_PutObject"] and line[10] == "200"]
        return [(key, program) for key, program in found if key.startswith(self.prefix) and word in key]


@functools.cache
def _why_not() -> str:
    try:
        program()
    except NotToBeHad as error:
        return str(error)
    return ""


def need_s3() -> None:
    """Skip, or fail where a server is required, unless one can be started here."""
    why = _why_not()
    if why and REQUIRED:
        pytest.fail(f"{NO_S3}: {why}", pytrace=False)
    if why:
        pytest.skip(f"{NO_S3}: {why}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for all tests of the session, which do not hurt it; its keys are in the environment."""
    need_s3()
    server = S3Server(tmp_path_factory.mktemp("s3"))
    before = {name: os.environ.get(name) for name in server.environment}
    try:
        os.environ.update(server.start().environment)
        yield server
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    """An empty place in the shared server."""
    return Bucket(s3, f"t{uuid.uuid4().hex[:12]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly at the end which tests had no server."""
    skipped = [one for one in terminalreporter.stats.get("skipped", []) if NO_S3 in str(one.longrepr)]
    if skipped:
        why = str(skipped[0].longrepr[2]) if isinstance(skipped[0].longrepr, tuple) else str(skipped[0].longrepr)
        terminalreporter.write_sep("!", f"{len(skipped)} TESTS ON A REAL S3 SERVER WERE SKIPPED", red=True, bold=True)
        terminalreporter.write_line(why, red=True)
        for one in skipped:
            terminalreporter.write_line(f"  not shown: {one.nodeid}")


if __name__ == "__main__":
    try:
        print(f"versitygw {VERSION} is {program()}")
    except NotToBeHad as error:
        sys.exit(f"no S3 server: {error}")
