"""Brings a backup back as a data folder: checked before anything is written, and there by one rename."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import Any, Final

from icecore.errors import Conflict, LogError
from icecore.position import Place
from icecore_api.backup import FileEntry, Manifest, check, piece_of, read_manifest, refuse
from icecore_api.supervise import Lock
from icecore_ingest.logs.copying import Report
from icecore_ingest.logs.pieces import read_piece, rows_of, sha256_of
from icecore_ingest.logs.segments import sync_file, sync_folder
from icecore_ingest.logs.sqlite import SQLiteLog, lane_of, read_id

DRAFT: Final = ".restoring"
_MINE: Final = frozenset({"lock", "run", DRAFT})
"""What may lie in a folder that counts as empty."""


async def restore(folder: Path, data: Path, *, report: Report = lambda _: None) -> dict[str, Any]:
    """Make a data folder from a backup.

    Args:
        folder: the backup.
        data: absent or empty; or with an older state of the same log, which is then brought forward.
        report: told how far it is.

    Returns:
        What was done, as JSON.

    Raises:
        NotFound: there is no backup in `folder`.
        LogCorrupt: files of the backup are damaged; it names them, and nothing was written.
        Conflict: the data folder holds something else.
        Unavailable: it is served.
    """
    began = time.monotonic()
    damages = await asyncio.to_thread(check, folder, report)
    if damages:
        raise refuse(folder, damages)
    manifest = read_manifest(folder)
    if _contents(data):
        await _check_target(folder, manifest, data)
    _make(data)
    with contextlib.closing(Lock(data)) as lock:
        lock.write({"pid": os.getpid(), "url": "a restore"})
        await _check_target(folder, manifest, data)
        await _restore(folder, manifest, data, report)
    return {
        "data": str(data),
        "log_id": manifest.log_id,
        "token": str(manifest.token),
        "records": sum(entry.next - entry.first for entry in manifest.pieces),
        "files": len(manifest.files),
        "made_ts": manifest.made_ts,
        "seconds": round(time.monotonic() - began, 3),
    }


def _contents(data: Path) -> list[str]:
    """What lies in a folder that a restore must not lose; nothing where an earlier one was cut off at its very end."""
    if not data.exists() or ((data / DRAFT / "log").exists() and not (data / "log").exists()):
        return []
    return sorted(path.name for path in data.iterdir() if path.name not in _MINE)


def _make(data: Path) -> None:
    new = [path for path in (data, *data.parents) if not path.exists()]
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


async def _check_target(folder: Path, manifest: Manifest, data: Path) -> None:
    """Refuse a folder with anything in it but an older state of this log.

    Raises:
        Conflict: it holds something else, or more than the backup.
    """
    strange = _contents(data)
    if not strange:
        return
    try:
        if read_id(data / "log") != manifest.log_id:
            raise Conflict(
                f"expected {data} to be empty or of log {manifest.log_id}, got another log in it",
                hint="restore into a new folder",
            )
        log = SQLiteLog.open(data / "log", readonly=True)
    except (LogError, OSError) as error:
        raise Conflict(
            f"expected an empty folder, or an older state of the same log, got {strange[:3]} in {data}: {error}",
            hint="restore into a new folder, or move this one away",
        ) from error
    try:
        await _check_older(folder, manifest, log, data)
    finally:
        await log.close()


async def _check_older(folder: Path, manifest: Manifest, log: SQLiteLog, data: Path) -> None:
    end = await log.end()
    if not manifest.token.covers(end):
        raise Conflict(
            f"expected {data} to hold no more than the backup, {manifest.token}, got a log that ends at {end}",
            hint="this folder is newer than the backup: keep it, or restore into a new folder",
        )
    for place, next_offset in end.as_dict().items():
        batch = await log.read(place, next_offset - 1, records=1)
        ours = await asyncio.to_thread(_row_at, folder, manifest, place, next_offset - 1)
        if list(rows_of(batch.records, next_offset - 1)) != [ours]:
            raise Conflict(
                f"expected record {next_offset - 1} of {place.stream} in {data} to be the one in the backup, "
                "got another",
                hint="the two have gone different ways: restore into a new folder",
            )


def _row_at(folder: Path, manifest: Manifest, place: Place, offset: int) -> Any:
    for piece in (piece_of(folder, entry) for entry in manifest.pieces):
        if piece.place == place and piece.first <= offset < piece.next_offset:
            return next(row for row in read_piece(piece) if row[0] == offset)
    return None


async def _restore(folder: Path, manifest: Manifest, data: Path, report: Report) -> None:
    draft = data / DRAFT
    await asyncio.to_thread(_build, folder, manifest, draft, report)
    log = await asyncio.to_thread(SQLiteLog.open, draft / "log")  # it makes the tails, and sees that all fits
    try:
        end = await log.end()
    finally:
        await log.close()
    if end != manifest.token:
        raise Conflict(
            f"expected the restored log to reach {manifest.token}, got {end}", hint="icecore backup --verify"
        )
    await asyncio.to_thread(_put_in_place, draft, data)


def _build(folder: Path, manifest: Manifest, draft: Path, report: Report) -> None:
    """Copy everything into a folder beside, with what a killed restore left there removed first."""
    shutil.rmtree(draft, ignore_errors=True)
    log = draft / "log"
    for stream in ("ledger", "metrics"):
        lane_of(log, Place(stream, 0)).mkdir(mode=0o700, parents=True)
    total = sum(entry.size for entry in manifest.entries)
    done = 0
    for piece in (piece_of(folder, entry) for entry in manifest.pieces):
        _copy(piece.path, lane_of(log, piece.place) / f"{piece.first:020d}.db", piece.sha256)
        done += piece.size
        report({"stage": "restore", "done": done, "total": total})
    for entry in manifest.files:
        _copy(folder / entry.file, draft / _inner(entry), entry.sha256)
    (log / "LOG_ID").write_text(manifest.log_id + "\n", "ascii")
    (log / "LOG_ID").chmod(0o600)
    sync_file(log / "LOG_ID")
    for path in (*(path for path in draft.rglob("*") if path.is_dir()), draft):
        sync_folder(path)


def _inner(entry: FileEntry) -> Path:
    """Where a file of `files/` goes, which a manifest cannot place outside of the data folder."""
    parts = Path(entry.file).parts
    if parts[:1] != ("files",) or ".." in parts or len(parts) < 3:
        raise Conflict(f"expected a path below files/ in the manifest, got {entry.file!r}")
    return Path(*parts[1:])


def _copy(source: Path, to: Path, sha256: str) -> None:
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(source, to)
    to.chmod(0o600)
    sync_file(to)
    if (found := sha256_of(to)) != sha256:
        raise Conflict(f"expected {to} to have SHA-256 {sha256}, got {found}", hint="check the disk")


def _put_in_place(draft: Path, data: Path) -> None:
    """Move the new parts in; an older log stays beside, under another name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for part in sorted(draft.iterdir(), key=lambda path: path.name == "log"):  # the log last: then all is there
        to = data / part.name
        if to.exists():
            to.replace(data / f"{part.name}.before-restore-{stamp}")
        part.replace(to)
    draft.rmdir()
    sync_folder(data)
