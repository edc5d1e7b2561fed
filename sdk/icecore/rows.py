"""What people log, as plain scalars by dotted key; and rows of them, as payloads of events.

Nothing here imports numpy, torch or jax: their scalars are known by what they can do (`item`).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, SupportsFloat, TypeVar

import orjson

from icecore.codec import Scalar, rows_to_blocks
from icecore.errors import Invalid, UsageError
from icecore.events import check_name
from icecore.lanes import Lane
from icecore.limits import most

RowTuple = tuple[int, int, Mapping[str, Scalar]]
"""Step, ms since 1970, values."""

QueuedRow = tuple[int, int, Mapping[str, Scalar]]
"""Step, *nanoseconds* since 1970, values: what the training thread leaves behind."""

_AnyRow = TypeVar("_AnyRow", RowTuple, QueuedRow)
_PLAIN: Final = (float, int, bool)
_VALUES_PER_EVENT: Final = 24_000
_COLUMNS: Final = ("cols", "text", "bool")
_DEPTH_MOST: Final = most("json_depth")
_TEXT_MOST: Final = most("text_value_bytes")
_EVENT_MOST: Final = most("event_bytes")
_EXACT: Final = 1 << 53


class Unloggable(ValueError):
    """A value that history cannot hold; the message says why."""


def scalar(value: Any) -> Scalar:
    """One value as a plain scalar.

    Args:
        value: a float, int, bool or str, or anything with one element that numpy, torch, jax or the standard library
            can turn into one.

    Raises:
        Unloggable: it is nothing of that kind.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        return _text(str(value))
    for base in (bool, int, float):
        if isinstance(value, base):
            return base(value)
    if callable(getattr(value, "item", None)):
        return _item(value)
    if isinstance(value, numbers.Number) and isinstance(value, SupportsFloat):
        return float(value)  # a Decimal or a Fraction
    if value is None:
        raise Unloggable("None is no value; leave the key out where there is none")
    raise Unloggable(f"expected a number, text or bool, got {kind.__module__}.{kind.__qualname__}")


def _item(value: Any) -> Scalar:
    size = getattr(value, "size", 1)
    if callable(size):  # torch: size() is the shape, numel() the count
        size = value.numel() if callable(getattr(value, "numel", None)) else 1
    if size != 1:
        shape = tuple(getattr(value, "shape", ()))
        raise Unloggable(f"expected one number, got an array of shape {shape}; log its mean, min or max")
    try:
        inner = value.item()
    except Exception as error:
        raise Unloggable(f"its item() failed: {error}") from error
    if type(inner) in _PLAIN:
        return inner  # type: ignore[no-any-return]
    if isinstance(inner, str):
        return _text(inner)
    raise Unloggable(f"expected a number, text or bool, got {type(inner).__qualname__}")


def _text(text: str) -> str:
    """Text as it can be stored: no lone surrogates, and not beyond its limit."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        text = text.encode(errors="replace").decode()
        size = len(text)
    if size > _TEXT_MOST:
        raise Unloggable(f"expected text of at most {_TEXT_MOST} bytes, got {size}")
    return text


def flatten(data: Mapping[Any, Any], into: dict[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested dicts as dotted keys, values untouched.

    Raises:
        UsageError: a key is no str, or the nesting is too deep (it may hold itself).
    """
    if depth > _DEPTH_MOST:
        raise UsageError(f"expected at most {_DEPTH_MOST} levels of nesting, got more at {prefix[:80]!r}")
    for key, value in data.items():
        if not isinstance(key, str):
            raise UsageError(
                f"expected keys to be str, got {key!r} of type {type(key).__name__}", hint=f"log {{{str(key)!r}: …}}"
            )
        if isinstance(value, Mapping):
            flatten(value, into, f"{prefix}{key}.", depth + 1)
        else:
            into[prefix + key] = value
    return into


def check_key(key: str) -> str:
    """A metric key as it may be stored.

    Raises:
        Unloggable: it is empty, too long, or holds control characters.
    """
    if not key:
        raise Unloggable("expected a key of at least one character")
    try:
        return check_name("a key", key, "key_chars")
    except Invalid as error:
        raise Unloggable(error.message) from error


# -------------------------------------------------------------------------------------------------- to events


class Packed(NamedTuple):
    """Rows as payloads of `metrics.logged`, each with the number of values in it; and as blocks, NaN and all."""

    payloads: list[tuple[bytes, int]]
    blocks: list[dict[str, Any]]
    lossy: dict[str, int]
    """Ints that no float64 holds, one a key: they come back as the float nearest to them."""


def pack(run: str, rows: Sequence[QueuedRow]) -> Packed:
    """Rows as payloads, each within the limit of an event.

    Args:
        run: `entity/project/run_id`.
        rows: at least one, of about as many values as fit one event: one of `chunks`.
    """
    steps, stamps, values = zip(*rows, strict=True)
    packed = None
    if len({*map(len, values)}) == 1:
        try:
            columns = {key: [*map(itemgetter(key), values)] for key in values[0]}
        except KeyError:
            pass  # as many keys, but others
        else:
            packed = _pack_columns(run, steps, stamps, columns)
    return packed or _pack_rows(run, rows)


