"""Artifacts: versions committed, looked at, named, used, deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore.artifact_events import (
    AliasMoved,
    ArtifactCommitted,
    ArtifactDeleted,
    ArtifactRestored,
    ArtifactUpdated,
    ArtifactUsed,
)
from icecore.errors import BadRequest, Invalid
from icecore.events import Event, check_name, check_path_part, split_run_path
from icecore.limits import most
from icecore.position import Token
from icecore_api.answers import Json
from icecore_api.artifact_models import (
    AliasHistory,
    AliasPatch,
    AliasState,
    ArtifactsAnswer,
    Commit,
    Use,
    VersionAnswer,
    VersionPatch,
    VersionsPage,
)
from icecore_api.context import Context
from icecore_api.deps import OfProject, Process, Read, Reading, body_schema, read_body, reading_now
from icecore_api.manifests import Content, check_manifest
from icecore_api.queries.artifacts import NUMBERED, Artifacts, collection_answer, version_answer
from icecore_api.queries.documents import matcher
from icecore_api.routes.moments import Then
from icecore_api.routing import Router, principal
from icecore_ingest.admit import check_depth
from icecore_projections.folds.artifact_rows import LATEST

router: Final = Router("artifacts")

FILTERED: Final = frozenset(
    {"metadata", "version", "created_at", "tags", "aliases", "description", "user", "size", "files"}
)
"""What a filter of versions may begin with."""
TEXT_BYTES_MOST: Final = most("config_bytes") // 4
"""Of a description, or a card's template."""
_SEEN_MOST: Final = 100_000


@dataclass(frozen=True, slots=True)
class ArtifactPath:
    """entity/project/name, checked."""

    entity: str
    project: str
    name: str

    @property
    def path(self) -> str:
        """As in events."""
        return f"{self.entity}/{self.project}/{self.name}"


async def _artifact(
    entity: Annotated[str, Path()], project: Annotated[str, Path()], name: Annotated[str, Path()]
) -> ArtifactPath:
    return ArtifactPath(
        check_path_part("an entity", entity),
        check_path_part("a project", project),
        check_path_part("an artifact's name", name),
    )


OfArtifact = Annotated[ArtifactPath, Depends(_artifact)]
Ref = Annotated[str, Path(max_length=128, description="an alias, or v3")]


def _then(reading: Reading, then: Any) -> Artifacts:
    reading.begin()
    return Artifacts(reading.cursor, then.upto.ledger if then else None)


# ------------------------------------------------------------------------------------------------------- reading


@router.on("GET", "/artifacts/{entity}/{project}", permission="artifact:read", answer=ArtifactsAnswer)
def list_artifacts(
    at: OfProject,
    reading: Read,
    type: Annotated[str | None, Query(max_length=256)] = None,  # noqa: A002 - the query's name
    then: Then = None,
) -> Response:
    """The artifacts of a project, by name."""
    found = _then(reading, then).collections(at.entity, at.project, type)
    return Json({"artifacts": [collection_answer(row) for row in found]}, position=reading.position)


@router.on("GET", "/artifacts/{entity}/{project}/{name}", permission="artifact:read", answer=VersionsPage, errors=[404])
def list_versions(
    at: OfArtifact,
    reading: Read,
    filters: Annotated[
        str | None, Query(description="as for runs, over metadata.X, tags, …", max_length=1 << 16)
    ] = None,
    limit: Annotated[int, Query(ge=1, le=most("page_runs"))] = 50,
    cursor: Annotated[str | None, Query(pattern=f"^{NUMBERED.pattern}$", max_length=16)] = None,
    then: Then = None,
) -> Response:
    """The versions of an artifact that match, newest first."""
    matches = matcher(_parsed(filters), FILTERED)
    page: list[dict[str, Any]] = []
    for found in _then(reading, then).versions(at.path, int(cursor[1:]) if cursor else None):
        answer = version_answer(found)
        if matches(answer):
            page.append(answer)
            if len(page) > limit:
                break
    more = page[limit - 1]["version"] if len(page) > limit else None
    return Json({"versions": page[:limit], "cursor": more}, position=reading.position)


@router.on(
    "GET", "/artifacts/{entity}/{project}/{name}/{ref}", permission="artifact:read", answer=VersionAnswer, errors=[404]
)
def get_version(at: OfArtifact, ref: Ref, reading: Read, then: Then = None) -> Response:
    """The version that an alias or a number names."""
    return Json(version_answer(_then(reading, then).find(at.path, ref)), position=reading.position)


@router.on(
    "GET",
    "/artifacts/{entity}/{project}/{name}/aliases/{alias}",
    permission="artifact:read",
    answer=AliasHistory,
    errors=[404],
)
def alias_history(at: OfArtifact, alias: Ref, reading: Read, then: Then = None) -> Response:
    """Where an alias went, when, by whom and why."""
    moves = _then(reading, then).moves(at.path, alias)
    return Json({"alias": alias, "history": moves}, position=reading.position)


