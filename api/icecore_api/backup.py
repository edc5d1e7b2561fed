"""Backups: a folder of files that are written once, and one manifest that says which of them count.

    DIR/MANIFEST.json                           written last, by rename: what the backup is
    DIR/PROGRESS.json                           the same of a backup that is under way, so that it can be resumed
    DIR/log/STREAM-0/FIRST-NEXT.db              records FIRST to before NEXT: `icecore_ingest.logs.pieces`
    DIR/files/blobs/… DIR/files/keys/…          the data folder's other files that cannot be made again

A later backup into the same folder writes what is new as new pieces. A piece is joined with the one before it when
that is not much larger, so there are few of them, and a record is written again a few times at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Final

import msgspec

from icecore.errors import Conflict, LogCorrupt, NotFound, Unavailable
from icecore.events import now_ms
from icecore.log import EventLog
from icecore.position import Place, Token
from icecore_ingest.logs.copying import ORDER, Report, of_stream, records_in
from icecore_ingest.logs.pieces import (
    PIECE_BYTES,
    Piece,
    check_piece,
    cut,
    last_row,
    merged,
    rows_of,
    sha256_of,
)
from icecore_ingest.logs.segments import sync_file, sync_folder

FORMAT: Final = 1
MANIFEST: Final = "MANIFEST.json"
PROGRESS: Final = "PROGRESS.json"
KEPT: Final = ("blobs", "keys")
"""Folders of a data folder that the log cannot bring back."""
_MADE_AGAIN: Final = (
    "drafts",
    "uploads",
    *(f"{name}.db{more}" for name in ("index", "bucket") for more in ("", "-wal", "-shm")),
)
"""In blobs/: what is not a blob yet, and the index, which is made from the packs where it is not there."""


class FileEntry(msgspec.Struct, frozen=True):
    """A file, as a manifest has it."""

    file: str
    size: int
    sha256: str


class PieceEntry(FileEntry, frozen=True):
    """A piece of the log, as a manifest has it."""

    stream: str
    first: int
    next: int


class Manifest(msgspec.Struct):
    """What a backup holds."""

    format: int
    icecore: str
    log_id: str
    """Of the log in the backup: the source's own where its offsets are kept, else one made with the backup."""
    source_id: str
    source: str
    """The token in the source up to which everything is in the backup."""
    made_ts: int
    pieces: list[PieceEntry]
    files: list[FileEntry]
    sha256: str = ""
    """Of this file without this field."""

    @property
    def entries(self) -> list[FileEntry]:
        """Every file that belongs to it."""
        return [*self.pieces, *self.files]

    @property
    def token(self) -> Token:
        """What the backup reaches, in its own offsets."""
        return Token.after(()).merge(
            Token({Place(p.stream, 0): p.next for p in sorted(self.pieces, key=lambda p: p.next)})
        )

    def sealed(self) -> Manifest:
        """The same with its own checksum."""
        return msgspec.structs.replace(self, sha256=_checksum(self))


