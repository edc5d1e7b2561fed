"""JSON over HTTP to one server: errors become icecore's own, and reads see this process's writes."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from icecore import errors
from icecore.errors import IcecoreError, Invalid, ServerFailed, ServerUnreachable, Unauthenticated
from icecore.position import Token

if TYPE_CHECKING:
    import urllib3

POSITION_HEADER: Final = "Icecore-Position"
RETRY_STATUS: Final = frozenset({429, 503})
RETRY_MOST_S: Final = 2.0

_seen: dict[str, Token] = {}
_seen_lock = threading.Lock()


def note_position(url: str, position: str) -> None:
    """Remember how far this process has written to, or read from, the server at `url`."""
    if not position:
        return
    token = Token.parse(position)
    with _seen_lock:
        _seen[url] = _seen.get(url, Token()).merge(token)


def seen_position(url: str) -> str:
    """What reads from `url` must have reached to show what this process knows; empty where it knows nothing."""
    with _seen_lock:
        return str(_seen.get(url, ""))


def forget_position(url: str) -> None:
    """The server at `url` is another one now."""
    with _seen_lock:
        _seen.pop(url, None)


class JsonClient:
    """A server's API.

    Args:
        url: the server's URL.
        api_key: the key; empty sends none.
        timeout: seconds for one answer to begin, and the most that a read waits for the server to catch up.
    """

    def __init__(self, url: str, api_key: str = "", timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._key = api_key
        self._pool: urllib3.PoolManager | None = None

    @property
    def key(self) -> str:
        """The key that is sent; empty where none is."""
        return self._key

    def ask(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """The JSON answer to a request below `/api/v1/`.

        Raises:
            ServerUnreachable: nothing answers at the URL.
            IcecoreError: the server refused; its message and hint.
        """
        with self.stream(method, path, query=query, body=body) as response:
            data = response.read()
        return orjson.loads(data) if data else None

    def catch_up(self) -> None:
        """Let later reads answer only when all that is in the server's log now is folded, whoever wrote it.

        Raises:
            IcecoreError: as `ask`; `Forbidden` where the key may not see how far the log is.
        """
        ends = self.ask("GET", "status")["log"]
        note_position(self.url, ",".join(f"{place}:{end}" for place, end in ends.items()))

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        accept: str = "application/json",
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer as it comes, for `with`. Errors as `ask`.

        Raises:
            Invalid: a name is `.` or `..`, which on its way would make this another address.
        """
        if not {".", ".."}.isdisjoint(path.split("/")):
            raise Invalid(f"expected names other than . and .., got {path[:200]!r}")
        response = self._patiently(method, path, query or {}, body, accept)
        try:
            note_position(self.url, response.headers.get(POSITION_HEADER, ""))
            yield response
        finally:
            response.drain_conn() if _is_short(response) else response.close()
            response.release_conn()

    def chunks(self, response: urllib3.BaseHTTPResponse, size: int) -> Iterator[bytes]:
        """The body of a streamed answer as it comes.

        Raises:
            ServerUnreachable: it ended early.
        """
        import urllib3

        try:
            yield from response.stream(size, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise ServerUnreachable(
                f"expected a whole answer from {self.url}, got its beginning: {error}",
                hint="ask again; the server may have been restarted",
            ) from error

    def _patiently(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, accept: str
    ) -> urllib3.BaseHTTPResponse:
        """The first answer that is not "later": reads and refused requests may be repeated."""
        deadline = time.monotonic() + self.timeout
        pause = 0.05
        while True:
            response = self._once(method, path, query, body, accept)
            if response.status < 400:
                return response
            error = error_of_answer(response.status, response.read(), response.headers.get("Retry-After", ""))
            response.release_conn()
            # a refused DELETE may have been decided all the same: said again, it would be answered "not found"
            final = response.status not in RETRY_STATUS or (method == "DELETE" and response.status != 429)
            if final or time.monotonic() + pause > deadline:
                raise self._explain(error)
            asked = error.facts.get("retry_after")
            wait = max(pause, float(asked)) if isinstance(asked, int | float) and error.code != "not_yet" else pause
            time.sleep(min(wait, RETRY_MOST_S) * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, no secret
            pause = min(pause * 2, RETRY_MOST_S)

    def _once(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, accept: str
    ) -> urllib3.BaseHTTPResponse:
        import urllib3

        headers = {"Accept": accept, "User-Agent": "icecore-python"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        position = seen_position(self.url)
        if position:
            headers[POSITION_HEADER] = position
        if body is not None:
            headers["Content-Type"] = "application/json"
        fields = {name: _query_text(value) for name, value in query.items() if value is not None}
        target = f"{self.url}/api/v1/{path}"
        if fields:
            from urllib.parse import urlencode

            target = f"{target}?{urlencode(fields)}"
        if self._pool is None:
            self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5.0, read=self.timeout))
        data = None if body is None else _encoded(body)
        for attempt in (1, 2):
            try:
                return self._pool.request(
                    method, target, body=data, headers=headers, preload_content=False, redirect=False
                )
            except urllib3.exceptions.NewConnectionError as error:
                raise unreachable(self.url, error) from None
            except urllib3.exceptions.HTTPError as error:  # a kept connection that the server has closed
                if attempt == 2 or method != "GET" or isinstance(error, urllib3.exceptions.TimeoutError):
                    raise unreachable(self.url, error) from None
        raise AssertionError("the second attempt returns or raises")

    def _explain(self, error: IcecoreError) -> IcecoreError:
        if isinstance(error, Unauthenticated) and not error.hint:
            error.hint = f"log in with `icecore login --url {self.url}`, or set ICECORE_API_KEY"
        return error


def _encoded(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise Invalid(f"expected what can be sent as JSON, got: {error}") from error


def unreachable(url: str, cause: Exception) -> ServerUnreachable:
    """The error for a server that does not answer."""
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(cause))
    reason = found[1].lower() if found else type(cause).__name__
    return ServerUnreachable(
        f"expected an icecore server at {url}, got {reason}",
        hint="start one with `icecore up`, or say where yours is with ICECORE_URL",
        url=url,
    )


def error_of_answer(status: int, body: bytes, retry_after: str = "") -> IcecoreError:
    """The error that an answer carries, as the class of its code; of its status where the code is unknown."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
        facts = dict(orjson.loads(body).get("error", {}))
    code = str(facts.pop("code", ""))
    text = body[:200].decode("utf-8", "replace").strip()
    message = str(facts.pop("message", "") or f"expected an answer, got HTTP {status} {text}".strip())
    hint = str(facts.pop("hint", "") or "")
    with contextlib.suppress(ValueError):
        facts.setdefault("retry_after", float(retry_after))
    classes = _all_errors()
    by_code = [cls for cls in classes if cls.code == code and cls is not IcecoreError]
    by_status = [cls for cls in classes if cls.status == status and "status" in vars(cls) and cls is not IcecoreError]
    chosen = (by_code or by_status or [ServerFailed])[0]
    return chosen(message, hint=hint, **{k: v for k, v in facts.items() if k not in {"message", "hint"}})


def _all_errors() -> list[type[IcecoreError]]:
    """Every class of the tree, as it is drawn."""
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, IcecoreError)]


def _query_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list | tuple):
        return orjson.dumps(value).decode()
    return str(value)


def _is_short(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether the rest is worth reading so that the connection can be used again."""
    length = response.headers.get("Content-Length", "")
    return length.isdigit() and int(length) < 1 << 16
