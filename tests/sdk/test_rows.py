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
from icecore.limits import most
from icecore.rows import Unloggable, chunks, flatten, payloads, scalar

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
