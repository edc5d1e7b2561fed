"""What lies in Kafka: records that any Kafka program can read, and what others wrote beside them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.structs import TopicPartition

from brokers import Kafka
from icecore.codec import decode_envelope, encode_envelope
from icecore.errors import LogCorrupt, LogError, LogReadOnly, LogTooLarge
from icecore.log import StoredRecord
from icecore.position import LEDGER, METRICS, NEVER, Place, Token
from icecore.testing.appender import make_record
from icecore_ingest.logs.kafka_reader import FOREIGN, Chunk, Chunks, decode
from icecore_ingest.logs.kafka_settings import BATCH_BYTES, KafkaSettings
from icecore_ingest.logs.kafka_writer import HEADER
from kafka_logs import configure, eventually, opened, prefix_of, run, settings_of

PLACE = Place(LEDGER, 0)


@pytest.fixture
def settings(broker: Kafka, topics: Callable[[str], str]) -> KafkaSettings:
    """A log of this test's own."""
    return settings_of(broker.bootstrap, prefix_of(topics), single_replica=1, partitions=4)


def test_a_foreign_consumer_reads_the_log(settings: KafkaSettings) -> None:
    """A plain consumer finds key, payload, envelope and time of each record, at the position that was said."""

    async def test() -> None:
        records = [make_record(f"team/project/run-{i}", i, b'{"n": %d}' % i) for i in range(40)]
        async with opened(settings) as log:
            positions = await log.append(METRICS, records)
        said = {(p.partition, p.offset): record for p, record in zip(positions, records, strict=True)}
        consumer = AIOKafkaConsumer(bootstrap_servers=settings.servers)
        await consumer.start()
        try:
            places = [TopicPartition(settings.topics[METRICS], n) for n in range(4)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            for _ in range(40):
                message = await asyncio.wait_for(consumer.getone(), 30)
                record = said.pop((message.partition, message.offset))
                assert (message.key.decode(), message.value) == (record.key, record.payload)
                assert message.headers == ((HEADER, encode_envelope(record.envelope)),)
                assert decode_envelope(message.headers[0][1]) == record.envelope
                assert message.timestamp == record.envelope.ts_client
        finally:
            await consumer.stop()
        assert not said

    run(test)


def test_a_foreign_producer_agrees_on_partitions(settings: KafkaSettings) -> None:
    """A plain producer that writes the header puts a key where this log puts it, and its records are ours."""

    async def test() -> None:
        theirs = AIOKafkaProducer(bootstrap_servers=settings.servers, acks="all")
        async with opened(settings) as log, theirs:
            for i in range(60):
                record = make_record(f"run-{i}-\u00e9", i, b"theirs")
                headers = [(HEADER, encode_envelope(record.envelope))]
                told = await theirs.send_and_wait(
                    settings.topics[METRICS], record.payload, key=record.key.encode(), headers=headers
                )
                [position] = await log.append(METRICS, [make_record(record.key, i, b"ours")])
                assert told.partition == position.partition
                [found] = (await log.read(Place(METRICS, told.partition), told.offset, records=1)).records
                assert (found.key, found.envelope, found.payload) == (record.key, record.envelope, b"theirs")

    run(test)


def test_what_others_wrote_stops_nothing(settings: KafkaSettings) -> None:
    """Records without an envelope, or with a broken one, and transactions' markers are kept as of an unknown type."""

    async def test() -> None:
        async with opened(settings) as log:
            await log.append(LEDGER, [make_record("run", 0)])
            topic = settings.topics[LEDGER]
            theirs = AIOKafkaProducer(bootstrap_servers=settings.servers, transactional_id=topic)
            async with theirs, theirs.transaction():
                await theirs.send_and_wait(topic, b"no header", key=b"\xff")
                await theirs.send_and_wait(topic, None, key=b"", headers=[(HEADER, b"{not json")])

            async def marked() -> bool:
                return (await log.end()).next_offset(PLACE) == 4

            await eventually(marked, "the marker of the transaction's end")
            await log.append(LEDGER, [make_record("run", 1)])
            found = (await log.read(PLACE, 0)).records
            assert [record.position.offset for record in found] == [0, 1, 2, 3, 4]
            assert [record.envelope.type for record in found] == ["test.made", FOREIGN, FOREIGN, FOREIGN, "test.made"]
            assert [record.payload for record in found[1:4]] == [b"no header", b"", b""]
            assert len({(record.envelope.producer, record.envelope.seq) for record in found}) == 5

    run(test)


def test_a_whole_request_is_one_batch(settings: KafkaSettings) -> None:
    """A call as large as a request is taken whole by one partition; a larger one is refused, naming its size."""

    async def test() -> None:
        async with opened(settings) as log:
            records = [make_record("run", i, bytes(8 * 1024)) for i in range(1000)]
            positions = await log.append(METRICS, records)
            assert [p.offset for p in positions] == list(range(1000))
            with pytest.raises(LogTooLarge) as caught:
                await log.append(METRICS, [make_record("run", 0, bytes(BATCH_BYTES))])
            assert (caught.value.status, caught.value.facts["value"] > BATCH_BYTES) == (413, True)
            assert (await log.append(METRICS, [make_record("run", 1)]))[0].offset == 1000

    run(test)


def test_a_topic_that_takes_less_than_it_did(settings: KafkaSettings) -> None:
    """Where a topic's limit was lowered, too large a record is refused and the next, small one is taken."""

    async def test() -> None:
        async with opened(settings) as log:
            await configure(settings, settings.topics[LEDGER], max_message_bytes="20000")
            large = make_record("run", 0, bytes(100_000))

            async def refused() -> bool:
                try:
                    await log.append(LEDGER, [large])
                except LogTooLarge as error:
                    return "topics check" in error.hint
                return False

            await eventually(refused, "the refusal")
            before = (await log.end()).next_offset(PLACE)
            assert [(await log.append(LEDGER, [make_record("run", i)]))[0].offset for i in range(3)] == [
                before,
                before + 1,
                before + 2,
            ]

    run(test)


def test_reads_from_anywhere(settings: KafkaSettings) -> None:
    """Reads at random offsets, of random sizes, by several at once, find what lies there."""

    async def test() -> None:
        async with opened(settings) as log:
            sizes = random.Random(7)
            for first in range(0, 600, 30):
                batch = [make_record("run", first + i, bytes(sizes.randrange(3000))) for i in range(30)]
                await log.append(LEDGER, batch)

            async def look(seed: int) -> None:
                dice = random.Random(seed)
                for _ in range(40):
                    start, most = dice.randrange(600), dice.randrange(1, 100)
                    found = await log.read(PLACE, start, records=most, size=dice.randrange(1, 200_000))
                    assert 1 <= len(found.records) <= most
                    seqs = [record.envelope.seq for record in found.records]
                    assert seqs == list(range(start, found.next_offset))

            await asyncio.gather(*map(look, range(6)))

    run(test)


def test_a_reader_writes_nothing(settings: KafkaSettings) -> None:
    """A log opened to read refuses to append, and follows the others."""

    async def test() -> None:
        async with opened(settings) as log, opened(settings, readonly=True) as reader:
            with pytest.raises(LogReadOnly, match="opened to read"):
                await reader.append(LEDGER, [make_record("run", 0)])
            assert reader.log_id == log.log_id
            others = {Place(METRICS, n): NEVER for n in range(4)}
            waiting = asyncio.ensure_future(reader.wait(Token({**others, PLACE: 1}), 30))
            await log.append(METRICS, [make_record("run", 0)])
            await log.append(LEDGER, [make_record("run", 0)])
            assert not (await asyncio.wait([waiting], timeout=0.3))[0], "a partition that does not matter woke it"
            await log.append(LEDGER, [make_record("run", 1)])
            assert await waiting

    run(test)


def test_closing_ends_what_waits(settings: KafkaSettings) -> None:
    """Who waits when the log is closed is told, and does not wait for ever."""

    async def test() -> None:
        async with opened(settings) as log:
            waiting = asyncio.ensure_future(log.wait(await log.end(), 60))
            await asyncio.sleep(0)
            appending = asyncio.ensure_future(log.append(LEDGER, [make_record("run", 0)]))
            await asyncio.sleep(0)
            await log.close()
            found = await asyncio.gather(waiting, appending, return_exceptions=True)
            assert found[0] is True or isinstance(found[0], LogError)
            assert isinstance(found[1], list | LogError)

    run(test)


# -------------------------------------------------------------------------------------------------- damaged bytes


def batch_of(first: int, seqs: list[int]) -> bytes:
    """A batch as Kafka keeps it."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, 1, 0, 0, 1 << 20)
    for i, seq in enumerate(seqs):
        record = make_record("run", seq, b"payload %d" % seq)
        header = (HEADER, encode_envelope(record.envelope))
        builder.append(i, 1_700_000_000_000, b"run", record.payload, [header])
    return first.to_bytes(8, "big") + bytes(builder.build())[8:]


def test_a_flipped_bit_is_found() -> None:
    """What comes before the damage is given; the read that begins at it says where it is."""
    data = bytearray(batch_of(0, [0, 1]) + batch_of(2, [2]))
    data[-3] ^= 1
    found: list[StoredRecord] = []

    with pytest.raises(LogCorrupt, match="checksum") as caught:
        decode(PLACE, Chunk(bytes(data), 0, 0), found, 100, 1 << 20)

    assert [record.envelope.seq for record in found] == [0, 1]
    assert (caught.value.facts["stream"], caught.value.facts["offset"]) == (LEDGER, 2)


def test_a_hole_is_found() -> None:
    """An offset that is not there is damage, not silence."""
    with pytest.raises(LogCorrupt, match="a hole up to 5") as caught:
        decode(PLACE, Chunk(batch_of(0, [0]) + batch_of(5, [5]), 0, 0), [], 100, 1 << 20)

    assert caught.value.facts["offset"] == 1


def test_a_cut_batch_waits_for_the_rest() -> None:
    """The last batch of an answer may be cut: it is left for the next fetch."""
    data = batch_of(0, [0, 1, 2])
    for cut in range(len(data)):
        found: list[StoredRecord] = []
        assert decode(PLACE, Chunk(data[:cut], 0, 0), found, 100, 1 << 20) == (None, 1 << 20)
        assert found == []


def test_what_is_left_is_kept_for_who_goes_on() -> None:
    """A reader that goes on where it stopped fetches nothing twice; one that goes elsewhere gets nothing stale."""
    chunks, found = Chunks(), list[StoredRecord]()
    left, _ = decode(PLACE, Chunk(batch_of(0, [0, 1, 2, 3]), 0, 0), found, 3, 1 << 20)
    assert left is not None
    assert left.offset == 3
    chunks.keep(PLACE, left)

    assert chunks.take(PLACE, 1) is None
    assert chunks.take(PLACE, 3) is None, "it was let go when somebody asked for something else"
    chunks.keep(PLACE, left)
    assert chunks.take(PLACE, 3) == left
