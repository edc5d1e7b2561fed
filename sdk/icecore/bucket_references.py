"""References into buckets: what S3 and Google Cloud Storage say of an object, with the keys of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from icecore.errors import UsageError
from icecore.manifest import Entry
from icecore.notes import warn

if TYPE_CHECKING:
    from obstore import ObjectMeta

OBJECTS_MOST: Final = 10_000
"""Objects below a prefix that one reference adds."""
_TIMES: Final = {"connect_timeout": "3s", "timeout": "30s"}
_RETRY: Final[Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
_UNSEEN: Final = "checksum=False adds it unseen"


def in_a_bucket(uri: str, path: str, *, named: bool, most: int | None) -> dict[str, Entry]:
    """The entries of an object, or of all objects below a prefix, with their ETags and sizes.

    Where nobody can be asked (no `obstore`, no keys, no answer) the reference is added without, and a warning says so.

    Args:
        uri: `s3://BUCKET/KEY` or `gs://BUCKET/KEY`.
        path: of the object in the artifact; of a prefix, the folder for its objects where `named`.
        named: whether somebody chose that path.
        most: objects below a prefix; by default `OBJECTS_MOST`.

    Raises:
        UsageError: the bucket says that there is no such object, or that these keys may not see it; or there are more.
    """
    parts = urlsplit(uri)
    bucket, key = f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/")
    try:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    except ModuleNotFoundError:
        warn(f"{uri} is added without a checksum: expected obstore to ask the bucket with (pip install obstore)")
        return {path: Entry("", None, uri)}
    try:
        found = _asked(bucket, key, OBJECTS_MOST if most is None else most)
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise UsageError(f"expected to be let see {uri}, got: {_first_line(error)}", hint=_UNSEEN) from error
    except (BaseError, OSError, ValueError) as error:
        warn(f"{uri} is added without a checksum: expected its bucket to answer, got: {_first_line(error)}")
        return {path: Entry("", None, uri)}
    if not found:
        raise UsageError(f"expected an object, or some below it, at {uri}, got none", hint=_UNSEEN)
    if key in found:
        return {path: _entry(uri, found[key])}
    folder = f"{path}/" if named else ""
    below = f"{key.rstrip('/')}/" if key else ""
    return {folder + at.removeprefix(below): _entry(f"{bucket}/{at}", meta) for at, meta in found.items()}


def _asked(bucket: str, key: str, most: int) -> Mapping[str, ObjectMeta]:
    """What a bucket says of a key: its object, or those below it as a prefix; none where there is nothing.

    Raises:
        UsageError: there are more than `most`. obstore.exceptions.BaseError, OSError, ValueError: it cannot be asked.
    """
    import os

    import obstore
    from obstore.exceptions import NotFoundError
    from obstore.store import from_url

    plain = (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")).startswith("http://")
    options: Any = {**_TIMES, **({"allow_http": True} if plain and bucket.startswith("s3:") else {})}
    store = from_url(bucket, client_options=options, retry_config=_RETRY)
    if key and not key.endswith("/"):
        try:
            return {key: obstore.head(store, key)}
        except (FileNotFoundError, NotFoundError):
            pass  # it may be a prefix
    found: dict[str, ObjectMeta] = {}
    for page in obstore.list(store, prefix=f"{key.rstrip('/')}/" if key else None):
        found |= {meta["path"]: meta for meta in page if not meta["path"].endswith("/")}
        if len(found) > most:
            raise UsageError(
                f"expected at most {most:,} objects below {bucket}/{key}, got more", hint="max_objects= allows more"
            )
    return found


def _entry(uri: str, meta: ObjectMeta) -> Entry:
    tag = meta["e_tag"]
    return Entry(f"etag:{tag}" if tag else "", meta["size"], uri)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
