"""A spool's files: segments of checksummed frames, who wrote them, and how far the server has acknowledged them.

A frame is u32 length, u32 CRC-32, then an event's two lines as they go over the wire. What fails its checksum is
skipped and counted; reading goes on at the next sound frame.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from icecore.limits import most

HEAD: Final = struct.Struct("<II")
_FRAME_START: Final = b'{"id":"'
_FRAME_MOST: Final = most("event_bytes") + 16 * 1024
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Mark(NamedTuple):
    """A place in a spool: a segment's number and a byte offset in it."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames to send, and where the reader is after them; `memory` of them are not on disk."""

    frames: list[bytes]
    end: Mark
    memory: bool = False


@dataclass(slots=True)
class Scan:
    """What reading segments found."""

    frames: int = 0
    corrupt: int = 0
    """Places where damaged bytes had to be skipped."""
    skipped_bytes: int = 0
    torn: int = 0
    unreadable: int = 0
    """Reads that the disk refused."""

    def add(self, found: Found) -> None:
        """Count it."""
        self.frames += found.frame is not None
        self.corrupt += found.skipped > 0
        self.skipped_bytes += found.skipped
        self.torn += found.torn


def segment_path(folder: Path, number: int) -> Path:
    """The file of a segment."""
    return folder / f"{number:06d}.seg"


def segments(folder: Path) -> list[int]:
    """The numbers of a spool's segments, in order."""
    return sorted(int(path.stem) for path in folder.glob("*.seg") if path.stem.isdecimal())


class Found(NamedTuple):
    """What stands next in a segment."""

    end: int
    """The offset after it."""
    frame: bytes | None
    """A sound frame; None where the segment ends in something else."""
    skipped: int
    """How many damaged bytes stood before it."""
    torn: bool = False
    """An unfinished frame at the very end: a kill or power cut, not damage."""


def read_frames(data: bytes, *, final: bool) -> Iterator[Found]:
    """The sound frames of `data`, in order.

    Args:
        data: a segment's bytes, from where a frame starts.
        final: nothing will be added to it, so bytes at its end that are no frame are found too.
    """
    offset = 0
    while offset < len(data):
        frame = _frame_at(data, offset)
        start = offset if frame is not None else _next_frame(data, offset + 1)
        if start is None:
            if final:
                torn = _unfinished(data, offset)
                yield Found(len(data), None, 0 if torn else len(data) - offset, torn)
            return
        found = frame if frame is not None else _frame_at(data, start)
        end = start + HEAD.size + len(found or b"")
        yield Found(end, found, start - offset)
        offset = end


def _frame_at(data: bytes, offset: int) -> bytes | None:
    if offset + HEAD.size > len(data):
        return None
    length, crc = HEAD.unpack_from(data, offset)
    start = offset + HEAD.size
    if not 0 < length <= _FRAME_MOST or start + length > len(data):
        return None
    frame = data[start : start + length]
    return frame if zlib.crc32(frame) == crc else None


def _next_frame(data: bytes, offset: int) -> int | None:
    """The next offset where a sound frame starts: found by how an envelope begins, proved by its checksum."""
    at = data.find(_FRAME_START, offset + HEAD.size)
    while at >= 0:
        if _frame_at(data, at - HEAD.size) is not None:
            return at - HEAD.size
        at = data.find(_FRAME_START, at + 1)
    return None


def _unfinished(data: bytes, offset: int) -> bool:
    rest = data[offset : offset + HEAD.size + len(_FRAME_START)]
    if len(rest) < HEAD.size:
        return True
    length, _ = HEAD.unpack_from(rest)
    reaches_beyond: bool = len(data) - offset - HEAD.size < length <= _FRAME_MOST
    return reaches_beyond and _FRAME_START.startswith(rest[HEAD.size :])


# ---------------------------------------------------------------------------------------------------- reading