def pack_lane(run: str, lane: Lane) -> Iterator[Packed]:
    """What is in a lane now as payloads, taken out of it piece by piece."""
    stride = lane.stride
    left = len(lane.flat) // stride
    while left > 0 and (flat := lane.take(min(left, max(_VALUES_PER_EVENT // stride, 1)))):
        left -= len(flat) // stride
        columns = {key: flat[place::stride] for place, key in enumerate(lane.keys, 2)}
        yield _pack_columns(run, flat[::stride], flat[1::stride], columns) or _pack_rows(run, lane.rows(flat))


def _pack_rows(run: str, rows: Sequence[QueuedRow]) -> Packed:
    """`pack` of any rows."""
    timed = [(step, ns // 1_000_000, values) for step, ns, values in rows]
    blocks = rows_to_blocks(timed)
    return Packed(list(payloads(run, timed, blocks)), blocks, _lossy(rows))


def _pack_columns(
    run: str, steps: Sequence[int], stamps: Sequence[int], columns: dict[str, list[Scalar]]
) -> Packed | None:
    """`pack` of rows that all have the same keys; None where it takes more than one block or event.

    The JSON of a column says of what kind it is: that is cheaper than to look at each value before.
    """
    block: dict[str, Any] = {"step": steps, "ts": [ns // 1_000_000 for ns in stamps]}
    numbers: dict[str, orjson.Fragment] = {}
    try:
        for key, column in columns.items():
            # raises TypeError for an int beyond 2^53
            json = orjson.dumps(column, option=orjson.OPT_STRICT_INTEGER)
            if b"u" not in json and b"s" not in json and b'"' not in json:  # no null, true, false or text
                numbers[key] = orjson.Fragment(json)
    except TypeError:
        return None
    wire = {**block, "cols": numbers}
    block["cols"] = {key: columns[key] for key in numbers}
    if len(numbers) < len(columns):
        strange = [key for key in columns if key not in numbers]
        cells = zip(*(columns[key] for key in strange), strict=True)
        found = rows_to_blocks((0, 0, dict(zip(strange, row, strict=True))) for row in cells)
        if len(found) != 1:
            return None  # a key of several kinds
        for kind in (*_COLUMNS, "inf"):
            for columned in (block, wire):
                columned[kind] = columned.get(kind, {}) | found[0].get(kind, {})
    payload = orjson.dumps({"run": run, "blocks": [{kind: part for kind, part in wire.items() if part}]})
    if not columns or len(payload) > _EVENT_MOST:
        return None
    return Packed([(payload, len(steps) * len(columns))], [block], {})


def _lossy(rows: Sequence[QueuedRow]) -> dict[str, int]:
    return {
        key: value
        for _, _, values in rows
        for key, value in values.items()
        if type(value) is int and not -_EXACT <= value <= _EXACT and nearest(value) != value
    }


def nearest(value: int) -> float:
    """The float64 nearest to an int, which is infinite beyond 1,024 bits."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def chunks(rows: Sequence[_AnyRow]) -> Iterator[Sequence[_AnyRow]]:
    """Rows in runs that usually fit one event, in order."""
    if not rows:
        return
    widths = [len(row[2]) + 2 for row in rows]
    widest = max(widths)
    if widest * len(rows) <= 4 * sum(widths):
        # rows of about one width, as nearly always: no arithmetic for each
        each = max(_VALUES_PER_EVENT // widest, 1)
        for start in range(0, len(rows), each):
            yield rows[start : start + each]
        return
    start = values = 0
    for end, width in enumerate(widths):
        if values + width > _VALUES_PER_EVENT and end > start:
            yield rows[start:end]
            start, values = end, 0
        values += width
    yield rows[start:]


def payloads(
    run: str, rows: Sequence[RowTuple], blocks: list[dict[str, Any]] | None = None
) -> Iterator[tuple[bytes, int]]:
    """Rows as payloads of `metrics.logged`, each within the limit of an event, with the number of values in it.

    Too many rows are halved; a single row that is too large is halved by its keys.
    """
    if blocks is None:
        blocks = rows_to_blocks(rows)
    payload = orjson.dumps({"run": run, "blocks": blocks})
    if len(payload) <= _EVENT_MOST:
        yield payload, sum(len(b["step"]) * sum(len(b.get(kind, ())) for kind in _COLUMNS) for b in blocks)
    elif len(rows) > 1:
        half = len(rows) // 2
        yield from payloads(run, rows[:half])
        yield from payloads(run, rows[half:])
    else:
        ((step, ts, values),) = rows
        items = list(values.items())
        half = len(items) // 2
        yield from payloads(run, [(step, ts, dict(items[:half]))])
        yield from payloads(run, [(step, ts, dict(items[half:]))])
