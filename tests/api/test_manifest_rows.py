"""A manifest beside one that was checked: never taken for good where the check of the whole refuses it."""

from __future__ import annotations

import hashlib
import random

import pytest

from icecore.errors import Invalid
from icecore.manifest import EMPTY_DIGEST, Entry, decode, encode
from icecore_api.manifest_rows import grown
from icecore_api.manifests import canonical


def entry(number: int) -> Entry:
    return Entry(hashlib.sha256(b"%d" % number).hexdigest(), number)


def whole(data: bytes) -> dict[str, Entry]:
    return canonical(data)[0]


BASE = {
    **{f"d{number % 3}/f{number}": entry(number) for number in range(40)},
    "empty/": Entry(EMPTY_DIGEST, 0),
    "ünï/ ço,dé}": entry(70),
}


def test_a_file_that_changed_is_all_that_is_looked_at() -> None:
    """With files that came and went."""
    after = {**BASE, "d0/f0": entry(99), "d9/new": entry(98)}
    del after["d1/f1"]
    found = grown(encode(after), encode(BASE), whole)

    assert found is not None
    assert found.new == {"d0/f0": entry(99), "d9/new": entry(98)}
    assert (found.files, found.size) == (41, sum(one.size or 0 for one in after.values()))
    assert grown(encode(BASE), encode(BASE), whole) == (41, sum(one.size or 0 for one in BASE.values()), {})


@pytest.mark.parametrize(
    "path", ["d0/f0/deeper", "d1", "empty", "empty/../x", "../x", "/x", "d0/CON", "a\\b", "d0//x", "d0/f3/", "x\ty"]
)
def test_a_path_that_the_whole_refuses_is_refused_beside_another(path: str) -> None:
    """A name that leaves the folder, or that makes a path a file and a folder at once."""
    import orjson

    told = {"digest": EMPTY_DIGEST, "size": 0}
    rows = {name: {"digest": one.digest, "size": one.size} for name, one in BASE.items()}
    data = orjson.dumps({"entries": {**rows, path: told}, "version": 1}, option=orjson.OPT_SORT_KEYS)

    assert grown(data, encode(BASE), whole) is None
    with pytest.raises(Invalid):
        whole(data)


def test_bytes_that_were_tampered_with_are_never_taken() -> None:
    """Rows swapped, doubled, cut and joined, and single bytes changed: what is taken is what the whole check takes."""
    base = encode({**BASE, "odd},": entry(71), "parts": entry(72), ":x": entry(73)})
    plain = encode(BASE)
    chance = random.Random(7)
    taken = 0
    for _ in range(3000):
        rows = bytes(chance.choice((base, plain))).split(b'},"')
        at, to = chance.randrange(len(rows)), chance.randrange(len(rows))
        action = chance.randrange(6)
        if action == 0:
            rows[at], rows[to] = rows[to], rows[at]
        elif action == 1:
            rows.insert(at, rows[to])
        elif action == 2:
            del rows[at]
        elif action == 3:
            cut = chance.randrange(len(rows[at]) + 1)
            rows[at] = rows[at][:cut] + chance.choice((b'"', b"}", b",", b'},"', b'":{"', b"/", b"0", b"\\", b" "))
        elif action == 4:
            cut = chance.randrange(len(rows[at]))
            rows[at] = rows[at][:cut] + bytes([chance.randrange(256)]) + rows[at][cut + 1 :]
        else:
            rows[at] = rows[at].partition(b'":')[0] + b'":' + rows[to].partition(b'":')[2]
        data = chance.choice((b'},"', b'},"', b'}, "')).join(rows)
        found = grown(data, chance.choice((base, plain)), whole)
        if found is not None:
            taken += 1
            entries = whole(data)
            blobs = [one for one in entries.values() if one.is_blob]
            assert len(blobs) == len(entries)
            assert found.size == sum(one.size or 0 for one in blobs)
            assert found.files == sum(not path.endswith("/") for path in entries)
            known = {**decode(base), **decode(plain)}
            assert all(known.get(path) == one or path in found.new for path, one in entries.items())

    assert taken > 100
