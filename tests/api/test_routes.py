"""Who may ask what: every route has a permission, and strangers get past none that is not public."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.routing import BaseRoute, Mount

from applications import PROJECT, Application, application, started
from icecore.errors import IcecoreError
from icecore_api.app import openapi
from icecore_api.routing import PERMISSIONS, Router, permission_of
from icecore_ingest.identity import new_login_offer, sha256_hex

PUBLIC = {
    ("GET", "/"), ("GET", "/login"), ("GET", "/app.js"), ("GET", "/app.css"), ("GET", "/openapi.json"),
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics"), ("POST", "/api/v1/login"),
}  # fmt: skip
HOSTILE = json.loads((Path(__file__).parents[1] / "golden" / "hostile_names.json").read_text(encoding="utf-8"))


def play(folder: Path, story: Callable[[Application], Awaitable[None]]) -> None:
    """Run a story against an application of its own."""

    async def main() -> None:
        async with application(folder) as made:
            await story(made)

    asyncio.run(main())


def all_routes(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str, BaseRoute]]:
    """Every (method, path, route), those of mounted applications included."""
    for route in routes:
        if isinstance(route, Mount):
            yield from all_routes(list(route.routes), prefix + route.path)
        else:
            for method in sorted(getattr(route, "methods", None) or {"GET"}):
                yield method, prefix + getattr(route, "path", "").replace(":path}", "}"), route


def test_every_route_names_a_permission_and_strangers_get_401(tmp_path: Path) -> None:
    """Each route of the application, mounts included, has a permission, and without a key answers 401."""

    async def story(made: Application) -> None:
        seen = set()
        for method, path, route in all_routes(made.app.routes):
            permission = permission_of(route)
            assert permission in PERMISSIONS, path
            seen.add((method, path))
            concrete = path.replace("{entity}", "team").replace("{project}", "project").replace("{run_id}", "r")
            answer = await made.anonymous.request(method, concrete)
            if (method, path) in PUBLIC:
                assert answer.status_code in (200, 422), path  # 422: a login without a token
            else:
                assert answer.status_code == 401, path
            assert (permission == "public") == ((method, path) in PUBLIC), path
        assert (await made.anonymous.get("/api/v1/login")).status_code == 401  # as a run's page, which it is not
        assert seen >= PUBLIC
        assert len(seen) > 20

    play(tmp_path, story)


def test_unknown_paths_are_401_to_strangers_and_404_to_callers(tmp_path: Path) -> None:
    """What is not there cannot be told from what is without a key."""

    async def story(made: Application) -> None:
        for path in (
            "/api/v1/nothing",
            "/api/v2",
            "/docs",
            "/redoc",
            "/admin",
            "/.env",
            "/api/v1/runs",
            "/app.js/",
        ):
            stranger = await made.anonymous.get(path)
            assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "unauthenticated")
            assert stranger.headers["WWW-Authenticate"].startswith("Bearer")
            caller = await made.client.get(path)
            assert (caller.status_code, caller.json()["error"]["code"]) == (404, "not_found")
        wrong = await made.anonymous.get("/api/v1/projects", headers={"Authorization": "Bearer icecore-wrong"})
        assert wrong.status_code == 401
        assert (await made.client.put("/api/v1/projects")).status_code == 405

    play(tmp_path, story)


def test_a_route_without_a_permission_cannot_be_registered() -> None:
    """Registering a route that names no known permission fails at once."""
    with pytest.raises(ValueError, match=r"expected one of .*'artifact:read'.* got 'open'"):
        Router("web").on("GET", "/open", permission="open", answer=None)  # type: ignore[arg-type]


def test_hostile_names_are_4xx_or_found_nothing(tmp_path: Path) -> None:
    """No text in a path or a parameter makes a server error, and every refusal says what was expected."""

    async def story(made: Application) -> None:
        names = [name if isinstance(name, str) else name["name"] for name in HOSTILE]
        assert len(names) >= 100
        await made.put(started("r"))
        for name in names:
            raw = name.encode("utf-8", "surrogatepass")
            part = quote(raw, safe="")
            query = {
                "filters": json.dumps({f"config.{name}": name}),
                "order": f"config.{name}",
                "facets": f"config.{name}",
            }
            asked = "&".join(f"{key}={quote(value.encode('utf-8', 'surrogatepass'))}" for key, value in query.items())
            for path in (
                f"runs/{part}/project", f"runs/team/{part}/r", f"runs/{PROJECT}/{part}", f"runs/{PROJECT}?{asked}",
                f"runs/{PROJECT}/r/console?search={part}&after={part}", f"runs/{PROJECT}?cursor={part}&filters={part}",
            ):  # fmt: skip
                answer = await made.client.get(f"/api/v1/{path}")
                assert answer.status_code < 500, (path, answer.text)
                if answer.status_code >= 400:
                    assert answer.json()["error"]["message"], path

    play(tmp_path, story)


def test_a_login_link_opens_one_session(tmp_path: Path) -> None:
    """A link's token gives an HttpOnly cookie once; the session ends with logging out."""

    async def story(made: Application) -> None:
        token, offer = new_login_offer("owner")
        at = await made.put(offer)
        assert await made.context.identities.wait_for(max(at.as_dict().values()), 10)
        answers = await asyncio.gather(*(made.anonymous.post("/api/v1/login", json={"token": token}) for _ in range(3)))
        good = [answer for answer in answers if answer.status_code == 200]
        assert sorted(answer.status_code for answer in answers) == [200, 401, 401]
        cookie = good[0].headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        secret = cookie.partition("=")[2].partition(";")[0]
        made.anonymous.cookies.clear()
        headers = {"Cookie": f"icecore_session={secret}"}
        seen = await made.anonymous.get("/api/v1/viewer", headers=headers)
        assert seen.json()["user"] == "owner"
        assert seen.json()["key_id"] == f"session:{sha256_hex(secret)[:16]}"
        assert (await made.anonymous.post("/api/v1/login", json={"token": token})).status_code == 401
        out = await made.anonymous.post("/api/v1/logout", headers=headers)
        assert out.json() == {"logged_out": True}
        deadline = asyncio.get_running_loop().time() + 10
        while (await made.anonymous.get("/api/v1/viewer", headers=headers)).status_code != 401:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)

    play(tmp_path, story)


