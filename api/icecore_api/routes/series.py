"""Charts: series of many runs, reduced or in full, one by one or in groups."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
import orjson
import pyarrow as pa
from fastapi import Header, Request
from pydantic import Field
from starlette.responses import Response

from icecore.errors import Invalid
from icecore.events import check_path_part, split_run_path
from icecore.limits import most
from icecore_api.answers import POSITION_HEADER
from icecore_api.context import Store
from icecore_api.deps import Process, Read, Reading, body_schema, read_body
from icecore_api.models import Answer, Command
from icecore_api.queries import runs as listing
from icecore_api.queries.as_of import Moment
from icecore_api.queries.buckets import Array
from icecore_api.queries.formats import MEDIA_TYPES, json_numbers
from icecore_api.queries.groups import Band, bands
from icecore_api.queries.points import NOW, AsOf, Run, SeriesNumbers, find_runs, snapshot
from icecore_api.queries.series import RUNTIME, STEP, Line, Question, lines
from icecore_api.routes.moments import AS_OF, back_then, moment, of_project
from icecore_api.routing import Router
from icecore_projections.schema import run_number

router = Router("series")

Cell = float | str | None


class SeriesRequest(Command):
    """Which runs, which keys, over what, and in how many buckets."""

    runs: list[str] | None = Field(None, description="paths; null for the runs of `path` that match `filters`")
    path: str | None = Field(None, description="entity/project")
    filters: dict[str, Any] = Field(default_factory=dict, description="as in the listing of runs")
    keys: list[str] = Field(description="the metrics", min_length=1)
    kind: Literal["metric", "system"] = "metric"
    x: str | None = Field(
        None,
        description="_step, _timestamp (s), _runtime (s since the start) or a key; _runtime for system, else _step",
    )
    buckets: int | None = Field(1000, ge=1, description="at most so many a series; null for every point")
    range: list[float] | None = Field(None, min_length=2, max_length=2, description="first and last x")
    group_by: str | None = Field(None, description="config.NAME, summary.NAME, tags, group or job_type")
    smooth: None = Field(None, description="nothing yet: clients smooth what they draw")
    exact: bool = Field(default=False, description="never use the rollup, whatever it takes")
    as_of: str | None = Field(None, description=AS_OF)


class SeriesLine(Answer):
    """One series: arrays of one length, an entry a bucket. NaN and infinities are strings, null is no number."""

    run: str
    key: str
    x: list[Cell]
    x_last: list[Cell] = Field(description="a bucket's points lie within [x, x_last]")
    min: list[Cell]
    max: list[Cell]
    mean: list[Cell]
    last: list[Cell]
    n: list[int] = Field(description="points of the bucket, NaN included")
    nans: list[int]
    reduced: bool = Field(description="whether a bucket holds more than one point")


class SeriesBand(Answer):
    """One group: statistics over the runs' means in each bucket."""

    group: str | float | bool | None
    key: str
    x: list[Cell]
    x_last: list[Cell]
    mean: list[Cell]
    min: list[Cell]
    max: list[Cell]
    std: list[Cell]
    n: list[int] = Field(description="points of the bucket, NaN included")
    runs: list[int] = Field(description="runs that have a number there")


class SeriesAnswer(Answer):
    """The series that have points; with `group_by` one for each group and key."""

    series: list[SeriesLine] | list[SeriesBand]


_ARROW: Final = MEDIA_TYPES["arrow"]
_NUMBERS: Final = ("min", "max", "mean", "std")
"""Columns in which NaN means that there was no number."""


@router.on(
    "POST",
    "/series",
    permission="run:read",
    answer=SeriesAnswer,
    errors=(404, 413),
    description="Points or buckets of runs x keys; as JSON, or as one Arrow table by Accept.",
    content={_ARROW: {"schema": {"type": "string", "format": "binary"}}},
    extra=body_schema(SeriesRequest),
)
async def series(
    request: Request,
    context: Process,
    read: Read,
    accept: Annotated[str, Header(alias="Accept", include_in_schema=False)] = "",
) -> Response:
    """Points or buckets of many runs and keys at once."""
    asked = await read_body(request, SeriesRequest)
    then = await moment(context, read, asked.as_of)
    arrow = _ARROW in accept
    body = await asyncio.to_thread(_answer, read, asked, then, arrow=arrow)
    headers = {POSITION_HEADER: str(read.position)}
    return Response(body, media_type=_ARROW if arrow else "application/json", headers=headers)


_numbers: WeakKeyDictionary[Store, SeriesNumbers] = WeakKeyDictionary()


def numbers_of(store: Store) -> SeriesNumbers:
    """What is remembered of the series of this store; it goes when the store goes."""
    return _numbers.setdefault(store, SeriesNumbers())


def _answer(read: Reading, asked: SeriesRequest, then: Moment | None, *, arrow: bool) -> bytes:
    upto = then.upto if then else NOW
    # how many points a series has is remembered with its number, and was another then
    numbers = SeriesNumbers() if then else numbers_of(read.store)
    with snapshot(read.cursor):
        read = _back(read, asked, then)
        runs = _runs(read, asked, upto)
        question = _question(asked, upto)
        if asked.group_by is not None:
            found: Sequence[Line | Band] = bands(read.cursor, runs, question, asked.group_by, numbers)
        else:
            found = list(lines(read.cursor, runs, question, numbers))
    return as_arrow(found, grouped=asked.group_by is not None) if arrow else as_json(found)


