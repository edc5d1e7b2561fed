"""Digests that are remembered: for files that have not changed, and never for others."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from icecore.errors import UsageError
from icecore.hashing import hash_files
from icecore.stat_cache import Stamp, StatCache


def test_what_was_just_changed_is_not_remembered(tmp_path: Path) -> None:
    """Its next change could bear the same time."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    cache = StatCache(tmp_path / "stat.db")
    hash_files([str(path)], cache, str(tmp_path))

    assert cache.below(str(tmp_path)) == {}


def test_what_has_settled_is_remembered_by_folder(tmp_path: Path) -> None:
    """A folder's own files, and not those of one whose name begins alike."""
    cache = StatCache(tmp_path / "stat.db")
    stamp = Stamp(1, 2, 3, 4)
    for name in ("a/x", "a/b/y", "ab/z", "a"):
        cache.remember([(f"/t/{name}", stamp, "ab" * 32)])

    assert sorted(cache.below("/t/a")) == ["/t/a", "/t/a/b/y", "/t/a/x"]
    assert cache.below("/t/a")["/t/a/x"][1:5] == stamp


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode", None])
def test_any_difference_is_a_change(tmp_path: Path, field: str | None) -> None:
    """Size, times and inode each count: the file is read again. Only without a difference it is not."""
    path = tmp_path / "a"
    path.write_bytes(b"1")
    stamp = Stamp.of(path.stat())
    noted = stamp if field is None else stamp._replace(**{field: getattr(stamp, field) - 1})
    cache = StatCache(tmp_path / "stat.db")
    cache.remember([(str(path), noted._replace(mtime_ns=1, ctime_ns=1), "ab" * 32)])
    with closing(sqlite3.connect(tmp_path / "stat.db")) as db, db:  # as if it had been hashed long ago
        db.execute("UPDATE files SET mtime = ?, ctime = ?", (noted.mtime_ns, noted.ctime_ns))
    (found,) = hash_files([str(path)], cache, str(path))

    assert found.digest == ("ab" * 32 if field is None else hashlib.sha256(b"1").hexdigest())


def test_a_damaged_cache_costs_time_only(tmp_path: Path) -> None:
    """Files are read, and the cache begins anew."""
    path, where = tmp_path / "a", tmp_path / "stat.db"
    path.write_bytes(b"1")
    where.write_bytes(os.urandom(10_000))
    cache = StatCache(where)

    assert hash_files([str(path)], cache, str(path))[0].digest == hashlib.sha256(b"1").hexdigest()
    cache.remember([(str(path), Stamp(1, 2, 3, 4), "ab" * 32)])
    assert str(path) in cache.below(str(path))


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    """By their path."""
    with pytest.raises(UsageError, match="nowhere"):
        hash_files([str(tmp_path / "nowhere")], StatCache(tmp_path / "stat.db"), str(tmp_path))