def test_operations_run_in_the_background_and_tell_their_progress(tmp_path: Path) -> None:
    """A rebuild answers 202 at once, shows its progress, refuses a second, and keeps its outcome."""

    async def story(made: Application) -> None:
        made.operations.may_end.clear()
        begun = await made.client.post("/api/v1/rebuild", json={"verify": True})
        assert (begun.status_code, begun.json()["state"]) == (202, "running")
        deadline = asyncio.get_running_loop().time() + 10
        while not (job := await made.get("rebuild"))["progress"]:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        assert job["progress"] == {"folded": 1, "of": 2}
        assert (await made.client.post("/api/v1/rebuild")).status_code == 409
        made.operations.may_end.set()
        while (job := await made.get("rebuild"))["state"] == "running":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        assert (job["state"], job["result"]) == ("done", {"same": True, "verify": True})
        assert (await made.get("fsck"))["state"] == "none"
        assert (await made.client.post("/api/v1/fsck")).status_code == 202

    play(tmp_path, story)


def test_status_says_how_far_the_log_is_folded(tmp_path: Path) -> None:
    """Status gives the log's end, what is folded, the lag, and the digest where asked."""

    async def story(made: Application) -> None:
        await made.put(started("r"))
        status = await made.get("status", digest=True)
        assert status["log"] == status["folded"] == {"ledger:0": 3}
        assert (status["lag"], status["dead_letters"], status["digest"]) == (0, 0, "0" * 64)
        assert "digest" not in await made.get("status")
        page = await made.get("log", start=2, limit=1)
        assert (page["next"], page["end"]) == (3, 3)
        assert page["events"][0]["payload"]["run"] == f"{PROJECT}/r"
        assert (await made.get("log", start=10))["events"] == []
        assert (await made.client.get("/api/v1/log", params={"partition": 7})).status_code == 404

    play(tmp_path, story)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """The page, its script and its style come from here, without inline code."""

    async def story(made: Application) -> None:
        page = await made.anonymous.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "http" not in page.text.replace("http-equiv", "")
        assert " style=" not in page.text
        for path in ("/app.js", "/app.css"):
            assert path in page.text
            assert (await made.anonymous.get(path)).status_code == 200
        for path in ("/team/project", "/team/project/r"):
            assert (await made.client.get(path)).text == page.text
            stranger = await made.anonymous.get(path, headers={"Accept": "text/html"})
            assert (stranger.status_code, stranger.text) == (401, page.text)
        assert (await made.client.get("/api/v1")).status_code == 404

    play(tmp_path, story)


def test_the_document_names_every_route_and_its_errors(tmp_path: Path) -> None:
    """OpenAPI has every route of the application and of the gateway, each with its errors' body."""

    async def story(made: Application) -> None:
        document = openapi(made.app)
        for method, path, _ in all_routes(made.app.routes):
            operation = document["paths"][path][method.lower()]
            assert [code for code in operation["responses"] if code.startswith("2")], path
            for code in ("422", "503") if path not in ("/healthz", "/readyz", "/metrics") else ():
                schema = operation["responses"][code]["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/ErrorBody"), path
        assert {"/api/v1/events", "/metrics"} <= document["paths"].keys()
        assert IcecoreError("x").body()["error"].keys() == {"code", "message", "hint"}
        assert (await made.anonymous.get("/openapi.json")).json() == json.loads(json.dumps(document))

    play(tmp_path, story)
