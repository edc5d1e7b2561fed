"""A second data folder as of a moment: the log up to there, a store folded from it, and a note that says which.

It is complete in itself. An auditor can check its log, rebuild its store and compare digests without the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from icecore.errors import Conflict, LogCorrupt, UsageError
from icecore.events import now_ms
from icecore.log import EventLog
from icecore.position import Place, Token
from icecore_api.commands import AS_OF
from icecore_api.queries.as_of import moment_of
from icecore_api.supervise import Lock
from icecore_ingest.logs.copying import ORDER, Report, of_stream, records_in
from icecore_ingest.logs.moments import token_at
from icecore_ingest.logs.pieces import PIECE_BYTES, cut, in_log
from icecore_ingest.logs.segments import sync_file, sync_folder
from icecore_ingest.logs.sqlite import SQLiteLog, lane_of
from icecore_projections.rebuild import rebuild

NOTE: Final = AS_OF
DRAFT: Final = ".replaying"


class AsOf(msgspec.Struct, frozen=True):
    """What a copy as of a moment is a copy of."""

    source_id: str
    """The id of the log it was made from."""
    source: str
    """The token in the log it was made from."""
    ts_ms: int
    """The moment: the time asked for, but not after it was made; or that of the position's last event."""
    asked: str
    """What was asked for."""
    made_ts: int
    log_id: str = ""
    """The id of its own log: the same where its offsets are the same."""
    token: str = ""
    """The token in its own log."""
    records: int = 0
    digest: str = ""
    """Of its store, as `icecore fsck --json` says it."""

    @property
    def moment(self) -> str:
        """The moment, as people read it."""
        return iso(self.ts_ms)

    def as_json(self) -> dict[str, Any]:
        """For answers."""
        return {**msgspec.to_builtins(self), "time": self.moment}


def iso(ts_ms: int) -> str:
    """A time in UTC, to the millisecond."""
    return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_note(data: Path) -> AsOf | None:
    """What a data folder is a copy of; None where it is none.

    Raises:
        LogCorrupt: there is a note, but it cannot be read.
    """
    path = data / NOTE
    try:
        return msgspec.json.decode(path.read_bytes(), type=AsOf)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise LogCorrupt(f"expected a note at {path}, got {error}", hint="make the copy again") from error


async def replay(
    log: EventLog, to: str, into: Path, *, report: Report = lambda _: None, size: int = PIECE_BYTES
) -> AsOf:
    """Make a data folder as of a moment.

    Args:
        log: opened to read.
        to: a time or a position, as `as_of` has them (`moment_of`).
        into: absent or empty.
        report: told how far it is.
        size: about the most bytes of a file of the copy's log.

    Raises:
        BadRequest, Invalid, UsageError: `to` cannot be read, or is a position beyond the log's end.
        Conflict: the folder holds something.
        LogError, StoreError: the log cannot be read, or the copy not be written.
    """
    made_ts = now_ms()
    until, ts_ms = await _until(log, to, made_ts)
    await asyncio.to_thread(into.mkdir, mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(Lock(into)) as lock:
        lock.write({"pid": os.getpid(), "url": "a replay"})
        draft = await asyncio.to_thread(_prepare, into)
        note = AsOf(source_id=log.log_id, source=str(until), ts_ms=ts_ms, asked=to, made_ts=made_ts)
        note = await _fill(log, until, draft, note, report, size)
        await asyncio.to_thread(_finish, draft, into, note)
    return note


async def _fill(log: EventLog, until: Token, draft: Path, note: AsOf, report: Report, size: int) -> AsOf:
    """Make log and store in an empty folder, and complete the note."""
    keeps = all(count == 1 for count in log.partitions.values())
    log_id = log.log_id if keeps else uuid.uuid4().hex
    await _copy_log(log, log_id, until, draft, report, size)
    own = await asyncio.to_thread(SQLiteLog.open, draft / "log")  # makes the last, empty segments
    try:
        token = await own.end()
        built = await rebuild(own, draft / "store", progress=lambda at: report(at.as_json()))
    finally:
        await own.close()
    records = records_in(token) - records_in(await log.start())
    return msgspec.structs.replace(note, log_id=log_id, token=str(token), records=records, digest=built.digest.hex)


async def _until(log: EventLog, to: str, now: int) -> tuple[Token, int]:
    """The position that is meant, and its time."""
    moment, end = await moment_of(log, to), await log.end()
    if to[:1].isdigit():
        return await token_at(log, moment.ts, end), min(moment.ts, now)
    strange = [place for place in moment.token.as_dict() if place.partition >= log.partitions[place.stream]]
    if strange or not end.covers(moment.token):
        raise UsageError(f"expected a position up to the log's end, {end}, got {to}", hint="icecore log stat")
    return moment.token, moment.ts


async def _copy_log(log: EventLog, log_id: str, until: Token, draft: Path, report: Report, size: int) -> None:
    folder = draft / "log"
    await asyncio.to_thread(_make_log, folder, log_id)
    done, total, began = 0, records_in(until), time.monotonic()
    start = await log.start()
    for stream in ORDER:
        single = log.partitions[stream] == 1
        first = start.next_offset(Place(stream, 0)) if single else 0
        async for one in cut(log, stream, Token(), of_stream(until, stream), first, in_log(folder), size=size):
            done += one.piece.next_offset - one.piece.first
            rate = done / max(time.monotonic() - began, 1e-9)
            report({"stage": f"copy the {stream}", "done": done, "total": total, "rate": round(rate, 1)})


def _prepare(into: Path) -> Path:
    """The folder to work in, empty. What a replay left that was cut off goes.

    Raises:
        Conflict: there is something else in `into`.
    """
    draft = into / DRAFT
    if draft.exists() and not (into / NOTE).exists():
        for name in (DRAFT, "log", "store"):
            shutil.rmtree(into / name, ignore_errors=True)
    if strange := sorted(path.name for path in into.iterdir() if path.name != "lock"):
        raise Conflict(f"expected an empty folder to replay into, got {strange[:3]} in {into}", hint="name a new one")
    draft.mkdir(mode=0o700)
    return draft


def _make_log(folder: Path, log_id: str) -> None:
    for stream in ORDER:
        lane_of(folder, Place(stream, 0)).mkdir(mode=0o700, parents=True)
    (folder / "LOG_ID").write_text(log_id + "\n", "ascii")
    (folder / "LOG_ID").chmod(0o600)


def _finish(draft: Path, into: Path, note: AsOf) -> None:
    """Put the parts in place; the note is the last, and without it the folder is no copy."""
    for path in (draft, *draft.rglob("*")):
        sync_folder(path) if path.is_dir() else sync_file(path)
    for name in ("log", "store"):
        (draft / name).replace(into / name)
    path = draft / NOTE
    path.write_bytes(msgspec.json.format(msgspec.json.encode(note), indent=1) + b"\n")
    sync_file(path)
    path.replace(into / NOTE)
    shutil.rmtree(draft, ignore_errors=True)
    sync_folder(into)
