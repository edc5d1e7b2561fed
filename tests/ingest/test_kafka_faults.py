"""What a log on Kafka says and does while brokers are hurt: each state has its name, and passes by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from icecore.errors import (
    LogAway,
    LogBusy,
    LogError,
    LogForeign,
    LogNotReplicated,
    LogTopicMissing,
    LogTruncated,
    LogUnsure,
)
from icecore.position import LEDGER, METRICS, Place, Token
from icecore.testing.appender import make_record
from icecore.testing.children import Acknowledged
from icecore.testing.log_contract import check_acknowledged, read_all
from icecore_api.broker import Cluster
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka import KafkaLog
from kafka_logs import administering, eventually, opened, prefix_of, run, settings_of

QUICK = {"delivery_timeout_s": 6, "request_timeout_s": 5}


async def append_until(log: KafkaLog, done: asyncio.Event, producer: str, said: list[Acknowledged]) -> None:
    """Append one record after another, each until it is acknowledged, as clients do."""
    seq = 0
    while not done.is_set():
        try:
            [p] = await log.append(LEDGER, [make_record(producer, seq, producer=producer)])
        except (LogAway, LogNotReplicated):
            await asyncio.sleep(0.1)
            continue
        except LogUnsure:
            seq += 1  # it may be there: the next must be another
            continue
        said.append(Acknowledged(producer, seq, p.partition, p.offset))
        seq += 1


@pytest.mark.slow
@pytest.mark.parametrize("hurt", ["kill", "pause"])
def test_nothing_acknowledged_is_lost_with_a_leader(cluster: Cluster, topics: Callable[[str], str], hurt: str) -> None:
    """The ledger's leader is killed, or stops for longer than its session: appends go on, and nothing is lost."""

    async def test() -> None:
        settings = settings_of(cluster.bootstrap, prefix_of(topics), partitions=3)
        async with opened(settings) as log:
            said: list[Acknowledged] = []
            done = asyncio.Event()
            writers = [asyncio.ensure_future(append_until(log, done, f"p{i}", said)) for i in range(8)]
            await eventually(lambda: len(said) > 100, "a hundred records")
            leader = await asyncio.to_thread(cluster.leader, settings.topics[LEDGER])
            leader.kill() if hurt == "kill" else leader.pause()
            before = len(said)
            await eventually(lambda: len(said) > before + 100, "a hundred records with another leader")
            async with opened(settings, make=False) as late:
                assert (await late.end()).next_offset(Place(LEDGER, 0)) >= before
            leader.resume()
            await asyncio.to_thread(cluster.start)
            await eventually(lambda: not log.trouble, "a log that is well again")
            before = len(said)
            await eventually(lambda: len(said) > before + 100, "a hundred more")
            done.set()
            await asyncio.gather(*writers)
            check_acknowledged(await read_all(log), said)

    run(test)


@pytest.mark.slow
def test_two_of_three_brokers_away(cluster: Cluster, topics: Callable[[str], str]) -> None:
    """With one broker of three, appends end in time with a 503 that says why, and go on when the others are back."""

    async def test() -> None:
        settings = settings_of(cluster.bootstrap, prefix_of(topics), partitions=3, **QUICK)
        async with opened(settings) as log:
            await log.append(LEDGER, [make_record("run", 0)])
            for broker in cluster.brokers[1:]:
                broker.kill()
            began = time.monotonic()
            with pytest.raises((LogUnsure, LogNotReplicated, LogAway)) as caught:
                await log.append(LEDGER, [make_record("run", 1)])
            assert time.monotonic() - began < 60
            assert (caught.value.status, caught.value.facts["retry_after"] > 0) == (503, True)
            await eventually(lambda: log.trouble.startswith(("log_not_replicated", "log_away")), "a named trouble")
            await asyncio.to_thread(cluster.start)
            await eventually(lambda: not log.trouble, "a log that is well again")
            await log.append(LEDGER, [make_record("run", 2)])
            lane = (await read_all(log))[Place(LEDGER, 0)]
            assert [record.envelope.seq for record in lane] in ([0, 2], [0, 1, 2])

    run(test)


