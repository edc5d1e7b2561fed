"""What a version is made of: paths, each with the digest and size of its bytes, or with a reference.

Pure: bytes in, entries out. Writers, the server and downloaders check the same rules here, and the same entries
always give the same bytes, hence the same digest.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from icecore.errors import Invalid

EMPTY_DIGEST: Final = hashlib.sha256(b"").hexdigest()
NAME_BYTES_MOST: Final = 255
"""Bytes in UTF-8 of one name between slashes: what file systems take."""
PATH_BYTES_MOST: Final = 3072
"""Bytes in UTF-8 of a whole path: below Linux's 4096, with room for the folder it is put into."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")
_PLAIN_FILE: Final = re.compile(
    r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z))[a-z0-9_-][a-z0-9_.-]{0,199}", re.IGNORECASE | re.ASCII
)
_FORBIDDEN: Final = re.compile(r"[\\/\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789\u00b9\u00b2\u00b3"}
)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = frozenset({"digest", "size", "ref"})


class Entry(NamedTuple):
    """One path's content."""

    digest: str
    """Hex SHA-256 of the bytes; of a reference, any text that says which bytes are meant, or empty."""
    size: int | None
    """Bytes; None where a reference's is not known."""
    ref: str = ""
    """Where a reference points to; empty for bytes that are blobs."""

    @property
    def is_blob(self) -> bool:
        """Whether its bytes are in the blob store."""
        return not self.ref


class Pinned(NamedTuple):
    """A version that a bundle is made of: its files lie below a folder of the bundle."""

    artifact: str
    """entity/project/name"""
    version: int
    digest: str
    """Hex SHA-256 of its manifest."""


class PathChecker:
    """Checks many paths; a folder that was good is not looked at again."""

    def __init__(self) -> None:
        self._good: set[str] = {""}

    def check(self, path: str) -> str:
        """`path` as it stands in a manifest: relative, with `/`, in NFC. One that ends in `/` is an empty folder.

        Raises:
            Invalid: a file of that name could lie outside of the folder it is put into, or nowhere on some systems.
        """
        folder, slash, name = path.rpartition("/")
        plain = _PLAIN_FILE.fullmatch(name) and len(path) <= PATH_BYTES_MOST and path.isascii()
        if plain and folder in self._good and (folder or not slash):
            return path  # as nearly all are
        whole = path.removesuffix("/")
        folder, _, name = whole.rpartition("/")
        if folder not in self._good or (not folder and whole.startswith("/")):
            for part in folder.split("/"):
                _check_name(part, path)
            self._good.add(folder)
        _check_name(name, path)
        if (not path.isascii() and len(path.encode()) > PATH_BYTES_MOST) or len(path) > PATH_BYTES_MOST:
            raise _refused(path, f"a path of at most {PATH_BYTES_MOST} bytes")
        return path


def check_path(path: str) -> str:
    """`PathChecker.check` of one path."""
    return PathChecker().check(path)


def _check_name(name: str, path: str) -> None:
    if _PLAIN.fullmatch(name):
        if name.partition(".")[0].lower() in _RESERVED:
            raise _refused(path, f"a path without names that Windows reserves, such as {name!r}")
        return
    if name in {"", ".", ".."}:
        raise _refused(path, "a path without empty, `.` or `..` parts")
    if _FORBIDDEN.search(name):
        raise _refused(path, "a path without backslashes, control characters or broken unicode")
    if _DRIVE.match(name):
        raise _refused(path, "a path without a drive letter")
    if name.partition(".")[0].rstrip(" ").lower() in _RESERVED or name.partition(":")[0].lower() in _RESERVED:
        raise _refused(path, f"a path without names that Windows reserves, such as {name!r}")
    if not unicodedata.is_normalized("NFC", name):
        raise _refused(path, "a path in Unicode's form NFC")
    if len(name.encode()) > NAME_BYTES_MOST:
        raise _refused(path, f"names of at most {NAME_BYTES_MOST} bytes")


def _refused(path: str, expected: str) -> Invalid:
    shown = path if len(path) <= 120 else f"{path[:120]}…"
    return Invalid(
        f"expected {expected}, got {shown!r}", hint="such files cannot be kept or downloaded safely: rename the file"
    )


def check_tree(paths: Collection[str]) -> None:
    """See that no path is a file and a folder at once.

    Raises:
        Invalid: one is.
    """
    files = {path for path in paths if path[-1:] != "/"}
    for path in paths if len(files) < len(paths) else ():
        if path[-1:] == "/" and path[:-1] in files:
            raise Invalid(f"expected {path[:-1]!r} to be a file or a folder, got both")
    good: set[str] = {""}
    for folder in {path.removesuffix("/").rpartition("/")[0] for path in paths}:  # far fewer than there are files
        above = folder
        while above not in good:
            if above in files:
                raise Invalid(f"expected {above!r} to be a file or a folder, got both")
            good.add(above)
            above = above.rpartition("/")[0]


