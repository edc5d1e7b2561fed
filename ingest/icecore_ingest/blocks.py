"""The check of metric blocks, tuned: most of what a server takes in goes through it.

It works on whole columns with what runs in C (`set(map(type, …))`), and looks at single values only to say which one
was wrong. `icecore.codec` says what a block is.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from types import NoneType
from typing import Any, Final

from icecore.errors import Invalid
from icecore.events import check_name
from icecore.limits import LimitName, most

TS_LEAST: Final = -62_135_596_800_000
TS_MOST: Final = 253_402_300_799_999
"""Years 1 to 9999 in milliseconds since 1970 UTC: what dates can be written for."""

_INT64_MOST: Final = (1 << 63) - 1
_NUMBERS: Final[frozenset[type]] = frozenset({float, int, NoneType})
_KINDS: Final[tuple[tuple[str, frozenset[type]], ...]] = (
    ("cols", _NUMBERS),
    ("text", frozenset({str})),
    ("bool", frozenset({bool})),
)
_KNOWN: Final = frozenset({"step", "ts", "cols", "text", "bool", "inf"})

_GOOD_KEYS_MOST: Final = 20_000
_GOOD_KEY_CHARS: Final = 64
_good_keys: set[str] = set()
"""Keys already found good, so that a column's name is looked at once; bounded in number and length."""


def check_blocks(blocks: object) -> bool:
    """Check the `blocks` of a metrics event.

    Returns:
        Whether all their fields are known to this version; of others the caller checks how deep they go.

    Raises:
        Invalid: a rule of blocks is broken or a limit passed; the message says which, and where.
    """
    if type(blocks) is not list:
        raise Invalid(f"expected `blocks` to be a list, got {_kind(blocks)}")
    all_known = True
    keys = 0
    for i, block in enumerate(blocks):
        if type(block) is not dict:
            raise Invalid(f"expected block {i} to be an object, got {_kind(block)}")
        keys += _check_block(i, block)
        all_known = all_known and block.keys() <= _KNOWN
    if keys > most("metric_keys"):
        distinct = len({key for block in blocks for kind, _ in _KINDS for key in block.get(kind, ())})
        check_limit("metric_keys", distinct, "an event")
    return all_known


def _check_block(i: int, block: Mapping[str, Any]) -> int:
    """Check one block; answers how many columns it has.

    1. `step` and `ts` are dense columns of one length, of 64-bit integers and of dates.
    2. Every column is a list of that length, of its kind's types.
    3. Names are good, and no key has two columns.
    4. Infinities stand where the column has null.
    5. Texts are within their limit.
    """
    rows = _check_clock(i, block)  # 1
    count = 0
    seen: list[Mapping[str, Any]] = []
    for kind, types in _KINDS:
        columns = block.get(kind)
        if columns is None:
            continue
        if type(columns) is not dict:
            raise Invalid(f"expected `{kind}` of block {i} to be an object of columns, got {_kind(columns)}")
        if columns:
            _check_columns(i, kind, columns, types, rows)  # 2
        if not columns.keys() <= _good_keys:  # 3
            for key in columns:
                _check_key(key)
        seen.append(columns)
        count += len(columns)
    if len(seen) > 1 and len(set(chain.from_iterable(seen))) != count:
        raise Invalid(f"expected one column for each key of block {i}, got a key in two of cols, text and bool")
    if "inf" in block:
        _check_infinities(i, block)  # 4
    for key, column in (block.get("text") or {}).items():
        check_texts(column, f"key {key[:80]!r}")  # 5
    return count


def _check_clock(i: int, block: Mapping[str, Any]) -> int:
    """Check `step` and `ts`; answers how many rows the block has."""
    step, ts = block.get("step"), block.get("ts")
    if type(step) is not list or type(ts) is not list or len(step) != len(ts):
        raise Invalid(
            f"expected `step` and `ts` of block {i} to be lists of one length, got {_kind(step)}, {_kind(ts)}"
        )
    rows = len(step)
    if rows > most("block_rows"):
        check_limit("block_rows", rows, f"block {i}")
    if rows:
        if set(map(type, step)) != {int} or max(step) > _INT64_MOST:
            raise Invalid(f"expected every `step` of block {i} to be a 64-bit integer, got {_first_bad(step, {int})}")
        if set(map(type, ts)) != {int} or max(ts) > TS_MOST or min(ts) < TS_LEAST:
            raise Invalid(
                f"expected every `ts` of block {i} to be milliseconds since 1970, got {_first_bad(ts, {int})}"
            )
    return rows


