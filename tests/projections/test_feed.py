"""The feed between whoever delivers records and the runner."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecore.log import Record, StoredRecord
from icecore.position import LEDGER, METRICS, Place, Token
from icecore.testing.appender import make_record
from icecore.testing.memory_log import MemoryLog
from icecore_projections.feed import Feed

PLACE = Place(METRICS, 0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test in an event loop of its own."""

    async def bounded() -> None:
        await asyncio.wait_for(asyncio.ensure_future(test()), 30)

    asyncio.run(bounded())


async def _log(count: int) -> tuple[MemoryLog, list[StoredRecord]]:
    log = MemoryLog()
    made: list[Record] = [make_record("p", n) for n in range(count)]
    await log.append(METRICS, made)
    return log, list((await log.read(PLACE, 0, records=count)).records)


def test_what_was_delivered_is_read_once_and_in_order() -> None:
    """A batch holds what was delivered from its start on, and the next one goes on after it."""

    async def test() -> None:
        log, records = await _log(10)
        feed = Feed(log)
        await feed.deliver(records[:6])
        first = await feed.read(PLACE, 0, records=4)
        rest = await feed.read(PLACE, first.next_offset)
        assert [r.position.offset for r in (*first.records, *rest.records)] == list(range(6))
        assert not (await feed.read(PLACE, 6)).records

    run(test)


def test_what_is_forgotten_makes_room() -> None:
    """A deliverer that waits for room goes on when what it delivered is forgotten, as in a rebalance."""

    async def test() -> None:
        log, records = await _log(10)
        feed = Feed(log, held_bytes=1)
        waiting = asyncio.create_task(feed.deliver(records[:5]))
        await asyncio.sleep(0)
        assert not waiting.done()
        feed.forget([PLACE])
        await waiting
        assert len((await feed.read(PLACE, 0)).records) == 5

    run(test)


def test_a_gap_is_filled_from_the_log() -> None:
    """Records that the deliverer skipped are read from the log itself."""

    async def test() -> None:
        log, records = await _log(10)
        feed = Feed(log)
        await feed.deliver([records[0], records[1], records[5], records[6]])
        found: list[int] = []
        while batch := (await feed.read(PLACE, len(found))).records:
            found += [record.position.offset for record in batch]
        assert found == list(range(7))

    run(test)


def test_a_batch_wanted_again_is_read_again() -> None:
    """After a failed commit the runner reads from where the store is, although those records were handed out."""

    async def test() -> None:
        log, records = await _log(4)
        feed = Feed(log)
        await feed.deliver(records)
        await feed.read(PLACE, 0)
        again = await feed.read(PLACE, 1)
        assert [record.position.offset for record in again.records] == [1, 2, 3]

    run(test)


def test_an_announced_record_is_left_to_the_log() -> None:
    """What cannot be delivered counts as news and is met where the log is read."""

    async def test() -> None:
        log, records = await _log(3)
        feed = Feed(log)
        await feed.deliver(records[:1])
        feed.announce(PLACE, 3)
        assert (await feed.end()).next_offset(PLACE) == 3
        assert len((await feed.read(PLACE, 0)).records) == 3

    run(test)


def test_the_deliverer_waits_for_room() -> None:
    """Delivery of more than may be held returns only when the runner has taken enough."""

    async def test() -> None:
        log, records = await _log(6)
        feed = Feed(log, held_bytes=1)
        delivering = asyncio.create_task(feed.deliver(records))
        assert await feed.wait(Token(), 5)
        assert not delivering.done()
        await feed.read(PLACE, 0)
        await asyncio.wait_for(delivering, 5)

    run(test)


def test_waiting_ends_with_news_and_with_time() -> None:
    """`wait` is True once something beyond the token was delivered, and False when the time is over."""

    async def test() -> None:
        log, records = await _log(2)
        feed = Feed(log)
        assert not await feed.wait(Token(), 0.01)
        waiting = asyncio.create_task(feed.wait(Token({PLACE: 1}), 10))
        await feed.deliver(records)
        assert await waiting

    run(test)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("partitions", [1, 3])
def test_whatever_is_delivered_the_log_is_read(partitions: int, seed: int) -> None:
    """Under doubled, dropped, forgotten and late deliveries the reader sees every record once and in order."""
    chance = random.Random(seed)

    async def test() -> None:
        log = MemoryLog({LEDGER: 1, METRICS: partitions})
        await log.append(METRICS, [make_record(f"key-{n % 7}", n) for n in range(30)])
        places = [Place(METRICS, n) for n in range(partitions)]
        lanes = {place: list((await log.read(place, 0)).records) for place in places}
        feed = Feed(log)
        found: dict[Place, list[int]] = {place: [] for place in places}
        sent = dict.fromkeys(places, 0)
        while any(len(found[place]) < len(lanes[place]) for place in places):
            place = chance.choice(places)
            match chance.randrange(4):
                case 0:
                    sent[place] = min(len(lanes[place]), sent[place] + chance.randrange(4))
                    feed.forget([place])
                case 1:
                    sent[place] = chance.randrange(len(found[place]) + 1)
                case 2:
                    end = min(len(lanes[place]), sent[place] + chance.randrange(1, 6))
                    await feed.deliver(lanes[place][sent[place] : end])
                    sent[place] = end
                case _:
                    batch = await feed.read(place, len(found[place]), records=chance.randrange(1, 8))
                    found[place] += [record.position.offset for record in batch.records]
        assert all(found[place] == list(range(len(lanes[place]))) for place in places)

    run(test)
