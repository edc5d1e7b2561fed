"""The store: one DuckDB file, owned by one process, written in one transaction a batch.

A batch's rows, the offsets it reaches and its producers' sequence numbers are committed together, so a store that
was killed at any moment holds each record exactly once or not at all. Reads use cursors of their own: each sees one
whole commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from icecore.bell import Bell
from icecore.errors import LogCorrupt, StoreAhead, StoreError, StoreFull
from icecore.log import EventLog
from icecore.position import Place, Token
from icecore_projections import compaction
from icecore_projections.failures import told
from icecore_projections.folds import Changes
from icecore_projections.opening import connect, is_open, prepare
from icecore_projections.schema import TABLES

SPARE_BYTES: Final = 4 << 20
"""Nothing is written where less would be left."""
CHECKPOINT_BYTES: Final = "256MB"
"""How large the write-ahead log may grow: small enough to be read again within a second or two after a kill."""

_KEYED: Final = frozenset(name for name, columns in TABLES.items() if "PRIMARY KEY" in columns)


class Store:
    """An open store. `cursor` for reads in any thread; `commit` for the one runner that folds into it."""

    def __init__(
        self, path: Path, con: duckdb.DuckDBPyConnection, log_id: str, settings: Mapping[str, Any], *, readonly: bool
    ) -> None:
        self.path = path
        self.log_id = log_id
        self.readonly = readonly
        self._settings = settings
        self._lock = threading.Lock()
        self._moved = threading.Condition()
        self._bell = Bell()
        self._wanted = Bell()
        self._waiting = 0
        self._waiters = threading.Lock()
        self._con = con
        self._out: weakref.WeakSet[duckdb.DuckDBPyConnection] = weakref.WeakSet()
        """Cursors that were handed out."""
        self._out_lock = threading.Lock()
        self._writer = con.cursor()
        self._token = _read_token(con)
        self.hot = compaction.sizes(con)
        """Rows in each hot table."""
        self._unsorted = dict.fromkeys(compaction.SORTED, 0)
        self._sound = True
        """Whether memory holds what the file does: after a failed commit it may not, until the file is opened anew."""

    @classmethod
    def open(
        cls, path: Path, *, log_id: str, readonly: bool = False, memory_limit: str = "2GB", threads: int = 2
    ) -> Store:
        """Open a store of the log `log_id`, making it where there is none.

        Args:
            path: the DuckDB file.
            log_id: the log it was folded from; a store of another log is refused.
            readonly: for reading beside no other process; nothing is made.
            memory_limit: of DuckDB, as it writes sizes.
            threads: of DuckDB.

        Raises:
            StoreLocked: another process holds it.
            StoreDamaged: it cannot be read, or is of an older format: set it aside and rebuild.
            StoreTooNew: a newer icecore wrote it.
            StoreAhead: it is of another log.
            StoreFull: there is no space to make it.
        """
        settings = {"memory_limit": memory_limit, "threads": threads, "checkpoint_threshold": CHECKPOINT_BYTES}
        con = connect(path, settings, readonly=readonly)
        try:
            prepare(con, path, log_id, readonly=readonly)
            return cls(path, con, log_id, settings, readonly=readonly)
        except duckdb.Error as error:
            con.close()
            raise told(error, path, opening=True) from error
        except StoreError:
            con.close()
            raise

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for reads, to be used by one thread at a time and closed by the caller.

        Raises:
            StoreError: the file is being opened anew after a failed write, which may wait for space.
        """
        with self._out_lock:
            try:
                made = self._con.cursor()
            except duckdb.Error as error:
                raise StoreError(
                    "expected an open store, got one that is opened anew after a failed write",
                    hint="try again in a moment; `icecore status` says what it waits for",
                    retry_after=1,
                ) from error
            self._out.add(made)
            return made

    @contextlib.contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor for the length of a block, its errors told as the store's.

        Raises:
            StoreDamaged, StoreError: a read failed.
        """
        try:
            with contextlib.closing(self.cursor()) as con:
                yield con
        except duckdb.Error as error:
            raise told(error, self.path) from error

    def token(self) -> Token:
        """What is folded: for each partition, the next offset."""
        return self._token

    def check(self, end: Token) -> None:
        """Refuse to go on from a store that knows more than its log.

        Raises:
            StoreAhead: the log ends before what was folded.
        """
        for place, have in self._token.as_dict().items():
            if have > end.next_offset(place):
                raise StoreAhead(
                    f"expected the log's {place.stream}:{place.partition} to reach offset {have}, which the store "
                    f"{self.path.name} has folded, got a log that ends at {end.next_offset(place)}",
                    hint="the log was restored from an older copy or lost its end: bring back the newer log files, "
                    "or move the store folder away to rebuild it from the log as it is",
                    stream=place.stream,
                    partition=place.partition,
                    folded=have,
                    end=end.next_offset(place),
                )

    async def check_log(self, log: EventLog) -> None:
        """Refuse to go on from a store that was folded from other records than its log has.

        A log that lost its end and was appended to since can reach as far as the store again: then the end alone
        says nothing, and the records that took the lost ones' places would never be folded.

        Raises:
            StoreAhead: the log ends before what was folded, or its last folded record is another one now.
        """
        self.check(await log.end())
        start = await log.start()
        for place, next_offset in self._token.as_dict().items():
            known = await asyncio.to_thread(self._last, place)
            if known is None or not start.next_offset(place) <= known[0] == next_offset - 1:
                continue
            try:
                batch = await log.read(place, next_offset - 1, records=1)
            except LogCorrupt:  # another damage: fsck names it, and nothing needs to be read from there
                continue
            found = batch.records[0].envelope.id
            if found != known[1]:
                raise StoreAhead(
                    f"expected record {next_offset - 1} of the log's {place.stream}:{place.partition} to be the event "
                    f"{known[1]}, which the store {self.path.name} has folded, got {found}",
                    hint="the log lost its end and was written to since: bring back the lost log files, or move the "
                    "store folder away to rebuild it from the log as it is",
                    stream=place.stream,
                    partition=place.partition,
                )

    def _last(self, place: Place) -> tuple[int, str] | None:
        """The offset and the event's id of the last record folded; None where nobody noted it."""
        with self.reading() as con:
            rows = con.execute("SELECT value FROM meta WHERE key = ?", [last_key(place)]).fetchall()
        if not rows:
            return None
        offset, _, event = str(rows[0][0]).partition(" ")
        return int(offset), event

    def wait(self, token: Token, within: float) -> bool:
        """Block this thread until everything `token` covers is folded; False after `within` seconds."""
        with self._wanting(token), self._moved:
            return self._moved.wait_for(lambda: self._token.covers(token), timeout=within)

    async def wait_async(self, token: Token, within: float) -> bool:
        """Wait until everything `token` covers is folded; False after `within` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        with self._wanting(token):
            while not self._token.covers(token):
                heard = self._bell.listen()
                try:
                    left = deadline - loop.time()
                    if not self._token.covers(token):
                        if left <= 0:
                            return False
                        await asyncio.wait((heard,), timeout=left)
                finally:
                    self._bell.forget(heard)
        return True

    @contextlib.contextmanager
    def _wanting(self, token: Token) -> Iterator[None]:
        """Somebody waits: the runner should not let records gather meanwhile."""
        if self._token.covers(token):
            yield
            return
        with self._waiters:
            self._waiting += 1
        self._wanted.ring()
        try:
            yield
        finally:
            with self._waiters:
                self._waiting -= 1

    async def wanted(self) -> None:
        """Return as soon as somebody waits for what is not folded yet."""
        heard = self._wanted.listen()
        try:
            if not self._waiting:
                await heard
        finally:
            self._wanted.forget(heard)

    def commit(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        """Write a batch: all of it or nothing.

        Args:
            changes: of every fold, and the runner's own rows.
            offsets: for each partition read, the next offset and the highest `ts_server` folded.

        Raises:
            StoreDamaged, StoreFull, StoreError: nothing was written; call `reopen` before trying again.
        """
        with self._lock:
            self._must_be_ready(changes.nbytes)
            try:
                self._transact(changes, offsets)
            except duckdb.Error as error:
                self._undo()
                raise told(error, self.path) from error
            self._token = Token({**self._token.as_dict(), **{place: n for place, (n, _) in offsets.items()}})
        with self._moved:
            self._moved.notify_all()
        self._bell.ring()

    def tidy(self) -> None:
        """For quiet moments: compact what is worth it, and sort what has grown out of order."""
        self.compact(compaction.IDLE_ROWS)
        for table, rows in self._unsorted.items():
            if rows >= compaction.UNSORTED_ROWS:
                self._alone(partial(compaction.resort, table=table))
                self._unsorted[table] = 0

    def compact(self, least: int = 1) -> bool:
        """Move hot tables of at least `least` rows to the cold ones now; whether there was one."""
        kinds = [kind for kind, rows in self.hot.items() if rows >= max(least, 1)]
        for kind in kinds:
            self._alone(partial(compaction.compact, kind=kind))
            self.hot[kind] = 0
        return bool(kinds)

    def _alone(self, work: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Do `work` in a transaction of its own, then a checkpoint."""
        with self._lock:
            self._must_be_ready(0)
            try:
                self._writer.begin()
                work(self._writer)
                self._writer.commit()
                self._checkpoint()
            except duckdb.Error as error:
                self._undo()
                raise told(error, self.path) from error

    def _must_be_ready(self, size: int) -> None:
        """Refuse to write to a file that must be opened anew, or `size` bytes where they will hardly fit.

        DuckDB, meeting a full disk in the middle of a commit, may forget rows that it has in memory, and may abort
        the process. Neither loses anything, but both are better avoided. (Points take a quarter of their bytes.)
        """
        if not self._sound:
            raise StoreError(f"expected {self.path} to be opened anew after a failed write", hint="it is tried again")
        need, free = SPARE_BYTES + size // 4, self._free()
        if free < need:
            raise StoreFull(
                f"expected {need} bytes of space for {self.path}, got {free}",
                hint="free some space; folding goes on by itself",
            )

    def _undo(self) -> None:
        self._sound = False
        with contextlib.suppress(duckdb.Error):
            self._writer.rollback()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file."""
        with self._lock:
            self._checkpoint()

    def verify(self) -> None:
        """Read every block of the file, so that its checksums are compared.

        Raises:
            StoreDamaged: a block is not what was written.
        """
        with contextlib.closing(self.cursor()) as con:
            try:
                for table in TABLES:
                    con.execute(f"SELECT min(COLUMNS(*)::VARCHAR) FROM {table}").fetchall()  # noqa: S608
            except duckdb.Error as error:
                raise told(error, self.path) from error

    def reopen(self) -> None:
        """Open the file anew after an error: what DuckDB has in memory after a failed commit is not to be trusted.

        Its indexes may still hold what was rolled back, and a row replaced over that is lost. As long as any
        connection is left, opening the file only finds the same database again, so all are closed: cursors that are
        out fail; ask for new ones.

        Raises:
            StoreDamaged, StoreFull, StoreLocked, StoreError: it cannot be opened now.
        """
        with self._lock, self._out_lock:
            for connection in (*self._out, self._writer, self._con):
                with contextlib.suppress(duckdb.Error):
                    connection.interrupt()
                    connection.close()
            self._out.clear()
            if is_open(self.path):
                raise StoreError(f"expected all reads of {self.path} to end after a failed write, got one that goes on")
            try:
                self._con = self._connect_anew()
                self._writer = self._con.cursor()
                self._token = _read_token(self._con)
                self.hot = compaction.sizes(self._con)
                self._sound = True
            except duckdb.Error as error:
                raise told(error, self.path, opening=True) from error

    def _connect_anew(self) -> duckdb.DuckDBPyConnection:
        """A connection to the file, with its write-ahead log, which takes the most space, written if it fits."""
        con = connect(self.path, self._settings, readonly=self.readonly)
        wal = self.path.with_name(f"{self.path.name}.wal")
        if self.readonly or not wal.exists() or self._free() < SPARE_BYTES + wal.stat().st_size:
            return con
        try:
            con.execute("CHECKPOINT")
        except duckdb.Error:  # somebody took the space meanwhile: what is in memory is of no more use
            con.close()
            return connect(self.path, self._settings, readonly=self.readonly)
        return con

    def _free(self) -> int:
        return shutil.disk_usage(self.path.parent).free

    def close(self) -> None:
        """Let go of the file; what was committed is safe without it."""
        with self._lock, contextlib.suppress(duckdb.Error):
            if not self.readonly:
                self._checkpoint()
            self._writer.close()
            self._con.close()

    def _transact(self, changes: Changes, offsets: Mapping[Place, tuple[int, int]]) -> None:
        hot = dict(self.hot)
        self._writer.begin()
        for table, parts in changes.delete.items():
            for rows in parts:
                _with(self._writer, rows.rows, _delete(table, rows.key))
        for table, parts in changes.update.items():
            for rows in parts:
                _with(self._writer, rows.rows, _update(table, rows.key, rows.rows.column_names))
        for table, parts in changes.replace.items():
            for rows in parts:
                if table not in _KEYED:
                    _with(self._writer, rows.rows, _delete(table, rows.key))
                verb = "INSERT OR REPLACE" if table in _KEYED else "INSERT"
                _with(self._writer, rows.rows, f"{verb} INTO {table} BY NAME FROM batch")
        full = False
        for table, tables in changes.append.items():
            joined, kind = pa.concat_tables(tables), table.removesuffix("_hot")
            if kind in hot and compaction.is_full(hot[kind], joined.num_rows):
                compaction.compact(self._writer, kind, joined)
                hot[kind], full = 0, True
                continue
            _with(self._writer, joined, f"INSERT INTO {table} BY NAME FROM batch")
            if kind in hot:
                hot[kind] += joined.num_rows
        self._put_offsets(offsets)
        self._writer.commit()
        self.hot = hot
        for table in self._unsorted:
            self._unsorted[table] += sum(rows.num_rows for rows in changes.append.get(table, ()))
        if full:
            self._checkpoint()

    def _put_offsets(self, offsets: Mapping[Place, tuple[int, int]]) -> None:
        for place, (next_offset, ts_server) in offsets.items():
            self._writer.execute(
                "INSERT INTO offsets VALUES ($1, $2, $3, $4) ON CONFLICT DO UPDATE SET "
                "next_offset = $3, ts_server = greatest(ts_server, $4)",
                [place.stream, place.partition, next_offset, ts_server],
            )

    def _checkpoint(self) -> None:
        if not self._sound:
            return
        with contextlib.suppress(duckdb.TransactionException):  # another cursor is in a transaction: next time
            self._writer.execute("CHECKPOINT")


def last_key(place: Place) -> str:
    """Where `meta` has the offset and the event's id of the last record folded of a partition."""
    return f"last {place.stream}:{place.partition}"


def _with(con: duckdb.DuckDBPyConnection, rows: pa.Table, statement: str) -> None:
    """Run a statement that reads `rows` as the table `batch`."""
    con.register("batch", rows)
    try:
        con.execute(statement)
    finally:
        con.unregister("batch")


def _delete(table: str, key: tuple[str, ...]) -> str:
    same = " AND ".join(f't."{name}" = b."{name}"' for name in key)
    return f"DELETE FROM {table} t USING (SELECT DISTINCT {', '.join(key)} FROM batch) b WHERE {same}"  # noqa: S608


def _update(table: str, key: tuple[str, ...], columns: list[str]) -> str:
    sets = ", ".join(f'"{name}" = b."{name}"' for name in columns if name not in key)
    same = " AND ".join(f't."{name}" = b."{name}"' for name in key)
    return f"UPDATE {table} t SET {sets} FROM batch b WHERE {same}"  # noqa: S608


def _read_token(con: duckdb.DuckDBPyConnection) -> Token:
    found = con.execute("SELECT stream, part, next_offset FROM offsets").fetchall()
    return Token({Place(stream, part): n for stream, part, n in found})
