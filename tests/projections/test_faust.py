"""Faust between a real broker and the store."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from brokers import Kafka
from icecore.codec import encode_event
from icecore.errors import SettingsError
from icecore.events import Envelope, RunStarted, now_ms, uuid7
from icecore.log import Record
from icecore.position import LEDGER, METRICS, Place, Token
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka import KafkaLog
from icecore_ingest.logs.kafka_settings import KafkaSettings
from icecore_projections import generations
from icecore_projections.digest import digest
from icecore_projections.faust_app import FoldingApp, feeding, worker_app
from icecore_projections.feed import Feed
from icecore_projections.runner import Runner
from icecore_projections.store import Store

WITHIN_S = 90.0
RUNS = 5


@pytest.fixture
def where(broker: Kafka, topics: Callable[[str], str]) -> str:
    """A log of this test's own in the shared broker."""
    prefix = topics("x").removesuffix(".x")
    url = f"kafka://{broker.bootstrap}?prefix={prefix}&partitions=3&single_replica=1"
    asyncio.run(kafka_topics.create(KafkaSettings.parse(url)))
    return url


def _metrics(run: str, seq: int, rows: int = 10) -> Record:
    steps = list(range(seq * rows, (seq + 1) * rows))
    block = {"step": steps, "ts": [now_ms()] * rows, "cols": {"loss": [1 / (step + 1) for step in steps]}}
    envelope = Envelope(uuid7(), "metrics.logged", 1, f"p-{run[-1]}", seq, now_ms(), now_ms(), "owner", "key")
    return Record(run, envelope, orjson.dumps({"run": run, "blocks": [block]}))


async def _append(where: str, first: int, count: int) -> None:
    """Some records of five runs, and their beginnings."""
    log = await KafkaLog.open(KafkaSettings.parse(where))
    try:
        for n in range(RUNS):
            run = f"team/p/r{n}"
            if not first:
                event = RunStarted(run=run, name=f"run {n}", started_ts=now_ms())
                envelope = Envelope(uuid7(), event.TYPE, event.VERSION, f"l-{n}", 0, now_ms(), now_ms(), "owner", "key")
                await log.append(LEDGER, [Record(run, envelope, encode_event(event))])
            await log.append(METRICS, [_metrics(run, seq) for seq in range(first, first + count)])
    finally:
        await log.close()


@contextlib.contextmanager
def worker(where: str, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Faust's own command line, as a user would start it."""
    env = {**os.environ, "ICECORE_LOG": where, "ICECORE_DATA": str(data)}
    command = [sys.executable, "-m", "faust", "-A", "icecore_projections.faust_app", "worker", "-l", "warn"]
    with (data / "worker.txt").open("ab") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said, cwd=data)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(30)


def _stored(data: Path) -> tuple[int, str]:
    """Points and digest of a store that no process holds."""
    current = generations.current(data / "store")
    assert current is not None
    with duckdb.connect(str(current), read_only=True) as con:
        (points,) = con.execute("SELECT coalesce(sum(points), 0)::BIGINT FROM run_activity").fetchall()[0]
        return int(points), digest(con).hex


def _wait_group(where: str, data: Path, total: int) -> None:
    """Until the worker has folded `total` records: what it commits to the brokers follows what it took."""
    settings = KafkaSettings.parse(where)

    async def lag() -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=list(settings.servers))
        await admin.start()
        try:
            found: dict[Any, Any] = {}
            group = (data / "run" / "group").read_text().strip()
            with contextlib.suppress(GroupCoordinatorNotAvailableError):  # a new broker still makes its own topics
                found = await admin.list_consumer_group_offsets(group)
            return total - sum(meta.offset for meta in found.values() if meta.offset > 0)
        finally:
            await admin.close()

    until = time.monotonic() + WITHIN_S
    while not (data / "run" / "group").exists() or asyncio.run(lag()) > 0:
        assert time.monotonic() < until, (data / "worker.txt").read_text()[-2000:]
        time.sleep(0.2)


def _fold_anew(where: str, path: Path) -> str:
    """The digest of a store folded from offset 0 by the runner alone."""

    async def fold() -> str:
        log = await KafkaLog.open(KafkaSettings.parse(where), readonly=True)
        store = Store.open(path, log_id=log.log_id)
        try:
            await Runner(log, store).catch_up()
            with contextlib.closing(store.cursor()) as cursor:
                return digest(cursor).hex
        finally:
            store.close()
            await log.close()

    return asyncio.run(fold())


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return process.wait(60)


def test_fausts_own_worker_folds_the_log(where: str, tmp_path: Path) -> None:
    """`faust -A icecore_projections.faust_app worker` folds what is in Kafka as the embedded runner would."""
    asyncio.run(_append(where, 0, 20))
    with worker(where, tmp_path) as process:
        _wait_group(where, tmp_path, RUNS + RUNS * 20)
        assert _stop(process) == 0, (tmp_path / "worker.txt").read_text()[-2000:]
    points, found = _stored(tmp_path)
    assert points == RUNS * 20 * 10
    assert found == _fold_anew(where, tmp_path / "anew.duckdb")


def test_a_killed_worker_goes_on_where_its_store_is(where: str, tmp_path: Path) -> None:
    """Killed with -9 at any moment and started again, a worker has folded every record once."""
    for round_ in range(3):
        asyncio.run(_append(where, round_ * 10, 10))
        with worker(where, tmp_path) as process:
            until = time.monotonic() + WITHIN_S
            while generations.current(tmp_path / "store") is None:
                assert time.monotonic() < until, (tmp_path / "worker.txt").read_text()[-2000:]
                time.sleep(0.05)
            process.kill()
            process.wait(30)
    with worker(where, tmp_path) as process:
        _wait_group(where, tmp_path, RUNS + RUNS * 30)
        _stop(process)
    points, found = _stored(tmp_path)
    assert points == RUNS * 30 * 10
    assert found == _fold_anew(where, tmp_path / "anew.duckdb")


