"""The whole application against its own OpenAPI document: no server errors, no answer that it does not describe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from applications import PROJECT, application, logged, started
from icecore.artifact_events import AliasMoved, ArtifactCommitted
from icecore_api.app import create_app, openapi
from icecore_api.blobs.packs import frame
from icecore_api.context import Context

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
FROM_GATEWAY = ("/api/v1/events", "/healthz", "/readyz", "/metrics")


async def _once(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


class Served:
    """The application on a port, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.key = ""
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._server: uvicorn.Server | None = None

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            made = await stack.enter_async_context(application(self._folder))
            await made.put(
                started("r", name="n", config={"lr": 0.1, "net": {"depth": 3}}, tags=["a"]),
                logged("r", {"loss": [1.0, float("nan"), 2.0]}, text={"phase": ["a", "b", "c"]}),
                started("0", group="g"),
                ArtifactCommitted(
                    artifact=f"{PROJECT}/net", type="model", digest="d" * 64, files=1, size=6, run=f"{PROJECT}/r"
                ),
                AliasMoved(artifact=f"{PROJECT}/net", alias="best", version=0),
            )
            await made.context.blobs.put_small(_once(frame(b"a blob")))
            self.key = made.key
            config = uvicorn.Config(made.app, port=0, log_config=None, lifespan="off", ws="none")
            self._server = uvicorn.Server(config)
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:  # noqa: ASYNC110 - uvicorn says so by nothing else
                await asyncio.sleep(0.01)
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self._ready.set()
            await serving

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("served")) as made:
        yield made


@pytest.fixture(scope="module")
def api(served: Served) -> schemathesis.BaseSchema:
    document = httpx.get(f"{served.url}/openapi.json", timeout=60).json()
    for path in FROM_GATEWAY:
        document["paths"].pop(path)
    return schemathesis.openapi.from_dict(document)


def _operations() -> list[tuple[str, str]]:
    nothing = Context(
        log=None, current_store=None, identities=None, operations=None, producer="", data=Path(), blobs=None
    )  # type: ignore[arg-type]
    paths = openapi(create_app(nothing))["paths"]
    return [(method, path) for path, item in paths.items() if path not in FROM_GATEWAY for method in item]


@pytest.mark.parametrize(("method", "path"), _operations())
def test_every_answer_is_one_the_document_describes(
    served: Served, api: schemathesis.BaseSchema, method: str, path: str
) -> None:
    """Whatever is asked, the answer has a status, a type and a body that the document describes, and is no 5xx."""
    operation = api[path][method.upper()]

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy(), there=st.booleans())
    def check(case: schemathesis.Case, there: bool) -> None:
        if there and case.path_parameters:
            run = dict(zip(("entity", "project", "run_id"), f"{PROJECT}/r".split("/"), strict=True))
            there_too: dict[str, Any] = {**run, "digest": sha256(b"a blob").hexdigest(), "part": 0}
            there_too |= {"name": "net", "ref": "v0", "alias": "best"}
            case.path_parameters.update({name: there_too[name] for name in case.path_parameters if name in there_too})
        answer = case.call(base_url=served.url, headers={"Authorization": f"Bearer {served.key}"})
        case.validate_response(answer, checks=CHECKS)

    check()


@pytest.mark.parametrize(
    "path",
    [
        f"runs/{PROJECT}", f"runs/{PROJECT}/r", f"runs/{PROJECT}/r/console", f"runs/{PROJECT}/r/history", "projects",
        "log", "status", "viewer", "dead-letters", f"runs/{PROJECT}?facets=config.lr,tags&order=config.lr",
    ],
)  # fmt: skip
def test_good_answers_are_as_described(served: Served, api: schemathesis.BaseSchema, path: str) -> None:
    """The answers about a real run have the shape the document says."""
    answer = httpx.get(f"{served.url}/api/v1/{path}", headers={"Authorization": f"Bearer {served.key}"})
    assert answer.status_code == 200
    template = f"/api/v1/{path.partition('?')[0]}".replace(f"runs/{PROJECT}", "runs/{entity}/{project}")
    template = template.replace("{project}/r", "{project}/{run_id}")
    api[template]["GET"].validate_response(answer)