def _question(asked: SeriesRequest, upto: AsOf) -> Question:
    x = asked.x or (STEP if asked.kind == "metric" else RUNTIME)
    span = (asked.range[0], asked.range[1]) if asked.range is not None else None
    return Question(asked.keys, asked.kind, x, asked.buckets, span, asked.exact, upto)


def _back(read: Reading, asked: SeriesRequest, then: Moment | None) -> Reading:
    """As of a moment, where more than the runs' points is asked about."""
    if asked.runs is None and asked.path is not None:
        return back_then(read, then, *of_project(*asked.path.partition("/")[::2]))
    if asked.group_by is None:
        return read
    numbers = [run_number(path) for path in (asked.runs or [])[: most("series_per_request")]]
    return back_then(read, then, "c.run IN (SELECT unnest($of_runs))", {"of_runs": numbers})


def _runs(read: Reading, asked: SeriesRequest, upto: AsOf) -> list[Run]:
    """The runs that were named, or that match."""
    if asked.runs is not None:
        paths = list(dict.fromkeys(asked.runs))
        if len(paths) > most("series_per_request"):
            raise Invalid(
                f"expected at most {most('series_per_request')} runs, got {len(paths)}",
                limit="series_per_request",
                value=len(paths),
            )
        for path in paths:
            split_run_path(path)
        return find_runs(read.cursor, paths, upto)
    if asked.path is None:
        raise Invalid("expected `runs`, or `path` as entity/project, got neither")
    entity, slash, project = asked.path.partition("/")
    if not slash:
        raise Invalid(f"expected `path` as entity/project, got {asked.path[:200]!r}")
    check_path_part("an entity", entity)
    check_path_part("a project", project)
    question = listing.Question(entity, project, asked.filters, "")
    matching = listing.Matching(read, question)
    found = matching.run(matching.sql("c.entity || '/' || c.project || '/' || c.id") + " ORDER BY ALL")
    return find_runs(read.cursor, [row[0] for row in found], upto)


# -------------------------------------------------------------------------------------------------------- bodies


def as_json(found: Iterable[Line | Band]) -> bytes:
    """`{"series": […]}`: what is not finite as a string, no number as null."""
    body = {"series": [_line(one) if isinstance(one, Line) else _band(one) for one in found]}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _line(line: Line) -> dict[str, Any]:
    b = line.buckets
    empty = b.n == b.nans if len(b.nans) and b.nans.any() else None
    numbers = {name: _cells(getattr(b, name), empty) for name in ("min", "max", "mean")}
    clocks = {"x": _cells(b.x), "x_last": _cells(b.x_last)}
    counts = {"n": _cells(b.n), "nans": _cells(b.nans), "reduced": line.reduced}
    return {"run": line.run, "key": line.key, **clocks, **numbers, "last": _cells(b.last), **counts}


def _band(band: Band) -> dict[str, Any]:
    empty = band.runs == 0
    numbers = {name: _cells(getattr(band, name), empty) for name in _NUMBERS}
    clocks = {"x": _cells(band.x), "x_last": _cells(band.x_last)}
    return {"group": band.group, "key": band.key, **clocks, **numbers, "n": _cells(band.n), "runs": _cells(band.runs)}


def _cells(values: Array, empty: Array | None = None) -> Any:
    """An array as orjson takes it: as it is where every value is finite."""
    if values.dtype.kind == "i" or bool(np.isfinite(values).all()):
        return np.ascontiguousarray(values)
    cells = json_numbers(values)
    if empty is not None:
        for index in np.flatnonzero(empty).tolist():
            cells[index] = None
    return cells


def as_arrow(found: Sequence[Line | Band], *, grouped: bool) -> bytes:
    """One table, an Arrow IPC stream: `run` or `group`, `key`, then the columns of a series."""
    names = ("x", "x_last", "mean", "min", "max", "std", "n", "runs") if grouped else (
        "x", "x_last", "min", "max", "mean", "last", "n", "nans"
    )  # fmt: skip
    sources = [one.buckets if isinstance(one, Line) else one for one in found]
    lengths = [len(source.x) for source in sources]
    labels = [_label(one.run if isinstance(one, Line) else one.group) for one in found]
    columns: dict[str, pa.Array[Any]] = {}
    if found:
        columns["group" if grouped else "run"] = _repeated(labels, lengths)
        columns["key"] = _repeated([one.key for one in found], lengths)
        columns |= {name: pa.array(np.concatenate([getattr(one, name) for one in sources])) for name in names}
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _label(value: str | float | bool | None) -> str | None:
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _repeated(labels: Sequence[str | None], lengths: Sequence[int]) -> pa.Array[Any]:
    """Each label as often as its series has entries, as a dictionary column."""
    distinct = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    indices = np.repeat([distinct[label] for label in labels], lengths).astype(np.int32)
    return pa.DictionaryArray.from_arrays(indices, pa.array(list(distinct), pa.string()))