def _checksum(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, sha256=""), order="sorted")).hexdigest()


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a backup that is not what was written, and why."""

    file: str
    problem: str


# -------------------------------------------------------------------------------------------------------- making


async def backup(
    log: EventLog, folder: Path, data: Path | None = None, *, report: Report = lambda _: None, size: int = PIECE_BYTES
) -> dict[str, Any]:
    """Bring a backup up to what the log holds now; the log and its server go on meanwhile.

    Args:
        log: opened to read.
        folder: the backup; made where there is none.
        data: a data folder whose blobs and keys belong to it.
        report: told how far it is.
        size: about the most bytes of a piece.

    Returns:
        What was done, as JSON.

    Raises:
        Conflict: the folder holds something else, or a backup of another log, or of more than the log has.
        LogCorrupt: a record of the log is damaged; what is in the backup stays as it was.
    """
    began = time.monotonic()
    with _alone(folder):
        state = _resume(folder, log)
        await _check_source(log, folder, state)
        before = records_in(Token.parse(state.source))
        work = _Backup(log, folder, state, report, size)
        for stream in ORDER:  # metrics first: the ledger that is read after them has begun every run of theirs
            await work.stream(stream)
        copied = await asyncio.to_thread(work.files, data) if data is not None else 0
        done = await asyncio.to_thread(work.finish)
    records = records_in(Token.parse(done.source))
    return {
        "folder": str(folder),
        "log_id": done.log_id,
        "token": str(done.token),
        "records": records,
        "new_records": records - before,
        "pieces": len(done.pieces),
        "new_bytes": work.written,
        "files": len(done.files),
        "new_files": copied,
        "bytes": sum(entry.size for entry in done.entries),
        "seconds": round(time.monotonic() - began, 3),
    }


class _Backup:
    """A backup under way."""

    def __init__(self, log: EventLog, folder: Path, state: Manifest, report: Report, size: int) -> None:
        self._log = log
        self._folder = folder
        self._state = state
        self._report = report
        self._size = size
        self._began = time.monotonic()
        self.written = 0
        """Bytes of new pieces."""

    async def stream(self, stream: str) -> None:
        """Cut what is new of a stream into pieces, noting each."""
        until = of_stream(await self._log.end(), stream)
        start = of_stream(Token.parse(self._state.source), stream)
        place = Place(stream, 0)
        ours = [entry for entry in self._state.pieces if entry.stream == stream]
        first = ours[-1].next if ours else await self._first(stream)
        async for one in cut(self._log, stream, start, until, first, self._name, size=self._size):
            self.written += one.piece.size
            ours.append(_entry(self._folder, one.piece))
            while (joined := _to_join(ours, self._size)) > 1:
                piece = await asyncio.to_thread(self._join, place, ours[-joined:])
                ours[-joined:] = [_entry(self._folder, piece)]
            self._note(stream, ours, one.source)

    async def _first(self, stream: str) -> int:
        single = self._log.partitions[stream] == 1
        return (await self._log.start()).next_offset(Place(stream, 0)) if single else 0

    def _name(self, place: Place, first: int, next_offset: int) -> Path:
        return self._folder / "log" / f"{place.stream}-0" / f"{first:020d}-{next_offset:020d}.db"

    def _join(self, place: Place, entries: Sequence[PieceEntry]) -> Piece:
        pieces = [piece_of(self._folder, entry) for entry in entries]
        piece = merged(pieces, self._name(place, pieces[0].first, pieces[-1].next_offset))
        self.written += piece.size
        return piece

    def _note(self, stream: str, ours: list[PieceEntry], source: Token) -> None:
        others = [entry for entry in self._state.pieces if entry.stream != stream]
        reached = Token.parse(self._state.source).merge(source)
        self._state = msgspec.structs.replace(self._state, pieces=[*others, *ours], source=str(reached))
        _write(self._folder / PROGRESS, self._state)
        seconds = max(time.monotonic() - self._began, 1e-9)
        done = sum(entry.next - entry.first for entry in self._state.pieces)
        self._report({"stage": f"copy the {stream}", "done": done, "total": 0, "rate": round(done / seconds, 1)})

    def files(self, data: Path) -> int:
        """Copy blobs and keys that are not in the backup yet; how many.

        Where one goes meanwhile, gc has erased it, or has packed anew what was left of it: all are looked at again.
        """
        known = {entry.file: entry for entry in self._state.files}
        copied = dict(known)
        while True:
            with contextlib.suppress(FileNotFoundError):
                found = self._copied(data, copied)
                break
        new = sum(known.get(file) != entry for file, entry in found.items())
        self._state = msgspec.structs.replace(self._state, files=list(found.values()))
        return new

    def _copied(self, data: Path, copied: dict[str, FileEntry]) -> dict[str, FileEntry]:
        """All files as they are in the backup by now; those of `copied` are there already, and what comes is added."""
        found: dict[str, FileEntry] = {}
        for name in KEPT:
            for path in sorted((data / name).rglob("*")):
                if not stat.S_ISREG(path.lstat().st_mode):
                    continue
                if name == "blobs" and path.relative_to(data / name).parts[0] in _MADE_AGAIN:
                    continue
                file = str(PurePosixPath("files", *path.relative_to(data).parts))
                entry = copied.get(file)
                # a blob is named by what is in it; a key may be replaced by another of the same size
                if entry is None or entry.size != path.stat().st_size or name != "blobs":
                    entry = _copy_file(path, self._folder, file)
                    self.written += entry.size if entry != copied.get(file) else 0
                    copied[file] = entry
                found[file] = entry
        return found

    def finish(self) -> Manifest:
        """Make the new state the backup; then remove what no longer belongs to it."""
        done = msgspec.structs.replace(self._state, made_ts=now_ms(), icecore=version("icecore"))
        _write(self._folder / MANIFEST, done)
        (self._folder / PROGRESS).unlink(missing_ok=True)
        kept = {self._folder / entry.file for entry in done.entries}
        for place in ("log", "files"):
            for path in sorted((self._folder / place).rglob("*")):
                if path.is_file() and path not in kept:
                    path.unlink()
        return done


def _to_join(entries: Sequence[PieceEntry], most: int) -> int:
    """How many of the last pieces should become one: those not larger than all that follows them."""
    count, size = 1, entries[-1].size
    while count < len(entries):
        before = entries[-count - 1]
        if before.size > size or before.size + size > most:
            break
        count, size = count + 1, size + before.size
    return count


def _copy_file(path: Path, folder: Path, file: str) -> FileEntry:
    """Copy a file durably, under a new name first; the hash is of what was written."""
    to = folder / file
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = to.with_name(f".{to.name}.new")
    shutil.copyfile(path, draft)
    draft.chmod(0o600)
    sync_file(draft)
    entry = FileEntry(file, draft.stat().st_size, sha256_of(draft))
    draft.replace(to)
    sync_folder(to.parent)
    return entry


def _resume(folder: Path, log: EventLog) -> Manifest:
    """Where to go on: a backup that was cut off, the last whole one, or nothing.

    Raises:
        Conflict: the folder is of another log, or holds something else.
    """
    found = _read(folder / PROGRESS)
    if found is None and (folder / MANIFEST).exists():
        found = read_manifest(folder)
    if found is None:
        strange = [path.name for path in folder.iterdir() if path.name not in {"log", "files", PROGRESS, ".lock"}]
        if strange:
            raise Conflict(
                f"expected a backup or an empty folder, got {sorted(strange)[:3]} in {folder}",
                hint="name another folder",
            )
        keeps = all(count == 1 for count in log.partitions.values())
        own = log.log_id if keeps else uuid.uuid4().hex
        return Manifest(FORMAT, version("icecore"), own, log.log_id, "", now_ms(), [], [])
    if found.source_id != log.log_id:
        raise Conflict(
            f"expected a backup of log {log.log_id}, got one of log {found.source_id} in {folder}",
            hint="back up into another folder",
        )
    return found


async def _check_source(log: EventLog, folder: Path, state: Manifest) -> None:
    """Refuse to put more records behind those of a log that lost its end since.

    Raises:
        Conflict: the log is not the one that was backed up, or an older state of it.
    """
    reached, end = Token.parse(state.source), await log.end()
    if not end.covers(reached):
        raise Conflict(
            f"expected the log to reach {reached}, which the backup holds, got one that ends at {end}",
            hint="the log lost its end: restore this backup, or back up into another folder",
        )
    for stream in ORDER:
        entries = [entry for entry in state.pieces if entry.stream == stream]
        if not entries or log.partitions[stream] != 1:
            continue
        row = await asyncio.to_thread(last_row, piece_of(folder, entries[-1]))
        if not await _has(log, Place(stream, 0), row[0], row[1:4]):
            raise Conflict(
                f"expected record {row[0]} of the {stream} to be the one in the backup, got another",
                hint="the log lost its end and was written to since: back up into another folder",
            )


async def _has(log: EventLog, place: Place, offset: int, content: tuple[str, bytes, bytes]) -> bool:
    """Whether a log holds exactly this record at this offset."""
    batch = await log.read(place, offset, records=1)
    return [row[1:4] for row in rows_of(batch.records, offset)] == [content]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the right to write a backup; it ends with the process.

    Raises:
        Unavailable: another process holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable(f"expected no other backup into {folder}, got one under way") from error
        yield
    finally:
        os.close(handle)


def _entry(folder: Path, piece: Piece) -> PieceEntry:
    file = str(PurePosixPath(*piece.path.relative_to(folder).parts))
    return PieceEntry(file, piece.size, piece.sha256, piece.place.stream, piece.first, piece.next_offset)


def piece_of(folder: Path, entry: PieceEntry) -> Piece:
    """The piece in a backup's folder that an entry speaks of."""
    place = Place(entry.stream, 0)
    return Piece(folder / entry.file, place, entry.first, entry.next, entry.size, entry.sha256)


