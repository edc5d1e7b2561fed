"""Bytes straight to and from the bucket of a server, by requests that the server has signed.

A signed address is as good as a key for as long as it is valid. So it is in no error, and in no log: urllib3 writes
addresses into its own at level DEBUG, and there everything behind the question mark is taken out.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from icecore.errors import ServerFailed, ServerUnreachable

if TYPE_CHECKING:
    import urllib3

FOLLOWS: Final = "Icecore-Follows"
"""Sent by clients that fetch from where an answer 307 says, with the range it says."""
OBJECT_RANGE: Final = "Icecore-Range"
"""Of an answer 307: the bytes to ask for there. A large blob lies in several objects, so they may be others."""
_RANGE: Final = re.compile(r"bytes=([0-9]+)-([0-9]+)")
_CODE: Final = re.compile(rb"<Code>(\w{1,60})</Code>")
_FINAL: Final = frozenset({401, 404, 405, 411, 413, 501})
"""Answers that the same request would get again, also when it is signed anew."""


class BucketClient:
    """A server's bucket. Safe to use from many threads.

    Args:
        connections: how many are kept.
    """

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._pool: urllib3.PoolManager | None = None
        self._lock = threading.Lock()

    def put(self, url: str, headers: Mapping[str, str], data: bytes) -> None:
        """Send an object.

        Raises:
            ServerUnreachable: the bucket is away or busy, or the signature is too old: ask for a new one.
            ServerFailed: it refuses for good.
        """
        self._ask("PUT", url, headers, data)

    def get(self, url: str, wanted: str) -> bytes:
        """Bytes of an object. They are not yet checked.

        Args:
            url: signed.
            wanted: `bytes=FIRST-LAST`.

        Raises:
            ServerUnreachable: as for `put`, or the answer ended early.
            ServerFailed: as for `put`.
        """
        found = _RANGE.fullmatch(wanted)
        if found is None:
            raise ServerFailed(f"expected a range of bytes, got {wanted[:80]!r}")
        first, size = int(found[1]), int(found[2]) + 1 - int(found[1])
        status, data = self._ask("GET", url, {"Range": wanted}, None)
        if status == 200:  # something on the way knows no ranges
            data = data[first : first + size]
        if len(data) != size:
            raise ServerUnreachable(f"expected {size} bytes of an object, got {len(data)}", hint="ask again")
        return data

    def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, bytes]:
        import urllib3

        _discreet()
        host = urlsplit(url).netloc
        with self._lock:
            if self._pool is None:
                self._pool = urllib3.PoolManager(num_pools=2, maxsize=self._connections, retries=False)
        try:
            answer = self._pool.request(
                method, url, body=body, headers=dict(headers), redirect=False, timeout=urllib3.Timeout(5.0, 60.0)
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerUnreachable(
                f"expected the object store at {host} to answer, got {type(error).__name__}",
                hint="it must be reachable from this machine; else the server's --blobs says direct=no",
            ) from None  # the cause may have the address in it
        if answer.status < 300:
            return answer.status, answer.data
        code = _CODE.search(answer.data)
        said = f"expected the object store at {host} to answer, got HTTP {answer.status}"
        said += f" {code[1].decode()}" if code else ""
        if answer.status in _FINAL:
            raise ServerFailed(said, hint="look at the bucket's policy and the server's keys")
        raise ServerUnreachable(said, hint="ask again")


class _Discreet(logging.Filter):
    """Takes what is signed out of addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_without_query(value) for value in record.args)
        return True


def _without_query(value: Any) -> Any:
    if isinstance(value, str) and "?" in value and ("ignature=" in value or "sig=" in value):
        return value.partition("?")[0] + "?…"
    return value


@functools.cache
def _discreet() -> None:
    logging.getLogger("urllib3.connectionpool").addFilter(_Discreet())
