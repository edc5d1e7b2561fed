"""Blobs to and from one server: many requests at once, each repeated until it is answered or patience ends."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from icecore.direct import FOLLOWS, OBJECT_RANGE, BucketClient
from icecore.errors import BlobsFull, IcecoreError, ServerFailed, ServerUnreachable, Unauthenticated
from icecore.http import POSITION_HEADER, error_of_answer, note_position, unreachable

if TYPE_CHECKING:
    import urllib3

WORKERS: Final = 4
ASK_MOST: Final = 10_000
"""Digests in one question."""
PACKED_MOST: Final = 256 * 1024
"""Bytes of a blob that travels with others."""
PACK_BYTES: Final = 8 * 1024 * 1024
PACK_BLOBS: Final = 4_000
PART_BYTES: Final = 16 * 1024 * 1024
"""Bytes of a part of a large blob, up and down."""
PATIENCE_S: Final = 60.0
"""How long one request is repeated while the server is away or busy."""
ATTEMPTS: Final = 5
"""How often an answer may end early."""
_LATER: Final = frozenset({429, 502, 503, 504})
_FRAME_HEAD: Final = 40
_READ: Final = 256 * 1024

_RECENT_S: Final = 30.0
_FOLLOW: Final = {FOLLOWS: "1"}

Item = TypeVar("Item")


def parallel(work: Callable[[Item], object], items: Iterable[Item], workers: int = WORKERS) -> None:
    """Do `work` on every item, in several threads of which the caller's is one.

    Items are taken as they are needed. The first error ends it all, once the work under way is done, and is raised.
    """
    source = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            try:
                with lock:
                    item = next(source, _END)
                if item is _END:
                    return
                work(item)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                errors.append(error)

    threads = []
    for _ in range(workers - 1):
        thread = threading.Thread(target=run, name="icecore-transfer", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            break  # the interpreter is ending and takes no more threads: the ones there are do it
        threads.append(thread)
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


_END: Final = object()


class Progress:
    """How far a transfer is, for whoever shows it.

    Args:
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes = 0
        self.total = 0
        self._clock = clock
        self._moved = 0
        """Bytes that went over the wire, those left out that an earlier transfer had brought."""
        self._seen: deque[tuple[float, int]] = deque(maxlen=64)
        self._lock = threading.Lock()

    def expect(self, size: int) -> None:
        """So many bytes more are to go."""
        with self._lock:
            self.total += size
            if not self._seen:
                self._seen.append((self._clock(), 0))

    def add(self, size: int, *, moved: bool = True) -> None:
        """So many bytes are done; not `moved`: they were there."""
        with self._lock:
            self.bytes += size
            if moved:
                self._moved += size
                self._seen.append((self._clock(), self._moved))

    @property
    def rate(self) -> float:
        """Bytes a second, over the last transfers of the last half minute."""
        with self._lock:
            now = self._clock()
            recent = [(at, moved) for at, moved in self._seen if now - at < _RECENT_S] or list(self._seen)[-1:]
            if not recent:
                return 0.0
            at, moved = recent[0]
            return (self._moved - moved) / max(now - at, 1e-3)

    def __str__(self) -> str:
        rate, left = self.rate, max(self.total - self.bytes, 0)
        text = f"{self.bytes / 1e6:.1f} of {self.total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
        return f"{text}, {_duration(left / rate)} left" if rate > 0 and left else text


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 6000 else f"{whole / 3600:.1f} h"


