"""A manifest as rows of bytes: what it has in common with one that was checked need not be looked at again.

Of 100,000 files of which one has changed, 99,999 rows are those of the version before. Rows are compared as bytes, all
at once; those that are new become a manifest of their own, which is checked as any other. What is not plain is left to
the check of the whole: references, bundles, escaped characters, and what is new for the most part.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import islice
from operator import lt
from typing import Final, NamedTuple

from icecore.errors import Invalid
from icecore.manifest import Entry

_HEAD: Final = b'{"entries":{"'
_TAIL: Final = b'}},"version":1}'
_BETWEEN: Final = b'},"'
_AFTER_PATH: Final = b'":{"'


class Grown(NamedTuple):
    """What a manifest is, seen from another one."""

    files: int
    """How many it names."""
    size: int
    """Bytes of them."""
    new: dict[str, Entry]
    """Entries that the other one has not, by path."""


def grown(data: bytes, base: bytes, check: Callable[[bytes], dict[str, Entry]]) -> Grown | None:
    """A manifest beside one that was checked; None where it has to be checked as a whole.

    Args:
        data: from whoever made it.
        base: of a version that is no bundle and has no references, so that each of its rows is good.
        check: the entries of a manifest's bytes, which may be in no other form; Invalid where something is wrong.
    """
    rows, known = _rows(data), _rows(base)
    if not rows or not known:
        return None
    there = set(known)
    added = [row for row in rows if row not in there]
    if len(added) * 2 > len(rows):
        return None
    try:
        # a row without the end of its path is part of one: a path that looks like what stands between rows
        paths = [row[: row.index(_AFTER_PATH)] for row in rows]
        new = check(_HEAD + _BETWEEN.join(added) + _TAIL) if added else {}
    except (Invalid, ValueError):
        return None
    sorted_once = all(map(lt, paths, islice(paths, 1, None)))
    plain = len(new) == len(added) and all(entry.is_blob for entry in new.values())
    if not (sorted_once and plain) or any(_clashes(path.encode(), paths) for path in new):
        return None
    files = sum(not path.endswith(b"/") for path in paths)
    return Grown(files, sum(int(row[row.rindex(b":") + 1 :]) for row in rows), new)


def _rows(data: bytes) -> list[bytes]:
    """`path":{"digest":…,"size":N` of each entry; none where it is of another form."""
    if not (data.startswith(_HEAD) and data.endswith(_TAIL)) or b"\\" in data:
        return []  # with an escape in it, the bytes of a path are not the path
    return data[len(_HEAD) : -len(_TAIL)].split(_BETWEEN)


def _clashes(path: bytes, paths: Sequence[bytes]) -> bool:
    """Whether a path of these, sorted, makes one a file and a folder at once."""
    whole = path.removesuffix(b"/")
    if whole != path and _has(paths, whole):
        return True
    folder = whole.rpartition(b"/")[0]
    while folder:
        if _has(paths, folder):
            return True
        folder = folder.rpartition(b"/")[0]
    below = bisect_left(paths, whole + b"/")
    return whole == path and below < len(paths) and paths[below].startswith(whole + b"/")


def _has(paths: Sequence[bytes], path: bytes) -> bool:
    at = bisect_left(paths, path)
    return at < len(paths) and paths[at] == path
