"""Run summaries: what changed is published at least once, and nothing is forgotten by a kill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from icecore.codec import encode_event
from icecore.errors import LogAway
from icecore.events import Envelope, Event, MetricsLogged, RunDeleted, RunFinished, RunStarted, now_ms, uuid7
from icecore.log import Record
from icecore.testing.memory_log import MemoryLog
from icecore_api.queries.published import published
from icecore_projections import summaries as module
from icecore_projections.runner import Runner
from icecore_projections.store import Store
from icecore_projections.summaries import Summaries, encoded

WRITER = "6f1f6c3e-0000-4000-8000-000000000000"


@dataclass
class Broker:
    """A topic in memory, which may be away or not there."""

    kept: dict[str, Any] = field(default_factory=dict)
    messages: int = 0
    there: bool = True
    fails_after: int = 1 << 30
    """So many more messages are taken before it is away."""

    async def topics(self) -> Iterable[str]:
        return ["t.run-summaries"] if self.there else []

    async def send(self, key: bytes, value: bytes | None) -> Awaitable[object]:
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.fails_after <= 0:
            acknowledged.set_exception(LogAway("expected a broker, got none"))
            return acknowledged
        self.fails_after -= 1
        self.messages += 1
        self.kept[key.decode()] = None if value is None else orjson.loads(value)
        acknowledged.set_result(None)
        return acknowledged


@dataclass
class World:
    """A log, its store, and who publishes from it."""

    folder: Path
    broker: Broker
    log: MemoryLog
    store: Store
    runner: Runner
    said: list[str] = field(default_factory=list)
    seqs: dict[str, int] = field(default_factory=dict)

    def born(self) -> Summaries:
        """A new process's summaries: it knows what the folder says."""
        new = Summaries(
            "t.run-summaries", self.broker.topics, self.folder, lambda: self.store, published, self.said.append
        )
        self.runner.told = new.changed
        return new

    async def fold(self, *events: Event) -> None:
        for event in events:
            seq = self.seqs.get(event.STREAM, 0)
            self.seqs[event.STREAM] = seq + 1
            envelope = Envelope(uuid7(), event.TYPE, 1, WRITER, seq, now_ms(), now_ms(), "owner", "key")
            await self.log.append(event.STREAM, [Record(event.key, envelope, encode_event(event))])
        await self.runner.catch_up()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    log = MemoryLog()
    store = Store.open(folder / "s.duckdb", log_id=log.log_id)
    runner = Runner(log, store)
    try:
        yield World(folder, Broker(), log, store, runner)
    finally:
        await runner.close()
        store.close()


def _started(n: int, **fields: Any) -> RunStarted:
    return RunStarted(run=f"a/p/r{n}", started_ts=1_700_000_000_000, **fields)


def _logged(n: int, loss: float, step: int = 0) -> MetricsLogged:
    block = {"step": [step], "ts": [1_700_000_000_000], "cols": {"loss": [loss]}}
    return MetricsLogged(run=f"a/p/r{n}", blocks=[block])


def test_what_changes_is_published(tmp_path: Path) -> None:
    """A run's value follows its state and its newest summary; deleting it leaves a tombstone."""

    async def test() -> None:
        async with world(tmp_path) as it:
            one = it.born()
            await it.fold(_started(1, name="first", config={"lr": 0.1}), _logged(1, 0.5), _started(2))
            await one.publish(it.broker.send)
            assert it.said == []
            value = it.broker.kept["a/p/r1"]
            assert (value["run"], value["name"], value["state"]) == ("a/p/r1", "first", "running")
            assert (value["config"], value["summary"]) == ({"lr": 0.1}, {"loss": 0.5, "_step": 0})
            assert value["positions"] == str(it.store.token())
            before = it.broker.messages

            await it.fold(_logged(1, 0.25, step=1), RunFinished(run="a/p/r1", finished_ts=1_700_000_000_500))
            await it.fold(RunDeleted(run="a/p/r2"))
            await one.publish(it.broker.send)
            value = it.broker.kept["a/p/r1"]
            assert (value["state"], value["summary"]) == ("finished", {"loss": 0.25, "_step": 1})
            assert it.broker.kept["a/p/r2"] is None
            assert it.broker.messages == before + 2

            await one.publish(it.broker.send)
            assert it.broker.messages == before + 2

    asyncio.run(test())


