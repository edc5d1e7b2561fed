"""Pieces of a log: files that hold the records of a range of offsets, written once and never again.

A piece is a sealed segment (see `segments`), so pieces that follow on each other, named by their first offsets, are a
log. Backups consist of pieces, and so does the log of a copy as of a moment. They need no locks and no side files:
they may lie on any file system, and be copied by any program.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icecore.codec import encode_envelope
from icecore.errors import LogCorrupt, LogError
from icecore.log import EventLog, StoredRecord
from icecore.position import Place, Token
from icecore_ingest.logs import failures
from icecore_ingest.logs.copying import Chunk, ahead, in_order
from icecore_ingest.logs.reader import check_row
from icecore_ingest.logs.segments import (
    APPLICATION_ID,
    FORMAT,
    PAGE_SIZE,
    SCHEMA,
    Segment,
    check_identity,
    checksum,
    content_checksum,
    sync_file,
    sync_folder,
)
from icecore_ingest.logs.sqlite import lane_of

PIECE_BYTES: Final = 128 << 20
"""About the most that one piece holds, and that is in memory while it is cut."""
_INSERT: Final = "INSERT INTO records(off, key, envelope, payload, crc) VALUES (?, ?, ?, ?, ?)"
_SELECT: Final = "SELECT off, key, envelope, payload, crc FROM records ORDER BY off"

Row = tuple[int, str, bytes, bytes, int]


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of records, and how to know it again."""

    path: Path
    place: Place
    first: int
    next_offset: int
    size: int
    sha256: str


def write_piece(path: Path, place: Place, first: int, rows: Iterator[Row]) -> Piece:
    """Write rows, which are dense from offset `first` on, into a new file: whole and on disk, or not there.

    Raises:
        LogCorrupt: a row is not what was written when it was accepted.
        LogFull, LogReadOnly, LogError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        next_offset = _fill(draft, place, first, rows)
        digest = sha256_of(draft)
        sync_file(draft)
        size = draft.stat().st_size
        draft.replace(path)
        sync_folder(path.parent)
    except sqlite3.Error as error:
        raise failures.translate(error, draft) from error
    except OSError as error:
        raise failures.translate_os(error, draft) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return Piece(path, place, first, next_offset, size, digest)


def _fill(draft: Path, place: Place, first: int, rows: Iterator[Row]) -> int:
    """Put rows into a new database; the offset after the last."""
    with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size={PAGE_SIZE}")
        db.execute("PRAGMA journal_mode=OFF").fetchall()  # it counts only once it is whole
        db.execute("PRAGMA synchronous=OFF")
        db.executescript(f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}; {SCHEMA}")
        facts = {"stream": place.stream, "partition": place.partition, "first_off": first, "sealed": 1}
        db.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
        db.executemany(_INSERT, _checked(draft, place, first, rows))
        db.execute("COMMIT")
        ((last,),) = db.execute("SELECT max(off) FROM records").fetchall()
    return first if last is None else int(last) + 1


def _checked(draft: Path, place: Place, first: int, rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows, as long as each is what it was.

    Raises:
        LogCorrupt: one is not.
    """
    for offset, row in enumerate(rows, first):
        if problem := check_row(row, offset):
            raise failures.corrupt(draft, problem, place, offset)
        yield row


def rows_of(records: Sequence[StoredRecord], first: int) -> Iterator[Row]:
    """Records as rows, numbered from `first` on."""
    for offset, record in enumerate(records, first):
        envelope = encode_envelope(record.envelope)
        content = content_checksum(record.key, envelope, record.payload)
        yield offset, record.key, envelope, record.payload, checksum(offset, content)


