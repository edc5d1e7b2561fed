"""What serves a data folder without changing it: a log that takes nothing, and a store that folds nothing.

People must still get in. So the log takes their sessions, and the key and the login link made for them when the
server was started, but in memory only: they end with the process, and no file of the folder knows of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb

from icecore.bell import Bell
from icecore.errors import ReadOnlyCopy, StoreError
from icecore.events import SessionClosed, SessionOpened
from icecore.log import Batch, EventLog, Record, StoredRecord
from icecore.position import LEDGER, Place, Position, Token
from icecore_api.checks import check_folder
from icecore_api.context import Report
from icecore_api.replaying import iso, read_note
from icecore_api.supervise import log_of
from icecore_projections import generations
from icecore_projections.digest import digest
from icecore_projections.rebuild import rebuild
from icecore_projections.store import Store

DOOR: Final = Place(LEDGER, 0)
SESSIONS: Final = frozenset({SessionOpened.TYPE, SessionClosed.TYPE})


def refusal(moment: str) -> ReadOnlyCopy:
    """The error for whatever would change a copy."""
    return ReadOnlyCopy(
        f"expected a server that takes changes, got a read-only copy as of {moment}",
        hint="send them to the server that this copy was made of",
        as_of=moment,
    )


class ReadOnlyLog:
    """An `EventLog` over another that is only read; who came in since is in memory, behind the ledger's end.

    Args:
        log: what is read; it must not grow.
        end: its end.
        moment: what it is as of, for the refusals.
        door: records of the key and the link by which people come in.
    """

    def __init__(self, log: EventLog, end: Token, moment: str, door: Sequence[Record] = ()) -> None:
        self._log = log
        self._end = end
        self._moment = moment
        self._bell = Bell()
        self._inside: list[StoredRecord] = []
        self._take(door)

    @property
    def partitions(self) -> Mapping[str, int]:
        """As in the log."""
        return self._log.partitions

    @property
    def log_id(self) -> str:
        """As in the log."""
        return self._log.log_id

    @property
    def trouble(self) -> str:
        """As in the log."""
        return self._log.trouble

    async def append(self, stream: str, records: Sequence[Record]) -> list[Position]:
        """Take sessions, in memory.

        Raises:
            ReadOnlyCopy: they are anything else.
        """
        if stream != LEDGER or any(record.envelope.type not in SESSIONS for record in records):
            raise refusal(self._moment)
        return self._take(records)

    def _take(self, records: Sequence[Record]) -> list[Position]:
        first = self._end.next_offset(DOOR) + len(self._inside)
        positions = [Position(*DOOR, first + i) for i in range(len(records))]
        self._inside += [
            StoredRecord(position, record.key, record.envelope, record.payload)
            for position, record in zip(positions, records, strict=True)
        ]
        self._bell.ring()
        return positions

    async def read(self, place: Place, start: int, *, records: int = 10_000, size: int = 32 << 20) -> Batch:
        """As in the log, and behind its end who came in since."""
        end = self._end.next_offset(place)
        if start < end:
            return await self._log.read(place, start, records=min(records, end - start), size=size)
        found = self._inside[start - end : start - end + records] if place == DOOR else []
        return Batch(place, found, start + len(found))

    async def end(self) -> Token:
        """The end of the log itself."""
        return self._end

    async def start(self) -> Token:
        """As in the log."""
        return await self._log.start()

    def reached(self) -> Token:
        """The end, with those who came in since."""
        inside = Token({DOOR: self._end.next_offset(DOOR) + len(self._inside)}) if self._inside else Token()
        return self._end.merge(inside)

    async def wait(self, token: Token, within: float) -> bool:
        """Wait until somebody came in beyond `token`; False after `within` seconds."""
        deadline = asyncio.get_running_loop().time() + within
        while True:
            heard = self._bell.listen()
            try:
                if not token.covers(self.reached()):
                    return True
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return False
                await asyncio.wait((heard,), timeout=left)
            finally:
                self._bell.forget(heard)

    async def close(self) -> None:
        """Close the log."""
        await self._log.close()


class ReadOnlyStore:
    """A store that is read and never folded into (`icecore_api.context.Store`)."""

    def __init__(self, store: Store, log: ReadOnlyLog) -> None:
        self.inner = store
        self._log = log

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for one request."""
        return self.inner.cursor()

    def token(self) -> Token:
        """What is folded."""
        return self.inner.token()

    async def wait_async(self, token: Token, within: float) -> bool:
        """Whether `token` is folded, sessions aside; what is not never will be, so nobody waits."""
        del within
        return self.inner.token().merge(self._log.reached()).covers(token)


def open_store(data: Path, log_id: str) -> Store:
    """The store of a data folder, opened to read.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    path = generations.current(data / "store")
    if path is None:
        raise StoreError(
            f"expected a store in {data / 'store'}, got none", hint=f"icecore rebuild --data {data} makes it"
        )
    return Store.open(path, log_id=log_id, readonly=True)


def as_of(data: Path, store: Store) -> dict[str, Any]:
    """What a folder that is served without changing it shows: which log, up to where, and when that was."""
    note = read_note(data)
    if note is not None:
        return note.as_json()
    with store.reading() as con:
        (row,) = con.execute("SELECT coalesce(max(ts_server), 0) FROM offsets").fetchall()
    return {"log_id": store.log_id, "token": str(store.token()), "ts_ms": row[0], "time": iso(row[0])}


class ReadOnlyOperations:
    """The long operations that change nothing.

    Args:
        data: the data folder.
        store: the open store.
        log: the log.
        moment: what they are as of.
    """

    def __init__(self, data: Path, store: Store, log: EventLog, moment: str) -> None:
        self._data = data
        self._store = store
        self._log = log
        self._moment = moment

    async def rebuild(self, report: Report, *, verify: bool) -> Mapping[str, Any]:
        """Fold the log into a store beside and compare the digests; never switch.

        Raises:
            ReadOnlyCopy: it is not only to compare.
        """
        if not verify:
            raise refusal(self._moment)
        result = await rebuild(
            self._log,
            self._data / "store",
            serving=self._store,
            verify=True,
            progress=lambda progress: report(progress.as_json()),
        )
        return result.as_json()

    async def fsck(self, report: Report) -> Mapping[str, Any]:
        """Check log, store and spools. Returns the findings."""
        return (await check_folder(self._data, log_of(self._data), report, serving=self._store)).as_json()

    async def replay(self) -> Mapping[str, Any]:
        """Never.

        Raises:
            ReadOnlyCopy: always.
        """
        raise refusal(self._moment)

    async def digest(self) -> str:
        """The digest of the store's tables."""

        def work() -> str:
            with contextlib.closing(self._store.cursor()) as cursor:
                return digest(cursor).hex

        return await asyncio.to_thread(work)
