"""Which store of blobs a data folder has: its own, or a bucket, and then always the same one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from icecore.errors import IcecoreError, SettingsError
from icecore_api.blobs.local import LocalBlobs
from icecore_api.blobs.store import BlobStore

WHERE: Final = "blobs/BUCKET"
"""In a data folder: the address of the bucket that has its blobs, where they are in one. It goes into backups."""


def blobs_of(data: Path) -> str:
    """The bucket that has the blobs of a data folder; empty where the folder has them."""
    try:
        return (data / WHERE).read_text("utf-8").strip()
    except OSError:
        return ""


def choose_blobs(data: Path, where: str) -> str:
    """The address of the bucket: `where`, or without one what was remembered; empty for the folder.

    Raises:
        SettingsError: it is no bucket, or the folder's blobs are elsewhere already.
    """
    if not (where or blobs_of(data)):
        return ""  # nothing of a bucket's library is needed
    from icecore_api.blobs.remote_settings import Bucket

    before = blobs_of(data)
    if where and str(Bucket.parse(where)) != str(Bucket.parse(before or where)):
        raise SettingsError(
            f"expected the blobs of {data} in {Bucket.parse(before)}, got {Bucket.parse(where)}",
            hint=f"copy its objects, then write the new address into {data / WHERE}",
        )
    own = data / "blobs"
    if where and not before and any(path for name in ("packs", "whole") for path in (own / name).glob("*")):
        raise SettingsError(
            f"expected a data folder without blobs, {own} has some",
            hint=f"copy packs/ and whole/ of it into the bucket, and write the address into {data / WHERE}",
        )
    return where or before


def open_blobs(
    data: Path,
    where: str = "",
    *,
    owner: str = "",
    refuse: Callable[[], IcecoreError] | None = None,
    chunked: bool = False,
) -> BlobStore:
    """The blobs of a data folder.

    Args:
        data: the folder.
        where: a bucket's address, as `choose_blobs` takes it.
        owner: the log's id, which the bucket keeps: it can have one.
        refuse: makes the error for whatever would change them; None lets them be changed.
        chunked: whether large blobs that come are kept in chunks; only in the folder, never in a bucket.

    Raises:
        SettingsError: the address makes no sense, or the blobs are elsewhere.
        BlobError: the folder cannot be used.
    """
    address = choose_blobs(data, where)
    if not address:
        return LocalBlobs(data / "blobs", refuse, chunked=chunked)
    from icecore_api.blobs.remote import RemoteBlobs
    from icecore_api.blobs.remote_settings import Bucket

    def remember() -> None:
        if refuse is None and blobs_of(data) != address:
            (data / WHERE).write_text(address + "\n", "utf-8")

    return RemoteBlobs(Bucket.parse(address), data / "blobs", refuse, owner=owner, opened=remember)