def read_piece(piece: Piece) -> Iterator[Row]:
    """The rows of a piece, in order, as they are.

    Raises:
        LogError: it is not there, or no piece of this place and offset.
        LogCorrupt: it cannot be read to its end.
    """
    try:
        with contextlib.closing(_open(piece.path)) as db:
            check_identity(db, Segment(piece.path, piece.first), piece.place)
            yield from db.execute(_SELECT)
    except sqlite3.Error as error:
        raise failures.translate(error, piece.path, reading=True) from error


def last_row(piece: Piece) -> Row:
    """The last row of a piece, which has one.

    Raises:
        LogError: it cannot be read.
    """
    try:
        with contextlib.closing(_open(piece.path)) as db:
            row: Row = db.execute(f"{_SELECT} DESC LIMIT 1").fetchall()[0]
            return row
    except (sqlite3.Error, IndexError) as error:
        raise failures.corrupt(piece.path, str(error), piece.place, piece.next_offset - 1) from error


def check_piece(piece: Piece) -> str:
    """What is wrong with a piece's file; empty where it is byte for byte what was written."""
    try:
        if not piece.path.exists():
            return "it is not there"
        if (size := piece.path.stat().st_size) != piece.size:
            return f"it has {size} bytes instead of {piece.size}"
        if (found := sha256_of(piece.path)) != piece.sha256:
            return f"its SHA-256 is {found} instead of {piece.sha256}"
        expected = piece.first
        for row in read_piece(piece):
            if problem := check_row(row, expected):
                return f"record {expected}: {problem}"
            expected += 1
        return "" if expected == piece.next_offset else f"it ends at {expected} instead of {piece.next_offset}"
    except (LogError, OSError) as error:
        return str(error)


def _open(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------- from a log


@dataclass(frozen=True, slots=True)
class Cut:
    """A piece cut from a log, and the source's token that covers all up to its last record."""

    piece: Piece
    source: Token


Name = Callable[[Place, int, int], Path]
"""Where a piece of a place is put, by its first offset and the one after its last."""


async def cut(
    log: EventLog, stream: str, start: Token, until: Token, first: int, name: Name, *, size: int = PIECE_BYTES
) -> AsyncIterator[Cut]:
    """Write what a stream of a log holds from `start` to before `until` as pieces of one partition.

    Args:
        log: where it is read from.
        stream: which stream of it.
        start: where to begin in each partition.
        until: where to end in each partition.
        first: the offset of the first record in the pieces.
        name: where they are put.
        size: about the most bytes of a piece.

    Raises:
        LogCorrupt: a record fails its checksum.
        LogError: the log cannot be read, or the pieces cannot be written.
    """
    gathered: list[StoredRecord] = []
    held = 0
    token = start
    place = Place(stream, 0)
    async for chunk in ahead(in_order(log, stream, start, until)):
        gathered += chunk.records
        token = chunk.token
        held += _bytes(chunk)
        if held >= size:
            yield Cut(await _written(gathered, place, first, name), token)
            first, gathered, held = first + len(gathered), [], 0
    if gathered:
        yield Cut(await _written(gathered, place, first, name), token)


async def _written(records: list[StoredRecord], place: Place, first: int, name: Name) -> Piece:
    path = name(place, first, first + len(records))
    return await asyncio.to_thread(write_piece, path, place, first, rows_of(records, first))


def _bytes(chunk: Chunk) -> int:
    return sum(len(record.payload) + 256 for record in chunk.records)


def in_log(folder: Path) -> Name:
    """The names by which pieces in `folder` are a log."""
    return lambda place, first, _: lane_of(folder, place) / f"{first:020d}.db"


def merged(pieces: Sequence[Piece], path: Path) -> Piece:
    """Pieces that follow on each other as one new piece.

    Raises:
        LogCorrupt: one of them is damaged.
    """
    first = pieces[0]
    for before, after in itertools.pairwise(pieces):
        if before.next_offset != after.first:
            raise LogCorrupt(f"expected a piece from offset {before.next_offset} on, got {after.path}")
    return write_piece(path, first.place, first.first, (row for piece in pieces for row in read_piece(piece)))
