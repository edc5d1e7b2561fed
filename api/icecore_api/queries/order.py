# ruff: noqa: S608 - the texts are fixed, and what callers send goes through Params
"""Orders and cursors: paging by the last row's values, so it stays stable while runs arrive."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from icecore.errors import Invalid
from icecore_api.queries.fields import Column, PathField, field_named
from icecore_api.queries.values import Params, Rules, at_path, mode_sql, of_key, summary_relation, text_relation

DEFAULT: Final = "-created_at"
FIELDS_MOST: Final = 4


@dataclass(frozen=True, slots=True)
class SortKey:
    """One expression to order by."""

    sql: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Ordering:
    """An order as SQL."""

    keys: Sequence[SortKey]
    joins: Sequence[str]
    activity: bool


def ordering(order: str, rules: Callable[[], Rules], params: Params) -> Ordering:
    """`-created_at`, `+config.lr`, `summary_metrics.loss`, or several by comma.

    Numbers come before texts, and both before runs that lack the field; NaN is lacking.

    Raises:
        Invalid: an unknown field.
    """
    names = [name.strip() for name in (order or DEFAULT).split(",")]
    if len(names) > FIELDS_MOST:
        raise Invalid(f"expected at most {FIELDS_MOST} fields to order by, got {len(names)}", where="order")
    keys: list[SortKey] = []
    joins: list[str] = []
    activity = False
    for i, name in enumerate(names):
        descending = name.startswith("-")
        field = field_named(name.lstrip("+-") if name[:1] in "+-" else name, "order")
        if isinstance(field, Column):
            activity |= field.activity
            sql = f"array_to_string({field.sql}, ',')" if field.kind == "tags" else field.sql
            keys.append(SortKey(sql, descending))
        else:
            number, text = _path_keys(field, f"o{i}", rules, params, joins)
            keys += [SortKey(number, descending), SortKey(text, descending)]
    return Ordering(keys, joins, activity)


def _path_keys(
    field: PathField, alias: str, rules: Callable[[], Rules], params: Params, joins: list[str]
) -> tuple[str, str]:
    """A config or summary value as (number, text where there is no number), and the joins they need."""
    if field.source == "config":
        here = at_path(f"config.{field.key}", params)
        joins.append(f"LEFT JOIN (SELECT run, number, text FROM run_values WHERE {here}) {alias} USING (run)")
        return _not_nan(f"{alias}.number"), f"CASE WHEN {alias}.number IS NULL THEN {alias}.text END"
    found = rules()
    if found.with_aggregate(field.key)[2]:
        joins.append(f"LEFT JOIN ({summary_relation(field.key, found, params)}) {alias} USING (run)")
        return _not_nan(f"{alias}.number"), f"CASE WHEN {alias}.number IS NULL THEN {alias}.text END"
    return _summary_keys(field.key, alias, found, params, joins)


def _summary_keys(key: str, alias: str, rules: Rules, params: Params, joins: list[str]) -> tuple[str, str]:
    """A summary value: set by hand, else a metric's, else a text's; what no run has is left out of the SQL."""
    by_hand, texts = rules.sources(key)
    mode, _ = mode_sql(key, rules, params, series=f"{alias}s", runs="c")
    joins.append(
        "LEFT JOIN (SELECT run, last, least, most, total, n, nans, first FROM series "
        f"WHERE kind = 'metric' AND {of_key(key, params)}) {alias}s USING (run)"
    )
    number, text = mode, "NULL::VARCHAR"
    if texts:
        joins.append(f"LEFT JOIN ({text_relation(key, rules, params)}) {alias}t USING (run)")
        number = f"CASE WHEN {alias}s.run IS NULL THEN {alias}t.number ELSE {mode} END"
        text = f"CASE WHEN {alias}s.run IS NULL AND {alias}t.number IS NULL THEN {alias}t.text END"
    if by_hand:
        here = at_path(f"summary.{key}", params)
        joins.append(f"LEFT JOIN (SELECT run, number, text FROM run_values WHERE {here}) {alias}v USING (run)")
        number = f"CASE WHEN {alias}v.run IS NULL THEN {number} ELSE {alias}v.number END"
        by_hand_text = f"CASE WHEN {alias}v.number IS NULL THEN {alias}v.text END"
        text = f"CASE WHEN {alias}v.run IS NULL THEN {text} ELSE {by_hand_text} END"
    return _not_nan(number), text


def _not_nan(sql: str) -> str:
    return f"nullif({sql}, 'NaN'::DOUBLE)"


# ---------------------------------------------------------------------------------------------------- cursors


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ended."""

    question: str
    """Fingerprint of the filter and order it belongs to."""
    as_of: int
    """Runs made at this ledger offset or later came after the first page was read."""
    run: int
    last: list[float | str | None]
    """The last row's sort values."""


def question_of(*parts: str) -> str:
    """A fingerprint of what was asked."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def write_cursor(cursor: Cursor) -> str:
    """Opaque text for the caller to give back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def read_cursor(text: str, question: str, keys: int) -> Cursor:
    """What `write_cursor` wrote.

    Raises:
        Invalid: it is no cursor, or of another question.
    """
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        cursor = msgspec.json.decode(raw, type=Cursor)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise _bad_cursor(text) from error
    if cursor.question != question or len(cursor.last) != keys or not -(1 << 63) <= cursor.run < 1 << 63:
        raise _bad_cursor(text)
    return cursor


def beyond(keys: Sequence[str], descending: Sequence[bool], cursor: Cursor, params: Params) -> str:
    """The condition of the rows after a cursor; nulls are last in either direction, equals go by run."""
    run = params.add(cursor.run)
    condition = f"run > {run}"
    for key, falls, value in reversed(list(zip(keys, descending, cursor.last, strict=True))):
        if value is None:
            condition = f"({key} IS NULL AND {condition})"
        else:
            given = params.add(value)
            condition = f"({key} {'<' if falls else '>'} {given} OR {key} IS NULL OR ({key} = {given} AND {condition}))"
    return condition


def _bad_cursor(text: str) -> Invalid:
    return Invalid(
        f"expected a cursor of an earlier page of this question, got {text[:60]!r}",
        hint="give back `cursor` unchanged, with the same filters and order",
        where="cursor",
    )
