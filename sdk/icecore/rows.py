"""What people log, as plain scalars by dotted key; and rows of them, as payloads of events.

Nothing here imports numpy, torch or jax: their scalars are known by what they can do (`item`).
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, SupportsFloat

import orjson

from icecore.codec import Scalar, rows_to_blocks
from icecore.errors import Invalid, UsageError
from icecore.events import check_name
from icecore.limits import most

RowTuple = tuple[int, int, Mapping[str, Scalar]]
"""Step, ms since 1970, values."""

_PLAIN: Final = (float, int, bool)
_VALUES_PER_EVENT: Final = 24_000
_COLUMNS: Final = ("cols", "text", "bool")
_DEPTH_MOST: Final = most("json_depth")
_TEXT_MOST: Final = most("text_value_bytes")


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


def chunks(rows: Sequence[RowTuple]) -> Iterator[Sequence[RowTuple]]:
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
    if len(payload) <= most("event_bytes"):
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
