"""Blobs: asked about, sent, read, and large ones sent in parts."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import Depends, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from icecore.direct import FOLLOWS, OBJECT_RANGE
from icecore.errors import BlobsMissing, NotFound, RangeNotThere
from icecore.limits import most
from icecore_api.answers import Json, error_answer
from icecore_api.blobs.direct import Direct
from icecore_api.blobs.models import (
    BlobAnswer,
    Completion,
    Digests,
    Missing,
    PartAnswer,
    PartAsked,
    SignedAnswer,
    Stored,
    UploadAnswer,
)
from icecore_api.blobs.store import SMALL_BYTES, Blob, BlobStore, Parts, check_digest
from icecore_api.blobs.uploads import check_parts
from icecore_api.deps import Process, body_schema, read_body
from icecore_api.routing import Router

router: Final = Router("blobs")

_OCTETS: Final = "application/octet-stream"
_BYTES: Final[dict[str, Any]] = {_OCTETS: {"schema": {"type": "string", "format": "binary"}}}
_BODY: Final[dict[str, Any]] = {"requestBody": {"required": True, "content": _BYTES}}
_PARTIAL: Final[dict[str, Any]] = {
    "responses": {
        "206": {"description": "The bytes asked for.", "content": _BYTES},
        "304": {"description": "The caller has it already: blobs do not change."},
        "307": {"description": f"With `{FOLLOWS}`: fetch it there, the range of `{OBJECT_RANGE}`."},
    }
}
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")


async def _digest(digest: Annotated[str, Path(description="SHA-256 in hex", pattern="^[0-9a-f]{64}$")]) -> str:
    return check_digest(digest)


OfBlob = Annotated[str, Depends(_digest)]


@router.on(
    "POST", "/blobs/missing", permission="artifact:read", answer=Missing, errors=[413], extra=body_schema(Digests)
)
async def missing_blobs(request: Request, context: Process) -> Response:
    """Those of some blobs that are not there."""
    asked = await read_body(request, Digests)
    direct = isinstance(context.blobs, Direct) and context.blobs.direct
    return Json({"missing": await context.blobs.missing(asked.digests), "direct": direct})


@router.on("POST", "/blobs/pack", permission="artifact:write", answer=Stored, errors=[413], extra=_BODY)
async def put_pack(request: Request, context: Process) -> Response:
    """Store small blobs, all or none. Each is 32 bytes of SHA-256, 8 bytes of length (big-endian), and the bytes."""
    return Json({"stored": await context.blobs.put_small(request.stream())})


@router.on(
    "POST",
    "/blobs/read",
    permission="artifact:read",
    answer=None,
    errors=[404, 413, 500],
    content=_BYTES,
    extra=body_schema(Digests),
)
async def read_blobs(request: Request, context: Process) -> Response:
    """Blobs in the order asked for, each as 32 bytes of SHA-256, 8 bytes of length (big-endian), and the bytes."""
    asked = await read_body(request, Digests)
    try:
        pieces = await context.blobs.read_many(asked.digests)
    except BlobsMissing as error:
        raise NotFound(error.message, hint="POST blobs/missing asks for many", **error.facts) from error
    first = await anext(pieces, b"")  # what is wrong with the first one is said by a status
    return StreamingResponse(_after(first, pieces), media_type=_OCTETS, headers=_headers("blobs"))


@router.on("PUT", "/blobs/{digest}", permission="artifact:write", answer=BlobAnswer, errors=[413], extra=_BODY)
async def put_blob(request: Request, digest: OfBlob, context: Process) -> Response:
    """Store one blob; durable once it is answered. Bytes with another SHA-256 are refused, and not kept."""
    return Json({"digest": digest, "size": await context.blobs.put(digest, request.stream())})


@router.on(
    "GET",
    "/blobs/{digest}",
    permission="artifact:read",
    answer=None,
    errors=[404, 416, 500],
    content=_BYTES,
    extra=_PARTIAL,
)
async def get_blob(request: Request, digest: OfBlob, context: Process) -> Response:
    """A blob's bytes, or one range of them. A small one is checked before it is sent."""
    etag = f'"{digest}"'
    blob = await context.blobs.open(digest)
    if etag in request.headers.get("If-None-Match", ""):
        blob.close()
        return Response(status_code=304, headers={"ETag": etag})
    ranged = request.headers.get("Range") if request.headers.get("If-Range", etag) == etag else None
    found = _range(ranged, blob.size)
    if found is None:
        blob.close()
        said = RangeNotThere(f"expected a range within {blob.size} bytes, got {str(ranged)[:80]!r}", size=blob.size)
        return error_answer(said, {"Content-Range": f"bytes */{blob.size}"})
    start, stop, partial = found
    if request.headers.get(FOLLOWS) and (elsewhere := await _elsewhere(context.blobs, digest, start, stop)):
        blob.close()
        return elsewhere
    headers = {**_headers(digest), "ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(stop - start)}
    if partial:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    pieces = _closing(blob, start, stop)
    status = 206 if partial else 200
    if stop - start <= SMALL_BYTES:
        content = b"".join([piece async for piece in pieces])
        return Response(content, status, headers, _OCTETS)
    return StreamingResponse(_after(await anext(pieces), pieces), status, headers, _OCTETS)


async def _elsewhere(blobs: BlobStore, digest: str, start: int, stop: int) -> Response | None:
    """Where a client may fetch a range by itself: an address that is as good as a key for a while."""
    source = await blobs.source(digest, start, stop) if isinstance(blobs, Direct) else None
    if source is None:
        return None
    headers = {"Location": source.url, OBJECT_RANGE: f"bytes={source.start}-{source.stop - 1}"}
    return Response(None, 307, {**headers, "Cache-Control": "no-store"})


@router.on("HEAD", "/blobs/{digest}", permission="artifact:read", answer=None, errors=[404], content=_BYTES)
async def head_blob(digest: OfBlob, context: Process) -> Response:
    """Whether a blob is there, and its size."""
    sizes = await context.blobs.sizes([digest])
    if digest not in sizes:
        raise NotFound(f"no such blob: {digest}")
    headers = {**_headers(digest), "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
    return Response(None, 200, {**headers, "Content-Length": str(sizes[digest])}, _OCTETS)


_Size = Annotated[int, Query(ge=1, le=most("blob_bytes"), description="Bytes of the whole blob")]
_PartSize = Annotated[int, Query(ge=1, le=most("upload_part_bytes"), description="Bytes of each part but the last")]


@router.on(
    "PUT", "/uploads/{digest}/{part}", permission="artifact:write", answer=PartAnswer, errors=[409, 413], extra=_BODY
)
async def put_part(
    request: Request,
    digest: OfBlob,
    part: Annotated[int, Path(ge=0, lt=most("upload_parts"), description="From 0")],
    size: _Size,
    part_size: _PartSize,
    context: Process,
) -> Response:
    """Store a part of a large blob; durable once it is answered. Parts may come in any order, and again."""
    await context.blobs.put_part(Parts(digest, size, part_size), part, request.stream())
    return Json({"digest": digest, "part": part})


@router.on(
    "POST",
    "/uploads/{digest}/{part}",
    permission="artifact:write",
    answer=SignedAnswer,
    errors=[409, 413],
    extra=body_schema(PartAsked),
)
async def sign_part(
    request: Request,
    digest: OfBlob,
    part: Annotated[int, Path(ge=0, lt=most("upload_parts"), description="From 0")],
    context: Process,
) -> Response:
    """How to send a part with this SHA-256 to the bucket, past the server; asked again, it is renewed."""
    asked = await read_body(request, PartAsked, most_bytes=4096)
    parts = check_parts(Parts(digest, asked.size, asked.part_size))
    parts.size_of(part)
    signed = await context.blobs.sign_part(parts, part, asked.sha256) if isinstance(context.blobs, Direct) else None
    if signed is None:
        return Json({"url": None, "headers": {}, "expires_s": 0})
    answer = Json({"url": signed.url, "headers": dict(signed.headers), "expires_s": signed.expires_s})
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.on("GET", "/uploads/{digest}", permission="artifact:read", answer=UploadAnswer)
async def get_upload(digest: OfBlob, context: Process) -> Response:
    """The parts that are there of the upload under way; of several, of the one last written to."""
    found = await context.blobs.under_way(digest)
    if not found:
        return Json({"digest": digest, "size": None, "part_size": None, "parts": []})
    parts = found[0].parts
    return Json({"digest": digest, "size": parts.size, "part_size": parts.part_size, "parts": found[0].there})


@router.on(
    "POST",
    "/uploads/{digest}",
    permission="artifact:write",
    answer=BlobAnswer,
    errors=[409, 413],
    extra=body_schema(Completion),
)
async def complete_upload(request: Request, digest: OfBlob, context: Process) -> Response:
    """Check all bytes of an upload and make them a blob. With another SHA-256 they are refused, and forgotten."""
    asked = await read_body(request, Completion, most_bytes=4096)
    size = await context.blobs.complete(Parts(digest, asked.size, asked.part_size))
    return Json({"digest": digest, "size": size})


def _headers(name: str) -> dict[str, str]:
    """A browser keeps a blob as a file, whatever is in it, and never runs or shows it."""
    return {"X-Content-Type-Options": "nosniff", "Content-Disposition": f'attachment; filename="{name}"'}


def _range(asked: str | None, size: int) -> tuple[int, int, bool] | None:
    """Start, stop, and whether that is a part; None where it is beyond the end.

    What is no single range of bytes is not one at all, and gets everything, as HTTP has it.
    """
    found = _RANGE.fullmatch(asked.replace(" ", "")) if asked else None
    if found is None or not (found[1] or found[2]):
        return 0, size, False
    if not found[1]:
        last = int(found[2])
        return (max(0, size - last), size, True) if last and size else None
    start, stop = int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
    if found[2] and int(found[2]) < start:
        return 0, size, False
    return (start, stop, True) if start < size else None


async def _closing(blob: Blob, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        async for piece in blob.read(start, stop):
            yield piece
    finally:
        blob.close()


async def _after(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece
