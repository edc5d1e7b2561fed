"""The API as one ASGI application."""

from __future__ import annotations

import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import FileResponse, Response

from icecore.errors import NotFound
from icecore_api.answers import NO_CACHE, WEB, Json, index_page, install_errors
from icecore_api.context import Context
from icecore_api.deps import OfProject, OfRun
from icecore_api.jobs import Job
from icecore_api.models import Done
from icecore_api.retention.clock import RetentionClock
from icecore_api.retention.erasing import Eraser
from icecore_api.retention.expiry import Expiry, last_ms
from icecore_api.routes import (
    artifacts,
    blobs,
    bundles,
    console,
    health,
    history,
    keys,
    lineage,
    log,
    login,
    ops,
    projects,
    registry,
    retention,
    runs,
    scrubs,
    series,
    storage,
)
from icecore_api.routing import Gate, Route, Router, include
from icecore_api.submit import Commands
from icecore_ingest.openapi import openapi_paths
from icecore_ingest.requests import Requests, Watched

PREFIX: Final = "/api/v1"
PAGES: Final = {"/": "index.html", "/login": "index.html", "/app.js": "app.js", "/app.css": "app.css"}
"""What a browser gets without a key: a page that asks for data with the session's cookie."""
_HTML: Final[dict[str, Any]] = {"text/html": {"schema": {"type": "string"}}}


def create_app(context: Context) -> FastAPI:
    """The application around a process's log and store."""
    app = FastAPI(
        title="icecore",
        version=version("icecore"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.commands = Commands(context)
    clock = RetentionClock(context.clock_ms, partial(last_ms, context))
    app.state.eraser = Eraser(context, app.state.commands, clock)
    app.state.drafts = WeakValueDictionary()
    app.state.expiry = Expiry(context, app.state.commands, clock)
    app.state.jobs = {name: Job(name, context.clock_ms) for name in ("rebuild", "fsck", "scrub", "gc")}
    install_errors(app)
    routers = [
        projects,
        runs,
        series,
        history,
        console,
        log,
        ops,
        login,
        keys,
        artifacts,
        bundles,
        registry,
        blobs,
        lineage,
        scrubs,
        retention,
        storage,
    ]
    include(app, [route for module in routers for route in module.router.routes], PREFIX)
    include(app, [*health.router.routes, *_pages(app).routes], "")
    public = {"/healthz", "/readyz", "/metrics", "/openapi.json", f"{PREFIX}/login", *PAGES}
    app.add_middleware(Gate, context=context, public=public)
    failed = partial(context.metrics.add, "icecore_store_internal_errors_total")
    app.add_middleware(Requests, watched=Watched.of(os.environ, failed))
    return app


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document of every route, those of the gateway included."""
    if not app.openapi_schema:
        routes = [route.documented() for route in app.routes if isinstance(route, Route)]
        document = get_openapi(title=app.title, version=app.version, routes=routes, summary="Runs as events.")
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes |= {
            "key": {"type": "http", "scheme": "bearer", "description": "an API key"},
            "session": {"type": "apiKey", "in": "cookie", "name": "icecore_session"},
        }
        document["paths"] |= openapi_paths()
        for item in document["paths"].values():
            for operation in item.values():
                _own_errors(operation)
        app.openapi_schema = document
    return app.openapi_schema


def _own_errors(operation: dict[str, Any]) -> None:
    """Say of every 422 that it is our error body: FastAPI writes its own where a route has parameters."""
    unprocessable = operation.get("responses", {}).get("422", {})
    content = unprocessable.get("content", {}).get("application/json")
    if content and content["schema"].get("$ref", "").endswith("HTTPValidationError"):
        content["schema"] = {"$ref": "#/components/schemas/ErrorBody"}


def _pages(app: FastAPI) -> Router:
    router = Router("web")

    @router.on("GET", "/openapi.json", permission="public", answer=Done)
    def document() -> Response:
        """This document."""
        return Json(openapi(app))

    for path, name in PAGES.items():
        _page(router, path, WEB / name)

    @router.on("GET", "/{entity}/{project}", permission="run:read", answer=None, errors=[404], content=_HTML)
    def project_page(at: OfProject) -> Response:
        """The page of a project."""
        return _own_page(at.entity)

    @router.on("GET", "/{entity}/{project}/{run_id}", permission="run:read", answer=None, errors=[404], content=_HTML)
    def run_page(at: OfRun) -> Response:
        """The page of a run: what `url` of a run names."""
        return _own_page(at.entity)

    return router


def _own_page(entity: str) -> Response:
    if entity == "api":
        raise NotFound("no such route", hint="/openapi.json lists the routes")
    return index_page()


def _page(router: Router, path: str, file: Path) -> None:
    media = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}[file.suffix]

    def page() -> Response:
        """A part of the web page."""
        return FileResponse(file, media_type=media, headers=NO_CACHE)

    page.__name__ = f"page_{file.stem}_{path.strip('/').replace('.', '_') or 'root'}"
    router.on("GET", path, permission="public", answer=None, content={media: {"schema": {"type": "string"}}})(page)