def _check_columns(i: int, kind: str, columns: Mapping[str, Any], types: frozenset[type], rows: int) -> None:
    lists = columns.values()
    if set(map(type, lists)) != {list} or set(map(len, lists)) != {rows}:
        raise _bad_length(i, kind, columns, rows)
    if not set(map(type, chain.from_iterable(lists))) <= types:
        raise _bad_value(i, kind, columns, types)


def _check_key(key: str) -> None:
    if key in _good_keys:
        return
    check_name("a metric key", key, "key_chars")
    if len(key) <= _GOOD_KEY_CHARS:
        if len(_good_keys) >= _GOOD_KEYS_MOST:
            _good_keys.clear()
        _good_keys.add(key)


def _check_infinities(i: int, block: Mapping[str, Any]) -> None:
    infinities, columns = block["inf"], block.get("cols") or {}
    if type(infinities) is not dict:
        raise Invalid(f"expected `inf` of block {i} to be an object, got {_kind(infinities)}")
    for key, signs in infinities.items():
        column = columns.get(key)
        if column is None or type(signs) is not dict or not signs.keys() <= {"+", "-"}:
            raise Invalid(
                f"expected `inf` of block {i} to name numeric columns, with rows by '+' and '-', got {key[:80]!r}"
            )
        for rows in signs.values():
            if type(rows) is not list or not set(map(type, rows)) <= {int}:
                raise Invalid(f"expected `inf` of {key[:80]!r} in block {i} to list rows, got {_kind(rows)}")
            if rows and (min(rows) < 0 or max(rows) >= len(column) or any(column[row] is not None for row in rows)):
                raise Invalid(f"expected `inf` of {key[:80]!r} in block {i} to list rows whose value is null")


def check_texts(texts: list[str], what: str) -> None:
    """Check that every text is within `text_value_bytes`.

    Raises:
        Invalid: one is too long.
    """
    limit = most("text_value_bytes")
    if texts and 4 * max(map(len, texts)) > limit:  # UTF-8 takes at most four bytes a character
        check_limit("text_value_bytes", max(len(text.encode()) for text in texts), what)


def check_limit(name: LimitName, value: int, what: str) -> None:
    """Raise the error of a limit that is passed.

    Raises:
        Invalid: `value` is over the limit; the facts hold `limit`, `most` and `value`.
    """
    if value > most(name):
        raise Invalid(
            f"expected at most {most(name)} for `{name}` of {what}, got {value}",
            hint=f"the limit is `{name}` in docs/limits.md",
            limit=name,
            most=most(name),
            value=value,
        )


def check_ts(what: str, ts: int) -> None:
    """Check a time in milliseconds since 1970 UTC.

    Raises:
        Invalid: no date can be written for it.
    """
    if not TS_LEAST <= ts <= TS_MOST:
        raise Invalid(f"expected `{what}` to be milliseconds since 1970 in years 1 to 9999, got {ts}")


def _bad_length(i: int, kind: str, columns: Mapping[str, Any], rows: int) -> Invalid:
    for key, column in columns.items():
        if type(column) is not list or len(column) != rows:
            found = f"{len(column)} values" if type(column) is list else _kind(column)
            return Invalid(f"expected {kind} {key[:80]!r} of block {i} to be a list of {rows} values, got {found}")
    raise AssertionError("only called when a column is wrong")


def _bad_value(i: int, kind: str, columns: Mapping[str, Any], types: frozenset[type]) -> Invalid:
    for key, column in columns.items():
        if not set(map(type, column)) <= types:
            names = "/".join(sorted("null" if t is NoneType else t.__name__ for t in types))
            return Invalid(
                f"expected {kind} {key[:80]!r} of block {i} to hold {names}, got {_first_bad(column, types)}",
                hint="numbers go to `cols`, strings to `text`, true and false to `bool`",
            )
    raise AssertionError("only called when a value is wrong")


def _first_bad(column: list[Any], types: set[type] | frozenset[type]) -> str:
    for row, value in enumerate(column):
        if type(value) not in types:
            return f"{_kind(value)} at row {row}"
    return f"values up to {max(column)}"


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", NoneType: "null"}
    return names.get(type(value), "a number")
