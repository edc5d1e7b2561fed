"""Full histories of a run or a project, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import duckdb
import orjson
from fastapi import Header, Query
from starlette.responses import StreamingResponse

from icecore.errors import Invalid
from icecore_api.deps import OfProject, OfRun, Read
from icecore_api.queries.export import Export, runs_of_project
from icecore_api.queries.formats import MEDIA_TYPES, Compression, Format, encode, encode_history
from icecore_api.queries.history import Range, history
from icecore_api.queries.points import NOW, Kind, find_runs
from icecore_api.routes.moments import Then
from icecore_api.routing import Router
from icecore_api.streaming import stream

router = Router("history")

_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
_ROWS: Final[dict[str, Any]] = {
    "schema": {
        "type": "object",
        "required": ["columns", "rows"],
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "rows": {"type": "array", "items": {"type": "object"}},
        },
    }
}
_CONTENT: Final[dict[str, Any]] = {
    "application/json": _ROWS,
    "application/x-ndjson": {"schema": {"type": "string"}},
    "application/vnd.apache.arrow.stream": _BINARY,
    "application/vnd.apache.parquet": _BINARY,
    "text/csv": {"schema": {"type": "string"}},
}

Formatted = Annotated[
    Format | None, Query(alias="format", description="of the answer; else by Accept, else json (ndjson: a row a line)")
]
Compressed = Annotated[Compression, Query(description="of Arrow's buffers")]
Accept = Annotated[str, Header(alias="Accept", include_in_schema=False)]


@router.on(
    "GET",
    "/runs/{entity}/{project}/{run_id}/history",
    permission="run:read",
    answer=None,
    errors=(404,),
    description=(
        "Rows ordered by step: `_step`, `_timestamp` (s since 1970 UTC), `_runtime` (s since the start) and the keys. "
        "Keys logged at one step share a row; a step that comes again makes another row. Missing values are null, "
        "and left out of JSON, where NaN and infinities are the strings NaN, Infinity and -Infinity."
    ),
    content=_CONTENT,
)
async def run_history(
    run: OfRun,
    read: Read,
    accept: Accept = "",
    keys: Annotated[
        str | None, Query(description="names with commas between them, or a JSON list; all where not given")
    ] = None,
    form: Formatted = None,
    kind: Annotated[Kind, Query(description="system: what was measured of the machine")] = "metric",
    min_step: Annotated[int | None, Query(ge=-(2**63), lt=2**63)] = None,
    max_step: Annotated[int | None, Query(ge=-(2**63), lt=2**63, description="the last step, itself included")] = None,
    samples: Annotated[
        int | None, Query(ge=1, lt=2**31, description="at most so many rows, evenly spread, with the first and last")
    ] = None,
    compression: Compressed = "none",
    then: Then = None,
) -> StreamingResponse:
    """The whole history of a run, or a part of it."""
    chosen = form or _accepted(accept)
    upto = then.upto if then else NOW
    rows = Range(parse_keys(keys), kind, min_step, max_step, samples, upto)

    def begin(cursor: duckdb.DuckDBPyConnection) -> Iterator[bytes]:
        (found,) = find_runs(cursor, [run.path], upto)
        return encode_history(history(cursor, found, rows), chosen, compression)

    filename = _filename(f"{run.id}-history", chosen)
    return await stream(read.store, read.position, begin, MEDIA_TYPES[chosen], filename)


@router.on(
    "GET",
    "/projects/{entity}/{project}/history",
    permission="run:read",
    answer=None,
    errors=(404,),
    description=(
        "Every point of the project's runs: `run` (path), `key`, `step`, `timestamp`, `value`, and `text` where texts "
        "or booleans were logged. In the store's order, which is none to rely on."
    ),
    content=_CONTENT,
)
async def project_history(
    project: OfProject,
    read: Read,
    accept: Accept = "",
    form: Formatted = None,
    kind: Annotated[Kind, Query(description="system: what was measured of the machines")] = "metric",
    compression: Compressed = "none",
    then: Then = None,
) -> StreamingResponse:
    """The full history of a project, in long form."""
    chosen = form or _accepted(accept)
    upto = then.upto if then else NOW

    def begin(cursor: duckdb.DuckDBPyConnection) -> Iterator[bytes]:
        paths, numbers = runs_of_project(cursor, project.entity, project.project, upto)
        export = Export(cursor, paths, numbers, kind, upto)
        return encode(chosen, export.schema, export.batches(), compression)

    filename = _filename(f"{project.project}-history", chosen)
    return await stream(read.store, read.position, begin, MEDIA_TYPES[chosen], filename)


def parse_keys(text: str | None) -> list[str] | None:
    """The `keys` parameter: names with commas between them, or, where names hold commas, a JSON list.

    Raises:
        Invalid: it begins like a JSON list and is none of texts.
    """
    if not text:
        return None
    if not text.startswith("["):
        return text.split(",")
    try:
        keys = orjson.loads(text)
    except orjson.JSONDecodeError:
        keys = None
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Invalid(f"expected keys as a JSON list of texts, got {text[:120]!r}")
    return keys


def _accepted(accept: str) -> Format:
    """The format that an Accept header names, json where it names none."""
    named = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    for form, media_type in MEDIA_TYPES.items():
        if media_type.partition(";")[0] in named:
            return form
    return "json"


def _filename(stem: str, form: Format) -> str | None:
    """What a browser saves it as: letters, digits and little else, since names are anything."""
    if form in ("json", "ndjson"):
        return None
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "_" for letter in stem)
    return f"{safe}.{form}"