def _parsed(filters: str | None) -> Any:
    try:
        return orjson.loads(filters) if filters else {}
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"expected filters as JSON, got {(filters or '')[:80]!r}: {error}") from error


# ------------------------------------------------------------------------------------------------------ commands


@router.on(
    "POST",
    "/artifacts/{entity}/{project}/{name}",
    permission="artifact:write",
    answer=VersionAnswer,
    errors=[409, 413],
    extra=body_schema(Commit),
)
async def commit(request: Request, at: OfArtifact, context: Process) -> Response:
    """Make a version of a manifest whose files are all here; a manifest that is one already keeps its version."""
    body = await read_body(request, Commit)
    check_name("an artifact's type", body.type)
    if not body.type:
        raise Invalid("expected an artifact's type, got none", hint='say what it is: "model", "dataset", …')
    check_aliases(body.aliases)
    check_words(body.tags, body.metadata, body.description)
    if body.run:
        split_run_path(body.run)
    with request.app.state.eraser.committing(body.manifest):
        content, base = await _known(context, at, body.manifest)
        content = content or await check_manifest(context.blobs, body.manifest, base)
        if content.parts:
            raise Invalid("expected the files of a version, got a bundle's parts", hint="POST bundles/… makes bundles")
        event = ArtifactCommitted(
            artifact=at.path,
            type=body.type,
            digest=body.manifest,
            files=content.files,
            size=content.size,
            references=content.references,
            description=body.description,
            metadata=body.metadata,
            aliases=body.aliases,
            tags=body.tags,
            run=body.run,
            ttl=body.ttl,
        )
        token = await _submit(request, event)
    async with reading_now(context) as reading:
        found = await run_in_threadpool(Artifacts(reading.cursor).with_digest, at.path, body.manifest)
        return Json(version_answer(found), position=token)


async def _known(context: Context, at: ArtifactPath, manifest: str) -> tuple[Content | None, str]:
    """What is known of a manifest that is a version already; and the manifest of the newest version.

    Blobs of a version are needed, and so are there: looking at 100,000 files again would cost seconds. Neither of one
    that was deleted or is a bundle, nor where some blob is known to be hurt: then what comes may heal it.
    """
    if await context.blobs.hurt():
        return None, ""
    async with reading_now(context) as reading:
        artifacts = Artifacts(reading.cursor)
        version = await run_in_threadpool(artifacts.same, at.path, manifest)
        if version is not None and not version.deleted and not version.parts:
            return Content(version.files, version.size, version.references, {}), ""
        newest = await run_in_threadpool(artifacts.newest, at.path)
    compares = newest is not None and not (newest.deleted or newest.parts or newest.references)
    return None, newest.digest if newest is not None and compares else ""


@router.on(
    "PATCH",
    "/artifacts/{entity}/{project}/{name}/{ref}",
    permission="artifact:write",
    answer=VersionAnswer,
    errors=[404, 409, 413],
    extra=body_schema(VersionPatch),
)
async def patch_version(request: Request, at: OfArtifact, ref: Ref, context: Process) -> Response:
    """Change what people say about a version."""
    body = await read_body(request, VersionPatch)
    check_words(body.tags or [], body.metadata or {}, body.description or "")
    number = await _number(context, at, ref)
    said = body.model_dump(exclude_none=True)
    event = ArtifactUpdated(artifact=at.path, version=number, **said)
    return await _then_version(request, context, at, number, [event] if said else [])


@router.on(
    "DELETE",
    "/artifacts/{entity}/{project}/{name}/{ref}",
    permission="artifact:write",
    answer=VersionAnswer,
    errors=[404, 409],
)
async def delete_version(
    request: Request,
    at: OfArtifact,
    ref: Ref,
    context: Process,
    with_aliases: Annotated[bool, Query(description="its aliases go too")] = False,
) -> Response:
    """Hide a version. It can be restored as long as its bytes are there."""
    number = await _number(context, at, ref)
    event = ArtifactDeleted(artifact=at.path, version=number, with_aliases=with_aliases)
    return await _then_version(request, context, at, number, [event])


@router.on(
    "POST",
    "/artifacts/{entity}/{project}/{name}/{ref}/restore",
    permission="artifact:write",
    answer=VersionAnswer,
    errors=[404, 409],
)
async def restore_version(request: Request, at: OfArtifact, ref: Ref, context: Process) -> Response:
    """Bring a deleted version back."""
    number = await _number(context, at, ref, deleted=True)
    return await _then_version(request, context, at, number, [ArtifactRestored(artifact=at.path, version=number)])


