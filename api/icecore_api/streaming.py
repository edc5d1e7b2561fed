"""Answers that are made while they are sent, piece by piece; a client that goes away ends the query."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import duckdb
from starlette.responses import StreamingResponse

from icecore.position import Token
from icecore_api.answers import POSITION_HEADER
from icecore_api.context import Store

Begin = Callable[[duckdb.DuckDBPyConnection], Iterator[bytes]]
"""Given a cursor within a snapshot: checks the question (raising what is wrong with it), then gives the pieces."""


class _Pieces:
    """The pieces of an answer, and the cursor they are read through: used by one thread at a time, closed once."""

    def __init__(self, store: Store) -> None:
        self._cursor = store.cursor()
        self._lock = threading.Lock()
        self._closed = False
        self._pieces: Iterator[bytes] = iter(())

    def begin(self, begin: Begin) -> bytes | None:
        """Ask the question; the first piece, None where there is none."""
        with self._lock:
            self._cursor.begin()
            self._pieces = begin(self._cursor)
            return next(self._pieces, None)

    def following(self) -> bytes | None:
        """The next piece; None after the last one, or where the answer was given up."""
        with self._lock:
            return None if self._closed else next(self._pieces, None)

    def close(self) -> None:
        """Stop what is running and let the cursor go, and its snapshot with it."""
        self._closed = True
        self._cursor.interrupt()
        with self._lock:
            self._pieces = iter(())
            self._cursor.close()


async def stream(
    store: Store, position: Token, begin: Begin, media_type: str, filename: str | None = None
) -> StreamingResponse:
    """An answer whose pieces `begin` gives. What is wrong with the question is raised before anything is sent.

    The cursor is the answer's own: the request's is closed while a thread may still read.
    """
    pieces = await asyncio.to_thread(_Pieces, store)
    try:
        first = await asyncio.to_thread(pieces.begin, begin)
    except BaseException:
        await asyncio.to_thread(pieces.close)
        raise
    headers = {POSITION_HEADER: str(position)}
    if filename is not None:
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return StreamingResponse(_sent(pieces, first), media_type=media_type, headers=headers)


async def _sent(pieces: _Pieces, piece: bytes | None) -> AsyncIterator[bytes]:
    try:
        while piece is not None:
            yield piece
            piece = await asyncio.to_thread(pieces.following)
    finally:
        # not awaited: when the client has gone, this task is cancelled at every await
        asyncio.get_running_loop().run_in_executor(None, pieces.close)