def _write(path: Path, manifest: Manifest) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(manifest.sealed()), indent=1) + b"\n")
    draft.chmod(0o600)
    sync_file(draft)
    draft.replace(path)
    sync_folder(path.parent)


def _read(path: Path) -> Manifest | None:
    """A manifest that is whole; None where there is none, or a part of one."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.sha256 == _checksum(found) else None


# ------------------------------------------------------------------------------------------------------ checking


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup.

    Raises:
        NotFound: there is none.
        LogCorrupt: it is damaged, or of a newer icecore.
    """
    path = folder / MANIFEST
    if not path.exists():
        hint = "this backup was never finished: run it again" if (folder / PROGRESS).exists() else "icecore backup DIR"
        raise NotFound(f"expected a backup in {folder}, got no {MANIFEST}", hint=hint)
    found = _read(path)
    if found is None or found.format > FORMAT:
        what = "a damaged one" if found is None else f"one of format {found.format}"
        raise LogCorrupt(f"expected a manifest of format {FORMAT} at {path}, got {what}", file=str(path))
    return found


def check(folder: Path, report: Report = lambda _: None) -> list[Damage]:
    """Read every file of a backup; what is not as it was written.

    Raises:
        NotFound, LogCorrupt: there is no manifest to check by.
    """
    manifest = read_manifest(folder)
    entries = manifest.entries
    total, done = sum(entry.size for entry in entries), 0
    damages = [Damage(name, why) for name, why in _gaps(manifest)]
    for entry in entries:
        problem = check_piece(piece_of(folder, entry)) if isinstance(entry, PieceEntry) else _check_file(folder, entry)
        if problem:
            damages.append(Damage(entry.file, problem))
        done += entry.size
        report({"stage": "read the backup", "done": done, "total": total})
    return damages


