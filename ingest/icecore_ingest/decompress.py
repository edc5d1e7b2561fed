"""Request bodies to plain bytes, never more than the limits allow."""

from __future__ import annotations

import zlib
from typing import Final

import zstandard

from icecore.errors import BadRequest, TooLarge
from icecore.limits import LimitName, most

ENCODINGS: Final = ("gzip", "zstd")

RATIO_FREE_BYTES: Final = 1 << 20
"""Up to here any ratio is fine: a column of one value compresses a thousand times, and is no bomb."""

_GZIP: Final = 31  # zlib's window bits for a gzip header and the largest window
_ZSTD_WINDOW: Final = 1 << 23  # 8 MB: what levels up to 19 use; a frame may ask for gigabytes
_FEED: Final = 256
"""Compressed bytes fed at once where a frame does not say its size: a block of four bytes may hold 128 KB, so this
holds at most 8 MB."""


def decompress(body: bytes, encoding: str) -> bytes:
    """The plain bytes of a body. Memory stays within `request_bytes`, whatever the body claims.

    Args:
        body: as received.
        encoding: the Content-Encoding header: empty, `identity`, `gzip` or `zstd`.

    Raises:
        BadRequest: another encoding, or the body is not what it says.
        TooLarge: more than `request_bytes`, or a bomb by `compression_ratio`.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    allowed = min(most("request_bytes"), max(RATIO_FREE_BYTES, most("compression_ratio") * len(body)))
    try:
        if encoding in {"gzip", "x-gzip"}:
            return _gunzip(body, allowed)
        if encoding == "zstd":
            return _unzstd(body, allowed)
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadRequest(f"expected a {encoding} body, got one that does not decompress: {error}") from error
    raise BadRequest(
        f"expected Content-Encoding {', '.join(ENCODINGS)} or none, got {encoding[:40]!r}",
        hint="send one encoding, not several",
    )


def _gunzip(body: bytes, allowed: int) -> bytes:
    engine = zlib.decompressobj(_GZIP)
    plain = engine.decompress(body, allowed + 1)
    if len(plain) > allowed:
        raise _too_large(allowed)
    if not engine.eof:
        raise BadRequest("expected a whole gzip body, got one that ends early")
    if engine.unused_data:
        raise BadRequest("expected one gzip member, got more bytes after it")
    return plain


def _unzstd(body: bytes, allowed: int) -> bytes:
    engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    size = zstandard.frame_content_size(body)
    if size > allowed:
        raise _too_large(allowed)
    if size > 0:  # the frame says its size, and libzstd holds it to that
        return engine.decompress(body, max_output_size=allowed, allow_extra_data=False)
    stream = engine.decompressobj()
    parts: list[bytes] = []
    total = 0
    for start in range(0, len(body), _FEED):
        if stream.eof:
            raise BadRequest("expected one zstd frame, got more bytes after it")
        part = stream.decompress(body[start : start + _FEED])
        total += len(part)
        if total > allowed:
            raise _too_large(allowed)
        parts.append(part)
    if not stream.eof:
        raise BadRequest("expected a whole zstd body, got one that ends early")
    if stream.unused_data:
        raise BadRequest("expected one zstd frame, got more bytes after it")
    return b"".join(parts)


def _too_large(allowed: int) -> TooLarge:
    name: LimitName = "request_bytes" if allowed == most("request_bytes") else "compression_ratio"
    return TooLarge(
        f"expected at most {allowed} bytes after decompression, got more",
        hint=f"the limit is `{name}` in docs/limits.md; send less in one request",
        limit=name,
        most=most(name),
        value=f">{allowed}" if name == "request_bytes" else f">{most(name)}",
    )
