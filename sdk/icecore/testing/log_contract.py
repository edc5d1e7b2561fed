"""What every `EventLog` must do, as tests to inherit.

    class TestMyLog(LogContract):
        @pytest.fixture
        def logs(self, tmp_path):
            return MyLogs(tmp_path)

`logs` is a `Logs`: it opens clients of one log. Needs pytest.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest

from icecore.errors import LogError
from icecore.log import EventLog, StoredRecord
from icecore.position import LEDGER, METRICS, Place, Position, Token
from icecore.testing.appender import make_record
from icecore.testing.children import DEADLINE_S, Acknowledged, child_appender


class Logs(ABC):
    """Opens clients of one log, which a test has for itself."""

    survives: ClassVar[bool] = True
    """Whether the log outlives its clients."""

    @abstractmethod
    async def open(self) -> EventLog:
        """A client; called again, another client of the same log."""

    @abstractmethod
    def source(self) -> str:
        """Python source that defines `async def open_log()`, which opens the log in another process; or empty."""


async def read_all(log: EventLog, stream: str = LEDGER, *, records: int = 997) -> dict[Place, list[StoredRecord]]:
    """Every record of a stream, checked to be dense from the start on."""
    found: dict[Place, list[StoredRecord]] = {}
    for partition in range(log.partitions[stream]):
        place = Place(stream, partition)
        lane = found[place] = []
        while batch := (await log.read(place, len(lane), records=records)).records:
            lane.extend(batch)
        assert [record.position for record in lane] == [Position(*place, offset) for offset in range(len(lane))]
    return found


def check_acknowledged(found: dict[Place, list[StoredRecord]], acknowledged: list[Acknowledged]) -> None:
    """Every acknowledged record is where it was said to be, and nothing is there twice."""
    for said in acknowledged:
        lane = next(lane for place, lane in found.items() if place.partition == said.partition)
        assert said.offset < len(lane), f"{said} was acknowledged and is gone"
        envelope = lane[said.offset].envelope
        assert (envelope.producer, envelope.seq) == (said.producer, said.seq)
    seen = [(r.envelope.producer, r.envelope.seq) for lane in found.values() for r in lane]
    assert len(seen) == len(set(seen)), "a record is in the log twice"


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run one test in an event loop of its own, and fail rather than hang."""

    async def bounded() -> None:
        await asyncio.wait_for(asyncio.ensure_future(test()), DEADLINE_S)

    asyncio.run(bounded())