def _gaps(manifest: Manifest) -> Iterator[tuple[str, str]]:
    following: dict[str, int] = {}
    for entry in manifest.pieces:
        expected = following.get(entry.stream, entry.first)
        if entry.first != expected:
            yield entry.file, f"it begins at {entry.first} instead of {expected}"
        following[entry.stream] = entry.next


def _check_file(folder: Path, entry: FileEntry) -> str:
    path = folder / entry.file
    try:
        if not path.exists():
            return "it is not there"
        found = sha256_of(path)
    except OSError as error:
        return str(error)
    return "" if found == entry.sha256 else f"its SHA-256 is {found} instead of {entry.sha256}"


def refuse(folder: Path, damages: Sequence[Damage]) -> LogCorrupt:
    """The error for a backup with damaged files: it names each."""
    named = "; ".join(f"{damage.file}: {damage.problem}" for damage in damages[:10])
    more = f"; and {len(damages) - 10} more" if len(damages) > 10 else ""
    return LogCorrupt(
        f"expected every file of {folder} to be as it was written, got {named}{more}",
        hint="restore from another backup",
        files=[damage.file for damage in damages],
    )


def told(folder: Path, damages: Sequence[Damage]) -> Mapping[str, Any]:
    """What a check found, as JSON."""
    manifest = read_manifest(folder)
    return {
        "folder": str(folder),
        "ok": not damages,
        "log_id": manifest.log_id,
        "token": str(manifest.token),
        "made_ts": manifest.made_ts,
        "records": sum(entry.next - entry.first for entry in manifest.pieces),
        "pieces": len(manifest.pieces),
        "files": len(manifest.files),
        "bytes": sum(entry.size for entry in manifest.entries),
        "damages": [{"file": damage.file, "problem": damage.problem} for damage in damages],
    }
