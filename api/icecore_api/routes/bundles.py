"""Versions that the server puts together: bundles of others, and those of several writers. No byte is copied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final, TypeVar
from weakref import WeakValueDictionary

from fastapi import Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore import manifest
from icecore.artifact_events import ArtifactCommitted, BundlePart
from icecore.errors import Conflict, Invalid, NotFound
from icecore.events import Event, check_name, check_path_part, split_run_path
from icecore.manifest import EMPTY_DIGEST, Entry, Pinned
from icecore.position import Token
from icecore.registry_events import PartLogged, PartsFinished, PartWithdrawn
from icecore_api.answers import Json
from icecore_api.artifact_models import VersionAnswer
from icecore_api.blobs.store import BlobStore
from icecore_api.context import Context
from icecore_api.deps import Process, Read, Reading, body_schema, read_body, reading_now
from icecore_api.manifests import check_manifest, read_manifest
from icecore_api.queries.artifacts import Artifacts, Found, version_answer
from icecore_api.queries.registry import last_end, parts_under_way
from icecore_api.registry_models import BundleCommit, PartAnswer, PartCommit, PartsAnswer, Words
from icecore_api.routes.artifacts import ArtifactPath, OfArtifact, check_aliases, check_words
from icecore_api.routes.registry import named_version
from icecore_api.routing import Router, principal

router: Final = Router("bundles")

PARTS_MOST: Final = 1_000
"""Parts of a bundle, or of a version of several writers."""
T = TypeVar("T")

OfDraft = Annotated[str, Path(max_length=256, description="what the writers call the version to be")]


@router.on(
    "POST", "/bundles/{entity}/{project}/{name}", permission="artifact:write", answer=VersionAnswer,
    errors=[404, 409, 413], extra=body_schema(BundleCommit),
)  # fmt: skip
async def commit_bundle(request: Request, at: OfArtifact, context: Process) -> Response:
    """Make one version of several others, which it keeps; its files are theirs, each in a folder of its own."""
    body = await read_body(request, BundleCommit)
    _check(body)
    if not 1 <= len(body.parts) <= PARTS_MOST:
        raise Invalid(f"expected 1 to {PARTS_MOST} parts of a bundle, got {len(body.parts)}")
    for key in body.parts:
        manifest.check_part_key(key)

    def resolve(reading: Reading) -> dict[str, Found]:
        reading.begin()
        artifacts = Artifacts(reading.cursor)
        return {key: _part(artifacts, at, key, name) for key, name in body.parts.items()}

    found = await _look(context, resolve)
    entries: dict[str, Entry] = {}
    for key, one in found.items():
        inside = await read_manifest(context.blobs, one.version.digest)
        entries |= {f"{key}/{path}": entry for path, entry in inside.items()}
        if not inside:
            entries[f"{key}/"] = Entry(EMPTY_DIGEST, 0)
    pins = {key: Pinned(one.collection.path, one.version.number, one.version.digest) for key, one in found.items()}
    digest = await _keep(context.blobs, entries, pins)
    parts = [BundlePart(key, pin.artifact, pin.version, pin.digest) for key, pin in sorted(pins.items())]
    with request.app.state.eraser.committing(digest):
        event = await _committed(context.blobs, at, body, digest, parts)
        token = await _submit(request, event)
    return await _version(context, at, digest, token)


def _part(artifacts: Artifacts, at: ArtifactPath, key: str, name: str) -> Found:
    found = named_version(artifacts, name, deleted=True)
    shown = f"{found.collection.path}:v{found.version.number}"
    if found.collection.path == at.path:
        raise Invalid(f"expected the part {key!r} to be of another artifact than the bundle, got {shown}")
    if found.version.deleted:
        raise Conflict(
            f"expected the part {key!r} of a bundle to be there, {shown} is deleted",
            hint=f"`icecore artifact restore {shown}` brings it back; or name another version",
        )
    return found


# --------------------------------------------------------------------------------- versions of several writers


@router.on(
    "POST", "/parts/{entity}/{project}/{name}/{distributed_id}", permission="artifact:write", answer=PartAnswer,
    errors=[409, 413], extra=body_schema(PartCommit),
)  # fmt: skip
async def log_part(request: Request, at: OfArtifact, distributed_id: OfDraft, context: Process) -> Response:
    """Note the files of one of several writers; the same again changes nothing."""
    check_path_part("a distributed id", distributed_id)
    body = await read_body(request, PartCommit)
    if body.run:
        split_run_path(body.run)
    before = await _look(context, lambda reading: parts_under_way(reading.cursor, at.path, distributed_id))
    if len(before.parts) >= PARTS_MOST:
        raise Invalid(f"expected at most {PARTS_MOST} parts of a version, got more", hint="finish it")
    await check_manifest(context.blobs, body.manifest)
    event = PartLogged(artifact=at.path, distributed_id=distributed_id, digest=body.manifest, run=body.run)
    token = await _submit(request, event)
    now = await _look(context, lambda reading: parts_under_way(reading.cursor, at.path, distributed_id))
    answer = {"distributed_id": distributed_id, "manifest": body.manifest, "parts": len(now.parts)}
    return Json(answer, position=token)


@router.on("GET", "/parts/{entity}/{project}/{name}/{distributed_id}", permission="artifact:read", answer=PartsAnswer)
def list_parts(at: OfArtifact, distributed_id: OfDraft, reading: Read) -> Response:
    """The parts that were noted and are in no version yet, in the order they came."""
    check_path_part("a distributed id", distributed_id)
    found = parts_under_way(reading.cursor, at.path, distributed_id)
    parts = [{"manifest": digest, "run": run} for digest, run in found.parts]
    return Json({"distributed_id": distributed_id, "parts": parts}, position=reading.position)


@router.on(
    "DELETE", "/parts/{entity}/{project}/{name}/{distributed_id}", permission="artifact:write", answer=PartAnswer,
    errors=[404, 409],
)  # fmt: skip
async def withdraw_part(
    request: Request,
    at: OfArtifact,
    distributed_id: OfDraft,
    context: Process,
    part: Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="SHA-256 of the part's manifest")],
    reason: Annotated[str, Query(max_length=4096)] = "",
) -> Response:
    """Take a part back that is in no version yet; sent again it counts again."""
    check_path_part("a distributed id", distributed_id)
    check_name("a reason", reason, "text_value_bytes")
    async with _turn(request, at, distributed_id):
        before = await _look(context, lambda reading: parts_under_way(reading.cursor, at.path, distributed_id))
        if part not in {digest for digest, _ in before.parts}:
            raise NotFound(
                f"no such part: expected {part} among those of {at.path} under {distributed_id!r}, found none",
                hint=f"icecore artifact parts {at.path} {distributed_id}",
            )
        event = PartWithdrawn(artifact=at.path, distributed_id=distributed_id, digest=part, reason=reason)
        token = await _submit(request, event)
    now = await _look(context, lambda reading: parts_under_way(reading.cursor, at.path, distributed_id))
    return Json({"distributed_id": distributed_id, "manifest": part, "parts": len(now.parts)}, position=token)


@router.on(
    "POST", "/parts/{entity}/{project}/{name}/{distributed_id}/finish", permission="artifact:write",
    answer=VersionAnswer, errors=[404, 409, 413], extra=body_schema(Words),
)  # fmt: skip
async def finish_parts(request: Request, at: OfArtifact, distributed_id: OfDraft, context: Process) -> Response:
    """Make one version of all parts that were noted; two files at one path are a conflict."""
    check_path_part("a distributed id", distributed_id)
    body = await read_body(request, Words)
    _check(body)
    async with _turn(request, at, distributed_id):
        under_way = await _look(context, lambda reading: parts_under_way(reading.cursor, at.path, distributed_id))
        if not under_way.parts:
            done = await _look(context, lambda reading: last_end(reading.cursor, at.path, distributed_id))
            if done is None:
                raise NotFound(
                    f"expected parts of {at.path} under {distributed_id!r}, got none", hint="upsert them first"
                )
            return await _version(context, at, done, None)
        entries = await _merged(context.blobs, under_way.parts)
        digest = await _keep(context.blobs, entries, {})
        with request.app.state.eraser.committing(digest):
            event = await _committed(context.blobs, at, body, digest, [])
            end = PartsFinished(artifact=at.path, distributed_id=distributed_id, upto=under_way.upto, digest=digest)
            token = await _submit(request, event, end)
    return await _version(context, at, digest, token)


def _turn(request: Request, at: ArtifactPath, distributed_id: str) -> asyncio.Lock:
    """One at a time: a part that is said to be taken back is in no version that is being made meanwhile."""
    drafts: WeakValueDictionary[tuple[str, str], asyncio.Lock] = request.app.state.drafts
    return drafts.setdefault((at.path, distributed_id), asyncio.Lock())


async def _merged(blobs: BlobStore, parts: list[tuple[str, str]]) -> dict[str, Entry]:
    """The files of all parts.

    Raises:
        Conflict: two have other bytes for one path; the message names both.
    """
    entries: dict[str, Entry] = {}
    origins: dict[str, str] = {}
    for digest, run in parts:
        origin = f"{run or 'a writer'} (part {digest[:12]})"
        for path, entry in (await read_manifest(blobs, digest)).items():
            known = entries.setdefault(path, entry)
            if known != entry:
                raise Conflict(
                    f"expected one file for {path!r}, got {known.digest[:12]} of {origins[path]} "
                    f"and {entry.digest[:12]} of {origin}",
                    hint="`icecore artifact parts NAME ID --withdraw PART` takes one back; "
                    "or let each writer have folders or names of its own",
                    path=path,
                )
            origins.setdefault(path, origin)
    return entries


# ------------------------------------------------------------------------------------------------------- running


def _check(body: Words) -> None:
    check_name("an artifact's type", body.type)
    if not body.type:
        raise Invalid("expected an artifact's type, got none", hint='say what it is: "model", "dataset", …')
    check_words(body.tags, body.metadata, body.description)
    check_aliases(body.aliases)
    if body.run:
        split_run_path(body.run)


async def _keep(blobs: BlobStore, entries: dict[str, Entry], parts: dict[str, Pinned]) -> str:
    """Make a manifest a blob; its digest."""
    data = await asyncio.to_thread(manifest.encode, entries, parts)
    digest = manifest.digest_of(data)
    if any(entry.digest == EMPTY_DIGEST for entry in entries.values()):
        await blobs.put(EMPTY_DIGEST, _once(b""))
    await blobs.put(digest, _once(data))
    return digest


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _committed(
    blobs: BlobStore, at: ArtifactPath, body: Words, digest: str, parts: list[BundlePart]
) -> ArtifactCommitted:
    checked = await check_manifest(blobs, digest)
    return ArtifactCommitted(
        artifact=at.path,
        type=body.type,
        digest=digest,
        files=checked.files,
        size=checked.size,
        description=body.description,
        metadata=body.metadata,
        aliases=body.aliases,
        tags=body.tags,
        run=body.run,
        references=checked.references,
        ttl=body.ttl,
        parts=parts,
    )


async def _version(context: Context, at: ArtifactPath, digest: str, token: Token | None) -> Response:
    return await _look(
        context,
        lambda reading: Json(
            version_answer(Artifacts(reading.cursor).with_digest(at.path, digest)), position=token or reading.position
        ),
    )


async def _submit(request: Request, *events: Event) -> Token:
    token: Token = await request.app.state.commands.submit(principal(request), list(events))
    return token


async def _look(context: Context, ask: Callable[[Reading], T]) -> T:
    async with reading_now(context) as reading:
        return await run_in_threadpool(ask, reading)