class LogContract:
    """The contract. Inherit it and give a fixture `logs`."""

    @pytest.fixture
    def logs(self) -> Logs:
        """The log under test."""
        raise NotImplementedError("give a fixture `logs`")

    def test_durable_before_return(self, logs: Logs) -> None:
        """What was appended is there for another client as soon as the append has returned."""

        async def test() -> None:
            log, other = await logs.open(), await logs.open()
            for seq in range(20):
                [position] = await log.append(LEDGER, [make_record("run", seq, b"payload %d" % seq)])
                [record] = (await other.read(position.place, position.offset)).records
                assert (record.position, record.key, record.payload) == (position, "run", b"payload %d" % seq)
                assert record.envelope.seq == seq

        run(test)

    def test_dense_increasing_positions(self, logs: Logs) -> None:
        """Offsets begin at 0 and leave nothing out, within each partition and across streams."""

        async def test() -> None:
            log = await logs.open()
            offsets: dict[Place, list[int]] = defaultdict(list)
            for i in range(30):
                stream = (LEDGER, METRICS)[i % 2]
                for position in await log.append(stream, [make_record(f"run-{i}-{j}", j) for j in range(i % 4)]):
                    offsets[position.place].append(position.offset)
            assert all(lane == list(range(len(lane))) for lane in offsets.values())
            end = Token({place: len(lane) for place, lane in offsets.items()})
            assert await log.end() == end

        run(test)

    def test_records_of_one_call_lie_together(self, logs: Logs) -> None:
        """The records of a call keep their order and nobody else's come between, while others append."""

        async def test() -> None:
            log, other = await logs.open(), await logs.open()

            async def append(client: EventLog, name: str) -> None:
                for seq in range(15):
                    records = [make_record(name, seq * 10 + i, producer=name) for i in range(10)]
                    positions = await client.append(LEDGER, records)
                    first = positions[0]
                    assert positions == [Position(*first.place, first.offset + i) for i in range(10)]

            await asyncio.gather(*(append((log, other)[i % 2], f"task{i}") for i in range(8)))
            for lane in (await read_all(log)).values():
                order: dict[str, list[int]] = defaultdict(list)
                for record in lane:
                    order[record.envelope.producer].append(record.envelope.seq)
                assert all(seqs == sorted(seqs) for seqs in order.values())

        run(test)

    def test_a_key_stays_in_its_partition(self, logs: Logs) -> None:
        """Records of one key are all in one partition, also by another client, and all partitions are used."""

        async def test() -> None:
            log, other = await logs.open(), await logs.open()
            places: dict[str, set[Place]] = defaultdict(set)
            for client in (log, other):
                records = [make_record(f"run-{i}", i) for i in range(200)]
                for record, position in zip(records, await client.append(METRICS, records), strict=True):
                    places[record.key].add(position.place)
            assert {len(found) for found in places.values()} == {1}
            assert len(set().union(*places.values())) == log.partitions[METRICS]

        run(test)

    def test_concurrent_tasks(self, logs: Logs) -> None:
        """Fifty tasks append at once; every record is there once, where its append said."""

        async def test() -> None:
            log = await logs.open()
            said: list[Acknowledged] = []

            async def append(task: int) -> None:
                for seq in range(20):
                    [p] = await log.append(METRICS, [make_record(f"run-{task}", seq, producer=f"p{task}")])
                    said.append(Acknowledged(f"p{task}", seq, p.partition, p.offset))

            await asyncio.gather(*map(append, range(50)))
            found = await read_all(log, METRICS)
            check_acknowledged(found, said)
            assert sum(map(len, found.values())) == 1000

        run(test)

    def test_concurrent_threads(self, logs: Logs) -> None:
        """One client serves several threads, each with an event loop of its own."""
        log = asyncio.run(_opened(logs))
        said: list[Acknowledged] = []
        errors: list[Exception] = []

        async def append(thread: int) -> None:
            for seq in range(50):
                [p] = await log.append(LEDGER, [make_record(f"run-{thread}", seq, producer=f"p{thread}")])
                said.append(Acknowledged(f"p{thread}", seq, p.partition, p.offset))

        def work(thread: int) -> None:
            try:
                asyncio.run(append(thread))
            except Exception as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert errors == []

        async def test() -> None:
            check_acknowledged(await read_all(log), said)
            assert len(said) == 200

        run(test)

    def test_concurrent_processes(self, logs: Logs) -> None:
        """Several processes append to one log; every record is there once, where its append said."""
        if not logs.source():
            pytest.skip("this log lives in one process")
        with (
            child_appender(logs.source(), producer="a", count=50) as a,
            child_appender(logs.source(), producer="b", count=50) as b,
        ):
            assert (a.finish(), b.finish()) == (0, 0)

        async def test() -> None:
            found = await read_all(await logs.open())
            check_acknowledged(found, a.acknowledged + b.acknowledged)
            assert sum(map(len, found.values())) == 400

        run(test)

    def test_readers_see_no_hole(self, logs: Logs) -> None:
        """A reader that follows the end sees every record once and in order, while others append."""

        async def test() -> None:
            log, reader = await logs.open(), await logs.open()
            done = asyncio.Event()

            async def append(task: int) -> None:
                for seq in range(0, 60, 3):
                    await log.append(METRICS, [make_record(f"run-{task}", seq + i, b"x" * 3000) for i in range(3)])

            async def follow(place: Place) -> int:
                offset = 0
                while True:
                    finished = done.is_set()
                    end = (await reader.end()).next_offset(place)
                    batch = await reader.read(place, offset)
                    assert [r.position.offset for r in batch.records] == list(range(offset, batch.next_offset))
                    assert batch.next_offset >= end, "the end was beyond what can be read"
                    offset = batch.next_offset
                    if finished:
                        return offset
                    await reader.wait(Token({place: offset}), 0.05)

            places = [Place(METRICS, n) for n in range(log.partitions[METRICS])]
            followers = [asyncio.ensure_future(follow(place)) for place in places]
            await asyncio.gather(*map(append, range(20)))
            done.set()
            assert sum(await asyncio.gather(*followers)) == 1200

        run(test)

    def test_wait_wakes(self, logs: Logs) -> None:
        """Waiting ends soon after an append by the same client, and after one by another."""

        async def test() -> None:
            log, other = await logs.open(), await logs.open()
            for writer in (log, other):
                token = await log.end()
                waiting = asyncio.ensure_future(log.wait(token, DEADLINE_S))
                assert not (await asyncio.wait([waiting], timeout=0.05))[0], "there was nothing to wake for"
                await writer.append(METRICS, [make_record("run", 0)])
                started = time.monotonic()
                assert await waiting
                assert time.monotonic() - started < 5
                assert await log.wait(token, 0), "what is there already needs no waiting"

        run(test)

    def test_wait_times_out(self, logs: Logs) -> None:
        """Waiting for more than there is ends with False, and not before its time."""

        async def test() -> None:
            log = await logs.open()
            await log.append(LEDGER, [make_record("run", 0)])
            started = time.monotonic()
            assert not await log.wait(await log.end(), 0.1)
            assert time.monotonic() - started >= 0.099
            beyond = (await log.end()).merge(Token({Place(LEDGER, 0): 1000}))
            assert not await log.wait(beyond, 0.01)

        run(test)

    def test_reads_are_limited(self, logs: Logs) -> None:
        """A read gives no more than asked for, one record at least, and nothing beyond the end."""

        async def test() -> None:
            log = await logs.open()
            positions = await log.append(LEDGER, [make_record("run", i, b"x" * 1000) for i in range(50)])
            place = positions[0].place
            assert (await log.read(place, 10, records=7)).next_offset == 17
            assert (await log.read(place, 0, size=1)).next_offset == 1
            assert 5 <= (await log.read(place, 0, size=5000)).next_offset <= 6
            for start in (50, 51, 10_000):
                batch = await log.read(place, start)
                assert (list(batch.records), batch.next_offset) == ([], start)

        run(test)

    @pytest.mark.parametrize(
        ("key", "payload"),
        [
            ("", b""),
            ("team/projet-\u00e9/\u4e2d\u6587", bytes(range(256)) * 3),
            ("nul\x00in the middle", b"\n\r\x00\n"),
            ("k" * 5000, b"\xff" * (1 << 20)),
        ],
        ids=["empty", "unicode", "nul", "1 MB"],
    )
    def test_any_bytes(self, logs: Logs, key: str, payload: bytes) -> None:
        """Keys and payloads come back byte for byte, empty ones and a full MB too."""

        async def test() -> None:
            log = await logs.open()
            record = make_record(key, 7, payload)
            [position] = await log.append(METRICS, [record])
            [stored] = (await log.read(position.place, position.offset)).records
            assert (stored.key, stored.envelope, stored.payload) == (key, record.envelope, payload)

        run(test)

    def test_many_records_in_one_call(self, logs: Logs) -> None:
        """A call of a thousand records is taken whole."""

        async def test() -> None:
            log = await logs.open()
            records = [make_record(f"run-{i}", i, b"%d" % i) for i in range(1000)]
            positions = await log.append(METRICS, records)
            found = await read_all(log, METRICS)
            at = {record.position: record.payload for lane in found.values() for record in lane}
            assert [at[position] for position in positions] == [record.payload for record in records]

        run(test)

    def test_empty_append(self, logs: Logs) -> None:
        """Appending nothing is fine and changes nothing."""

        async def test() -> None:
            log = await logs.open()
            assert await log.append(LEDGER, []) == []
            assert (await log.end(), await log.start()) == (Token(), Token())

        run(test)

    def test_tokens(self, logs: Logs) -> None:
        """The end covers everything appended, the start nothing; both through text and back."""

        async def test() -> None:
            log = await logs.open()
            positions = await log.append(LEDGER, [make_record("run", i) for i in range(3)])
            positions += await log.append(METRICS, [make_record("run", i) for i in range(2)])
            end = Token.parse(str(await log.end()))
            assert end == Token.after(positions)
            assert not (await log.start()).covers(end)

        run(test)

    def test_wrong_calls(self, logs: Logs) -> None:
        """An unknown stream or partition is an error that names it, not an empty answer."""

        async def test() -> None:
            log = await logs.open()
            with pytest.raises(LogError, match="nonsense"):
                await log.append("nonsense", [make_record("run", 0)])
            with pytest.raises(LogError, match="nonsense"):
                await log.read(Place("nonsense", 0), 0)
            with pytest.raises(LogError, match="99"):
                await log.read(Place(LEDGER, 99), 0)

        run(test)

    def test_closed(self, logs: Logs) -> None:
        """A closed client refuses; closing twice is fine; another client goes on."""

        async def test() -> None:
            log = await logs.open()
            await log.append(LEDGER, [make_record("run", 0)])
            other = await logs.open()
            await log.close()
            await log.close()
            with pytest.raises(LogError, match="closed"):
                await log.append(LEDGER, [make_record("run", 1)])
            with pytest.raises(LogError, match="closed"):
                await log.read(Place(LEDGER, 0), 0)
            if other is not log:
                assert [p.offset for p in await other.append(LEDGER, [make_record("run", 1)])] == [1]

        run(test)

    def test_given_up_appends_do_no_harm(self, logs: Logs) -> None:
        """A task that is cancelled while it appends leaves the others' answers right."""

        async def test() -> None:
            log = await logs.open()
            tasks = [asyncio.ensure_future(log.append(LEDGER, [make_record("run", i)])) for i in range(40)]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            lane = (await read_all(log))[Place(LEDGER, 0)]
            for i, result in enumerate(done):
                if not isinstance(result, BaseException):
                    assert lane[result[0].offset].envelope.seq == i

        run(test)

    def test_reopened(self, logs: Logs) -> None:
        """Closed and opened again, the log has its id and records, and its offsets go on."""
        if not logs.survives:
            pytest.skip("this log ends with its process")

        async def test() -> None:
            log = await logs.open()
            log_id = log.log_id
            for seq in range(5):
                await log.append(LEDGER, [make_record("run", seq)])
            await log.close()
            again = await logs.open()
            assert again.log_id == log_id
            assert [p.offset for p in await again.append(LEDGER, [make_record("run", 5)])] == [5]
            lane = (await read_all(again))[Place(LEDGER, 0)]
            assert [record.envelope.seq for record in lane] == list(range(6))

        run(test)

    def test_killed(self, logs: Logs) -> None:
        """After kill -9 of a process that appends, everything it was told is there, once, and the log goes on."""
        if not logs.source():
            pytest.skip("this log lives in one process")
        said: list[Acknowledged] = []
        for number in range(3):
            with child_appender(logs.source(), producer=f"child{number}") as child:
                child.wait_for(20 + 15 * number)
                child.finish(kill=True)
            said += child.acknowledged

        async def test() -> None:
            log = await logs.open()
            check_acknowledged(await read_all(log), said)
            [position] = await log.append(LEDGER, [make_record("after", 0)])
            assert (await log.end()).next_offset(position.place) == position.next_offset

        run(test)


async def _opened(logs: Logs) -> EventLog:
    return await logs.open()