class BlobClient:
    """The blob routes of a server. Safe to use from many threads.

    Args:
        url: the server's URL.
        api_key: the key; empty sends none.
        patience: seconds that one request is repeated while the server is away or busy.
    """

    def __init__(self, url: str, api_key: str, *, patience: float = PATIENCE_S) -> None:
        self.url = url.rstrip("/")
        self._patience = patience
        self._headers = {"User-Agent": "icecore-python"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.direct = False
        """Whether large blobs go to the server's bucket, past the server: as it said last."""
        self._bucket = BucketClient(WORKERS * 2)
        self._pool: urllib3.PoolManager | None = None
        self._lock = threading.Lock()

    # ---- up

    def missing(self, digests: Iterable[str]) -> set[str]:
        """Which blobs the server does not have.

        Raises:
            IcecoreError: the server refused, or stayed away.
        """
        source = iter(digests)
        found: set[str] = set()
        while chunk := list(islice(source, ASK_MOST)):
            answer = self._json("POST", "blobs/missing", {"digests": chunk})
            self.direct = bool(answer.get("direct"))
            found.update(answer["missing"])
        return found

    def put(self, digest: str, data: bytes) -> None:
        """Store a blob; `Invalid` where the bytes are not the digest's."""
        if data and self._put_direct(digest, 0, data, len(data), len(data)):
            self.finish(digest, len(data), len(data))
        else:
            self._send("PUT", f"blobs/{digest}", data)

    def put_pack(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Store small blobs, all or none."""
        self._send("POST", "blobs/pack", b"".join(part for blob in blobs for part in _frame(*blob)))

    def parts(self, digest: str, size: int, part_size: int) -> set[int]:
        """Parts of a large blob that an earlier upload has brought; none where it cut the blob otherwise."""
        answer = self._json("GET", f"uploads/{digest}")
        if (answer.get("size", size), answer.get("part_size", part_size)) != (size, part_size):
            return set()
        return {int(part) for part in answer["parts"]}

    def put_part(self, digest: str, part: int, data: bytes, size: int, part_size: int) -> None:
        """Store one part of a large blob."""
        if self._put_direct(digest, part, data, size, part_size):
            return
        self._send("PUT", f"uploads/{digest}/{part}?size={size}&part_size={part_size}", data)

    def _put_direct(self, digest: str, part: int, data: bytes, size: int, part_size: int) -> bool:
        """Send a part to the bucket; signed anew each time. False where it must go through the server."""
        if not self.direct:
            return False
        asked = {"size": size, "part_size": part_size, "sha256": hashlib.sha256(data).hexdigest()}

        def send() -> bool:
            signed = self._json("POST", f"uploads/{digest}/{part}", asked)
            if signed["url"] is None:
                return False
            self._bucket.put(signed["url"], signed["headers"], data)
            return True

        return self._in_patience(send)

    def finish(self, digest: str, size: int, part_size: int) -> None:
        """Make the parts a blob; `Invalid` where the bytes are not the digest's."""
        self._json("POST", f"uploads/{digest}", {"size": size, "part_size": part_size}, read=600.0)

    # ---- down

    def read(self, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Small blobs in the order asked. The bytes are not yet checked."""
        with self._open("POST", "blobs/read", orjson.dumps({"digests": list(digests)}), {}) as response:
            bytes_of = _Body(response)
            for _ in digests:
                head = bytes_of.next(_FRAME_HEAD)
                size = int.from_bytes(head[32:])
                if size > PACKED_MOST * 64:
                    raise ServerFailed(f"expected a small blob, got {size} bytes of {head[:32].hex()}")
                yield head[:32].hex(), bytes_of.next(size)

    def whole(self, digest: str) -> bytes:
        """All bytes of a blob that fits into memory. They are not yet checked."""

        def ask() -> bytes:
            with self._open("GET", f"blobs/{digest}", None, _FOLLOW) as response:
                return b"".join(self._chunks(response)) if response.status < 300 else self._followed(response)

        return again(ask)

    def get(self, digest: str, start: int, stop: int) -> bytes:
        """The bytes `start` to `stop` (left out) of a blob. They are not yet checked."""
        headers = {"Range": f"bytes={start}-{stop - 1}", **_FOLLOW}

        def ask() -> bytes:
            with self._open("GET", f"blobs/{digest}", None, headers) as response:
                if response.status >= 300:
                    return self._followed(response)
                body = _Body(response)
                if response.status == 200 and start:  # something on the way knows no ranges
                    body.next(start)
                return body.next(stop - start)

        return again(ask)

    def _followed(self, response: urllib3.BaseHTTPResponse) -> bytes:
        """The bytes from where an answer says they are; its address is good for a while."""
        where, wanted = response.headers.get("Location", ""), response.headers.get(OBJECT_RANGE, "")
        return self._in_patience(lambda: self._bucket.get(where, wanted), ATTEMPTS)

    def _in_patience(self, work: Callable[[], Item], attempts: int = 1_000_000) -> Item:
        """What `work` answers, which is repeated while the bucket is away or busy."""
        deadline, pause = time.monotonic() + self._patience, 0.05
        while True:
            attempts -= 1
            try:
                return work()
            except ServerUnreachable:
                if not attempts or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, no secret
            pause = min(pause * 2, 5.0)

    def _chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        import urllib3

        try:
            yield from response.stream(1 << 20, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerUnreachable(f"expected a whole answer, got {error}", hint="ask again") from error

    # ---- requests

    def _json(self, method: str, path: str, body: Any = None, *, read: float = 60.0) -> dict[str, Any]:
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} if data is not None else {}
        with self._open(method, path, data, headers, read=read) as response:
            return dict(orjson.loads(response.read()))

    def _send(self, method: str, path: str, data: bytes) -> None:
        with self._open(method, path, data, {"Content-Type": "application/octet-stream"}) as response:
            response.read()

    @contextlib.contextmanager
    def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, read: float = 60.0
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer as it comes; every request here may be repeated without harm."""
        response = self._patiently(method, path, body, headers, read)
        try:
            note_position(self.url, response.headers.get(POSITION_HEADER, ""))
            yield response
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()

    def _patiently(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], read: float
    ) -> urllib3.BaseHTTPResponse:
        deadline = time.monotonic() + self._patience
        pause = 0.05
        while True:
            try:
                response = self._once(method, path, body, headers, read)
                if response.status < 400:
                    return response
                error = error_of_answer(response.status, response.read(), response.headers.get("Retry-After", ""))
                response.release_conn()
                self._explain(error)
                later = response.status in _LATER and not isinstance(error, BlobsFull)
            except ServerUnreachable as away:
                error, later = away, True
            if not later or time.monotonic() + pause > deadline:
                raise error
            asked = error.facts.get("retry_after")
            wait = min(float(asked), 10.0) if isinstance(asked, int | float) else 0.0
            time.sleep(max(pause, wait) * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, no secret
            pause = min(pause * 2, 5.0)

    def _explain(self, error: IcecoreError) -> None:
        if isinstance(error, Unauthenticated) and not error.hint:
            error.hint = f"log in with `icecore login --url {self.url}`, or set ICECORE_API_KEY"

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], read: float
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        with self._lock:
            if self._pool is None:
                self._pool = urllib3.PoolManager(num_pools=1, maxsize=WORKERS * 2, retries=False)
        try:
            return self._pool.request(
                method,
                f"{self.url}/api/v1/{path}",
                body=body,
                headers={**self._headers, **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=5.0, read=read),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.url, error) from error


def again(ask: Callable[[], Item]) -> Item:
    """What `ask` answers; asked again where an answer ends early."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(ServerUnreachable):
            return ask()
    return ask()


def _frame(digest: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    return bytes.fromhex(digest), len(data).to_bytes(8), data


class _Body:
    """An answer's body in pieces of our own sizes: one read of the network serves many small ones."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._held = b""
        self._at = 0

    def next(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            ServerUnreachable: there are not so many.
        """
        import urllib3

        stop = self._at + size
        if stop > len(self._held):
            chunks = [self._held[self._at :]]
            lacking = size - len(chunks[0])
            while lacking > 0:
                try:
                    chunk = self._response.read(_READ)
                except (urllib3.exceptions.HTTPError, OSError) as error:
                    raise ServerUnreachable(f"expected {lacking} more bytes, got {error}", hint="ask again") from error
                if not chunk:
                    raise ServerUnreachable(f"expected {lacking} more bytes, got the end", hint="ask again")
                chunks.append(chunk)
                lacking -= len(chunk)
            self._held, self._at, stop = b"".join(chunks), 0, size
        piece = self._held[self._at : stop]
        self._at = stop
        return piece
