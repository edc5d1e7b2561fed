"""Frames and pack files: many small blobs in one run of bytes.

A frame is 32 bytes of digest, 8 bytes of length (big-endian), and the bytes. Requests and answers are frames one after
another, and a pack file is them too, with a table behind them so that its index can be made again at once:

    b"icepack1" | frame frame … | (digest, length)* | end of the frames, their number, CRC-32 of the table, b"icepend1"

A file that is kept in chunks lies in packs too: as frames of chunks, as they are or compressed, and a frame that says
which chunks it is made of (`chunks`). The first byte of such a frame's length says which of them it is.

The digests say whether bytes are whole. The table only says where they lie: where it is damaged, the frames are walked.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icecore.errors import DigestMismatch, Invalid
from icecore_api.blobs.recipes import recipe_of, unzipped

MAGIC: Final = b"icepack1"
END: Final = b"icepend1"
HEAD: Final = struct.Struct(">32sQ")
_FOOT: Final = struct.Struct(">QQI8s")

BLOB: Final = 0
"""Kinds of frames: a blob, ..."""
CHUNK: Final = 1
"""... a chunk of one, ..."""
ZSTD: Final = 2
"""... a chunk that is compressed, ..."""
RECIPE: Final = 3
"""... and what a blob in chunks is made of."""
_KIND_BITS: Final = 56

Buffer = bytes | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a blob's bytes lie in a run of frames."""

    digest: bytes
    offset: int
    """Of its first byte, behind the frame's head."""
    size: int
    """As it lies there."""
    kind: int = BLOB


def frame_head(digest: bytes, size: int, kind: int = BLOB) -> bytes:
    """What stands before a blob's bytes."""
    return HEAD.pack(digest, kind << _KIND_BITS | size)


def frame(content: bytes) -> bytes:
    """A blob as a frame."""
    return HEAD.pack(hashlib.sha256(content).digest(), len(content)) + content


def entries(buffer: Buffer, start: int, stop: int) -> Iterator[Entry]:
    """The frames in a part of a buffer.

    Raises:
        Invalid: they end in the middle of one.
    """
    at = start
    while at < stop:
        if at + HEAD.size > stop:
            raise Invalid(
                f"expected frames of {HEAD.size} bytes and a blob each, got {stop - at} bytes too many at the end"
            )
        digest, size = HEAD.unpack_from(buffer, at)
        at += HEAD.size
        if size > stop - at:
            raise Invalid(f"expected {size} bytes of blob {digest.hex()}, got {stop - at}", digest=digest.hex())
        yield Entry(digest, at, size)
        at += size


def checked(buffer: Buffer, found: Iterable[Entry]) -> list[Entry]:
    """The entries, once the bytes of each have its digest.

    Raises:
        DigestMismatch: one has not.
    """
    kept = []
    with memoryview(buffer) as view:
        for entry in found:
            got = hashlib.sha256(view[entry.offset : entry.offset + entry.size]).digest()
            if got != entry.digest:
                raise mismatch(entry.digest.hex(), got.hex())
            kept.append(entry)
    return kept


def mismatch(expected: str, got: str) -> DigestMismatch:
    """The error for bytes that are not those of the digest."""
    return DigestMismatch(
        f"expected bytes with the SHA-256 {expected}, got {got}",
        hint="the file changed while it was sent, or was damaged on the way: hash it and send it again",
        digest=expected,
        got=got,
    )


def table(found: Iterable[Entry], frames_end: int) -> bytes:
    """What stands behind the frames of a pack file that end at `frames_end`."""
    rows = [frame_head(entry.digest, entry.size, entry.kind) for entry in found]
    joined = b"".join(rows)
    return joined + _FOOT.pack(frames_end, len(rows), zlib.crc32(joined), END)


def pack_size(number: int, content: int) -> int:
    """Bytes of a pack file of `number` blobs that have `content` bytes together."""
    return len(MAGIC) + 2 * HEAD.size * number + content + _FOOT.size


def has_table(path: Path) -> bool:
    """Whether a pack file's table is whole, so that it says all that is in it."""
    size = path.stat().st_size
    if size < len(MAGIC) + _FOOT.size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        return _by_table(buffer, size) is not None


def read_entries(path: Path) -> list[Entry]:
    """The entries of a pack file, by its table; where that is damaged, by walking the frames as far as they go.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size < len(MAGIC):
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        found = _by_table(buffer, size)
        return list(_walk(buffer, size)) if found is None else found


def _by_table(buffer: mmap.mmap, size: int) -> list[Entry] | None:
    if size < len(MAGIC) + _FOOT.size:
        return None
    frames_end, number, crc, end = _FOOT.unpack_from(buffer, size - _FOOT.size)
    if end != END or frames_end + number * HEAD.size + _FOOT.size != size:
        return None
    rows = buffer[frames_end : size - _FOOT.size]
    if zlib.crc32(rows) != crc:
        return None
    found, at = [], len(MAGIC)
    for digest, word in HEAD.iter_unpack(rows):
        at += HEAD.size
        kind, length = _kind_of(word)
        found.append(Entry(digest, at, length, kind))
        at += length
    return found if at == frames_end else None


def _walk(buffer: mmap.mmap, size: int) -> Iterator[Entry]:
    """Frames whose bytes have their digest, each digest once.

    The table's rows look like frames too, and have not; but for that of the empty blob.
    """
    seen, at = set(), len(MAGIC)
    while at + HEAD.size <= size:
        digest, word = HEAD.unpack_from(buffer, at)
        at += HEAD.size
        kind, length = _kind_of(word)
        if length > size - at:
            return
        if digest not in seen and not wrong_frame(digest, kind, buffer[at : at + length]):
            yield Entry(digest, at, length, kind)
        seen.add(digest)
        at += length


def _kind_of(length: int) -> tuple[int, int]:
    return length >> _KIND_BITS, length & ((1 << _KIND_BITS) - 1)


def wrong_frame(digest: bytes, kind: int, content: bytes) -> str:
    """What is wrong with a frame's bytes; empty where nothing is."""
    if kind == RECIPE:
        return "" if recipe_of(content) is not None else "the list of its chunks has changed"
    if kind == ZSTD:
        unpacked = unzipped(content)
        if unpacked is None:
            return "its compressed bytes have changed"
        content = unpacked
    got = hashlib.sha256(content).digest()
    return "" if got == digest else f"its bytes have the SHA-256 {got.hex()}"
