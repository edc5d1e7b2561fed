"""Bytes that nobody needs go from a real server: with scripts, beside uploads, and after kill -9 in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icecore.api import Api
from icecore.errors import IcecoreError
from servers import Server, running_server, wait_until

LOG = """
import sys
import icecore as wandb

first, last, delete = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "delete"
with wandb.init(project="gc") as run:
    for n in range(first, last):
        artifact = wandb.Artifact("net", type="model")
        for name, data in {"own.bin": n.to_bytes(4) * 70_000, "all.bin": b"all" * 100_000, "s.txt": b"%d" % n}.items():
            with artifact.new_file(name, "wb") as file:
                file.write(data)
        for small in range(20):
            with artifact.new_file(f"small/{small}", "wb") as file:
                file.write(b"%d of %d" % (small, n if small % 2 else n % 3))
        run.log_artifact(artifact).wait()
        if delete:
            artifact.delete()
"""
TTL = """
import icecore as wandb

with wandb.init(project="ttl") as run:
    artifact = wandb.Artifact("short", type="model")
    with artifact.new_file("x.bin", "wb") as file:
        file.write(b"x" * 1000)
    artifact.ttl = wandb.util.parse_time("7d")
    run.log_artifact(artifact).wait()
    print(artifact.ttl)
    artifact.ttl = wandb.util.parse_time("1s")
    artifact.save()
    artifact.ttl = wandb.ArtifactTTL.INHERIT
    artifact.save()
    print(artifact.ttl)
    artifact.ttl = wandb.util.parse_time("2s")
    artifact.save()
    print(artifact.ttl)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that these tests hurt one after the other; each makes what it looks at."""
    with running_server(tmp_path_factory.mktemp("gc")) as running:
        yield running


def run_script(server: Server, name: str, text: str, *words: str) -> str:
    script = server.config_dir.parent / f"{name}.py"
    script.write_text(text, encoding="utf-8")
    return server.run("python", str(script), *words).stdout


def api(server: Server) -> Api:
    return Api(api_key=server.api_key, overrides={"url": server.url})


def gc(server: Server, *words: str) -> dict[str, Any]:
    return dict(json.loads(server.cli("gc", "--grace", "0s", "--json", *words).stdout))


def du(server: Server) -> int:
    """Bytes of all files that hold blobs; also while some of them go."""
    total = 0
    for folder in ("packs", "whole"):
        for file in (server.data / "blobs" / folder).rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += file.stat().st_size if file.is_file() else 0
    return total


def verify(server: Server, folder: Path) -> int:
    """Download every version that is there, and check each byte. Answers how many there are."""
    versions = list(api(server).artifacts("model", f"{api(server).default_entity}/gc/net"))
    for version in versions:
        root = version.download(str(folder / version.version))
        version.verify(root)
    return len(versions)


def test_a_killed_gc_is_finished_by_the_next(served: Server, tmp_path: Path) -> None:
    """Killed while blobs go, the next one ends it: the disk has what was promised, and receipts name all that went."""
    run_script(served, "log", LOG, "0", "16", "delete")
    run_script(served, "keep", LOG, "100", "102", "keep")
    before, plan = du(served), gc(served, "--dry-run")
    assert plan["bytes"] > 16 * 280_000
    store = api(served).client.ask("GET", "status")["store"]
    api(served).client.ask("POST", "gc", body={"grace_s": 0})
    wait_until(lambda: du(served) < before, 30, "the first bytes to go")
    os.kill(store, signal.SIGKILL)
    wait_until(lambda: _store(served) not in (None, store), 60, "another store")

    def ended() -> bool:
        with contextlib.suppress(AssertionError):  # the command's, where the store is not there yet
            return bool(gc(served, "--yes")["under_way"] == 0)
        return False

    wait_until(ended, 60, "nothing to be under way any more")
    assert du(served) == before - plan["bytes"]
    receipts = [payload for kind, payload in _events(served) if kind == "blob.erased"]
    assert sum(one.get("bytes", 0) for one in receipts) == plan["bytes"]
    named = Counter(digest for one in receipts for digest in one.get("digests", ()))
    assert len(named) == plan["blobs"]
    assert set(named.values()) == {1}
    assert verify(served, tmp_path) == 2
    checked = json.loads(served.cli("fsck", "--data", str(served.data), "--json").stdout)
    assert checked["ok"], checked
    assert served.cli("scrub").returncode == 0


def test_gc_beside_uploads_takes_nothing_from_them(served: Server, tmp_path: Path) -> None:
    """While versions are logged, some of them deleted at once, gc goes round and round: every version is whole."""
    stop = threading.Event()
    freed: list[int] = []

    def erase() -> None:
        while not stop.is_set():
            with contextlib.suppress(IcecoreError):  # one at a time
                freed.append(gc(served, "--yes")["freed"])

    eraser = threading.Thread(target=erase)
    eraser.start()
    try:
        run_script(served, "delete", LOG, "200", "204", "delete")
        run_script(served, "log", LOG, "202", "207", "keep")
    finally:
        stop.set()
        eraser.join(60)
    assert sum(freed) > 0
    assert verify(served, tmp_path) >= 5
    before, plan = du(served), gc(served, "--dry-run")
    assert gc(served, "--yes")["freed"] == plan["bytes"] == before - du(served)


def test_a_script_says_how_long_a_version_lives(served: Server) -> None:
    """What a script says before and after it logs counts; then the version is gone by itself, and comes back."""
    assert run_script(served, "ttl", TTL).split("\n")[:3] == ["7 days, 0:00:00", "None", "0:00:02"]
    name = f"{api(served).default_entity}/ttl/short"
    wait_until(lambda: _state(served, name) == "expired", 30, "it to expire")
    assert "is expired" in served.cli("artifact", "show", f"{name}:v0", check=False).stderr
    assert "for ever" in served.cli("artifact", "ttl", f"{name}:v0", "never").stdout
    assert "committed" in served.cli("artifact", "restore", f"{name}:v0").stdout
    held = json.loads(served.cli("hold", "add", f"{name}:latest", "--reason", "case 7", "--json").stdout)
    shown = served.cli("artifact", "show", f"{name}:v0").stdout
    assert "(case 7)" in shown
    assert "for ever" in shown
    refused = served.cli("artifact", "delete", f"{name}:v0", check=False)
    assert (refused.returncode != 0, held["hold"] in refused.stderr) == (True, True)
    assert held["hold"] in served.cli("hold", "list").stdout
    served.cli("hold", "release", held["hold"])
    assert "deleted" in served.cli("artifact", "delete", f"{name}:v0").stdout
    assert "nothing was erased" in served.cli("gc", "--grace", "0s").stderr
    assert "frees" in served.cli("gc", "--grace", "0s", "--yes").stdout
    refused = served.cli("artifact", "restore", f"{name}:v0", check=False)
    assert "is erased" in refused.stderr
    table = served.cli("storage", "--by", "collection").stdout
    assert f"{du(served)} bytes" in table
    for words in (["artifact", "ttl", "90d"], ["hold", "add"]):  # of the project that every other command means
        assert name.rpartition("/")[0] in served.cli(*words, "--project", "ttl").stdout
    assert "got 'a/b'" in served.cli("artifact", "ttl", "90d", "--team", "a/b", check=False).stderr
    said = served.cli("storage", "policy", "--keep-last", "1", "--scope", name, "--simulate").stdout
    assert said.startswith("would delete 0 versions, which frees 0 bytes")


def _state(server: Server, name: str) -> str:
    return str(api(server).client.ask("GET", f"artifacts/{name}/v0/retention")["state"])


def _store(server: Server) -> int | None:
    try:
        return int(api(server).client.ask("GET", "status")["store"])
    except IcecoreError:
        return None


def _events(server: Server) -> list[tuple[str, dict[str, Any]]]:
    found, start = [], 0
    while True:
        page = api(server).client.ask("GET", "log", query={"stream": "ledger", "start": start, "limit": 1000})
        found += [(one["envelope"]["type"], one["payload"]) for one in page["events"]]
        if not page["events"] or page["next"] >= page["end"]:
            return found
        start = page["next"]