@pytest.mark.slow
def test_no_broker_at_all(own_broker: Cluster, topics: Callable[[str], str]) -> None:
    """With every broker away, appends and reads say so; a little waits, more is refused; then all goes on."""

    async def test() -> None:
        settings = settings_of(
            own_broker.bootstrap, prefix_of(topics), single_replica=1, partitions=2, buffer_bytes=11_000_000, **QUICK
        )
        async with opened(settings) as log:
            await log.append(METRICS, [make_record("run", 0)])
            own_broker.brokers[0].kill()
            large = make_record("run", 1, bytes(6_000_000))
            waiting = [asyncio.ensure_future(log.append(METRICS, [large])) for _ in range(3)]
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert any(isinstance(error, LogBusy) for error in found), found
            assert all(isinstance(error, LogError) and error.status == 503 for error in found), found
            with pytest.raises(LogError, match="answers") as caught:
                await log.read(Place(METRICS, 0), 0)
            assert isinstance(caught.value, LogAway)
            await eventually(lambda: log.trouble.startswith("log_away"), "a named trouble")
            with pytest.raises(LogAway, match="answers"):
                await KafkaLog.open(settings)
            await asyncio.to_thread(own_broker.start)
            await eventually(lambda: not log.trouble, "a log that is well again")
            await log.append(METRICS, [make_record("run", 2)])
            assert await log.wait(Token(), 5)

    run(test)


def test_the_topic_is_deleted(own_broker: Cluster, topics: Callable[[str], str]) -> None:
    """A deleted topic is named; one made anew is another log, which nothing of the old one is written to."""

    async def test() -> None:
        settings = settings_of(own_broker.bootstrap, prefix_of(topics), single_replica=1, partitions=2, **QUICK)
        async with opened(settings) as log:
            log_id = log.log_id
            await log.append(LEDGER, [make_record("run", 0)])
            async with administering(settings) as admin:
                await admin.delete_topics(list(settings.topics.values()))
            with pytest.raises(LogError) as caught:
                await log.append(LEDGER, [make_record("run", 1)])
            assert isinstance(caught.value, LogTopicMissing | LogUnsure), caught.value
            await eventually(lambda: log.trouble.startswith("log_topic_missing"), "a named trouble")
            with pytest.raises(LogTopicMissing, match="topics create"):
                await KafkaLog.open(settings)
            await kafka_topics.create(settings)
            await eventually(lambda: log.trouble.startswith("log_foreign"), "a log that knows it is another")
            with pytest.raises(LogForeign, match="made again"):
                await log.append(LEDGER, [make_record("run", 2)])
        async with opened(settings) as other:
            assert other.log_id != log_id
            assert await other.end() == Token()

    run(test)


def test_history_was_deleted(own_broker: Cluster, topics: Callable[[str], str]) -> None:
    """Deleted records are an alarm: an open log says so, reads of them fail, and it is not opened again."""

    async def test() -> None:
        from aiokafka.admin.records_to_delete import RecordsToDelete
        from aiokafka.structs import TopicPartition

        settings = settings_of(own_broker.bootstrap, prefix_of(topics), single_replica=1, partitions=2)
        async with opened(settings) as log:
            await log.append(LEDGER, [make_record("run", seq) for seq in range(10)])
            async with administering(settings) as admin:
                place = TopicPartition(settings.topics[LEDGER], 0)
                await admin.delete_records({place: RecordsToDelete(before_offset=4)})
            with pytest.raises(LogTruncated, match="starts at 4") as caught:
                await log.read(Place(LEDGER, 0), 0)
            assert (caught.value.facts["offset"], caught.value.facts["start"]) == (0, 4)
            assert len((await log.read(Place(LEDGER, 0), 4)).records) == 6
            assert (await log.start()).next_offset(Place(LEDGER, 0)) == 4
            await eventually(lambda: log.trouble.startswith("log_truncated"), "an alarm")
        with pytest.raises(LogTruncated, match="starts at 4"):
            await KafkaLog.open(settings)
        with pytest.raises(LogTruncated, match="starts at 4"):
            await kafka_topics.check(settings)

    run(test)
