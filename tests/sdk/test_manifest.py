"""Manifests: the same bytes for the same entries, and no path that could lie elsewhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.errors import Invalid
from icecore.manifest import EMPTY_DIGEST, Entry, check_path, decode, digest_of, encode, same_where_case_does_not_count
from refused_paths import REFUSED

HOSTILE: list[str] = json.loads((Path(__file__).parents[1] / "golden" / "hostile_names.json").read_text())
DIGEST = "ab" * 32


@pytest.mark.parametrize("path", REFUSED)
def test_paths_that_could_lie_elsewhere_are_refused(path: str) -> None:
    """By whoever checks one, writes a manifest, or reads one."""
    with pytest.raises(Invalid, match="expected"):
        check_path(path)
    with pytest.raises(Invalid):
        encode({path: Entry(DIGEST, 1)})
    text = json.dumps({"entries": {path: {"digest": DIGEST, "size": 1}}, "version": 1})
    with pytest.raises(Invalid):
        decode(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "path",
    ["a", "a/b.txt", ".hidden", "...", "..a", "a..", " a", "-rf", "~", "$HOME", "contour.txt", "%2e%2e", "中/😀"],
)
def test_ordinary_paths_are_kept_as_they_are(path: str) -> None:
    """Also those that only look odd."""
    assert check_path(path) == path
    assert list(decode(encode({path: Entry(DIGEST, 1)}))) == [path]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_refused_or_lie_inside(name: str) -> None:
    """What is taken is below its folder by the rules of POSIX and of Windows."""
    try:
        path = check_path(name)
    except Invalid:
        return
    for kind in (PurePosixPath, PureWindowsPath):
        parts = kind("root", path).parts
        assert parts[0] == "root"
        assert ".." not in parts
        assert len(parts) == len(path.strip("/").split("/")) + 1


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b", "a/b/c/d"], ["a", "a/"], ["x/y", "x"]], ids=str)
def test_a_path_is_a_file_or_a_folder(paths: list[str]) -> None:
    """Not both."""
    with pytest.raises(Invalid, match="both"):
        encode({path: Entry(EMPTY_DIGEST, 0) for path in paths})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"entries":{},"version":2}',
        b'{"entries":[],"version":1}',
        b'{"entries":{},"version":1,"more":1}',
        b'{"entries":{"a":1},"version":1}',
        b'{"entries":{"a":{}},"version":1}',
        b'{"entries":{"a":{"digest":"ab","size":1}},"version":1}',
        b'{"entries":{"a":{"digest":"%s","size":-1}},"version":1}' % (b"ab" * 32),
        b'{"entries":{"a":{"digest":"%s","size":true}},"version":1}' % (b"ab" * 32),
        b'{"entries":{"a":{"digest":"%s","size":1.5}},"version":1}' % (b"ab" * 32),
        b'{"entries":{"a":{"digest":"%s","size":1}},"version":1}' % (b"AB" * 32),
        b'{"entries":{"a":{"digest":"%s","size":1,"link":"x"}},"version":1}' % (b"ab" * 32),
        b'{"entries":{"a/":{"digest":"%s","size":1}},"version":1}' % (b"ab" * 32),
        b'{"entries":{"a/":{"ref":"s3://x"}},"version":1}',
        b'{"entries":{"a":{"ref":""}},"version":1}',
        b'{"entries":{"a":{"ref":1}},"version":1}',
        b'{"entries":{"a":{"ref":"s3://x","digest":1}},"version":1}',
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(Invalid, match="expected"):
        decode(data)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
ENTRIES = st.one_of(
    st.builds(Entry, st.binary(max_size=9).map(lambda seed: hashlib.sha256(seed).hexdigest()), st.integers(0, 1 << 50)),
    st.builds(Entry, st.text(max_size=5), st.none() | st.integers(0, 1 << 50), st.just("s3://b/k")),
)


@given(st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), ENTRIES, max_size=6), st.randoms())
def test_entries_come_back_and_order_does_not_count(entries: dict[str, Entry], random: object) -> None:
    """Whatever can be written is read as it was, with one digest whatever the order."""
    try:
        data = encode(entries)
    except Invalid:
        return
    shuffled = list(entries.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert decode(data) == entries
    assert digest_of(encode(dict(shuffled))) == hashlib.sha256(data).hexdigest()
    assert list(json.loads(data)["entries"]) == sorted(entries)


def test_the_bytes_are_what_the_contract_says() -> None:
    """Sorted keys, no spaces, absent facts of references left out."""
    entries = {"b": Entry("", None, "s3://x"), "a": Entry(DIGEST, 3), "c/": Entry(EMPTY_DIGEST, 0)}

    assert encode(entries) == (
        b'{"entries":{"a":{"digest":"%s","size":3},"b":{"ref":"s3://x"},"c/":{"digest":"%s","size":0}},"version":1}'
        % (DIGEST.encode(), EMPTY_DIGEST.encode())
    )


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["a", "b"], None),
        (["a", "A"], ("a", "A")),
        (["x/a", "X/b"], ("x", "X")),
        (["straße", "STRASSE"], ("straße", "STRASSE")),
        (["é", "É"], ("é", "É")),
        (["x/a", "x/b"], None),
    ],
)
def test_names_that_differ_by_case_only_are_found(paths: list[str], found: tuple[str, str] | None) -> None:
    """In files and in folders, in any script."""
    assert same_where_case_does_not_count(paths) == found
