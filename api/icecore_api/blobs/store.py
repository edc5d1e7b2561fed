"""What a store of blobs is, wherever it keeps them.

A blob is named by the SHA-256 of its bytes, in 64 lower-case hex digits. It is there whole and durable, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from icecore.errors import Invalid

SMALL_BYTES: Final = 256 * 1024
"""Blobs up to this size are checked whenever they are read whole, and may share a file."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def check_digest(digest: str) -> str:
    """`digest` itself, if it is one: nothing else ever becomes part of a path.

    Raises:
        Invalid: it is not 64 lower-case hex digits.
    """
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise Invalid(f"expected a SHA-256 in 64 lower-case hex digits, got {str(digest)[:80]!r}", where="digest")
    return digest


@dataclass(frozen=True, slots=True)
class Parts:
    """A large blob that comes in parts: `number` parts of `part_size` bytes, the last one shorter."""

    digest: str
    size: int
    part_size: int

    @property
    def number(self) -> int:
        """How many parts there are."""
        return -(-self.size // self.part_size)

    def size_of(self, part: int) -> int:
        """Bytes of a part.

        Raises:
            Invalid: there is no such part.
        """
        if not 0 <= part < self.number:
            raise Invalid(f"expected a part from 0 to {self.number - 1}, got {part}", where="part")
        return min(self.part_size, self.size - part * self.part_size)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An upload that is not finished: which parts of it are durable."""

    parts: Parts
    there: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Orphan:
    """What an interrupted upload has left."""

    name: str
    kind: Literal["draft", "upload"]
    """A draft cannot be gone on with; an upload by parts can."""
    bytes: int
    """On the disk, holes left out."""
    age_s: float
    """Since it was last written to."""


@dataclass(frozen=True, slots=True)
class Hurt:
    """A blob that is not, or no longer, what its name says."""

    digest: str
    size: int
    state: Literal["damaged", "missing"]
    where: str
    problem: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A blob that is there."""

    digest: str
    size: int
    """Bytes of the blob itself."""
    at_rest: int
    """Bytes of the store's files that hold it, what it shares with other blobs included; at least 1 for each blob that
    is not empty. The sum over all blobs is more than what the disk holds where blobs share: `Usage.disk` says that."""
    touched: float
    """When it was stored, or asked about by `missing` or `sizes`, last; in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the store holds. What is not a blob yet (`orphans`) and the index are not in it."""

    blobs: int
    logical: int
    """The sizes of all blobs, each once."""
    disk: int
    """The lengths (`st_size`) of all files or objects that hold blobs: what `du --apparent-size` says of them."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What some blobs weigh. Those that are not there weigh nothing; each counts once however often it is named."""

    blobs: int
    logical: int
    """Their sizes."""
    disk: int
    """Bytes of files that hold them, each byte once; what they share with other blobs included."""
    reclaimable: int
    """By how many bytes `Usage.disk` falls when exactly these are erased: what no other blob needs."""


@dataclass(frozen=True, slots=True)
class Erased:
    """A blob that was there and is not any more."""

    digest: str
    size: int
    freed: int
    """Bytes. Where several blobs of one call shared bytes, the first one has them all: the sum is what the disk got."""


Progress = Callable[[int, int], None]
"""Given bytes done and bytes in all."""


class Blob(Protocol):
    """A blob that is open to be read. It stays readable while it is, whatever happens to its name."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def read(self, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Bytes from `start` to before `stop`, in pieces. A small blob read whole is checked before any is given.

        Raises:
            BlobDamaged: they are not what the digest says.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Shrinking(Protocol):
    """What a store of blobs can say of its size, and how it becomes smaller.

    **Touched.** A blob is touched when it is stored (also when it was there already: `put`, `put_small`, `complete`),
    and when `missing` or `sizes` find it there. `erase` leaves alone whatever was touched at or after
    `not_touched_since`, and both happen one after the other: a client that was told "not missing" keeps the blob for
    as long as the caller of `erase` says, which must be longer than a client takes from that answer to its commit
    (a commit asks `sizes` for all of its blobs, so the time begins again there). Touches outlive the process.
    """

    def all_blobs(self) -> AsyncIterator[list[Kept]]:
        """Every blob, in no order, some thousands at a time. What comes or goes meanwhile may be in it or not."""
        ...

    async def usage(self) -> Usage:
        """What is there in all."""
        ...

    async def weigh(self, digests: Collection[str]) -> Weight:
        """What these blobs weigh together, and how many bytes would be free without them. Touches nothing.

        Raises:
            Invalid: one is no digest.
        """
        ...

    def erase(self, digests: Collection[str], *, not_touched_since: float) -> AsyncGenerator[list[Erased]]:
        """Remove blobs for good, some at a time; what is given is durably gone, and its bytes are free.

        What is not there is passed over, and so is what was touched at or after `not_touched_since` (seconds since
        1970; `math.inf` erases whatever is named), and what is being read where the store could not read on. Other
        blobs stay as they are, those that come meanwhile too; an open `Blob` stays readable. The sum of `freed` is by
        how much `Usage.disk` falls, and where nothing was passed over, what `weigh` promised. Killed at any moment,
        each blob is there whole or gone; stopped in the middle (`aclose`), what was not given may be gone as well.

        Raises:
            Invalid: one is no digest. BlobError, BlobsFull: the disk refuses; what was given is gone.
        """
        ...


class BlobStore(Shrinking, Protocol):
    """Blobs, wherever they lie. Every digest that is not one is `Invalid`, and nothing is touched."""

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that are not there, in their order, each once. The others are touched."""
        ...

    async def sizes(self, digests: Sequence[str]) -> dict[str, int]:
        """Bytes of those of `digests` that are there. They are touched."""
        ...

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> int:
        """Make one blob of what comes; durable on return. Answers its size.

        Raises:
            DigestMismatch: the bytes have another digest. Nothing is kept.
            BlobsFull: no space left. Nothing is kept.
        """
        ...

    async def put_small(self, chunks: AsyncIterator[bytes]) -> int:
        """Make blobs of frames (`packs.frame`), all or none; durable on return. Answers how many there were.

        Raises:
            Invalid, TooLarge: they are no frames, or too many bytes.
            DigestMismatch, BlobsFull: as in `put`.
        """
        ...

    async def open(self, digest: str) -> Blob:
        """A blob to read from.

        Raises:
            NotFound: it is not there.
        """
        ...

    async def read(self, digest: str) -> bytes:
        """All bytes of a blob, checked.

        Raises:
            NotFound, BlobDamaged: it is not there, or not what its digest says.
        """
        ...

    async def read_many(self, digests: Sequence[str]) -> AsyncIterator[bytes]:
        """Frames of blobs, in the order asked, in pieces; each small one is checked.

        Raises:
            BlobsMissing: some are not there; raised before anything is given.
            BlobDamaged: one is not what its digest says; raised where it comes.
        """
        ...

    async def put_part(self, parts: Parts, part: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep a part of a large blob; durable on return.

        Raises:
            Invalid: it is not one of its parts, or of another size.
            Conflict: the upload is being completed.
            BlobsFull: no space left.
        """
        ...

    async def under_way(self, digest: str) -> list[UnderWay]:
        """The uploads of a blob that are not finished, the one last written to first."""
        ...

    async def complete(self, parts: Parts) -> int:
        """Check all bytes and make them a blob. Answers its size; also where it is a blob already.

        Raises:
            Conflict: parts are not there, or it is being completed already.
            DigestMismatch: the bytes have another digest. The parts are forgotten.
        """
        ...

    async def orphans(self) -> list[Orphan]:
        """What interrupted uploads have left; what is being written now is not among it."""
        ...

    async def remove_orphans(self, older_than_s: float) -> list[Orphan]:
        """Remove those not written to for so long. Answers which."""
        ...

    def scrub(self, progress: Progress = lambda _done, _total: None) -> Iterator[Hurt]:
        """Read every blob again; those that are damaged or missing. Blocks: for a thread of its own.

        Until they come again, `missing` names them and `sizes` does not; then what comes takes their place.
        """
        ...

    async def hurt(self) -> int:
        """How many blobs are known to be damaged or missing: a scrub found them, and they did not come again since."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...
