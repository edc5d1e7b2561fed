"""`icecore scrub` on a real server: what the disk changed or lost is named, with the versions it hurts, and heals."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Server, running_server

LOG = """
import icecore, os, random
os.makedirs("files", exist_ok=True)
for number in range(5):
    open(f"files/{number}.txt", "w").write(f"file {number}" * 50)
open("files/large.bin", "wb").write(bytes(range(256)) * 2000)
open("files/alone.bin", "wb").write(bytes(range(255)) * 2000)
open("files/chunks.bin", "w").write(random.Random(1).randbytes(750_000).hex())
with icecore.init(project="scrubs") as run:
    artifact = icecore.Artifact("set", type="dataset")
    artifact.add_dir("files")
    print(run.log_artifact(artifact).wait().version)
"""
DOWNLOAD = """
import icecore
print(icecore.Api().artifact("scrubs/set:v0").download("got"))
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("scrub"), "--chunks") as server:
        yield server


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_what_is_hurt_is_named_and_heals(own: Server, tmp_path: Path) -> None:
    """A flipped bit in a pack, a chunk and a file, a file that has gone: scrub and download say so; logging heals."""
    cache = {"ICECORE_ARTIFACT_CACHE": str(tmp_path / "cache")}
    assert own.run("python", "-c", LOG, **cache).stdout.strip() == "v0"
    well = own.cli("scrub")
    assert "all well" in well.stdout
    blobs = own.data / "blobs"
    pack = next(path for path in (blobs / "packs").iterdir() if b"file 3" in path.read_bytes())
    _flip(pack, pack.read_bytes().index(b"file 3file 3") + 7)
    (chunks,) = (path for path in (blobs / "packs").iterdir() if path.stat().st_size > 100_000)
    assert chunks.stat().st_size < 0.7 * 1_500_000, "it is in chunks, which are compressed"
    _flip(chunks, 50_000)
    changed, gone = sorted((blobs / "whole").glob("??/*"))
    _flip(changed, 100_000)
    gone.unlink()

    done = own.cli("scrub", "--json", check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["versions"]) == (1, False, 1)
    told = {one["versions"][0]["files"][0]: one["state"] for one in found["hurt"]}
    names = {changed.name: "changed", gone.name: "gone"}
    large = {names[one["digest"]]: one["versions"][0]["files"][0] for one in found["hurt"] if one["digest"] in names}
    assert told == {"3.txt": "damaged", "chunks.bin": "damaged", large["changed"]: "damaged", large["gone"]: "missing"}
    assert {one["versions"][0]["name"].split("/", 1)[1] for one in found["hurt"]} == {"scrubs/set:v0"}
    refused = own.run("python", "-c", DOWNLOAD, check=False, ICECORE_ARTIFACT_CACHE=str(tmp_path / "other"))
    assert refused.returncode != 0
    assert any(one["digest"] in refused.stderr for one in found["hurt"]), refused.stderr

    assert own.run("python", "-c", LOG, **cache).stdout.strip() == "v0"
    assert "all well" in own.cli("scrub").stdout
    own.run("python", "-c", DOWNLOAD, ICECORE_ARTIFACT_CACHE=str(tmp_path / "third"))
    got = own.config_dir.parent / "got"
    assert (got / "3.txt").read_text() == "file 3" * 50
    assert (got / "chunks.bin").read_text() == random.Random(1).randbytes(750_000).hex()
    assert (got / "alone.bin").read_bytes() == bytes(range(255)) * 2000
