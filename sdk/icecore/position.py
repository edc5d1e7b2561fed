"""Where records are: a position is one place in the log, a token one place in every partition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from icecore.errors import BadRequest

LEDGER: Final = "ledger"
METRICS: Final = "metrics"
STREAMS: Final = (LEDGER, METRICS)
NEVER: Final = 1 << 62
"""In a token given to `EventLog.wait`: this partition does not matter."""


class Place(NamedTuple):
    """A stream's partition."""

    stream: str
    partition: int


class Position(NamedTuple):
    """Where one record is. Offsets are dense and start at 0."""

    stream: str
    partition: int
    offset: int

    @property
    def place(self) -> Place:
        """The partition this position is in."""
        return Place(self.stream, self.partition)

    @property
    def next_offset(self) -> int:
        """The offset of the record after this one."""
        return self.offset + 1

    def __str__(self) -> str:
        return f"{self.stream}:{self.partition}:{self.offset}"


class Token:
    """An opaque vector of positions: for each partition, the next offset to be read.

    A read that is given a token answers at or after it. `Token() ` covers nothing and is covered by everything.
    """

    __slots__ = ("_next",)

    def __init__(self, next_offsets: Mapping[Place, int] | None = None) -> None:
        self._next = {place: n for place, n in (next_offsets or {}).items() if n > 0}

    @classmethod
    def after(cls, positions: Iterable[Position]) -> Token:
        """The token that covers all of `positions`."""
        ends: dict[Place, int] = {}
        for position in positions:
            ends[position.place] = max(ends.get(position.place, 0), position.next_offset)
        return cls(ends)

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read what `str(token)` wrote.

        Raises:
            BadRequest: the text is not a token.
        """
        ends: dict[Place, int] = {}
        try:
            for part in filter(None, text.strip().split(",")):
                stream, partition, offset = part.split(":")
                if stream not in STREAMS:
                    raise ValueError(stream)
                ends[Place(stream, int(partition))] = int(offset)
        except ValueError as error:
            raise BadRequest(
                f"expected a position token, got {text[:80]!r}",
                hint="send back the Icecore-Position header of an earlier answer, unchanged",
            ) from error
        return cls(ends)

    def next_offset(self, place: Place) -> int:
        """The next offset to be read in `place`; 0 where nothing was."""
        return self._next.get(place, 0)

    def covers(self, other: Token) -> bool:
        """Whether everything `other` covers is covered by this token too."""
        return all(self.next_offset(place) >= n for place, n in other._next.items())

    def merge(self, other: Token) -> Token:
        """The smallest token that covers both."""
        places = self._next.keys() | other._next.keys()
        return Token({place: max(self.next_offset(place), other.next_offset(place)) for place in places})

    def as_dict(self) -> dict[Place, int]:
        """The next offset of every partition covered."""
        return dict(self._next)

    def __str__(self) -> str:
        return ",".join(f"{p.stream}:{p.partition}:{n}" for p, n in sorted(self._next.items()))

    def __repr__(self) -> str:
        return f"Token({self})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and self._next == other._next

    def __hash__(self) -> int:
        return hash(frozenset(self._next.items()))
