"""What a blob that is kept in chunks is made of, and chunks as bytes.

A recipe is a digest of 32 bytes and a length of 4 (big-endian) for each chunk, in order, and a CRC-32 of all that. The
SHA-256 of each chunk is checked whenever it is read; the recipe was made of bytes whose SHA-256 is the blob's.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Sequence
from typing import Final

import zstandard

CHUNK_MOST: Final = 256 * 1024
"""Bytes of the largest chunk."""
LEVEL: Final = 3
"""Of zstd: what is gained by more is small beside what it costs (docs/decisions/0010-chunking.md)."""
_ROW: Final = struct.Struct(">32sI")
_CRC: Final = struct.Struct(">I")
_own: Final = threading.local()
"""Each thread's compressor and decompressor: neither may be used by two at once."""

Recipe = list[tuple[bytes, int]]
"""Digest and length of each chunk, in order."""


def recipe_bytes(recipe: Sequence[tuple[bytes, int]]) -> bytes:
    """A recipe as it is kept."""
    rows = b"".join(_ROW.pack(digest, size) for digest, size in recipe)
    return rows + _CRC.pack(zlib.crc32(rows))


def recipe_of(content: bytes) -> Recipe | None:
    """What `recipe_bytes` made; None where it has changed."""
    rows, crc = content[: -_CRC.size], content[-_CRC.size :]
    if len(content) < _CRC.size or len(rows) % _ROW.size or _CRC.pack(zlib.crc32(rows)) != crc:
        return None
    return list(_ROW.iter_unpack(rows))


def zipped(content: bytes | memoryview) -> bytes:
    """A chunk, compressed."""
    if not hasattr(_own, "zip"):
        _own.zip = zstandard.ZstdCompressor(level=LEVEL)
    packed: bytes = _own.zip.compress(content)
    return packed


def unzipped(content: bytes) -> bytes | None:
    """The chunk that was compressed; None where it has changed."""
    if not hasattr(_own, "unzip"):
        _own.unzip = zstandard.ZstdDecompressor()
    try:
        if not 0 <= zstandard.frame_content_size(content) <= CHUNK_MOST:
            return None
        unpacked: bytes = _own.unzip.decompress(content)
    except zstandard.ZstdError:
        return None
    return unpacked
