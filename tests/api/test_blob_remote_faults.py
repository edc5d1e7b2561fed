"""A bucket that fails: nothing acknowledged is lost, nothing partial is seen, and what to do is said."""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from blob_folders import LARGE, digest_of, erased, everything, framed, noise, sent
from icecore.errors import BlobError, DigestMismatch, Unavailable
from icecore.transfer import PART_BYTES, BlobClient, Progress
from icecore.uploads import Source, send
from icecore_api.blobs.remote import RemoteBlobs
from icecore_api.blobs.remote_settings import Bucket as BucketOf
from icecore_api.blobs.store import Parts
from s3_faults import Fault, FaultyS3, faulty
from s3_servers import Bucket, S3Server
from servers import Server, running_server, wait_until

HUGE = 5 * PART_BYTES + 77


@pytest.fixture(scope="module")
def proxy(s3: S3Server) -> Iterator[FaultyS3]:
    with faulty(s3.port) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(proxy: FaultyS3) -> Iterator[None]:
    yield
    proxy.rule, proxy.slow_s = (lambda _method, _path: "none"), 0.3


@pytest.fixture(scope="module")
def place(s3: S3Server) -> Bucket:
    return Bucket(s3, f"t{uuid.uuid4().hex[:12]}")


@pytest.fixture(scope="module")
def remote(place: Bucket, proxy: FaultyS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose bucket is behind the proxy."""
    where = place.server.address(place.prefix, endpoint=proxy.endpoint)
    folder = tmp_path_factory.mktemp("remote")
    with running_server(folder, "--blobs", where, **place.server.environment) as running:
        yield running


def _opened(bucket: Bucket, folder: Path, endpoint: str = "", **more: str) -> RemoteBlobs:
    return RemoteBlobs(BucketOf.parse(bucket.server.address(bucket.prefix, endpoint=endpoint, **more)), folder)


def test_uploads_and_downloads_end_well_whatever_requests_do(
    remote: Server, place: Bucket, proxy: FaultyS3, tmp_path: Path
) -> None:
    """With a third of all requests failing by 500, 503, lost on the way or slow, all bytes come and go."""
    kinds: list[Fault] = ["500", "503", "lose_answer", "lose_request", "slow"]
    around: list[Fault] = []
    for kind in kinds:
        around.extend((kind, "none", "none"))
    turns, lock = itertools.cycle(around), threading.Lock()

    def rule(_method: str, _path: str) -> Fault:
        with lock:
            return next(turns)

    proxy.rule, proxy.slow_s = rule, 0.05
    client = BlobClient(remote.url, remote.api_key, patience=60)
    contents = [noise(1, 100), noise(2, 5000), noise(3, 1 << 20), noise(4, 2 * PART_BYTES + 9)]
    sources = [Source(digest_of(one), len(one), data=one) for one in contents]
    assert client.missing([source.digest for source in sources]) == {source.digest for source in sources}
    send(client, sources, Progress())
    assert client.missing([source.digest for source in sources]) == set()
    for content in contents[:3]:
        assert client.whole(digest_of(content)) == content
    large = contents[3]
    spans = [(at, min(at + PART_BYTES, len(large))) for at in range(0, len(large), PART_BYTES)]
    assert b"".join(client.get(digest_of(large), *span) for span in spans) == large
    assert {kind for kind in kinds if proxy.done[kind]} == set(kinds)


def test_a_completion_whose_answer_is_lost_is_done_once(bucket: Bucket, proxy: FaultyS3, tmp_path: Path) -> None:
    """Completing and putting are the same done twice: where their answers are lost, the blob is there, once."""
    content, parts = noise(11, LARGE), Parts(digest_of(noise(11, LARGE)), LARGE, 1 << 20)
    lost: list[str] = []

    def rule(method: str, path: str) -> Fault:
        if method == "PUT" and path.split("?", maxsplit=1)[0] not in lost:
            lost.append(path.split("?", maxsplit=1)[0])
            return "lose_answer"
        return "none"

    proxy.rule = rule

    async def story() -> None:
        blobs = _opened(bucket, tmp_path, proxy.endpoint)
        for part in range(parts.number):
            await blobs.put_part(parts, part, sent(content[part << 20 : (part + 1) << 20]))
        assert await blobs.complete(parts) == LARGE
        assert await blobs.complete(parts) == LARGE
        assert await blobs.put_small(framed([noise(12, 99)])) == 1
        usage = await blobs.usage()
        assert (usage.blobs, usage.disk) == (2, sum(bucket.files().values()))
        assert await blobs.read(parts.digest) == content
        assert await blobs.orphans() == []
        blobs.close()

    asyncio.run(story())
    assert any(path.endswith(".parts") for path in lost)


def test_a_bucket_that_is_away_is_said_and_comes_back(bucket: Bucket, proxy: FaultyS3, tmp_path: Path) -> None:
    """Away at the start and in the middle: a 503 with advice each time, and all that was acknowledged is there then."""
    kept, late = noise(21, 500), noise(22, LARGE)

    async def story() -> None:
        proxy.stop()
        blobs = _opened(bucket, tmp_path, proxy.endpoint)
        for asked in (blobs.missing([digest_of(kept)]), blobs.put_small(framed([kept])), blobs.orphans()):
            with pytest.raises(Unavailable, match="expected s3://blobs/") as away:
                await asked
            assert "object store" in away.value.hint
            assert "retry_after" in away.value.facts
            assert "http://" not in away.value.message
        proxy.start()
        assert await blobs.put_small(framed([kept])) == 1
        proxy.stop()
        with pytest.raises(Unavailable):
            await blobs.put(digest_of(late), sent(late))
        with pytest.raises(Unavailable):
            await blobs.read(digest_of(kept))
        assert await blobs.missing([digest_of(kept), digest_of(late)]) == [digest_of(late)]
        proxy.start()
        assert await blobs.put(digest_of(late), sent(late)) == LARGE
        assert await everything(blobs, [digest_of(kept), digest_of(late)]) == [kept, late]
        blobs.close()

    asyncio.run(story())


def test_a_server_starts_without_its_bucket_and_waits_for_it(s3: S3Server, bucket: Bucket, tmp_path: Path) -> None:
    """A server whose bucket is away starts, answers 503 for blobs, and takes them once the bucket is there."""
    with faulty(s3.port) as own:
        own.stop()
        where = s3.address(bucket.prefix, endpoint=own.endpoint)
        with running_server(tmp_path, "--blobs", where, **s3.environment) as server:
            with pytest.raises(Unavailable, match="expected s3://blobs/"):
                BlobClient(server.url, server.api_key, patience=0).missing([digest_of(b"x")])
            key = {"Authorization": f"Bearer {server.api_key}"}
            with urllib3.PoolManager() as web:
                assert web.request("GET", f"{server.url}/api/v1/projects", headers=key).json() == {"projects": []}
            own.start()
            client = BlobClient(server.url, server.api_key, patience=30)
            client.put_pack([(digest_of(b"x"), b"x")])
            assert client.missing([digest_of(b"x")]) == set()


def test_two_uploads_of_one_blob_at_once_make_one(remote: Server, place: Bucket) -> None:
    """Two clients that send one large blob at once both succeed; the bucket has it once, and nothing else of it."""
    content = noise(31, HUGE)
    digest = digest_of(content)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            client = BlobClient(remote.url, remote.api_key, patience=30)
            client.missing([digest])
            send(client, [Source(digest, HUGE, data=content)], Progress())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    held = {name: size for name, size in place.files().items() if digest in name}
    assert sum(size for name, size in held.items() if name.startswith("parts/")) == HUGE
    assert sorted(name.split("/")[0] for name in held) == ["parts"] * 6 + ["whole"]


UPLOAD = """
import sys
from pathlib import Path
from icecore.hashing import LocalFile, hash_files
from icecore.transfer import BlobClient, Progress
from icecore.uploads import Source, upload

client = BlobClient(sys.argv[1], sys.argv[2], patience=30)
data = Path(sys.argv[3]).read_bytes()
print(upload(client, {sys.argv[4]: Source(sys.argv[4], len(data), data=data)}, Progress()))
"""


def test_a_killed_upload_goes_on_where_it_was(remote: Server, place: Bucket, proxy: FaultyS3, tmp_path: Path) -> None:
    """Killed in the middle of a large blob, the client sends only what is lacking; meanwhile nothing of it is seen."""
    content = noise(41, HUGE)
    digest = digest_of(content)
    (tmp_path / "large").write_bytes(content)
    words = [sys.executable, "-c", UPLOAD, remote.url, remote.api_key, str(tmp_path / "large"), digest]
    gate = threading.Event()

    def rule(method: str, path: str) -> Fault:
        if method == "PUT" and f"parts/{digest}" in path and len(_parts_of(place, digest)) >= 2:
            gate.wait(30)
            return "lose_request"
        return "none"

    proxy.rule = rule
    process = subprocess.Popen(words, env=remote.env())
    wait_until(lambda: len(_parts_of(place, digest)) >= 2, what="two parts")
    process.send_signal(signal.SIGKILL)
    process.wait()
    proxy.rule = lambda _method, _path: "none"
    gate.set()
    client = BlobClient(remote.url, remote.api_key, patience=30)
    assert client.missing([digest]) == {digest}
    there = client.parts(digest, HUGE, PART_BYTES)
    assert len(there) >= 2
    before = len(place.sent(f"parts/{digest}"))
    done = subprocess.run(words, env=remote.env(), capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == HUGE
    assert len(place.sent(f"parts/{digest}")) - before == 6 - len(there)
    assert client.missing([digest]) == set()


def _parts_of(place: Bucket, digest: str) -> list[str]:
    return [name for name in place.files() if name.startswith(f"parts/{digest}/")]


def test_what_a_bucket_cannot_check_is_checked_out_of_reach(bucket: Bucket, tmp_path: Path) -> None:
    """Without a signed checksum, parts are copied and read before they are a blob: late senders change nothing."""
    content = noise(51, LARGE)
    parts = Parts(digest_of(content), LARGE, 1 << 20)
    hashes = [digest_of(content[part << 20 : (part + 1) << 20]) for part in range(parts.number)]

    async def story() -> None:
        address = BucketOf.parse(bucket.address)
        blobs = RemoteBlobs(address, tmp_path, environment={})  # as with the keys of a role: only obstore has them
        signed = [await blobs.sign_part(parts, part, hashes[part]) for part in range(parts.number)]
        with urllib3.PoolManager() as web:

            def put(part: int, data: bytes) -> int:
                request = signed[part]
                assert request is not None
                return web.request("PUT", request.url, body=data, headers=dict(request.headers)).status

            bad = bytes(1 << 20)
            assert put(0, bad) == 200
            for part in (1, 2, 3):
                assert put(part, content[part << 20 : (part + 1) << 20]) == 200
            with pytest.raises(DigestMismatch):
                await blobs.complete(parts)
            assert [name for name in bucket.files() if not name.startswith("packs")] == []
            for part in range(parts.number):
                put(part, content[part << 20 : (part + 1) << 20])
            assert await blobs.complete(parts) == LARGE
            assert put(0, bad) == 200
        assert await blobs.read(parts.digest) == content
        assert [orphan.bytes for orphan in await blobs.orphans()] == [1 << 20]
        assert len(await blobs.remove_orphans(0)) == 1
        assert await blobs.read(parts.digest) == content
        blobs.close()

    asyncio.run(story())


def test_what_was_sent_and_never_completed_is_an_orphan(bucket: Bucket, tmp_path: Path) -> None:
    """A blob, and parts of one, whose sender has gone are no blobs; they are listed and removed by age."""
    whole, content = noise(81, 300_000), noise(82, LARGE)
    one, many = Parts(digest_of(whole), len(whole), len(whole)), Parts(digest_of(content), LARGE, 1 << 20)

    async def story() -> None:
        blobs = _opened(bucket, tmp_path)
        with urllib3.PoolManager() as web:
            for parts, data in ((one, whole), (many, content[: 1 << 20])):
                request = await blobs.sign_part(parts, 0, digest_of(data))
                assert request is not None
                assert web.request("PUT", request.url, body=data, headers=dict(request.headers)).status == 200
        assert await blobs.missing([one.digest, many.digest]) == [one.digest, many.digest]
        assert sorted(orphan.bytes for orphan in await blobs.orphans()) == [300_000, 1 << 20]
        assert await blobs.remove_orphans(1000) == []
        assert len(await blobs.remove_orphans(0)) == 2
        assert await blobs.orphans() == []
        assert bucket.files() == {}
        blobs.close()

    asyncio.run(story())


def test_a_bucket_that_is_another_logs_or_is_not_there_is_left_alone(bucket: Bucket, tmp_path: Path) -> None:
    """A prefix that belongs to another log, a bucket that is not there, and refused keys each say so."""

    async def story() -> None:
        address = BucketOf.parse(bucket.address)
        first = RemoteBlobs(address, tmp_path / "a", owner="log-a")
        assert await first.put_small(framed([b"x"])) == 1
        second = RemoteBlobs(address, tmp_path / "b", owner="log-b")
        with pytest.raises(BlobError, match="to be of the log log-b, it is of log-a"):
            await second.missing([digest_of(b"x")])
        absent = RemoteBlobs(BucketOf.parse(bucket.address.replace("s3://blobs/", "s3://none-such/")), tmp_path / "c")
        with pytest.raises(BlobError, match="there is none"):
            await absent.put_small(framed([b"x"]))
        for one in (first, second, absent):
            one.close()

    asyncio.run(story())


def test_damage_and_loss_in_the_bucket_are_found(bucket: Bucket, tmp_path: Path) -> None:
    """Objects that others changed or removed are named by a scrub, and never given as what they were."""
    small, middling, lost = noise(61, 900), noise(62, 1 << 20), noise(63, 1 << 20)
    root = bucket.server.objects(bucket.prefix)

    async def story() -> None:
        blobs = _opened(bucket, tmp_path)
        await blobs.put_small(framed([small]))
        for content in (middling, lost):
            await blobs.put(digest_of(content), sent(content))
        (pack,) = (root / "packs").iterdir()
        for path in (pack, root / "whole" / digest_of(middling)[:2] / digest_of(middling)):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        (root / "whole" / digest_of(lost)[:2] / digest_of(lost)).unlink()
        found = {hurt.digest: hurt.state for hurt in blobs.scrub()}
        assert found == {digest_of(small): "damaged", digest_of(middling): "damaged", digest_of(lost): "missing"}
        for content in (small, middling, lost):
            with pytest.raises(Exception, match="as it was stored"):
                await blobs.read(digest_of(content))
        blobs.close()
        again = _opened(bucket, tmp_path)
        assert await again.missing([digest_of(lost), digest_of(small)]) == [digest_of(lost), digest_of(small)]
        assert {hurt.digest for hurt in again.scrub()} == set(found)
        again.close()

    asyncio.run(story())


def test_an_erasure_that_fails_in_the_middle_can_be_done_again(bucket: Bucket, proxy: FaultyS3, tmp_path: Path) -> None:
    """Where the bucket fails while blobs are erased, what was not told is there or gone, and the next one ends it."""
    contents = [noise(70 + i, 300) for i in range(10)]
    gone = [digest_of(one) for one in contents[:4]]

    async def story() -> None:
        blobs = _opened(bucket, tmp_path, proxy.endpoint)
        await blobs.put_small(framed(contents))
        proxy.rule = lambda method, _path: "500" if method in {"DELETE", "POST"} else "none"
        with pytest.raises(Unavailable):
            await erased(blobs, gone, math.inf)
        proxy.rule = lambda _method, _path: "none"
        blobs.close()
        again = _opened(bucket, tmp_path, proxy.endpoint)
        assert await everything(again, [digest_of(one) for one in contents[4:]]) == contents[4:]
        receipts = await erased(again, gone, math.inf)
        assert {receipt.digest for receipt in receipts} | set(await again.missing(gone)) == set(gone)
        assert (await again.usage()).blobs == 6
        assert (await again.usage()).disk == sum(bucket.files().values())
        assert await everything(again, [digest_of(one) for one in contents[4:]]) == contents[4:]
        again.close()

    asyncio.run(story())
