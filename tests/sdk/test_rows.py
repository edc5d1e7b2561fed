"""Rows to payloads and back: nothing is lost, whatever the mixture of keys and kinds."""

import math
import struct
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.codec import block_rows, rows_to_blocks
from icecore.errors import UsageError
from icecore.lanes import Lane
from icecore.limits import most
from icecore.rows import Unloggable, chunks, flatten, pack, pack_lane, payloads, scalar

KEYS = st.sampled_from(["a", "b", "c/d", "ключ", "e.f"])
VALUES = st.one_of(
    st.floats(),
    st.integers(-(2**80), 2**80),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
ROWS = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**50), st.dictionaries(KEYS, VALUES, max_size=4)),
    max_size=30,
)


def bits(value):
    """A value as what must stay the same: a number's 64 bits (NaN is only NaN); texts and bools."""
    if isinstance(value, (str, bool)):
        return value
    return "nan" if value != value else struct.pack("<d", float(value))


def cells(rows):
    """(step, ts, key, value) of every value, counted."""
    return Counter((step, ts, key, bits(value)) for step, ts, values in rows for key, value in values.items())


@given(ROWS)
def test_rows_survive_blocks_and_json(rows):
    """Every value comes back with its step and time, bit for bit."""
    blocks = orjson.loads(orjson.dumps(rows_to_blocks(rows)))

    assert cells(row for block in blocks for row in block_rows(block)) == cells(rows)


def unpacked(found):
    """The rows of what was packed, as a server reads them; each event says how many values it holds."""
    rows = []
    for packed in found:
        for payload, points in packed.payloads:
            inside = [row for block in orjson.loads(payload)["blocks"] for row in block_rows(block)]
            assert points == sum(len(row.values) for row in inside)
            rows += inside
    return rows


@given(ROWS.filter(bool))
def test_any_rows_are_packed_as_they_are(rows):
    """The short way for rows of one shape and the long way for all others keep every bit."""
    packed = pack("e/p/r", [(step, ts * 1_000_000, values) for step, ts, values in rows])

    assert cells(unpacked([packed])) == cells(rows)
    assert cells(row for block in packed.blocks for row in live_rows(block)) == cells(rows)


def live_rows(block):
    """The rows of a block that never was JSON: its columns still hold NaN and infinities."""
    columns = block.get("cols", {}) | block.get("text", {}) | block.get("bool", {})
    return [
        (step, ts, {key: column[i] for key, column in columns.items()})
        for i, (step, ts) in enumerate(zip(block["step"], block["ts"], strict=True))
    ]


NUMBERS = st.one_of(st.floats(), st.integers(-(2**80), 2**80), st.just(10**400), st.booleans())


@given(st.sets(KEYS, min_size=1), st.data())
def test_a_lane_keeps_every_value(keys, data):
    """Rows of one shape, laid down flat, come back bit for bit and in order, and the lane is empty."""
    lane = Lane(tuple(keys))
    one = st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**50), *[NUMBERS] * len(keys))
    rows = data.draw(st.lists(one, max_size=20))
    for step, ts, *values in rows:
        lane.flat += [step, ts * 1_000_000, *values]
    expected = [
        (step, ts, {k: math.inf if v == 10**400 else v for k, v in zip(lane.keys, values, strict=True)})
        for step, ts, *values in rows
    ]

    assert cells(unpacked(pack_lane("e/p/r", lane))) == cells(expected)
    assert lane.flat == []


def test_a_long_lane_is_many_events_in_order():
    """Each event is within the limit, and together they are the rows."""
    lane = Lane(("a", "b"))
    for i in range(30_000):
        lane.flat += [i, i * 1_000_000, i / 7, i]
    found = list(pack_lane("e/p/r", lane))

    assert len(found) > 2
    assert [(row.step, row.values["b"]) for row in unpacked(found)] == [(i, float(i)) for i in range(30_000)]


def test_ints_that_no_float_holds_are_named():
    """By key, and only those: an int beyond 2^53 that is a float stays as it is."""
    rows = [(0, 0, {"fine": 2**53, "large": 2**60, "odd": 2**53 + 1, "huge": 10**400})]

    assert pack("e/p/r", rows).lossy == {"odd": 2**53 + 1, "huge": 10**400}


@given(ROWS)
def test_chunks_lose_nothing_and_keep_the_order(rows):
    """Chunks are the rows, cut."""
    assert [row for chunk in chunks(rows) for row in chunk] == rows


def test_rows_of_very_different_widths_stay_within_an_event():
    """A wide row among many narrow ones neither makes an event too large nor makes an event of every row."""
    wide = {f"k{i}": i / 7 for i in range(30_000)}
    rows = [(i, i, wide if i == 500 else {"a": i / 3}) for i in range(4000)]
    found = [payload for chunk in chunks(rows) for payload in payloads("e/p/r", chunk)]

    assert len(found) < 12
    assert all(len(payload) <= most("event_bytes") for payload, _ in found)
    assert sum(points for _, points in found) == 30_000 + 3_999


def test_a_row_too_large_for_an_event_is_split_by_its_keys():
    """Each part carries the step, and together they are the row."""
    values = {f"{'long' * 20}{i}": "x" * 1000 for i in range(3000)}
    found = list(payloads("e/p/r", [(7, 8, values)]))
    rows = [row for payload, _ in found for block in orjson.loads(payload)["blocks"] for row in block_rows(block)]

    assert len(found) > 2
    assert {(row.step, row.ts) for row in rows} == {(7, 8)}
    assert {key: value for row in rows for key, value in row.values.items()} == values


@pytest.mark.parametrize(
    ("value", "expected"),
    [(Decimal("1.5"), 1.5), (Fraction(1, 4), 0.25), ("\ud800x", "?x"), (True, True), (3, 3), (math.inf, math.inf)],
)
def test_scalars(value, expected):
    """What can be a number, text or bool is one."""
    assert scalar(value) == expected
    assert type(scalar(value)) is type(expected)


@pytest.mark.parametrize("value", [None, [1], {1}, 1j, b"x", object(), "x" * 70_000], ids=lambda v: type(v).__name__)
def test_what_is_no_scalar_says_so(value):
    """Everything else is unloggable, with a reason."""
    with pytest.raises(Unloggable, match=r".{10,}"):
        scalar(value)


def test_a_dict_that_holds_itself_is_refused():
    """Instead of recursing without end."""
    loop: dict = {}
    loop["self"] = loop
    with pytest.raises(UsageError, match="nesting"):
        flatten(loop, {})
