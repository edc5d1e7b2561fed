"""Back-pressure: how many bytes are in flight, in all and by key.

A request counts from when it is let in until it is answered, by its declared size (or as it is read) plus what
holding any request costs. Over a bound it is refused at once, before its body is read: never queued without bound.
"""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType
from typing import Final, Self

from icecore.errors import TooBusy, Unavailable

MB: Final = 1 << 20
REQUEST_BYTES: Final = 8 * 1024
"""What a request costs besides its body: its headers, buffers, records and answer."""


class Flow:
    """The bytes in flight of one process. Used from one event loop only."""

    def __init__(self, most: int = 64 * MB, most_per_key: int = 32 * MB) -> None:
        self.most = most
        self.most_per_key = most_per_key
        self.bytes = 0
        self.requests = 0
        self.refused_key = 0
        self.refused_all = 0
        self._by_key: defaultdict[str, int] = defaultdict(int)

    def hold(self, key: str, size: int) -> Hold:
        """Let a request of `size` bytes in.

        Raises:
            TooBusy: this key has too much in flight.
            Unavailable: all keys together have.
        """
        hold = Hold(self, key)
        hold.grow(size + REQUEST_BYTES)
        self.requests += 1
        return hold

    def take(self, key: str, size: int) -> None:
        """Count `size` more bytes of `key`, or refuse."""
        if self._by_key[key] + size > self.most_per_key:
            self.refused_key += 1
            raise TooBusy(
                f"expected at most {self.most_per_key} bytes in flight with one key, "
                f"got {self._by_key[key]} and a request of {size}",
                hint="wait for answers before sending more",
                retry_after=1,
            )
        if self.bytes + size > self.most:
            self.refused_all += 1
            raise Unavailable(
                f"expected at most {self.most} bytes in flight, got {self.bytes} and a request of {size}",
                hint="the server is busy: try again",
                retry_after=1,
            )
        self.bytes += size
        self._by_key[key] += size

    def give(self, key: str, size: int) -> None:
        """The opposite of `take`."""
        self.bytes -= size
        left = self._by_key[key] - size
        if left:
            self._by_key[key] = left
        else:
            del self._by_key[key]


class Hold:
    """The bytes one request holds until its `with` block ends."""

    __slots__ = ("_flow", "_key", "_size")

    def __init__(self, flow: Flow, key: str) -> None:
        self._flow = flow
        self._key = key
        self._size = 0

    def grow(self, size: int) -> None:
        """Hold `size` bytes more, or be refused."""
        self._flow.take(self._key, size)
        self._size += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flow.give(self._key, self._size)
        self._flow.requests -= 1
