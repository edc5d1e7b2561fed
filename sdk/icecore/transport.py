"""Frames to the server: one keep-alive connection, retries without end, and nothing given up silently."""

from __future__ import annotations

import functools
import gzip
import logging  # noqa: F401 - it hooks itself into fork: not from urllib3, in the middle of one
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote, urlsplit

import orjson

from icecore import tracing
from icecore.errors import (
    Conflict,
    Forbidden,
    IcecoreError,
    Invalid,
    NotFound,
    ServerUnreachable,
    Unauthenticated,
    Unavailable,
)
from icecore.http import note_position
from icecore.limits import most
from icecore.notes import warn
from icecore.settings import load_credentials

if TYPE_CHECKING:
    import urllib3

EVENTS_MOST: Final = most("request_events")
BYTES_MOST: Final = most("request_bytes") - 64 * 1024
PAUSE_FIRST: Final = 0.5
PAUSE_MOST: Final = 60.0
PAUSE_KEY: Final = 2.0
"""Between looks for a saved key, where there is none yet."""
RETRY_AFTER_MOST: Final = 600.0

_REFUSALS: Final = frozenset({400, 409, 413, 422})
"""Answers to the events themselves. Others (404, 405, 415 …) are a wrong URL or a proxy: the data is kept."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    kind: Literal["taken", "later", "unauthorised", "refused", "unreachable"]
    words: str = ""
    hint: str = ""
    pause: float | None = None
    """Seconds that the server asked to wait."""
    code: str = ""
    """The error's, as `icecore.errors` has them."""


_importing: Final = threading.Lock()
# A child forked while another thread is importing would wait for that import for ever: so forks wait for ours.
os.register_at_fork(before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release)


def _urllib3() -> Any:
    """Import what sending needs, in the uploader's thread: it is most of what `init` would cost."""
    with _importing:
        import encodings.idna  # noqa: F401 - sockets import it when they first connect

        import urllib3

        return urllib3


@functools.cache
def _begin_tracing() -> bool:
    """Whether traces are made; asked in the uploader's thread, as OpenTelemetry is slow to import."""
    try:
        why = tracing.begin("client")
    except IcecoreError as error:
        why = str(error)
    if why:
        warn(f"no traces: {why}")
    return tracing.on()