class SpoolReader:
    """Reads a spool from where the server has acknowledged it. One thread uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scan = Scan()
        self.at = read_acked(folder)
        self._data: tuple[Mark, bytes] = (Mark(0, 0), b"")

    def read(self, upto: Mark | None, events: int, size: int) -> Batch:
        """The next frames: at most `events` and about `size` bytes, and nothing at or after `upto`.

        `upto` is where a living writer is; None means that nobody writes any more.
        """
        frames: list[bytes] = []
        total = 0
        for number in segments(self.folder):
            if number < self.at.segment or (upto and number > upto.segment):
                continue
            start = self.at.offset if number == self.at.segment else 0
            final = upto is None or number < upto.segment
            data = self._bytes(number, start, -1 if final or upto is None else max(upto.offset - start, 0))
            if data is None:
                return Batch(frames, self.at)
            for found in read_frames(data, final=final):
                size_more = len(found.frame or b"")
                if frames and (len(frames) >= events or total + size_more > size):
                    return Batch(frames, self.at)
                self.scan.add(found)
                if found.frame is not None:
                    frames.append(found.frame)
                    total += size_more
                self.at = Mark(number, start + found.end)
            if final:
                self.at = Mark(number + 1, 0)
        return Batch(frames, self.at)

    def _bytes(self, number: int, start: int, size: int) -> bytes | None:
        try:
            with segment_path(self.folder, number).open("rb") as file:
                file.seek(start)
                return file.read(size)
        except OSError:
            self.scan.unreadable += 1
            return None  # it stays where it is and is not sent


def read_acked(folder: Path) -> Mark:
    """How far the server has acknowledged a spool; its start where that cannot be told: what it has is sent again.

    A wrong digit here would leave out events that nobody has, or begin in the middle of one: so it has a checksum.
    """
    try:
        segment, offset, crc = (folder / "acked").read_text("ascii").split()
        mark = Mark(int(segment), int(offset))
    except (OSError, ValueError):
        return Mark(0, 0)
    return mark if crc == _crc_of(mark) else Mark(0, 0)


def _crc_of(mark: Mark) -> str:
    return f"{zlib.crc32(f'{mark.segment} {mark.offset}'.encode()):08x}"


def write_acked(folder: Path, mark: Mark, *, keep_from: int | None = None) -> None:
    """Note how far the server has acknowledged, and delete the segments before it.

    Args:
        folder: the spool.
        mark: everything before it is acknowledged.
        keep_from: the segment a living writer writes to: it is never deleted.
    """
    fresh = folder / "acked.new"
    fresh.write_text(f"{mark.segment} {mark.offset} {_crc_of(mark)}\n", "ascii")
    fresh.replace(folder / "acked")
    for number in segments(folder):
        if number < mark.segment and (keep_from is None or number < keep_from):
            segment_path(folder, number).unlink(missing_ok=True)


def open_segment(folder: Path, number: int) -> int:
    """A descriptor to write a segment with."""
    return os.open(segment_path(folder, number), os.O_RDWR | os.O_CREAT, 0o600)


def open_lock(folder: Path) -> int:
    """A descriptor to hold a spool with, by flock."""
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)


def size_of(path: Path) -> int:
    """A file's size, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def write_durably(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that survives a power cut, and so does its name."""
    import orjson

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps(content))
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --------------------------------------------------------------------------------------------------- orphans


def spool_home(directory: Path) -> Path:
    """Where the spools are below ICECORE_DIR."""
    return directory / "spool"


def spools(home: Path) -> list[Path]:
    """The spool folders, oldest first."""
    try:
        return sorted(path for path in home.iterdir() if _UUID.fullmatch(path.name) and path.is_dir())
    except OSError:
        return []


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json says; empty where it is missing or damaged."""
    import orjson

    try:
        meta = orjson.loads((folder / "meta.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return meta if isinstance(meta, dict) else {}


@contextlib.contextmanager
def adopt(folder: Path) -> Iterator[bool]:
    """Take a spool whose writer is gone; gives False where somebody else has it."""
    try:
        descriptor = open_lock(folder)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield folder.is_dir()
    finally:
        os.close(descriptor)


def refuse(folder: Path, frame: bytes, words: str) -> None:
    """Set an event aside that the server will never take, with the server's words."""
    place = folder / "refused"
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        name = f"{zlib.crc32(frame):08x}-{len(frame)}"
        (place / f"{name}.event").write_bytes(frame)
        (place / f"{name}.why").write_text(words)


def refused(folder: Path) -> int:
    """How many events were set aside."""
    return sum(1 for _ in (folder / "refused").glob("*.event"))


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found in one spool."""

    folder: Path
    run: str
    alive: bool
    """A process holds it."""
    frames: int
    corrupt: int
    torn: int
    pending: int
    """Frames that the server has not acknowledged."""
    refused: int

    @property
    def sound(self) -> bool:
        """Whether nothing in it is damaged."""
        return self.corrupt == 0


def verify(directory: Path) -> list[Report]:
    """Read every spool below ICECORE_DIR and say what is in it. Changes nothing."""
    return [verify_one(folder) for folder in spools(spool_home(directory))]


def verify_one(folder: Path) -> Report:
    """Read one spool and say what is in it. Changes nothing."""
    scan = Scan()
    pending = 0
    acked = read_acked(folder)
    with adopt(folder) as free:
        alive = not free
    for number in segments(folder):
        try:
            data = segment_path(folder, number).read_bytes()
        except OSError:
            scan.corrupt += 1
            continue
        for found in read_frames(data, final=not alive):
            scan.add(found)
            pending += found.frame is not None and Mark(number, found.end) > acked
    return Report(
        folder=folder,
        run=str(read_meta(folder).get("run", "")),
        alive=alive,
        frames=scan.frames,
        corrupt=scan.corrupt,
        torn=scan.torn,
        pending=pending,
        refused=refused(folder),
    )
