"""Filters in the Mongo style over JSON documents in memory: the same rules as over runs (queries/filters.py).

A missing value is as in Mongo: `$ne`, `$nin` and `$not` match a document that lacks the field, the others do not. A
boolean is not the number 1. NaN is neither greater nor less than anything.
"""

from __future__ import annotations

import operator as op
from collections.abc import Callable, Mapping
from typing import Any, Final

import duckdb

from icecore.errors import Invalid
from icecore.limits import most

Document = Mapping[str, Any]
Matcher = Callable[[Document], bool]
_Test = Callable[[Any], bool]

_MISSING: Final = object()
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$gt": op.gt,
    "$gte": op.ge,
    "$lt": op.lt,
    "$lte": op.le,
}


def matcher(filters: Any, fields: frozenset[str]) -> Matcher:
    """What decides whether a document matches.

    Args:
        filters: as in MongoDB; `{}` matches everything.
        fields: the names that a path may begin with.

    Raises:
        Invalid: an unknown operator or field, or a bad value; the message says which and where.
    """
    return _Compiler(fields).all_of(filters, "filters", 0)


class _Compiler:
    """Turns filters into functions, counting nodes."""

    def __init__(self, fields: frozenset[str]) -> None:
        self._fields = fields
        self._nodes = 0

    def all_of(self, node: Any, where: str, depth: int) -> Matcher:
        """All conditions of a document of conditions."""
        if not isinstance(node, dict):
            raise _bad(where, "an object of conditions", node)
        if depth > most("json_depth"):
            raise _bad(where, f"at most {most('json_depth')} levels", depth)
        parts = [self._one(name, condition, f"{where}.{name[:120]}", depth) for name, condition in node.items()]
        return lambda document: all(part(document) for part in parts)

    def _one(self, name: str, condition: Any, here: str, depth: int) -> Matcher:
        self._count(here)
        if name in ("$and", "$or", "$nor"):
            if not isinstance(condition, list) or not condition:
                raise _bad(here, "a list of conditions", condition)
            parts = [self.all_of(one, f"{here}[{i}]", depth + 1) for i, one in enumerate(condition)]
            if name == "$and":
                return lambda document: all(part(document) for part in parts)
            some = name == "$or"
            return lambda document: any(part(document) for part in parts) == some
        if name == "$not":
            inner = self.all_of(condition, here, depth + 1)
            return lambda document: not inner(document)
        path = name.split(".")
        if name.startswith("$") or path[0] not in self._fields:
            raise _bad(here, f"one of {', '.join(sorted(self._fields))}, $and, $or, $nor, $not", name)
        test = self._tests(condition, here, depth)
        return lambda document: test(_at(document, path))

    def _tests(self, condition: Any, here: str, depth: int) -> _Test:
        """All operators on one field; a plain value is to be equal."""
        if not isinstance(condition, dict) or not any(key.startswith("$") for key in condition):
            return _equal(condition)
        tests = []
        for operator, operand in condition.items():
            if operator != "$options":
                self._count(here)
                options = str(condition.get("$options", ""))
                tests.append(self._test(operator, operand, f"{here}.{operator[:120]}", depth, options))
        return lambda value: all(test(value) for test in tests)

    def _test(self, operator: str, operand: Any, here: str, depth: int, options: str) -> _Test:
        if operator in ("$eq", "$ne"):
            equal, wanted = _equal(operand), operator == "$eq"
            return lambda value: equal(value) == wanted
        if operator in ("$in", "$nin"):
            if not isinstance(operand, list):
                raise _bad(here, "a list", operand)
            tests, wanted = [_equal(each) for each in operand], operator == "$in"
            return lambda value: any(test(value) for test in tests) == wanted
        if operator in _COMPARE:
            return _ordered(_COMPARE[operator], operand, here)
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise _bad(here, "true or false", operand)
            return lambda value: (value is not _MISSING) == operand
        if operator == "$regex":
            return _matching(operand, options, here)
        if operator == "$not":
            if depth > most("json_depth"):
                raise _bad(here, f"at most {most('json_depth')} levels", depth)
            test = self._tests(operand, here, depth + 1)
            return lambda value: not test(value)
        raise _bad(here, "$eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $exists, $regex or $not", operator)

    def _count(self, where: str) -> None:
        self._nodes += 1
        if self._nodes > most("filter_nodes"):
            raise _bad(where, f"at most {most('filter_nodes')} conditions", self._nodes)


def _at(document: Any, path: list[str]) -> Any:
    """The value at a dotted path; keys may hold dots themselves."""
    if not path:
        return document
    if not isinstance(document, Mapping):
        return _MISSING
    for length in range(1, len(path) + 1):
        key = ".".join(path[:length])
        if key in document and (found := _at(document[key], path[length:])) is not _MISSING:
            return found
    return _MISSING


def _equal(wanted: Any) -> _Test:
    def test(value: Any) -> bool:
        if value is _MISSING:
            return wanted is None
        if isinstance(value, list) and not isinstance(wanted, list):
            return any(_same(each, wanted) for each in value)
        return _same(value, wanted)

    return test


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _ordered(compare: Callable[[Any, Any], bool], operand: Any, here: str) -> _Test:
    if not isinstance(operand, int | float | str):
        raise _bad(here, "a number or a text", operand)
    kinds = (str,) if isinstance(operand, str) else (int, float)
    return lambda value: isinstance(value, kinds) and compare(value, operand)


def _matching(operand: Any, options: str, here: str) -> _Test:
    """By RE2, as in filters of runs: it takes linear time, whatever the pattern."""
    if not isinstance(operand, str) or options not in ("", "i"):
        raise _bad(here, "a regular expression, and 'i' for $options", operand)
    con = duckdb.connect(":memory:")
    query = "SELECT regexp_matches(?, ?, ?)"

    def search(text: str) -> bool:
        found = con.execute(query, [text, operand, options or "c"]).fetchone()
        return bool(found and found[0])

    try:
        search("")
    except duckdb.Error as error:
        raise _bad(here, "a regular expression of RE2", operand) from error
    return lambda value: any(
        isinstance(one, str) and search(one) for one in (value if isinstance(value, list) else [value])
    )


def _bad(where: str, wanted: str, found: Any) -> Invalid:
    return Invalid(f"expected {wanted} at {where[:300]}, got {str(found)[:80]!r}", where=where[:300])
