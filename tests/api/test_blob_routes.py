"""Blobs over HTTP: asked about, sent alone, together and in parts, and read whole or in ranges."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from applications import Application, application
from icecore.limits import most
from icecore_api.blobs.packs import entries, frame
from icecore_api.routing import permission_of
from servers import Server

HOSTILE = json.loads((Path(__file__).parents[1] / "golden" / "hostile_names.json").read_text(encoding="utf-8"))
LARGE = random.Random(1).randbytes(3 * 1024 * 1024 + 17)
SMALL = b"a small blob"


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def play(folder: Path, story: Callable[[Application], Awaitable[None]]) -> None:
    """Run a story against an application of its own."""

    async def main() -> None:
        async with application(folder) as made:
            await story(made)

    asyncio.run(main())


def at(content: bytes, kind: str = "blobs") -> str:
    return f"/api/v1/{kind}/{digest_of(content)}"


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for first in range(0, len(content), 100_000):
        yield content[first : first + 100_000]


def test_blobs_go_and_come(tmp_path: Path) -> None:
    """What is missing is told; blobs sent alone and together are there then, and come back one by one and together."""

    async def story(made: Application) -> None:
        contents = [SMALL, b"", LARGE, b"another"]
        digests = [digest_of(one) for one in contents]
        asked = {"digests": digests}
        assert (await made.client.post("/api/v1/blobs/missing", json=asked)).json() == {
            "missing": digests,
            "direct": False,
        }
        put = await made.client.put(at(LARGE), content=pieces(LARGE))
        assert (put.status_code, put.json()) == (200, {"digest": digests[2], "size": len(LARGE)})
        body = b"".join(frame(one) for one in (SMALL, b"", b"another"))
        pack = await made.client.post("/api/v1/blobs/pack", content=pieces(body))
        assert (pack.status_code, pack.json()) == (200, {"stored": 3})
        assert (await made.client.post("/api/v1/blobs/missing", json=asked)).json() == {"missing": [], "direct": False}
        for content in contents:
            got = await made.client.get(at(content))
            assert (got.status_code, got.content) == (200, content)
            assert got.headers["etag"] == f'"{digest_of(content)}"'
            assert got.headers["content-type"] == "application/octet-stream"
            assert got.headers["x-content-type-options"] == "nosniff"
            assert got.headers["content-disposition"].startswith("attachment")
            head = await made.client.head(at(content))
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(len(content)) == got.headers["content-length"]
        many = await made.client.post("/api/v1/blobs/read", json={"digests": [*digests, digests[0]]})
        found = list(entries(many.content, 0, len(many.content)))
        assert [many.content[one.offset : one.offset + one.size] for one in found] == [*contents, SMALL]
        absent = digest_of(b"absent")
        for method in ("GET", "HEAD"):
            assert (await made.client.request(method, f"/api/v1/blobs/{absent}")).status_code == 404
        some = await made.client.post("/api/v1/blobs/read", json={"digests": [digests[0], absent]})
        assert (some.status_code, some.json()["error"]["missing"]) == (404, [absent])

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-1999999", 206, 100, 2_000_000),
        ("bytes=3000000-", 206, 3_000_000, None),
        ("bytes=-5", 206, -5, None),
        ("bytes=-99999999", 206, 0, None),
        ("bytes=5-99999999", 206, 5, None),
        ("bytes=0-1,4-5", 200, 0, None),
        ("bytes=9-5", 200, 0, None),
        ("bytes=-", 200, 0, None),
        ("lines=0-1", 200, 0, None),
        ("bytes=99999999-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_one_range_of_a_blob(tmp_path: Path, asked: str, status: int, start: int, stop: int | None) -> None:
    """A single range gives its bytes and says which; one beyond the end is 416; what is none gives everything."""

    async def story(made: Application) -> None:
        await made.client.put(at(LARGE), content=LARGE)
        got = await made.client.get(at(LARGE), headers={"Range": asked})
        assert got.status_code == status
        if status == 416:
            assert (got.headers["content-range"], got.json()["error"]["code"]) == (f"bytes */{len(LARGE)}", "range")
            return
        assert got.content == LARGE[start:stop]
        assert got.headers["content-length"] == str(len(got.content))
        if status == 206:
            first = len(LARGE) - len(LARGE[start:]) if start < 0 else start
            last = first + len(got.content) - 1
            assert got.headers["content-range"] == f"bytes {first}-{last}/{len(LARGE)}"
        other = await made.client.get(at(LARGE), headers={"Range": asked, "If-Range": '"other"'})
        assert (other.status_code, other.content) == (200, LARGE)
        same = await made.client.get(at(LARGE), headers={"If-None-Match": f'"{digest_of(LARGE)}"'})
        assert (same.status_code, same.content) == (304, b"")

    play(tmp_path, story)


def test_refusals_say_why_and_keep_nothing(tmp_path: Path) -> None:
    """Other bytes, half frames, too many digests and wrong parts are refused in words, and nothing of them is kept."""

    async def story(made: Application) -> None:
        client = made.client
        wrong = await client.put(at(LARGE), content=LARGE[:-1])
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "digest_mismatch")
        half = await client.post("/api/v1/blobs/pack", content=frame(SMALL)[:-1])
        assert (half.status_code, half.json()["error"]["code"]) == (422, "invalid")
        other = await client.post("/api/v1/blobs/pack", content=frame(SMALL)[:-1] + b"?")
        assert (other.status_code, other.json()["error"]["code"]) == (422, "digest_mismatch")
        big = await client.post("/api/v1/blobs/pack", content=bytes(most("blob_pack_bytes") + 1))
        assert (big.status_code, big.json()["error"]["limit"]) == (413, "blob_pack_bytes")
        for route in ("missing", "read"):
            many = {"digests": [digest_of(SMALL)] * (most("digests_per_request") + 1)}
            assert (await client.post(f"/api/v1/blobs/{route}", json=many)).status_code == 422
            assert (await client.post(f"/api/v1/blobs/{route}", json={"digests": ["../x"]})).status_code == 422
        asked = {"digests": [digest_of(SMALL), digest_of(LARGE)]}
        assert (await client.post("/api/v1/blobs/missing", json=asked)).json()["missing"] == asked["digests"]
        upload = at(LARGE, "uploads")
        for path, status in (
            (f"{upload}/0", 422), (f"{upload}/0?size=0&part_size=1", 422), (f"{upload}/-1?size=9&part_size=1", 422),
            (f"{upload}/1?size=9&part_size=9", 422), (f"{upload}/x?size=9&part_size=9", 422),
            (f"{upload}/0?size=9&part_size={2 << 30}", 422), (f"{upload}/0?size=99999&part_size=1", 422),
        ):  # fmt: skip
            assert (await client.put(path, content=b"123456789")).status_code == status, path
        nothing = await client.post(upload, json={"size": 9, "part_size": 3})
        assert (nothing.status_code, nothing.json()["error"]["parts"]) == (409, [0, 1, 2])

    play(tmp_path, story)
    left = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file() and "index.db" not in path.name]
    assert [path for path in left if "uploads" not in path.parts] == []


def test_a_large_blob_comes_in_parts(tmp_path: Path) -> None:
    """Parts come in any order; those that are there are told; completing checks them and makes the blob."""

    async def story(made: Application) -> None:
        path, part_size = at(LARGE, "uploads"), 1 << 20
        empty = {"digest": digest_of(LARGE), "size": None, "part_size": None, "parts": []}
        assert (await made.client.get(path)).json() == empty
        query = {"size": len(LARGE), "part_size": part_size}

        async def send(part: int) -> int:
            content = LARGE[part * part_size : (part + 1) * part_size]
            return (await made.client.put(f"{path}/{part}", params=query, content=pieces(content))).status_code

        assert await asyncio.gather(send(3), send(0)) == [200, 200]
        assert (await made.client.get(path)).json() == {"digest": digest_of(LARGE), **query, "parts": [0, 3]}
        assert (await made.client.post(path, json=query)).status_code == 409
        assert (await made.client.head(at(LARGE))).status_code == 404
        assert await asyncio.gather(send(1), send(2), send(2)) == [200, 200, 200]
        done = await asyncio.gather(*(made.client.post(path, json=query) for _ in range(3)))
        assert [one.json() for one in done] == [{"digest": digest_of(LARGE), "size": len(LARGE)}] * 3
        assert (await made.client.get(at(LARGE))).content == LARGE
        assert (await made.client.get(path)).json() == empty
        bad = at(b"bad", "uploads")
        await made.client.put(f"{bad}/0?size=3&part_size=3", content=b"BAD")
        refused = await made.client.post(bad, json={"size": 3, "part_size": 3})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "digest_mismatch")
        assert (await made.client.get(bad)).json()["parts"] == []

    play(tmp_path, story)


def test_two_uploads_of_one_blob_at_once(tmp_path: Path) -> None:
    """Both are answered 200, and one copy is kept."""

    async def story(made: Application) -> None:
        puts = [made.client.put(at(LARGE), content=pieces(LARGE)) for _ in range(4)]
        packs = [made.client.post("/api/v1/blobs/pack", content=frame(SMALL)) for _ in range(4)]
        assert {answer.status_code for answer in await asyncio.gather(*puts, *packs)} == {200}

    play(tmp_path, story)
    assert len([path for path in (tmp_path / "blobs" / "whole").rglob("*") if path.is_file()]) == 1
    assert len(list((tmp_path / "blobs" / "packs").iterdir())) == 1


def test_a_damaged_blob_is_not_given(tmp_path: Path) -> None:
    """A blob whose bytes changed on the disk is 500 in honest words, alone and among others."""

    async def story(made: Application) -> None:
        await made.client.put(at(SMALL), content=SMALL)
        file = tmp_path / "blobs" / "whole" / digest_of(SMALL)[:2] / digest_of(SMALL)
        file.write_bytes(SMALL[::-1])
        alone = await made.client.get(at(SMALL))
        among = await made.client.post("/api/v1/blobs/read", json={"digests": [digest_of(SMALL)]})
        for answer in (alone, among):
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "blob_damaged")
            assert answer.json()["error"]["digest"] == digest_of(SMALL)

    play(tmp_path, story)


@pytest.mark.slow
def test_hostile_names_touch_nothing(tmp_path: Path) -> None:
    """Whatever stands where a digest or a part belongs, the answer is 4xx and no file is made or read."""
    (tmp_path / "log").mkdir()
    (tmp_path / "victim").write_bytes(b"secret")

    def there() -> list[Path]:
        return sorted(path for path in tmp_path.rglob("*") if "log" not in path.parts)

    async def story(made: Application) -> None:
        before = there()
        names = [name if isinstance(name, str) else name["name"] for name in HOSTILE]
        names += ["../../victim", digest_of(b"x").upper(), digest_of(b"x") + "\n", "." * 64, digest_of(b"x")[:-1] + "/"]
        assert len(names) >= 300
        good = digest_of(b"x")
        for name in set(names) - {"0"}:  # which is a part
            part = quote(name.encode("utf-8", "surrogatepass"), safe="")
            for method, path in (
                ("GET", f"blobs/{part}"), ("HEAD", f"blobs/{part}"), ("PUT", f"blobs/{part}"),
                ("GET", f"uploads/{part}"), ("PUT", f"uploads/{part}/0?size=1&part_size=1"),
                ("PUT", f"uploads/{good}/{part}?size=1&part_size=1"), ("POST", f"uploads/{part}"),
            ):  # fmt: skip
                body = b'{"size":1,"part_size":1}' if method == "POST" else b"x" if method == "PUT" else None
                answer = await made.client.request(method, f"/api/v1/{path}", content=body)
                assert 400 <= answer.status_code < 500, (method, path)
                assert b"secret" not in answer.content
            for route in ("missing", "read"):
                asked = json.dumps({"digests": [name]}).encode()
                assert 400 <= (await made.client.post(f"/api/v1/blobs/{route}", content=asked)).status_code < 500
        assert there() == before

    play(tmp_path, story)


def test_routes_ask_for_their_permission(tmp_path: Path) -> None:
    """Reading asks for artifact:read, and whatever stores for artifact:write; a stranger is 401."""

    async def story(made: Application) -> None:
        from icecore_api.routes.blobs import router

        asked = {(method, route.path): permission_of(route) for route in router.routes for method in route.methods}
        assert len(asked) == 10
        writing = {"/blobs/pack", "/uploads/{digest}/{part}"}
        for (method, path), permission in asked.items():
            stores = method == "PUT" or path in writing or (method, path) == ("POST", "/uploads/{digest}")
            assert permission == ("artifact:write" if stores else "artifact:read"), path
        assert (await made.anonymous.put(at(SMALL), content=SMALL)).status_code == 401
        assert (await made.client.head(at(SMALL))).status_code == 404

    play(tmp_path, story)


@pytest.mark.slow
def test_uploads_go_on_after_the_server_was_killed(tmp_path: Path) -> None:
    """Through the gateway, parts outlive kill -9 of all processes; a read-only server gives blobs and takes none."""
    size = {"size": len(LARGE), "part_size": 1 << 20}
    upload, blob = at(LARGE, "uploads"), at(LARGE)
    server = Server(data=tmp_path / "data", config_dir=tmp_path / "config").start()
    try:
        with client_of(server) as client:
            assert client.put(f"{upload}/2", params=size, content=LARGE[2 << 20 : 3 << 20]).status_code == 200
            assert client.post("/api/v1/blobs/pack", content=frame(SMALL)).json() == {"stored": 1}
        server.stop(kill=True)
        server.start()
        with client_of(server) as client:
            assert client.get(upload).json()["parts"] == [2]
            for part in (0, 1, 3):
                content = LARGE[part << 20 : (part + 1) << 20]
                assert client.put(f"{upload}/{part}", params=size, content=content).status_code == 200
            assert client.post(upload, json=size).json() == {"digest": digest_of(LARGE), "size": len(LARGE)}
            assert client.head(blob).headers["content-length"] == str(len(LARGE))
            ranged = client.get(blob, headers={"Range": "bytes=2000000-"})
            assert (ranged.status_code, ranged.content) == (206, LARGE[2_000_000:])
        server.stop(kill=True)
        server.arguments = ("--read-only",)
        server.start()
        with client_of(server) as client:
            assert (client.get(blob).content, client.get(at(SMALL)).content) == (LARGE, SMALL)
            asked = {"digests": [digest_of(SMALL), digest_of(b"absent")]}
            assert client.post("/api/v1/blobs/missing", json=asked).json()["missing"] == [digest_of(b"absent")]
            for path in (at(b"x"), f"{at(b'x', 'uploads')}/0?size=1&part_size=1"):
                refused = client.put(path, content=b"x")
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only")
    finally:
        server.stop()


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.api_key}"}, timeout=60)
