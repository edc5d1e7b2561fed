"""A process that appends to a log until it is killed, and says on stdout what was acknowledged.

The log's contract and crash tests start it as a child; see `log_contract.child_appender`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

from icecore.events import Envelope, now_ms, uuid7
from icecore.log import EventLog, Record

OpenLog = Callable[[], Awaitable[EventLog]]


def make_record(key: str, seq: int, payload: bytes = b"{}", producer: str = "test") -> Record:
    """A record like those of real events: (producer, seq) tells it from all others."""
    envelope = Envelope(id=uuid7(), type="test.made", v=1, producer=producer, seq=seq, ts_client=now_ms())
    return Record(key, envelope, payload)


async def append_for_ever(open_log: OpenLog, stream: str, producer: str, tasks: int, size: int, count: int) -> None:
    """Append from several tasks, one record at a time; a line `PRODUCER SEQ PARTITION OFFSET` for each acknowledged.

    Args:
        open_log: opens the log.
        stream: where to append.
        producer: what the records are known by; task i is `PRODUCER.i`.
        tasks: how many append at once.
        size: bytes of a payload.
        count: how many records each task appends; 0 is until killed.
    """
    log = await open_log()
    os.write(1, b"ready\n")

    async def run(task: int) -> None:
        name = f"{producer}.{task}"
        seq = 0
        while count == 0 or seq < count:
            [position] = await log.append(stream, [make_record(name, seq, os.urandom(size), name)])
            os.write(1, f"{name} {seq} {position.partition} {position.offset}\n".encode())
            seq += 1

    await asyncio.gather(*map(run, range(tasks)))
    await log.close()


def main(open_log: OpenLog) -> None:
    """Run `append_for_ever` with the command line's arguments."""
    stream, producer, tasks, size, count = sys.argv[1:]
    asyncio.run(append_for_ever(open_log, stream, producer, int(tasks), int(size), int(count)))