def test_a_second_worker_on_a_folder_is_refused(where: str, tmp_path: Path) -> None:
    """Also while the first is paused for longer than its session: the file has one owner, so no zombie can write."""
    asyncio.run(_append(where, 0, 5))
    with worker(where, tmp_path) as first:
        _wait_group(where, tmp_path, RUNS + RUNS * 5)
        first.send_signal(signal.SIGSTOP)
        with worker(where, tmp_path) as second:
            assert second.wait(60) != 0
        asyncio.run(_append(where, 5, 5))
        first.send_signal(signal.SIGCONT)
        _wait_group(where, tmp_path, RUNS + RUNS * 10)
        assert _stop(first) == 0
    points, found = _stored(tmp_path)
    assert points == RUNS * 10 * 10
    assert found == _fold_anew(where, tmp_path / "anew.duckdb")


async def _members(where: str, group: str) -> int:
    """How many members a settled consumer group has; 0 while it is not settled."""
    admin = AIOKafkaAdminClient(bootstrap_servers=list(KafkaSettings.parse(where).servers))
    await admin.start()
    try:
        (described,) = (await admin.describe_consumer_groups([group]))[0].groups
        return len(described[5]) if described[2] == "Stable" else 0
    except GroupCoordinatorNotAvailableError:  # a new broker still makes its own topics
        return 0
    finally:
        await admin.close()


class _Asked(KafkaLog):
    """A log that counts how often it was asked where it ends."""

    asked = 0

    async def end(self) -> Token:
        self.asked += 1
        return await super().end()


async def _reach(feed: Feed, end: Token) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not (told := await feed.end()).covers(end):
            await feed.wait(told, WITHIN_S)


async def _joined(where: str, group: str, members: int) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            if await _members(where, group) == members:
                return
            await asyncio.sleep(0.2)


def test_what_the_group_gives_to_others_is_read_all_the_same(where: str) -> None:
    """Partitions that another member holds (one that was killed, say, for its session) do not wait for the group."""

    async def share() -> None:
        asking = KafkaSettings.parse(where)
        log = await KafkaLog.open(asking, readonly=True)
        try:
            async with (
                feeding(asking, asking.prefix, log, Token, print) as one,
                feeding(asking, asking.prefix, log, Token, print) as other,
            ):
                await _joined(where, asking.prefix, 2)
                await _append(where, 0, 5)
                end = await log.end()
                await _reach(one, end)
                await _reach(other, end)
        finally:
            await log.close()

    asyncio.run(share())


def test_in_its_group_it_is_faust_that_delivers(where: str) -> None:
    """Once Faust has all partitions, what comes is delivered, and nobody asks the log where it ends."""

    async def deliver() -> None:
        asking = KafkaSettings.parse(where)
        log = await _Asked.open(asking, readonly=True)
        assert isinstance(log, _Asked)
        beside = await KafkaLog.open(asking, readonly=True)
        try:
            async with feeding(asking, asking.prefix, log, Token, print) as feed, asyncio.timeout(WITHIN_S):
                for batch in itertools.count():
                    before = log.asked
                    await _append(where, batch, 1)
                    await _reach(feed, await beside.end())
                    if log.asked == before:
                        break
        finally:
            await log.close()
            await beside.close()

    asyncio.run(deliver())


def test_what_faust_says_nothing_of_is_read_all_the_same(where: str) -> None:
    """Where Faust holds all partitions and stalls, what is appended then is folded within seconds."""

    async def taken(feed: Feed, offsets: dict[Place, int], end: Token) -> None:
        async with asyncio.timeout(WITHIN_S):
            while any(offsets.get(place, 0) < end.next_offset(place) for place in offsets):
                for place, offset in offsets.items():
                    offsets[place] = (await feed.read(place, offset)).next_offset
                await asyncio.sleep(0.05)

    async def stall() -> None:
        asking = KafkaSettings.parse(where)
        log = await _Asked.open(asking, readonly=True)
        assert isinstance(log, _Asked)
        apps: list[FoldingApp] = []
        offsets = {Place(stream, n): 0 for stream, count in log.partitions.items() for n in range(count)}
        try:
            async with feeding(asking, asking.prefix, log, Token, print, apps.append) as feed:
                await _append(where, 0, 5)
                await taken(feed, offsets, await log.end())
                async with asyncio.timeout(WITHIN_S):
                    before = -1
                    while log.asked != before:  # until Faust has all: before that the log is asked all the time
                        before = log.asked
                        await asyncio.sleep(0.5)
                apps[0].flow_control.suspend()
                await _append(where, 5, 10)
                await taken(feed, offsets, await log.end())
        finally:
            await log.close()

    asyncio.run(stall())


@pytest.mark.parametrize(
    "environment", [{}, {"ICECORE_LOG": "kafka://a:1"}, {"ICECORE_LOG": "/data/log", "ICECORE_DATA": "/data"}]
)
def test_what_the_worker_needs_is_said(environment: dict[str, str]) -> None:
    """Without a log on Kafka or a folder the worker says what to set."""
    with pytest.raises(SettingsError, match="ICECORE_LOG=kafka"):
        worker_app(environment)
