"""Files that stay where they are: a version names them by URI, and by what can be known of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from icecore.errors import UsageError
from icecore.hashing import hash_file, scan
from icecore.manifest import Entry

SCHEMES: Final = ("file", "http", "https", "s3", "gs")
_CHUNK: Final = 1 << 20
_HEX: Final = 64
_WITHOUT: Final = "download(allow_missing_references=True) leaves it out"


def look_at(uri: str, name: str | None, checksum: bool | str, max_objects: int | None = None) -> dict[str, Entry]:
    """The entries of a reference: one, or one a file where a local folder or a bucket's prefix is meant.

    Args:
        uri: `file://`, `http://`, `https://`, `s3://` or `gs://`.
        name: the path in the artifact; by default the URI's last part.
        checksum: True finds out what the bytes are (a file's SHA-256, a web server's or bucket's ETag); False takes
            the URI's word; a text is what you know of them.
        max_objects: below a bucket's prefix; by default `OBJECTS_MOST`.

    Raises:
        UsageError: it is no such URI, or nothing answers there.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"expected a URI that begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}, got {uri!r}",
            hint="add_file and add_dir take local paths",
        )
    path = name or unquote(parts.path).rstrip("/").rpartition("/")[2]
    if not path:
        raise UsageError(f"expected a name for {uri!r}, which ends in none", hint="add_reference(uri, name=…)")
    if isinstance(checksum, str):
        return {path: Entry(checksum, None, uri)}
    if parts.scheme == "file":
        return _local(uri, path, checksum=checksum, named=name is not None)
    if parts.scheme in {"http", "https"} and checksum:
        return {path: _on_the_web(uri)}
    if checksum:
        from icecore.bucket_references import in_a_bucket

        return in_a_bucket(uri, path, named=name is not None, most=max_objects)
    return {path: Entry("", None, uri)}


def _local(uri: str, name: str, *, checksum: bool, named: bool) -> dict[str, Entry]:
    path = local_path(uri)
    if path.is_dir():
        base = uri.rstrip("/")
        prefix = f"{name}/" if named else ""
        found = {f"{prefix}{inner}": (f"{base}/{quote(inner)}", where) for inner, where in scan(str(path)).files}
    else:
        found = {name: (uri, str(path))}
    entries = {}
    for inner, (address, where) in found.items():
        try:
            if checksum:
                stamp, digest = hash_file(where)
                entries[inner] = Entry(digest, stamp.size, address)
            else:
                entries[inner] = Entry("", Path(where).stat().st_size, address)
        except OSError as error:
            raise UsageError(f"expected a file at {where}, got: {error.strerror}") from error
    return entries


def local_path(uri: str) -> Path:
    """The path of a `file://` URI.

    Raises:
        UsageError: it is on another machine.
    """
    parts = urlsplit(uri)
    if parts.netloc not in {"", "localhost"} or "\0" in unquote(parts.path):
        raise UsageError(f"expected file:///PATH on this machine, got {uri!r}")
    return Path(unquote(parts.path))


def _request(method: str, uri: str) -> Any:
    import urllib3

    hint = "checksum=False adds it unseen" if method == "HEAD" else _WITHOUT
    try:
        response = urllib3.request(
            method, uri, preload_content=False, timeout=urllib3.Timeout(10.0, read=60.0), retries=2
        )
    except urllib3.exceptions.HTTPError as error:
        raise UsageError(f"expected an answer from {uri}, got {getattr(error, 'reason', error)}", hint=hint) from error
    if response.status >= 400:
        raise UsageError(f"expected a file at {uri}, got HTTP status {response.status}", hint=hint)
    return response


def _on_the_web(uri: str) -> Entry:
    response = _request("HEAD", uri)
    length = response.headers.get("Content-Length", "")
    tag = response.headers.get("ETag", "")
    response.release_conn()
    return Entry(f"etag:{tag}" if tag else "", int(length) if length.isdigit() else None, uri)


def fetch(uri: str, digest: str, size: int | None) -> Iterator[bytes]:
    """The bytes of a reference, as they come; the last step fails where they are not the ones that were meant.

    Raises:
        UsageError: nothing is there, or other bytes are; icecore cannot read that kind of URI.
    """
    scheme = urlsplit(uri).scheme
    hasher = hashlib.sha256()
    count = 0
    for chunk in _chunks(uri, scheme, digest):
        hasher.update(chunk)
        count += len(chunk)
        yield chunk
    is_sha = len(digest) == _HEX and set(digest) <= set("0123456789abcdef")
    if (size is not None and count != size) or (is_sha and hasher.hexdigest() != digest):
        raise UsageError(
            f"expected {uri} as it was when it was added, got other bytes",
            hint="references are not kept by icecore: what they point to may change",
        )


def _chunks(uri: str, scheme: str, digest: str) -> Iterator[bytes]:
    if scheme == "file":
        try:
            if not local_path(uri).is_file():
                raise UsageError(f"expected a file at {uri}, got something else")
            with local_path(uri).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        except OSError as error:
            raise UsageError(f"expected a file at {uri}, got: {error.strerror}") from error
    elif scheme in {"http", "https"}:
        response = _request("GET", uri)
        tag = response.headers.get("ETag", "")
        if digest.startswith("etag:") and digest != f"etag:{tag}":
            response.close()
            raise UsageError(f"expected {uri} with {digest}, got etag:{tag}: it has changed since it was added")
        yield from response.stream(_CHUNK)
    else:
        raise UsageError(
            f"expected a reference that icecore can read (file, http, https), got {uri!r}",
            hint=f"get_entry(path).ref is its address, for the tools of that store; {_WITHOUT}",
        )
