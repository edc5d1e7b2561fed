"""API keys over HTTP: made once, listed without secrets, revoked at once, and never the last."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx

from applications import Application, application
from icecore.events import UserCreated
from icecore.position import LEDGER, Place
from icecore_ingest.identity import new_key, sha256_hex

KEYS = "/api/v1/keys"


def with_key(app: Application, secret: str) -> httpx.AsyncClient:
    """A client with another key."""
    transport = httpx.ASGITransport(app.app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)


async def made(app: Application, name: str) -> Any:
    """A new key."""
    answer = await app.client.post(KEYS, json={"name": name})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_key_is_shown_once_and_works_until_it_is_revoked(tmp_path: Path) -> None:
    """The next request may come with it; after its revocation it is 401, and nothing but its hash was ever written."""

    async def work() -> None:
        async with application(tmp_path) as app:
            key = await made(app, "ci")
            assert re.fullmatch(r"icecore-[A-Za-z0-9]{43}", key["key"])
            async with with_key(app, key["key"]) as other:
                seen = (await other.get("/api/v1/viewer")).json()
                assert (seen["user"], seen["key_id"]) == ("owner", key["id"])
                listed = (await other.get(KEYS)).json()["keys"]
                assert [(one["name"], one["state"], one["current"]) for one in listed] == [
                    ("", "active", False), ("ci", "active", True),
                ]  # fmt: skip
                assert key["key"] not in str(listed)
                gone = await app.client.delete(f"{KEYS}/{key['id']}")
                assert (gone.status_code, gone.json()["state"]) == (200, "revoked")
                assert (await other.get("/api/v1/viewer")).status_code == 401
            again = await app.client.delete(f"{KEYS}/{key['id']}")
            assert (again.status_code, again.json()["revoked_at"]) == (200, gone.json()["revoked_at"])
            records = (await app.log.read(Place(LEDGER, 0), 0)).records
            written = b"".join(record.payload for record in records)
            assert key["key"].encode() not in written
            assert sha256_hex(key["key"]).encode() in written
            events = [(one.envelope.type, one.envelope.actor) for one in records if b"ci" in one.payload]
            assert events == [("key.created", "owner")]

    asyncio.run(work())


def test_a_name_is_that_of_one_key_in_force(tmp_path: Path) -> None:
    """Of two that ask for one name at once one gets it; it is free again once that key is revoked."""

    async def work() -> None:
        async with application(tmp_path) as app:
            both = await asyncio.gather(*(app.client.post(KEYS, json={"name": "ci"}) for _ in range(2)))
            assert sorted(answer.status_code for answer in both) == [200, 409]
            first = next(answer.json() for answer in both if answer.status_code == 200)
            await app.client.delete(f"{KEYS}/{first['id']}")
            assert (await made(app, "ci"))["id"] != first["id"]
            for bad in ("", " x", "a\nb", "x" * 257, first["id"]):
                assert (await app.client.post(KEYS, json={"name": bad})).status_code == 422, bad

    asyncio.run(work())


def test_the_last_key_cannot_be_revoked(tmp_path: Path) -> None:
    """Nobody locks themselves out, not even where the last two are revoked at once; unknown ids are 404."""

    async def work() -> None:
        async with application(tmp_path) as app:
            (own,) = (await app.get("keys"))["keys"]
            refused = await app.client.delete(f"{KEYS}/{own['id']}")
            assert (refused.status_code, "icecore key create" in refused.json()["error"]["hint"]) == (409, True)
            other = await made(app, "b")
            both = await asyncio.gather(*(app.client.delete(f"{KEYS}/{one['id']}") for one in (own, other)))
            assert sorted(answer.status_code for answer in both) == [200, 409]
            (left,) = (key for key in app.context.identities.every_key() if not key.revoked)
            async with with_key(app, other["key"]) as client:
                expected = 200 if left.key_id == other["id"] else 401
                assert (await client.get("/api/v1/viewer")).status_code == expected
            assert (await app.anonymous.delete(f"{KEYS}/{own['id']}")).status_code == 401

    asyncio.run(work())


def test_only_an_owner_makes_keys(tmp_path: Path) -> None:
    """A user of another role is 403, and no event is written."""

    async def work() -> None:
        async with application(tmp_path) as app:
            secret, key = new_key("bob")
            token = await app.put(UserCreated(user="bob", role="member"), key)
            assert await app.context.identities.wait_for(max(token.as_dict().values()), 10)
            async with with_key(app, secret) as bob:
                assert (await bob.get("/api/v1/viewer")).status_code == 200
                answers = [
                    await bob.get(KEYS),
                    await bob.post(KEYS, json={"name": "x"}),
                    await bob.delete(f"{KEYS}/{key.key_id}"),
                ]
            assert [answer.status_code for answer in answers] == [403, 403, 403]
            assert len(app.context.identities.every_key()) == 2

    asyncio.run(work())