class Transport:
    """HTTP to one server. One thread uses it at a time."""

    def __init__(self, url: str, key: str, *, read_timeout: float = 30.0, connect_timeout: float = 5.0) -> None:
        self.url = url
        host = urlsplit(url).hostname or ""
        self._near = host == "localhost" or host.startswith("127.") or host == "::1"
        self._timeouts = (connect_timeout, read_timeout)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool: urllib3.PoolManager | None = None
        self.token = ""
        """Covers everything this transport has sent."""
        self.ask_first: Callable[[], None] | None = None
        """What must be asked of the server before anything is sent to it."""

    def send(self, frames: Sequence[bytes]) -> Answer:
        """Post events once."""
        try:
            self._ask_first()
        except ServerUnreachable as error:
            return Answer("unreachable", error.message)
        body = b"".join(frames)
        headers = {**self._headers, "Content-Type": "application/x-ndjson"}
        if not self._near:
            body = gzip.compress(body, 1, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            response = self._post(headers, body)
        except OSError as error:
            return Answer("unreachable", _words_of(error))
        answer = self._judge(response)
        if answer.kind == "unauthorised" and self._take_saved_key():
            return self.send(frames)
        return answer

    def _post(self, headers: dict[str, str], body: bytes) -> urllib3.BaseHTTPResponse:
        """Send events, as the first span of their trace where traces are wanted."""
        if not _begin_tracing():
            return self._request("POST", "events", self._timeouts, headers, body)
        with tracing.span("icecore.upload", kind="client", bytes=len(body)) as span:
            told = {**headers, "traceparent": tracing.traceparent(span)}
            response = self._request("POST", "events", self._timeouts, told, body)
            span.set_attributes({"http.response.status_code": response.status})
            return response

    def _ask_first(self) -> None:
        if self.ask_first is None:
            return
        try:
            self.ask_first()
        except ServerUnreachable:
            raise
        except Unauthenticated:
            return  # it asks again, with the next key
        except IcecoreError:
            pass  # a server that does not tell takes data all the same
        self.ask_first = None

    @property
    def has_key(self) -> bool:
        """Whether there is a key to send."""
        return bool(self._headers)

    def _take_saved_key(self) -> bool:
        """Whether a key was saved since: by a server that first started, or a login, after this process did."""
        key = "" if self._headers else load_credentials(self.url).get("api_key", "")
        if key:
            self._headers = {"Authorization": f"Bearer {key}"}
        return bool(key)

    def _request(
        self, method: str, path: str, timeouts: tuple[float, float], headers: dict[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """One request, without retries or redirects; whatever goes wrong on the way is an OSError."""
        urllib3_ = _urllib3()
        pool: urllib3.PoolManager = self._pool or urllib3_.PoolManager(num_pools=1, maxsize=1, retries=False)
        self._pool = pool
        connect, read = timeouts
        try:
            return pool.request(
                method,
                f"{self.url}/api/v1/{path}",
                body=body,
                headers=headers,
                timeout=urllib3_.Timeout(connect=connect, read=read),
                redirect=False,
            )
        except (urllib3_.exceptions.HTTPError, ValueError) as error:
            raise ConnectionError(_words_of(error)) from error

    def _judge(self, response: urllib3.BaseHTTPResponse) -> Answer:
        status = response.status
        error = _error_body(response.data)
        if status == 200:
            answer = _json_object(response.data)
            if answer is None or "token" not in answer:
                return Answer("later", f"{self.url} answers, but is no icecore server", "check ICECORE_URL")
            self.token = str(answer["token"])
            note_position(self.url, self.token)  # so that this process's `Api` sees what it has logged
            return Answer("taken")
        words = error.get("message") or f"HTTP status {status}"
        hint = str(error.get("hint", ""))
        if status in {401, 403}:
            return Answer("unauthorised", str(words), hint, code=str(error.get("code", "")))
        if status in _REFUSALS and error:
            return Answer("refused", str(words), hint)
        return Answer("later", str(words), hint, _retry_after(response.headers.get("Retry-After")))

    def get(self, path: str, *, position: str = "", timeout: float = 5.0) -> dict[str, Any]:
        """Ask the server something.

        Args:
            path: below `/api/v1/`, quoted already.
            position: answer at or after this token.
            timeout: seconds for each of connecting and reading.

        Raises:
            ServerUnreachable: no server, or none that speaks icecore.
            NotFound, Unauthenticated, Forbidden, Conflict, Invalid, Unavailable: what it answered.
        """
        headers = dict(self._headers)
        if position:
            headers["Icecore-Position"] = position
        try:
            response = self._request("GET", path, (timeout, timeout), headers)
        except OSError as error:
            raise ServerUnreachable(
                f"expected an icecore server at {self.url}, got: {_words_of(error)}",
                hint="start it with `icecore up`, or set ICECORE_URL",
            ) from error
        body = _json_object(response.data)
        if response.status == 200 and body is not None:
            return body
        raise _error_of(self.url, response.status, _error_body(response.data))

    def get_run(self, entity: str, project: str, run_id: str, *, within: float = 10.0) -> dict[str, Any] | None:
        """The run as the server knows it, with everything that is in the log by now; None where it has none.

        Raises:
            ServerUnreachable, IcecoreError: as `get`.
        """
        place = "/".join(quote(part, safe="") for part in (entity, project, run_id))
        deadline = time.monotonic() + within
        position = self.token or self._log_end()
        while True:
            try:
                return self.get(f"runs/{place}", position=position)
            except NotFound:
                return None
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def wait_readable(self, within: float) -> bool:
        """Wait until reads, whoever asks them, show everything that this transport has sent.

        Returns:
            False where that is not known `within` seconds from now.
        """
        deadline = time.monotonic() + within
        while self.token and within > 0:
            try:
                self.get("viewer", position=self.token, timeout=within)
            except Unavailable:  # behind, or starting: it may be there in a moment
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
            except IcecoreError:  # away, or not to be asked by this key: what was sent is safe all the same
                return False
            else:
                return True
        return False

    def _log_end(self) -> str:
        """The token that covers the whole log: a run may have ended a moment ago."""
        try:
            ends = self.get("status").get("log")
        except ServerUnreachable:
            raise
        except IcecoreError:
            return ""
        if not isinstance(ends, Mapping):
            return ""
        return ",".join(f"{place}:{end}" for place, end in sorted(ends.items()) if end)

    def close(self) -> None:
        """Close the connection."""
        if self._pool is not None:
            self._pool.clear()


_ERRORS: Final[Mapping[int, type[IcecoreError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
    429: Unavailable,
    503: Unavailable,
}


def _error_of(url: str, status: int, error: Mapping[str, Any]) -> IcecoreError:
    kind = _ERRORS.get(status)
    if kind is None or not error:
        return ServerUnreachable(
            f"expected an icecore server at {url}, got HTTP status {status}", hint="check ICECORE_URL"
        )
    return kind(str(error.get("message", f"HTTP status {status}")), hint=str(error.get("hint", "")))


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _error_body(data: bytes) -> Mapping[str, Any]:
    error = (_json_object(data) or {}).get("error")
    return error if isinstance(error, dict) else {}


def _words_of(error: BaseException) -> str:
    """The innermost reason of a chain of urllib3's errors."""
    while True:
        inner = getattr(error, "reason", None) or next((a for a in error.args if isinstance(a, BaseException)), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rpartition(": ")[2] or type(error).__name__


def _retry_after(text: str | None) -> float | None:
    """Seconds to wait, from either form of Retry-After."""
    if not text:
        return None
    import email.utils

    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MOST) if seconds == seconds else None  # noqa: PLR0124 - not NaN


# ---------------------------------------------------------------------------------------------------- sending


@dataclass(slots=True)
class Sent:
    """What a sender has done so far."""

    events: int = 0
    bytes: int = 0
    refused: int = 0
    trouble: str = ""
    """Why it does not get on, or empty."""


@dataclass(slots=True)
class Sender:
    """Sends batches until they are taken, refused, or somebody asks it to stop."""

    transport: Transport
    wait: Callable[[float], bool]
    """Sleeps so many seconds; True ends the sending."""
    refuse: Callable[[bytes, str], None]
    """Is given each event that the server will never take, and why."""
    random: Callable[[], float] = random.random
    say: Callable[[str], None] = warn
    sent: Sent = field(default_factory=Sent)
    unauthorised: bool = False
    """The last answer was that the key is not taken."""
    _said: set[str] = field(default_factory=set)
    _failures: int = 0

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send frames in order; False where it was asked to stop before all were taken or refused."""
        waiting = [list(frames)]
        while waiting:
            batch = waiting[-1]
            answer = self.transport.send(batch)
            if answer.kind == "taken":
                self._got_on(batch)
                waiting.pop()
            elif answer.kind == "refused" and len(batch) > 1:
                half = len(batch) // 2
                waiting[-1:] = [batch[half:], batch[:half]]
            elif answer.kind == "refused":
                self._set_aside(batch[0], answer)
                waiting.pop()
            elif self.wait(self._pause(answer)):
                return False
        return True

    def _got_on(self, batch: Sequence[bytes]) -> None:
        self._failures = 0
        self.sent.trouble = ""
        self._said.discard("unreachable")
        self.sent.events += len(batch)
        self.sent.bytes += sum(map(len, batch))

    def _set_aside(self, frame: bytes, answer: Answer) -> None:
        self.sent.refused += 1
        words = f"{answer.words} ({answer.hint})" if answer.hint else answer.words
        self.refuse(frame, words)
        self.say_once("refused", f"the server refused an event: {words}. It is kept aside; the rest goes on")

    def _pause(self, answer: Answer) -> float:
        """Note the trouble, say it once, and choose how long to wait: full jitter, so that many clients spread."""
        self._failures += 1
        self.sent.trouble = answer.words
        self.unauthorised = answer.kind == "unauthorised"
        if answer.kind == "unauthorised":
            url, words = self.transport.url, answer.words
            self.say_once(
                "unauthorised",
                f"{url} takes nothing: {words}. Data is kept on disk; `icecore sync` sends it to another server"
                if answer.code == "read_only"
                else f"{url} does not take the key: {words}. Data is kept on disk; "
                "`icecore login` saves a key, then `icecore sync` sends it",
            )
            return (PAUSE_MOST if self.transport.has_key else PAUSE_KEY) * (0.5 + self.random() / 2)
        if self._failures == 1 and answer.kind == "unreachable":
            self.say_once(
                "unreachable",
                f"no server at {self.transport.url} ({answer.words}): data is kept on disk and sent when it is back",
            )
        elif self._failures == 8:
            self.say_once("later", f"{self.transport.url} takes nothing now ({answer.words}): data is kept on disk")
        if answer.pause is not None:
            return answer.pause + self.random() * min(answer.pause, 1.0)
        return self.random() * min(PAUSE_MOST, PAUSE_FIRST * float(1 << min(self._failures, 16)))

    def say_once(self, what: str, words: str) -> None:
        """Say something unless it was said already."""
        if what not in self._said:
            self._said.add(what)
            self.say(words)
