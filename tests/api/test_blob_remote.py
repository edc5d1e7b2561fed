"""Artifacts of a server whose bytes are in a bucket: large ones go there and come from there without the server."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from blob_folders import digest_of, noise
from icecore.errors import DigestMismatch, NotFound
from icecore.transfer import PART_BYTES, BlobClient, Progress
from icecore.uploads import Source, send, upload
from s3_servers import Bucket, S3Server
from servers import Server, running_server

MIDDLING = 1 << 20
LARGE = 2 * PART_BYTES + 12_345


@pytest.fixture(scope="module")
def place(s3: S3Server) -> Bucket:
    """Where the server of these tests has its bytes."""
    return Bucket(s3, f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def remote(place: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose bytes are in a bucket."""
    folder = tmp_path_factory.mktemp("remote")
    with running_server(folder, "--blobs", place.address, **place.server.environment) as running:
        yield running


@pytest.fixture
def client(remote: Server) -> BlobClient:
    return BlobClient(remote.url, remote.api_key, patience=20)


def test_a_version_goes_to_the_bucket_and_comes_back(remote: Server, place: Bucket, tmp_path: Path) -> None:
    """Small, middling, large and empty files are logged, lie in the bucket, and are downloaded as they were."""
    files = {"small": noise(1, 900), "none": b"", "middling": noise(2, MIDDLING), "large": noise(3, LARGE)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    script = (
        "import sys, icecore\n"
        "with icecore.init(project='s3') as run:\n"
        "    one = icecore.Artifact('weights', 'model')\n"
        "    one.add_dir(sys.argv[1])\n"
        "    run.log_artifact(one).wait()\n"
        "    print(run.use_artifact('weights:v0').download(sys.argv[2]))\n"
    )
    cache = str(tmp_path.parent / "cache")
    done = remote.run(
        "python", "-c", script, str(tmp_path), str(tmp_path.parent / "back"), ICECORE_ARTIFACT_CACHE=cache
    )
    for name, content in files.items():
        assert (Path(done.stdout.strip().splitlines()[-1]) / name).read_bytes() == content
    held = place.files()
    assert held[f"whole/{digest_of(files['middling'])[:2]}/{digest_of(files['middling'])}"] == MIDDLING
    assert sum(size for name, size in held.items() if name.startswith(f"parts/{digest_of(files['large'])}/")) == LARGE
    assert len([name for name in held if name.startswith("packs/")]) == 1
    for name in ("middling", "large"):
        sent = [(key, program) for key, program in place.sent(digest_of(files[name])) if not key.endswith(".parts")]
        assert len(sent) == (3 if name == "large" else 1)
        assert all(program.startswith("python-urllib3") for _, program in sent), sent


def test_only_lacking_parts_are_sent_again(client: BlobClient, place: Bucket) -> None:
    """An upload that stopped in the middle goes on with the parts that the bucket has not."""
    content = noise(4, LARGE)
    digest = digest_of(content)
    assert client.missing([digest]) == {digest}
    assert client.direct
    client.put_part(digest, 1, content[PART_BYTES : 2 * PART_BYTES], LARGE, PART_BYTES)
    assert client.parts(digest, LARGE, PART_BYTES) == {1}
    progress = Progress()
    assert upload(client, {digest: Source(digest, LARGE, data=content)}, progress) == LARGE
    assert len(place.sent(f"parts/{digest}")) == 3
    assert (progress.bytes, progress.total) == (LARGE, LARGE)
    assert client.missing([digest]) == set()
    assert client.get(digest, PART_BYTES - 5, PART_BYTES + 5) == content[PART_BYTES - 5 : PART_BYTES + 5]
    assert client.get(digest, 2 * PART_BYTES, LARGE) == content[2 * PART_BYTES :]


def test_other_bytes_are_refused_and_not_kept(client: BlobClient, place: Bucket) -> None:
    """Bytes of another digest are refused: by the bucket under a signed request, by the server for several parts."""
    content = noise(5, MIDDLING)
    digest = digest_of(content)
    client.missing([digest])
    body = {"size": MIDDLING, "part_size": MIDDLING, "sha256": digest}
    signed = client._json("POST", f"uploads/{digest}/0", body)
    with urllib3.PoolManager() as web:
        wrong = web.request("PUT", signed["url"], body=content[:-1] + b"?", headers=signed["headers"])
        bare = web.request("PUT", signed["url"], body=content)
        checksum = {name: value[::-1] for name, value in signed["headers"].items()}
        other = web.request("PUT", signed["url"], body=content, headers=checksum)
    assert (wrong.status, bare.status, other.status) == (400, 403, 403)
    assert not [name for name in place.files() if digest in name]

    large = noise(6, LARGE)
    claimed = digest_of(b"something else")
    with pytest.raises(DigestMismatch):
        send(client, [Source(claimed, LARGE, data=large)], Progress())
    assert client.missing([claimed]) == {claimed}
    assert not [name for name in place.files() if claimed in name]


def test_a_range_comes_from_the_bucket(client: BlobClient, remote: Server) -> None:
    """A client that follows is sent to the bucket with the object's own range; others get bytes from the server."""
    content = noise(7, LARGE)
    digest = digest_of(content)
    client.missing([digest])
    send(client, [Source(digest, LARGE, data=content)], Progress())
    key = {"Authorization": f"Bearer {remote.api_key}"}
    url, start = f"{remote.url}/api/v1/blobs/{digest}", PART_BYTES + 100
    wanted = {**key, "Range": f"bytes={start}-{start + 99}"}
    with urllib3.PoolManager() as web:
        there = web.request("GET", url, headers={**wanted, "Icecore-Follows": "1"}, redirect=False)
        assert (there.status, there.headers["Icecore-Range"], there.data) == (307, "bytes=100-199", b"")
        got = web.request("GET", there.headers["Location"], headers={"Range": there.headers["Icecore-Range"]})
        assert got.data == content[start : start + 100]
        plain = web.request("GET", url, headers=wanted, redirect=False)
        assert (plain.status, plain.data) == (206, content[start : start + 100])
        assert hashlib.sha256(web.request("GET", url, headers=key).data).hexdigest() == digest
        assert web.request("GET", there.headers["Location"].replace(digest[:8], "0" * 8)).status == 403
    with pytest.raises(NotFound):
        client.whole(digest_of(b"absent"))


def test_no_key_and_no_signed_address_is_told(
    client: BlobClient, remote: Server, place: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """The bucket's keys are in nothing that the server says; signed addresses are in no log, on neither side."""
    content = noise(8, MIDDLING)
    digest = digest_of(content)
    with caplog.at_level(logging.DEBUG):
        client.missing([digest])
        client.put(digest, content)
        assert client.whole(digest) == content
    assert "?…" in caplog.text
    assert "ignature=" not in caplog.text
    secret = place.server.keys[1]
    with urllib3.PoolManager() as web:
        status = web.request(
            "GET", f"{remote.url}/api/v1/status", headers={"Authorization": f"Bearer {remote.api_key}"}
        )
    assert status.json()["blobs_at"] == f"s3://blobs/{place.prefix}"
    for words in (
        status.data.decode(),
        remote.log_file.read_text(),
        (remote.data / "blobs" / "BUCKET").read_text(),
        caplog.text,
    ):
        assert secret not in words
        assert "ignature=" not in words


def test_a_folder_keeps_its_bucket(remote: Server, place: Bucket, tmp_path: Path) -> None:
    """Another bucket for a folder, a bucket for a folder with blobs, and nonsense are refused with advice."""
    (tmp_path / "data" / "blobs" / "packs").mkdir(parents=True)
    (tmp_path / "data" / "blobs" / "packs" / "one.pack").write_bytes(b"icepack1")
    for data, where, why in (
        (remote.data, "s3://blobs/other", f"in s3://blobs/{place.prefix}, got s3://blobs/other"),
        (tmp_path / "data", place.address, "without blobs"),
        (tmp_path / "new", "ftp://x", "expected a bucket such as s3://"),
        (tmp_path / "new", "s3://x/y?secret=1", "got 'secret'"),
        (tmp_path / "new", "s3://user:pass@x/y", "keys come from the environment"),
    ):
        words = [sys.executable, "-m", "icecore", "up", "--data", str(data), "--port", "0", "--blobs", where]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr
        assert why in " ".join(done.stderr.split()), done.stderr
        assert "pass@" not in done.stderr


def test_the_plan_says_when_it_ends(client: BlobClient, remote: Server) -> None:
    """A signed request is good for a quarter of an hour; asked again, it is another one."""
    content = noise(9, MIDDLING)
    body = {"size": MIDDLING, "part_size": MIDDLING, "sha256": digest_of(content)}
    answer = client._json("POST", f"uploads/{digest_of(content)}/0", body)
    assert answer["expires_s"] == 900
    assert "X-Amz-Expires=900" in answer["url"]
    assert json.dumps(answer).count(remote.api_key) == 0


def test_what_the_document_shows_works_with_a_bucket(remote: Server, place: Bucket, tmp_path: Path) -> None:
    """The script that docs/artifacts.md shows for large files logs to a bucket and reads from it as well."""
    text = (Path(__file__).parents[2] / "docs" / "artifacts.md").read_text("utf-8")
    section = text.partition("## Large files, and bytes in a bucket\n")[2]
    (script,) = re.findall(r"^```python\n(.*?)^```", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    done = remote.run("python", "-c", script, ICECORE_ARTIFACT_CACHE=str(tmp_path / "cache"))
    assert done.stdout.splitlines()[-1] == "40000000"
    assert sum(size for name, size in place.files().items() if "40000000-16777216" in name) == 40_000_000


GONE = """
import sys, icecore
from pathlib import Path

folder = Path(sys.argv[1])
with icecore.init(project="gone") as run:
    for number in range(2):
        one = icecore.Artifact("checkpoint", "model")
        one.add_file(str(folder / f"{number}.bin"))
        one.add_file(str(folder / "shared.bin"))
        run.log_artifact(one).wait()
icecore.Api().artifact("gone/checkpoint:v0").delete()
"""


def test_what_is_collected_goes_from_the_bucket(remote: Server, place: Bucket, tmp_path: Path) -> None:
    """`icecore gc` of a deleted version frees what its plan says, as the bucket counts it; what others need stays."""
    for seed, (name, size) in enumerate({"0.bin": LARGE, "1.bin": LARGE, "shared.bin": MIDDLING}.items()):
        (tmp_path / name).write_bytes(noise(90 + seed, size))
    remote.run("python", "-c", GONE, str(tmp_path))
    before = sum(place.files().values())
    plan = json.loads(remote.cli("gc", "--grace", "0s", "--dry-run", "--json").stdout)
    assert plan["bytes"] >= LARGE
    assert sum(place.files().values()) == before
    done = json.loads(remote.cli("gc", "--grace", "0s", "--yes", "--json").stdout)
    assert (done["bytes"], before - sum(place.files().values())) == (plan["bytes"], plan["bytes"])
    gone, kept = (digest_of((tmp_path / name).read_bytes()) for name in ("0.bin", "1.bin"))
    assert not [name for name in place.files() if gone in name]
    script = "import sys, icecore; icecore.Api().artifact('gone/checkpoint:v1').download(sys.argv[1])"
    remote.run("python", "-c", script, str(tmp_path / "back"), ICECORE_ARTIFACT_CACHE=str(tmp_path / "cache"))
    assert digest_of((tmp_path / "back" / "1.bin").read_bytes()) == kept