def same_where_case_does_not_count(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two paths that a file system which does not tell case or Unicode forms apart would take for one; or None."""
    seen: dict[str, str] = {}
    for path in paths:
        parts = path.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            found = "/".join(parts[:depth])
            folded = found.lower() if found.isascii() else unicodedata.normalize("NFKC", found.casefold())
            other = seen.setdefault(folded, found)
            if other != found:
                return other, found
    return None


def encode(entries: Mapping[str, Entry], parts: Mapping[str, Pinned] | None = None, *, checked: bool = False) -> bytes:
    """The manifest's bytes: the same for the same entries, in whatever order they come.

    Args:
        entries: by path.
        parts: of a bundle: the versions it is made of, by the folder that each is.
        checked: whether `decode` gave the entries, which has looked at their paths.

    Raises:
        Invalid: a path is refused, or is a file and a folder at once.
    """
    if not checked:
        checker = PathChecker()
        for path in entries:
            checker.check(path)
        check_tree(entries.keys())
    document: dict[str, Any] = {"entries": {path: _document(entry) for path, entry in entries.items()}, "version": 1}
    if parts:
        document["parts"] = {key: part._asdict() for key, part in parts.items()}
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def digest_of(data: bytes) -> str:
    """The digest of a manifest's bytes: the version's."""
    return hashlib.sha256(data).hexdigest()


def _document(entry: Entry) -> dict[str, Any]:
    if not entry.ref:
        return {"digest": entry.digest, "size": entry.size}
    told = {"digest": entry.digest or None, "ref": entry.ref, "size": entry.size}
    return {name: value for name, value in told.items() if value is not None}


def decode(data: bytes) -> dict[str, Entry]:
    """The entries of a manifest's bytes, from whoever made them.

    Raises:
        Invalid: it is no manifest, or one of its paths or entries is refused.
    """
    return decode_whole(data)[0]


def decode_whole(data: bytes) -> tuple[dict[str, Entry], dict[str, Pinned]]:
    """The entries, and the parts of a bundle by their folders; a manifest of another version has none.

    Raises:
        Invalid: as `decode`; or a part is none, or a file of a bundle lies in no part.
    """
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"expected a manifest in JSON, got {error}") from error
    known = {"entries", "version"}
    if not isinstance(document, dict) or document.get("version") != 1 or document.keys() - {"parts"} != known:
        raise Invalid(
            'expected a manifest {"entries":…,"version":1}, got something else',
            hint="a later icecore may have written it: update this one",
        )
    found = document["entries"]
    if not isinstance(found, dict):
        raise Invalid(f"expected a manifest's entries by path, got {type(found).__name__}")
    checker = PathChecker()
    entries = {checker.check(path): _entry(path, told) for path, told in found.items()}
    check_tree(entries.keys())
    return entries, _parts(document["parts"], entries) if "parts" in document else {}


def _parts(told: Any, entries: Mapping[str, Entry]) -> dict[str, Pinned]:
    if not isinstance(told, dict) or not told:
        raise Invalid(f"expected a bundle's parts by folder, got {str(told)[:120]}")
    parts = {check_part_key(key): _pinned(key, part) for key, part in told.items()}
    for path in entries:
        if path.partition("/")[0] not in parts or "/" not in path:
            raise Invalid(f"expected every file of a bundle in one of {', '.join(sorted(parts))}, got {path!r}")
    return parts


def check_part_key(key: str) -> str:
    """The folder of a bundle that a part is.

    Raises:
        Invalid: it is no single name of a path.
    """
    if "/" in key:
        raise Invalid(f"expected a part of a bundle to be one folder, got {key[:120]!r}")
    return check_path(key)


def _pinned(key: str, told: Any) -> Pinned:
    if isinstance(told, dict) and told.keys() == set(Pinned._fields):
        part = Pinned(**told)
        numbered = type(part.version) is int and part.version >= 0
        if isinstance(part.artifact, str) and numbered and _DIGEST.fullmatch(str(part.digest)):
            return part
    raise Invalid(f"expected a part with artifact, version and digest, got {str(told)[:120]} for {key!r}")


def _entry(path: str, told: Any) -> Entry:
    if type(told) is dict and len(told) == 2:  # as nearly all are
        digest, size = told.get("digest"), told.get("size")
        sized = type(size) is int and 0 <= size < 1 << 63
        if sized and type(digest) is str and _DIGEST.fullmatch(digest) and path[-1:] != "/":
            return Entry(digest, size)
    if not isinstance(told, dict) or not told.keys() <= _KEYS:
        raise Invalid(f"expected an entry with digest, size and ref, got {str(told)[:120]} for {path!r}")
    digest, size, ref = told.get("digest"), told.get("size"), told.get("ref")
    sized = type(size) is int and 0 <= size < 1 << 63
    if "ref" in told:
        whole = isinstance(ref, str) and ref and (size is None or sized) and isinstance(digest, str | None)
        if not whole or path.endswith("/"):
            raise Invalid(f"expected a reference to a URI, got {str(told)[:120]} for {path!r}")
        return Entry(digest or "", size, str(ref))
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest) and sized):
        raise Invalid(f"expected a hex SHA-256 and a size, got {str(told)[:120]} for {path!r}")
    if path.endswith("/") and (digest != EMPTY_DIGEST or size):
        raise Invalid(f"expected an empty folder at {path!r}, got {size} bytes")
    return Entry(digest, size)


def blob_sizes(entries: Mapping[str, Entry]) -> dict[str, int]:
    """Digest -> size of all blobs that the entries name, each once.

    Raises:
        Invalid: a digest is given two sizes.
    """
    sizes: dict[str, int] = {}
    for entry in entries.values():
        if entry.is_blob and sizes.setdefault(entry.digest, entry.size or 0) != entry.size:
            raise Invalid(f"expected one size for {entry.digest}, got {sizes[entry.digest]} and {entry.size}")
    return sizes