@router.on(
    "POST",
    "/artifacts/{entity}/{project}/{name}/{ref}/uses",
    permission="artifact:write",
    answer=VersionAnswer,
    errors=[404, 409],
    extra=body_schema(Use),
)
async def use_version(request: Request, at: OfArtifact, ref: Ref, context: Process) -> Response:
    """Note that a run takes a version as its input."""
    body = await read_body(request, Use)
    split_run_path(body.run)
    number = await _number(context, at, ref)
    alias = "" if NUMBERED.fullmatch(ref) else ref
    event = ArtifactUsed(artifact=at.path, version=number, run=body.run, alias=alias)
    return await _then_version(request, context, at, number, [event])


@router.on(
    "PUT",
    "/artifacts/{entity}/{project}/{name}/aliases/{alias}",
    permission="artifact:write",
    answer=AliasState,
    errors=[404, 409],
    extra=body_schema(AliasPatch),
)
async def move_alias(request: Request, at: OfArtifact, alias: Ref, context: Process) -> Response:
    """Let an alias name another version, or none; with `expected` only from there."""
    body = await read_body(request, AliasPatch)
    check_alias(alias)
    seen: set[str] = request.app.state.commands.seen
    if at.path not in seen:  # an artifact that was there once is there for ever
        async with reading_now(context) as reading:
            await run_in_threadpool(Artifacts(reading.cursor).collection, at.path)
        if len(seen) >= _SEEN_MOST:
            seen.clear()
        seen.add(at.path)
    event = AliasMoved(
        artifact=at.path,
        alias=alias,
        version=_numbered(body.version),
        expected=_numbered(body.expected),
        conditional="expected" in body.model_fields_set,
        reason=check_name("a reason", body.reason, "text_value_bytes"),
    )
    token = await _submit(request, event)
    if event.conditional:  # it was what it was expected to be
        return Json({"alias": alias, "version": body.version, "before": body.expected}, position=token)
    async with reading_now(context) as reading:
        before = await run_in_threadpool(Artifacts(reading.cursor).moved_from, at.path, alias, token)
    return Json(
        {"alias": alias, "version": body.version, "before": before[0] if before else body.version}, position=token
    )


def check_aliases(aliases: list[str]) -> None:
    """The aliases that a version is to get.

    Raises:
        Invalid: they are too many, or one cannot be moved by hand.
    """
    if len(aliases) > most("aliases"):
        raise Invalid(
            f"expected at most {most('aliases')} aliases, got {len(aliases)}",
            hint="the limit is `aliases` in docs/limits.md",
            limit="aliases",
            most=most("aliases"),
            value=len(aliases),
        )
    for alias in aliases:
        check_alias(alias)


def check_alias(alias: str) -> str:
    """An alias as it may be moved by hand.

    Raises:
        Invalid: it looks like a version, is `latest`, or breaks the rules of path parts.
    """
    check_path_part("an alias", alias)
    if NUMBERED.fullmatch(alias):
        raise Invalid(
            f"expected an alias, got {alias!r}, which names a version", hint="v0, v1, … are given by the server"
        )
    if alias == LATEST:
        raise Invalid("expected an alias that people move, got 'latest'", hint="it names what was committed last")
    return alias


def _numbered(version: str | None) -> int | None:
    if version is None:
        return None
    if not NUMBERED.fullmatch(version):
        raise Invalid(f"expected a version such as v3, got {version[:80]!r}")
    return int(version[1:])


def check_words(tags: list[str], metadata: dict[str, Any], description: str) -> None:
    """See that what people say of a version may be kept.

    Raises:
        Invalid: it is too much or too deep, or a tag cannot be one.
    """
    if (size := len(description.encode())) > TEXT_BYTES_MOST:
        raise Invalid(f"expected a description of at most {TEXT_BYTES_MOST} bytes, got {size}")
    if len(tags) > most("tags"):
        raise Invalid(f"expected at most {most('tags')} tags, got {len(tags)}", limit="tags", most=most("tags"))
    for tag in tags:
        check_name("a tag", tag)
    check_depth(metadata, "metadata")
    if (size := len(orjson.dumps(metadata))) > most("config_bytes"):
        raise Invalid(f"expected metadata of at most {most('config_bytes')} bytes, got {size}", limit="config_bytes")


async def _number(context: Context, at: ArtifactPath, ref: str, *, deleted: bool = False) -> int:
    async with reading_now(context) as reading:
        found = await run_in_threadpool(lambda: Artifacts(reading.cursor).find(at.path, ref, deleted=deleted))
    return found.version.number


async def _submit(request: Request, *events: Event) -> Token:
    token: Token = await request.app.state.commands.submit(principal(request), list(events))
    return token


async def _then_version(
    request: Request, context: Context, at: ArtifactPath, number: int, events: list[Event]
) -> Response:
    token = await _submit(request, *events) if events else None
    async with reading_now(context) as reading:
        found = await run_in_threadpool(lambda: Artifacts(reading.cursor).find(at.path, f"v{number}", deleted=True))
        return Json(version_answer(found), position=token or reading.position)
