"""The log of one machine: SQLite files, appended to and read by any number of processes.

A record is acknowledged when the transaction that holds it is on disk (WAL, `synchronous=FULL`). One thread per
stream commits whatever has been queued meanwhile, so many small appends cost one fsync.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from icecore.bell import Bell
from icecore.codec import encode_envelope
from icecore.errors import LogError, LogForeign, LogReadOnly
from icecore.log import Batch, Record
from icecore.position import NEVER, STREAMS, Place, Position, Token
from icecore_ingest.logs import failures
from icecore_ingest.logs.reader import Reader
from icecore_ingest.logs.segments import content_checksum, create_segment, list_segments, segment_at, sync_folder
from icecore_ingest.logs.writer import Row, Writer

SEGMENT_SIZE: Final = 1 << 30
LOCK_TIMEOUT_S: Final = 10.0
_READ_THREADS: Final = 4
_POLL_LEAST_S: Final = 0.002
_POLL_MOST_S: Final = 0.025
_POLL_SHARE: Final = 0.02


class SQLiteLog:
    """An `EventLog` in a folder. Make one with `SQLiteLog.open`.

    Each stream has one partition. Safe for many tasks, event loops and threads; not across a fork.
    """

    def __init__(
        self, log_id: str, readers: dict[Place, Reader], writers: dict[Place, Writer], bells: dict[Place, Bell]
    ) -> None:
        self._log_id = log_id
        self._readers = readers
        self._writers = writers
        self._bells = bells
        self._partitions: Mapping[str, int] = MappingProxyType(dict.fromkeys(map(str, STREAMS), 1))
        self._threads = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="log-read")
        self._closed = False
        self._ends_seen: dict[Place, tuple[int, float]] = {}
        """The end of each partition as it was last looked at, and when it was first seen there."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        segment_size: int = SEGMENT_SIZE,
        readonly: bool = False,
        lock_timeout: float = LOCK_TIMEOUT_S,
    ) -> SQLiteLog:
        """Open the log in `folder`; make it if it is not there, unless `readonly`.

        Args:
            folder: DATA/log.
            segment_size: a segment is sealed and the next begun when its file has this many bytes.
            readonly: never write; appending raises `LogReadOnly`.
            lock_timeout: how long to wait for another process that writes, in seconds.

        Raises:
            LogForeign, LogTooNew: the folder holds something else.
            LogCorrupt: acknowledged records of the tail are damaged.
            LogFull, LogReadOnly, LogLocked: it cannot be opened for writing.
        """
        places = [Place(stream, 0) for stream in STREAMS]
        log_id = read_id(folder) if readonly else _make(folder, places)
        bells: dict[Place, Bell] = {}
        readers: dict[Place, Reader] = {}
        writers: dict[Place, Writer] = {}
        try:
            for place in places:
                lane = lane_of(folder, place)
                if not readonly:
                    writers[place] = Writer(
                        lane,
                        place,
                        _last_or_new(lane, place),
                        segment_size=segment_size,
                        lock_timeout=lock_timeout,
                        committed=bells.setdefault(place, Bell()).ring,
                    )
                readers[place] = Reader(lane, place)
        except OSError as error:
            _close_all(readers, writers)
            raise failures.translate_os(error, folder) from error
        except BaseException:
            _close_all(readers, writers)
            raise
        return cls(log_id, readers, writers, bells)

    @property
    def partitions(self) -> Mapping[str, int]:
        """How many partitions each stream has: one."""
        return self._partitions

    @property
    def log_id(self) -> str:
        """A random id made with the log."""
        return self._log_id

    @property
    def trouble(self) -> str:
        """Nothing: what is wrong with files is only known by trying."""
        return ""

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Append all records or none, and return when they are durable; see `EventLog.append`.

        Raises:
            LogFull, LogReadOnly, LogLocked, LogPoisoned: nothing of this call is acknowledged.
        """
        if self._closed:
            raise LogError("expected an open log, got a closed one")
        writer = self._writers.get(Place(stream, 0))
        if writer is None:
            raise self._no_writer(stream)
        if not records:
            return []
        rows: list[Row] = []
        size = 0
        for record in records:
            envelope = encode_envelope(record.envelope)
            content = content_checksum(record.key, envelope, record.payload)
            rows.append((record.key, envelope, record.payload, content))
            size += len(envelope) + len(record.payload)
        return await writer.append(rows, size)

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """Read from offset `start` on, in a thread; see `EventLog.read`. At least one record if there is one.

        Where a record is damaged the batch ends before it, and the read that starts at it raises.

        Raises:
            LogCorrupt: the record at `start` fails its checksum or is missing; the facts say where.
        """
        reader = self._reader(place)
        return await asyncio.get_running_loop().run_in_executor(self._threads, reader.read, start, records, size)

    async def end(self) -> Token:
        """The next offset of every partition. Takes some 10 us a partition, in the calling thread."""
        return self._end()

    async def start(self) -> Token:
        """The first offset of every partition that is still there."""
        return Token({place: reader.start() for place, reader in self._readers.items()})

    async def wait(self, token: Token, within: float) -> bool:
        """Wait until the end is beyond `token` in some partition; False after `within` seconds.

        Appends of this process wake it at once; those of others are looked for every 2 ms, and every 25 ms when the
        log has been quiet for a second. A partition whose offset in `token` is `NEVER` costs nothing.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        places = [place for place in self._readers if token.next_offset(place) < NEVER]
        while True:
            heard = {place: self._bells[place].listen() for place in places if place in self._bells}
            try:
                if any(self._look(place) > token.next_offset(place) for place in places):
                    return True
                left = deadline - loop.time()
                if left <= 0:
                    return False
                pause = min(left, self._pause(places))
                if heard:
                    await asyncio.wait(heard.values(), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(pause)
            finally:
                for place, future in heard.items():
                    self._bells[place].forget(future)

    async def close(self) -> None:
        """Commit what is queued and let go of the files."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._threads, _close_all, self._readers, self._writers)
            self._threads.shutdown()

    def _end(self) -> Token:
        return Token({place: self._look(place) for place in self._readers})

    def _look(self, place: Place) -> int:
        """The next offset of a partition, and when it moved."""
        if self._closed:
            raise LogError("expected an open log, got a closed one")
        end = self._readers[place].end()
        if self._ends_seen.get(place, (-1, 0.0))[0] != end:
            self._ends_seen[place] = end, time.monotonic()
        return end

    def _pause(self, places: Sequence[Place]) -> float:
        moved = max((self._ends_seen[place][1] for place in places), default=0.0)
        return min(max((time.monotonic() - moved) * _POLL_SHARE, _POLL_LEAST_S), _POLL_MOST_S)

    def _reader(self, place: Place) -> Reader:
        if self._closed:
            raise LogError("expected an open log, got a closed one")
        reader = self._readers.get(place)
        if reader is None:
            known = [f"{p.stream}:{p.partition}" for p in self._readers]
            raise LogError(f"expected one of the partitions {known}, got {place.stream}:{place.partition}")
        return reader

    def _no_writer(self, stream: str) -> LogError:
        if stream not in self._partitions:
            return LogError(f"expected a stream of {list(STREAMS)}, got {stream!r}")
        return LogReadOnly("expected a log opened for writing, got one opened to read", hint="open it without readonly")


# ------------------------------------------------------------------------------------------------------ folders


def lane_of(folder: Path, place: Place) -> Path:
    """The folder of a partition's segments."""
    return folder / f"{place.stream}-{place.partition}"


def read_id(folder: Path) -> str:
    """The id of the log in `folder`.

    Raises:
        LogForeign: there is none.
    """
    file = folder / "LOG_ID"
    try:
        text = file.read_text("ascii").strip()
        return uuid.UUID(text).hex
    except FileNotFoundError as error:
        raise LogForeign(f"expected a log in {folder}, got no {file.name}", hint="check --data") from error
    except OSError as error:
        raise failures.translate_os(error, file) from error
    except ValueError as error:
        raise failures.foreign(file, "a log's id, 32 hexadecimal digits", "something else") from error


def _make(folder: Path, places: Sequence[Place]) -> str:
    """Make what is missing of a log's folders and id; safe to do by several processes at once."""
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in new:
            sync_folder(path.parent)
        if not (folder / "LOG_ID").exists():
            _make_id(folder)
        for place in places:
            lane_of(folder, place).mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise failures.translate_os(error, folder) from error
    return read_id(folder)


def _make_id(folder: Path) -> None:
    """Make the log's id, durably; of two processes the first wins."""
    foreign = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if (folder / "LOG_ID").exists():  # looked for last: whatever was found may be what another process made with it
        return
    if foreign:
        raise LogForeign(
            f"expected a log or an empty folder at {folder}, got {sorted(foreign)[:3]} and no LOG_ID",
            hint="point --data at another folder; if this was a log, restore LOG_ID from a backup",
        )
    made = folder / f".LOG_ID.{uuid.uuid4().hex}"
    handle = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(handle, uuid.uuid4().hex.encode() + b"\n")
        os.fsync(handle)
        with suppress(FileExistsError):
            os.link(made, folder / "LOG_ID")
    finally:
        os.close(handle)
        made.unlink()


def _last_or_new(lane: Path, place: Place) -> int:
    """The first offset of the last segment; the first segment is made if there is none."""
    segments = list_segments(lane)
    if segments:
        return segments[-1].first
    create_segment(segment_at(lane, 0), place)
    return 0


def _close_all(readers: Mapping[Place, Reader], writers: Mapping[Place, Writer]) -> None:
    for reader in readers.values():
        reader.close()
    for writer in writers.values():
        writer.close()
