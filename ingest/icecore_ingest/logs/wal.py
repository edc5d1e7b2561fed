"""Reads SQLite's write-ahead log, to find what SQLite itself passes over in silence.

SQLite takes the first frame with a wrong checksum for the end of the WAL. That is right for a torn end: the one
transaction that was being written when the power went was never acknowledged. It is wrong for a flipped bit in the
middle: the transactions behind it were. Here is how many there are.

The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HEAD: Final = 32
_FRAME_HEAD: Final = 24
_MASK: Final = 0xFFFFFFFF

Sums = tuple[int, int]


class WalState(NamedTuple):
    """What is in a WAL since it last began anew."""

    frames: int
    """Frames in front of the first damaged or torn one: what SQLite sees, up to its last commit."""
    lost_commits: int
    """Commits behind that: one may be a torn end, two are damage."""


def read_wal(path: Path) -> WalState:
    """The state of a `-wal` file; nothing in it where there is no such file.

    In use by another process, what is being written right now looks torn: look again.
    """
    try:
        with path.open("rb") as wal:
            return _scan(wal.fileno())
    except FileNotFoundError:
        return WalState(0, 0)


def _scan(wal: int) -> WalState:
    head = os.pread(wal, _HEAD + _FRAME_HEAD, 0)
    if len(head) < _HEAD + _FRAME_HEAD:
        return WalState(0, 0)
    order = ">" if head[3] & 1 else "<"
    page = struct.unpack(">I", head[8:12])[0]
    sums = _checksum_short(order, head[:24], (0, 0))
    if struct.unpack(">2I", head[24:32]) == sums:
        whole, salts = True, head[16:24]
    else:  # the head is damaged and may say anything: the first frame has the salts, and the file's size the page
        whole, salts, page = False, head[40:48], _page_size(wal)
    step = _FRAME_HEAD + page
    frames = lost = 0
    for at in range(_HEAD, os.fstat(wal).st_size - step + 1, step):
        frame_head = os.pread(wal, _FRAME_HEAD, at)
        if frame_head[8:16] != salts:
            break
        if whole:
            sums = _checksum(order, frame_head[:8] + os.pread(wal, page, at + _FRAME_HEAD), sums)
            whole = struct.unpack(">2I", frame_head[16:24]) == sums
            frames += whole
        if not whole and frame_head[4:8] != b"\0\0\0\0":
            lost += 1
    return WalState(frames, lost)


def _page_size(wal: int) -> int:
    """The page size that puts a second frame with the first one's salts where it should be."""
    salts = os.pread(wal, 8, _HEAD + 8)
    for page in (1 << power for power in range(9, 17)):
        if os.pread(wal, 8, _HEAD + _FRAME_HEAD + page + 8) == salts:
            return page
    return 1 << 16


def _checksum_short(order: str, data: bytes, sums: Sums) -> Sums:
    """SQLite's checksum as its documentation says it."""
    s0, s1 = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & _MASK
        s1 = (s1 + x1 + s0) & _MASK
    return s0, s1


def _checksum(order: str, data: bytes, sums: Sums) -> Sums:
    """The same for a whole frame at once.

    One step is s' = M s + (x0, x0 + x1) with M = [[1, 1], [1, 2]], so n steps are M^n s plus the inputs, each
    times the power of M still before it. All is modulo 2^32, which is what uint32 does by itself.
    """
    import numpy as np

    pairs = np.frombuffer(data, dtype=f"{order}u4").astype(np.uint32).reshape(-1, 2)
    a, b, d, last = _powers(len(pairs))
    x0, both = pairs[:, 0], pairs[:, 0] + pairs[:, 1]
    s0 = int(np.dot(a, x0)) + int(np.dot(b, both)) + last[0] * sums[0] + last[1] * sums[1]
    s1 = int(np.dot(b, x0)) + int(np.dot(d, both)) + last[1] * sums[0] + last[2] * sums[1]
    return s0 & _MASK, s1 & _MASK


@lru_cache(maxsize=4)
def _powers(n: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], tuple[int, int, int]]:
    """The entries (a, b, d) of the symmetric M^(n-1) … M^0, and of M^n."""
    import numpy as np

    a, b, d = 1, 0, 1
    rows: list[tuple[int, int, int]] = []
    for _ in range(n):
        rows.append((a, b, d))
        a, b, d = (a + b) & _MASK, (b + d) & _MASK, (b + 2 * d) & _MASK
    columns = np.array(rows[::-1], dtype=np.uint32)
    return (
        np.ascontiguousarray(columns[:, 0]),
        np.ascontiguousarray(columns[:, 1]),
        np.ascontiguousarray(columns[:, 2]),
        (a, b, d),
    )