def test_a_kill_forgets_nothing(tmp_path: Path) -> None:
    """What changed and was not acknowledged is published by the next process; what was is not published again."""

    async def test() -> None:
        async with world(tmp_path) as it:
            one = it.born()
            await it.fold(*(_started(n) for n in range(5)))
            await one.publish(it.broker.send)
            await it.fold(_logged(3, 0.5), RunDeleted(run="a/p/r1"))  # and killed before anything is sent

            sent = it.broker.messages
            two = it.born()
            await two.publish(it.broker.send)
            assert it.broker.kept["a/p/r1"] is None
            assert it.broker.kept["a/p/r3"]["summary"]["loss"] == 0.5
            assert it.broker.messages == sent + 2

            three = it.born()
            await three.publish(it.broker.send)
            assert it.broker.messages == sent + 2

    asyncio.run(test())


def test_half_a_batch_is_published_whole_again(tmp_path: Path) -> None:
    """Where brokers go away amid a batch nothing counts as published, also not for a process born afterwards."""

    async def test() -> None:
        async with world(tmp_path) as it:
            one = it.born()
            await it.fold(*(_started(n) for n in range(6)))
            it.broker.fails_after = 3
            await one.publish(it.broker.send)
            await one.publish(it.broker.send)
            assert len(it.said) == 1
            assert "LogAway" in it.said[0]
            assert not (tmp_path / module.FILE).exists()

            it.broker.fails_after = 1 << 30
            await it.fold(_logged(0, 1.0))
            await one.publish(it.broker.send)
            assert len(it.broker.kept) == 6
            assert it.broker.kept["a/p/r0"]["summary"]["loss"] == 1.0

    asyncio.run(test())


def test_a_missing_topic_is_said_once(tmp_path: Path) -> None:
    """Without the topic nothing is sent and one sentence says so."""

    async def test() -> None:
        async with world(tmp_path) as it:
            it.broker.there = False
            one = it.born()
            await it.fold(_started(1))
            for _ in range(3):
                await one.publish(it.broker.send)
            assert it.broker.messages == 0
            assert len(it.said) == 1
            assert "icecore topics create" in it.said[0]

    asyncio.run(test())


def test_a_store_that_is_behind_says_nothing(tmp_path: Path) -> None:
    """While a store is folded anew, older states of runs do not take the place of newer ones."""

    async def test() -> None:
        async with world(tmp_path) as it:
            one = it.born()
            await it.fold(_started(1), _logged(1, 0.5), RunFinished(run="a/p/r1", finished_ts=1_700_000_000_500))
            await one.publish(it.broker.send)
            sent = it.broker.messages

            whole = it.store
            it.store = Store.open(tmp_path / "anew.duckdb", log_id=it.log.log_id)
            it.runner = Runner(it.log, it.store, records=1)
            two = it.born()
            await it.runner.step()
            await two.publish(it.broker.send)
            assert it.broker.messages == sent
            await it.runner.catch_up()
            await two.publish(it.broker.send)
            assert it.broker.kept["a/p/r1"]["state"] == "finished"
            it.store.close()
            it.store = whole

    asyncio.run(test())


def test_another_store_is_read_from_where_publishing_was(tmp_path: Path) -> None:
    """What a rebuilt store knows more than the old one, though no batch told of it, is published too."""

    async def test() -> None:
        async with world(tmp_path) as it:
            one = it.born()
            await it.fold(_started(1))
            await one.publish(it.broker.send)
            it.runner.told = lambda _: None
            await it.fold(_started(2), _logged(1, 0.5))
            one.anew()
            await one.publish(it.broker.send)
            assert set(it.broker.kept) == {"a/p/r1", "a/p/r2"}
            assert it.broker.kept["a/p/r1"]["summary"]["loss"] == 0.5

    asyncio.run(test())


def test_a_large_run_leaves_something_out() -> None:
    """A value fits in a message: of a run that does not, config and then summary are left out, and named."""
    small = {"run": "a/p/r", "config": {"a": 1}, "summary": {"loss": 1.0}}
    wide = {**small, "config": {"text": "x" * 1_000_000}}
    wider = {**wide, "summary": {"text": "x" * 1_000_000}}

    assert orjson.loads(encoded(small)) == small
    assert orjson.loads(encoded(wide)) == {"run": "a/p/r", "summary": {"loss": 1.0}, "left_out": ["config"]}
    assert orjson.loads(encoded(wider)) == {"run": "a/p/r", "left_out": ["config", "summary"]}
