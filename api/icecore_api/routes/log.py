"""The log itself: the events as they are."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
import orjson
from fastapi import Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from icecore.errors import NotFound
from icecore.log import Batch, StoredRecord
from icecore.position import LEDGER, Place
from icecore_api.answers import Json
from icecore_api.deps import Process
from icecore_api.models import LogPage
from icecore_api.routing import Router

router: Final = Router("log")

_PAGE_BYTES: Final = 8 << 20
_OFFSET_MOST: Final = (1 << 63) - 1


@router.on("GET", "/log", permission="log:read", answer=LogPage, errors=[404])
async def read_log(
    context: Process,
    stream: Annotated[Literal["ledger", "metrics"], Query()] = LEDGER,
    partition: Annotated[int, Query(ge=0, le=1 << 16)] = 0,
    start: Annotated[int, Query(ge=0, le=_OFFSET_MOST, description="the first offset to read")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Events of one partition, from an offset on, in order; fewer than `limit` where they are large."""
    if partition >= context.log.partitions[stream]:
        raise NotFound(f"expected a partition below {context.log.partitions[stream]}, got {partition}")
    place = Place(stream, partition)
    end = (await context.log.end()).next_offset(place)
    first = max(start, (await context.log.start()).next_offset(place))
    batch = (
        await context.log.read(place, first, records=limit, size=_PAGE_BYTES)
        if first < end
        else Batch(place, [], start)
    )
    body = {"events": None, "next": batch.next_offset, "end": end}
    return await run_in_threadpool(lambda: Json({**body, "events": [_event(record) for record in batch.records]}))


def _event(record: StoredRecord) -> dict[str, Any]:
    position = record.position
    try:
        payload: Any = orjson.loads(record.payload)
    except orjson.JSONDecodeError:
        payload = record.payload.decode("utf-8", "replace")
    return {
        "stream": position.stream,
        "partition": position.partition,
        "offset": position.offset,
        "key": record.key,
        "envelope": msgspec.to_builtins(record.envelope),
        "payload": payload,
    }
