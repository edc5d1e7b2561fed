"""A broker's classes, made ready once for every later start: the JVM's shared archive, in the cache folder.

Half of what a broker's start costs is reading and checking 9,000 classes. A JVM can leave them to the next one
(`-XX:ArchiveClassesAtExit`), which maps the file: a start then takes 2.9 s of processor time instead of 4.9. The JVM
itself refuses an archive of another Java or other jars, and goes on without.
"""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from icecore_api.broker.jars import cache_folder

if TYPE_CHECKING:
    from icecore_api.broker.cluster import Cluster

WRITTEN_S: Final = 120.0
"""A JVM that has not written its archive by then is killed."""


def archive(java: str, classpath: str, flags: Sequence[str]) -> Path:
    """Where the archive for this Java, these jars and these flags is, or would be."""
    program = Path(java).resolve()
    changed = program.stat().st_mtime_ns if program.exists() else 0
    words = "\n".join([str(program), str(changed), classpath, *flags])
    return cache_folder() / f"classes-{hashlib.sha256(words.encode()).hexdigest()[:16]}.jsa"


def using(java: str, classpath: str, flags: Sequence[str]) -> list[str]:
    """What tells a JVM to use the archive; nothing where there is none."""
    path = archive(java, classpath, flags)
    return [f"-XX:SharedArchiveFile={path}"] if path.exists() else []


def prepare(make: type[Cluster]) -> Path | None:
    """Make the archive where there is none, by a broker that starts and stops; None where this Java cannot.

    Two processes may do this at once: the second waits for the first. The archive appears by a rename, when it is
    whole. It takes about 15 s of processor time, once for each Java and each version of the jars.

    Args:
        make: makes the broker.

    Raises:
        SettingsError, Unavailable: no broker can be started at all.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock.classes").open("w") as lock, tempfile.TemporaryDirectory(prefix="classes-", dir=folder) as own:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = make(Path(own) / "kafka")
        broker = cluster.brokers[0]
        path = archive(broker.java, broker.classpath, broker.jvm)
        if path.exists():
            cluster.kill()
            return path
        new = Path(own) / path.name
        try:
            broker.format(cluster.cluster_id)
            broker.jvm = (*broker.jvm, f"-XX:ArchiveClassesAtExit={new}")
            cluster.start()
            broker.stop(WRITTEN_S)
        finally:
            cluster.kill()
        if not new.exists():
            return None
        new.replace(path)
        return path
