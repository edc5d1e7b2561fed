"""The jars of Apache Kafka: fetched once, verified by hash each time they are used.

`jars.txt` names every jar with its size and SHA-256. Where Maven is installed it fetches them, so that a company's
own settings and mirrors are honoured; else they come from Maven Central by HTTPS. Both ways end at the same hashes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3

from icecore.errors import Unavailable

KAFKA_VERSION: Final = "4.3.0"
MAVEN_CENTRAL: Final = "https://repo1.maven.org/maven2"
MAVEN_S: Final = 300.0
_LOCK_FILE: Final = Path(__file__).with_name("jars.txt")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Jar:
    """One jar: Maven's coordinates, and what its bytes must be."""

    sha256: str
    size: int
    group: str
    artifact: str
    version: str

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Where it lies in a Maven repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.name}"

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` is this jar, to the last bit."""
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False


def jars() -> list[Jar]:
    """All jars that a broker needs, as `jars.txt` pins them."""
    found = []
    for line in _LOCK_FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            sha256, size, coordinates = line.split()
            found.append(Jar(sha256, int(size), *coordinates.split(":")))
    return found


def cache_folder() -> Path:
    """Where the jars are kept: in the user's cache folder, one folder for each version of Kafka."""
    home = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "icecore" / f"kafka-{KAFKA_VERSION}"


def fetch(
    folder: Path | None = None,
    say: Say = lambda _: None,
    *,
    maven: str | None = shutil.which("mvn"),
    repository: str = MAVEN_CENTRAL,
) -> list[Path]:
    """Return the paths of all jars, after fetching those that are missing or damaged.

    Two processes may do this at once: the second waits for the first. A jar appears under its name only when it is
    whole, by a rename, so brokers that run from the folder are not disturbed.

    Args:
        folder: where the jars are kept; the user's cache folder if not given.
        say: called with a line for people when something is fetched.
        maven: the path of Maven; None to do without.
        repository: the URL of the Maven repository that is asked where Maven cannot help.

    Raises:
        Unavailable: they could not be fetched, or what came is not what was pinned.
    """
    folder = folder or cache_folder()
    wanted = jars()
    if _missing(wanted, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(folder), tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as beside:
            missing = _missing(wanted, folder)  # another process may have fetched them meanwhile
            if missing:
                _get(missing, Path(beside), say, maven, repository)
                for jar in missing:
                    (Path(beside) / jar.name).replace(folder / jar.name)
    return [folder / jar.name for jar in wanted]


def _missing(wanted: Sequence[Jar], folder: Path) -> list[Jar]:
    return [jar for jar in wanted if not jar.is_at(folder / jar.name)]


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _get(missing: Sequence[Jar], into: Path, say: Say, maven: str | None, repository: str) -> None:
    """Put all of `missing` into the folder `into`, verified: by Maven where there is one, else by HTTPS."""
    size = sum(jar.size for jar in missing) / 1e6
    why = []
    if maven:
        say(f"fetching Apache Kafka {KAFKA_VERSION} by Maven ({len(missing)} jars, {size:.0f} MB) …")
        why.append(_by_maven(maven, missing, into))
    left = _missing(missing, into)
    if left:
        say(f"fetching {len(left)} jars of Apache Kafka {KAFKA_VERSION} from {repository} …")
        with ThreadPoolExecutor(8) as pool, urllib3.PoolManager(maxsize=8) as web:
            first, *others = left
            why.append(_by_https(web, f"{repository}/{first.path}", first, into))
            if first.is_at(into / first.name):  # else nobody answers, and each would wait for that in vain
                why += pool.map(lambda jar: _by_https(web, f"{repository}/{jar.path}", jar, into), others)
    left = _missing(missing, into)
    if left:
        raise Unavailable(
            f"expected {len(missing)} jars of Apache Kafka {KAFKA_VERSION}, {len(left)} could not be had: "
            + "; ".join(list(filter(None, why))[:3]),
            hint="make Maven Central reachable, or name a mirror of it in ~/.m2/settings.xml and install Maven",
            retry_after=60,
        )


def _by_maven(maven: str, missing: Sequence[Jar], into: Path) -> str:
    """Let Maven copy the jars; returns why it could not, or nothing."""
    pom = into / "pom.xml"
    pom.write_text(_pom(missing), encoding="utf-8")
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    command = [maven, "-q", "-B", "-f", str(pom), goal, f"-DoutputDirectory={into}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MAVEN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Maven: {error}"
    return "" if done.returncode == 0 else f"Maven: {done.stdout.strip()[:500] or done.stderr.strip()[:500]}"


def _pom(wanted: Sequence[Jar]) -> str:
    """A project that depends on exactly these jars, and on nothing that they depend on."""
    dependencies = "".join(
        f"<dependency><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version><exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId>"
        "</exclusion></exclusions></dependency>\n"
        for jar in wanted
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>\n'
        "<groupId>icecore</groupId><artifactId>kafka</artifactId><version>1</version>\n"
        f"<dependencies>\n{dependencies}</dependencies></project>\n"
    )


def _by_https(web: urllib3.PoolManager, url: str, jar: Jar, into: Path) -> str:
    """Fetch one jar; returns why it could not be had, or nothing."""
    try:
        answer = web.request("GET", url, timeout=urllib3.Timeout(connect=10, read=60), retries=urllib3.Retry(2))
    except urllib3.exceptions.HTTPError as error:
        return f"{url}: {error}"
    if answer.status != 200:
        return f"{url}: HTTP {answer.status}"
    if len(answer.data) != jar.size or hashlib.sha256(answer.data).hexdigest() != jar.sha256:
        return f"{url}: expected {jar.size} bytes of SHA-256 {jar.sha256}, got {len(answer.data)} other bytes"
    (into / jar.name).write_bytes(answer.data)
    return ""
