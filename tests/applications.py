"""The whole API in this process: a real log, a real store folding it, real identities, and a client."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from icecore.codec import encode_event
from icecore.events import Envelope, Event, MetricsLogged, RunStarted, UserCreated, now_ms, uuid7
from icecore.log import Record
from icecore.position import Position, Token
from icecore_api.app import create_app
from icecore_api.blobs.local import LocalBlobs
from icecore_api.context import Context, Report
from icecore_ingest.identities import Identities
from icecore_ingest.identity import new_key
from icecore_ingest.logs.sqlite import SQLiteLog
from icecore_projections.runner import Runner
from icecore_projections.store import Store

PROJECT = "team/project"


class TestOperations:
    """Operations that answer at once."""

    __test__ = False

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def rebuild(self, report: Report, *, verify: bool) -> Mapping[str, Any]:
        report({"folded": 1, "of": 2})
        await self.may_end.wait()
        return {"same": True, "verify": verify}

    async def fsck(self, report: Report) -> Mapping[str, Any]:
        report({"checked": 1})
        return {"ok": True}

    async def replay(self) -> Mapping[str, Any]:
        return {"tried": 0, "folded": 0}

    async def digest(self) -> str:
        return "0" * 64


@dataclass
class Application:
    """The API, and what is behind it."""

    app: FastAPI
    context: Context
    client: httpx.AsyncClient
    anonymous: httpx.AsyncClient
    log: SQLiteLog
    store: Store
    operations: TestOperations
    key: str
    clock: dict[str, int]
    writer: str = field(default_factory=lambda: str(uuid.uuid4()))
    seqs: dict[str, int] = field(default_factory=dict)

    async def put(self, *events: Event, ts: int | None = None, folded: bool = True) -> Token:
        """Append events as a client's, and wait until they are folded."""
        positions: list[Position] = []
        by_stream: dict[str, list[Record]] = {}
        for event in events:
            seq = self.seqs.get(event.STREAM, 0)
            self.seqs[event.STREAM] = seq + 1
            now = ts if ts is not None else now_ms()
            envelope = Envelope(
                id=uuid7(), type=event.TYPE, v=event.VERSION, producer=self.writer, seq=seq, ts_client=now,
                ts_server=now, actor="owner", credential="key_test",
            )  # fmt: skip
            by_stream.setdefault(event.STREAM, []).append(Record(event.key, envelope, encode_event(event)))
        for stream, records in by_stream.items():
            positions += await self.log.append(stream, records)
        token = Token.after(positions)
        if folded:
            assert await self.store.wait_async(token, 10)
        return token

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON of a good answer."""
        answer = await self.client.get(f"/api/v1/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def names(self, **query: Any) -> list[str]:
        """Ids of the runs of the project, in the order asked for."""
        return [run["id"] for run in (await self.get(f"runs/{PROJECT}", **query))["runs"]]


def started(run_id: str, **fields: Any) -> RunStarted:
    """A run begins."""
    return RunStarted(run=f"{PROJECT}/{run_id}", **{"started_ts": now_ms(), **fields})


def logged(run_id: str, columns: Mapping[str, Sequence[Any]], **block: Any) -> MetricsLogged:
    """A run logs columns of numbers, one row a step."""
    rows = len(next(iter({**columns, **block.get("text", {}), **block.get("bool", {})}.values())))
    whole = {"step": list(range(rows)), "ts": [1_700_000_000_000 + i for i in range(rows)], **block}
    if columns:
        whole["cols"] = {key: list(values) for key, values in columns.items()}
    return MetricsLogged(run=f"{PROJECT}/{run_id}", blocks=[whole])


@asynccontextmanager
async def application(folder: Path, **settings: Any) -> AsyncIterator[Application]:
    """An application on a folder of its own, folding."""
    log = SQLiteLog.open(folder / "log")
    store = Store.open(folder / "store.duckdb", log_id=log.log_id)
    runner, stop = Runner(log, store), asyncio.Event()
    folding = asyncio.create_task(runner.run(stop))
    identities = await Identities.open(log)
    following = asyncio.create_task(identities.follow())
    blobs = LocalBlobs(folder / "blobs")
    operations, clock = TestOperations(), {"ahead": 0}
    context = Context(
        log=log,
        current_store=lambda: store,
        identities=identities,
        operations=operations,
        producer=str(uuid.uuid4()),
        data=folder,
        blobs=blobs,
        clock_ms=lambda: now_ms() + clock["ahead"],
        **settings,
    )
    app = create_app(context)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    secret, key = new_key("owner")
    headers = {"Authorization": f"Bearer {secret}"}
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)
    stranger = httpx.AsyncClient(transport=transport, base_url="http://localhost")
    made = Application(app, context, client, stranger, log, store, operations, secret, clock)
    try:
        token = await made.put(UserCreated(user="owner"), key)
        assert await identities.wait_for(max(token.as_dict().values()), 10)
        yield made
    finally:
        await client.aclose()
        await stranger.aclose()
        for job in app.state.jobs.values():
            await job.stop()
        following.cancel()
        stop.set()
        await asyncio.gather(following, folding, return_exceptions=True)
        blobs.close()
        store.close()
        await log.close()
