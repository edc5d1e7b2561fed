# ruff: noqa: S608 - the texts are fixed, and what callers send goes through Params
"""Filters in the Mongo style of wandb's `Api.runs`, as one SQL condition over an allow-list of fields.

    {"$or": [{"state": "running"}, {"config.lr": {"$gt": 0.01}, "tags": {"$in": ["best"]}}]}

Missing values are as in Mongo: `$ne`, `$nin` and `$not` match a run that lacks the field, the others do not. A
boolean is not the number 1; in `<` and `>` it counts as one. NaN is neither greater nor less than anything.

Conditions on config and summary are joins with relations (queries/values.py). Those that must all hold are given
apart, so that the listing may start from them rather than from the runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import duckdb
import orjson

from icecore.errors import Invalid
from icecore.limits import most
from icecore_api.queries.fields import Column, PathField, field_named
from icecore_api.queries.values import Params, Rules, config_relation, summary_relation

_COMPARE: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_OPERATORS: Final = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$regex", "$not", "$all")
_EPOCH_MS_FROM: Final = 1e11
"""An epoch number from here on is in ms, below in s: 1e11 s is the year 5138, 1e11 ms is 1973."""
_EXACT: Final = 1 << 53


@dataclass(slots=True)
class Compiled:
    """A filter as SQL."""

    where: str
    """A condition over `c` (and `a`), never NULL."""
    joins: list[str]
    """Joins with relations by `run`: a matching run is in each of them, and found once."""
    activity: bool
    """Whether `a` is read."""


@dataclass(slots=True)
class Compiler:
    """Turns filters into SQL, counting nodes and collecting parameters."""

    params: Params
    rules: Callable[[], Rules]
    """The project's define_metric; asked for only where a summary is named."""
    cursor: duckdb.DuckDBPyConnection
    """To try regular expressions."""
    activity: bool = False
    joins: list[str] = field(default_factory=list)
    nodes: int = 0

    def compile(self, filters: Any) -> Compiled:
        """The whole filter.

        Raises:
            Invalid: an unknown operator or field, or a bad value; the message says which and where.
        """
        where = self._all_of(filters, "filters", 0, top=True)
        return Compiled(where, self.joins, self.activity)

    # ------------------------------------------------------------------------------------------ the tree

    def _all_of(self, node: Any, where: str, depth: int, *, top: bool = False) -> str:
        """A document: all its conditions hold. At the top, value conditions become joins instead."""
        if not isinstance(node, dict):
            raise _bad(where, "an object of conditions", node)
        if depth > most("json_depth"):
            raise _bad(where, f"at most {most('json_depth')} levels", depth)
        parts: list[str] = []
        for name, condition in node.items():
            self._count(where)
            here = f"{where}.{name[:120]}"
            if name == "$and" and top:
                parts += [
                    self._all_of(each, f"{here}[{i}]", depth + 1, top=True)
                    for i, each in enumerate(_several(condition, here))
                ]
            elif name in ("$and", "$or", "$nor"):
                parts.append(self._combined(name, condition, here, depth))
            elif name == "$not":
                parts.append(f"NOT {self._all_of(condition, here, depth + 1)}")
            elif name.startswith("$"):
                raise _unknown(name, here, "$and, $or, $nor, $not")
            else:
                parts.append(self._field(name, condition, here, depth, top=top))
        kept = [part for part in parts if part != "true"]
        return f"({' AND '.join(kept)})" if kept else "true"

    def _combined(self, name: str, condition: Any, here: str, depth: int) -> str:
        each = [self._all_of(one, f"{here}[{i}]", depth + 1) for i, one in enumerate(_several(condition, here))]
        joined = (" AND " if name == "$and" else " OR ").join(each)
        return f"(NOT ({joined}))" if name == "$nor" else f"({joined})"

    def _field(self, name: str, condition: Any, here: str, depth: int, *, top: bool) -> str:
        """A field and its condition: a plain value, or an object of operators that all hold."""
        found = field_named(name, here)
        if isinstance(found, Column) and found.activity:
            self.activity = True
        if not isinstance(condition, dict) or not any(key.startswith("$") for key in condition):
            return self._operator(found, "$eq", condition, here, depth, top=top)
        return self._operators(found, condition, here, depth, top=top)

    def _operators(
        self, found: Column | PathField, operators: dict[str, Any], here: str, depth: int, *, top: bool
    ) -> str:
        """Operators that all hold."""
        options = operators.get("$options", "")
        if options not in ("", "i") or ("$options" in operators and "$regex" not in operators):
            raise _bad(f"{here}.$options", "'i' beside $regex", options)
        parts = []
        for operator, operand in operators.items():
            self._count(here)
            there = f"{here}.{operator[:120]}"
            if operator == "$options":
                continue
            if operator not in _OPERATORS:
                raise _unknown(operator, there, ", ".join(_OPERATORS))
            tried = self._pattern(operand, there, options) if operator == "$regex" else operand
            parts.append(self._operator(found, operator, tried, there, depth, top=top))
        kept = [part for part in parts if part != "true"]
        return f"({' AND '.join(kept)})" if kept else "true"

    def _operator(
        self, found: Column | PathField, operator: str, operand: Any, here: str, depth: int, *, top: bool
    ) -> str:
        """One operator on one field."""
        positive = {"$ne": "$eq", "$nin": "$in"}.get(operator)
        if operator == "$not":
            if depth > most("json_depth"):
                raise _bad(here, f"at most {most('json_depth')} levels", depth)
            if not isinstance(operand, dict) or not operand:
                raise _bad(here, "an object of operators", operand)
            return f"(NOT {self._operators(found, operand, here, depth + 1, top=False)})"
        if positive is not None:
            return f"(NOT {self._operator(found, positive, operand, here, depth, top=False)})"
        if operator == "$exists" and operand is False:
            present = self._operator(found, "$exists", not operand, here, depth, top=False)
            return f"(NOT {present})"
        if isinstance(found, PathField):
            return self._value(found, operator, operand, here, top=top)
        return self._column(found, operator, operand, here)

    # ---------------------------------------------------------------------------------- config and summary

    def _value(self, found: PathField, operator: str, operand: Any, here: str, *, top: bool) -> str:
        """`c.run` is among the runs of the field's relation whose value fits."""
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise _bad(here, "true or false", operand)
            below = "" if found.source == "summary" else self._below(found)
            return f"c.run IN ({self._relation(found)}{below})"
        if operator in ("$eq", "$in"):
            values = [operand] if operator == "$eq" else self._list(operand, here)
            if any(value is None for value in values):
                others = [value for value in values if value is not None]
                missing = (
                    f"c.run NOT IN (SELECT run FROM ({self._rows(found)}) WHERE number IS NOT NULL OR text IS NOT NULL)"
                )
                if not others:
                    return missing
                return f"({missing} OR {self._value(found, '$in', others, here, top=False)})"
            fits = " OR ".join(self._equal(value, here) for value in values) or "false"
        elif operator in _COMPARE:
            fits = self._ordered(operator, operand, here)
        elif operator == "$regex":
            fits = f"regexp_matches(text, {operand})"
        else:
            raise _unknown(operator, here, "the operators of config and summary values")
        relation = f"SELECT run FROM ({self._rows(found)}) WHERE {fits}"
        if top:
            # a plain join is the faster one: what a relation lacks is then not read of the next
            once = found.source == "config" or not self.rules().with_aggregate(found.key)[2]
            self.joins.append(f"{'' if once else 'SEMI '}JOIN ({relation}) USING (run)")
            return "true"
        return f"c.run IN ({relation})"

    def _rows(self, found: PathField) -> str:
        if found.source == "config":
            return config_relation(f"config.{found.key}", self.params)
        return summary_relation(found.key, self.rules(), self.params)

    def _relation(self, found: PathField) -> str:
        return f"SELECT run FROM ({self._rows(found)})"

    def _below(self, found: PathField) -> str:
        """Runs in which a config path is an object: it exists as its leaves do."""
        return (
            f" UNION ALL SELECT run FROM run_values WHERE starts_with(path, {self.params.add(f'config.{found.key}.')})"
        )

    def _equal(self, value: Any, here: str) -> str:
        """A condition over (number, text)."""
        if isinstance(value, bool):
            return f"(number = {int(value)} AND text = '{'true' if value else 'false'}')"
        if isinstance(value, int | float):
            number = f"number = {self.params.add(float(self._number(value, here)))}"
            if isinstance(value, int) and abs(value) > _EXACT:
                return f"({number} AND (text IS NULL OR text = {self.params.add(str(value))}))"
            return f"({number} AND text IS NULL)" if value in (0, 1) else number
        if isinstance(value, list) or value == {}:
            value = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
            return f"(text = {self.params.add(value)} AND number IS NULL)"
        if not isinstance(value, str):
            raise _bad(here, "a number, text, boolean, null or list, or an object of operators", value)
        text = f"text = {self.params.add(value)}"
        ambiguous = value in ("true", "false") or value.lstrip("-").isdigit()
        return f"({text} AND number IS NULL)" if ambiguous else text

    def _ordered(self, operator: str, value: Any, here: str) -> str:
        if isinstance(value, str):
            return f"(text {_COMPARE[operator]} {self.params.add(value)} AND number IS NULL)"
        number = self.params.add(float(self._number(value, here)))
        above = " AND NOT isnan(number)" if operator in ("$gt", "$gte") else ""
        return f"(number {_COMPARE[operator]} {number}{above})"

    # --------------------------------------------------------------------------------------------- columns

    def _column(self, found: Column, operator: str, operand: Any, here: str) -> str:
        if found.kind == "tags":
            return self._tags(operator, operand, here)
        sql = found.sql
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise _bad(here, "true or false", operand)
            return f"coalesce({sql}, '') <> ''" if found.kind == "text" else f"{sql} IS NOT NULL"
        if operator == "$regex":
            if found.kind != "text":
                raise _bad(here, "$regex on a text field", operand)
            return f"regexp_matches(coalesce({sql}, ''), {operand})"
        if operator in _COMPARE:
            return f"coalesce({sql} {_COMPARE[operator]} {self._operand(found, operand, here)}, false)"
        if operator in ("$eq", "$in"):
            values = [operand] if operator == "$eq" else self._list(operand, here)
            given = [self._operand(found, value, here) for value in values if value is not None]
            parts = [f"coalesce({sql} IN ({', '.join(given)}), false)"] if given else []
            if any(value is None for value in values):
                parts.append(f"coalesce({sql}, '') = ''" if found.kind == "text" else f"{sql} IS NULL")
            return f"({' OR '.join(parts) or 'false'})"
        raise _unknown(operator, here, "the operators of this field")

    def _operand(self, found: Column, value: Any, here: str) -> str:
        if found.kind == "text":
            if not isinstance(value, str):
                raise _bad(here, "text", value)
            return self.params.add(value)
        if found.kind == "time":
            return self.params.add(self._time_ms(value, here))
        return self.params.add(float(self._number(value, here)))

    def _tags(self, operator: str, operand: Any, here: str) -> str:
        """A plain value is contained; a list is all the tags, in any order; `$in` any of them; `$all` all of them."""
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise _bad(here, "true or false", operand)
            return "len(coalesce(c.tags, [])) > 0"
        if operator == "$regex":
            return f"coalesce(regexp_matches(array_to_string(c.tags, chr(10)), {operand}), false)"
        if operator == "$eq" and isinstance(operand, str):
            return f"coalesce(list_contains(c.tags, {self.params.add(operand)}), false)"
        if operator not in ("$eq", "$in", "$all"):
            raise _unknown(operator, here, "$eq, $ne, $in, $nin, $all, $exists, $regex, $not for tags")
        values = self._list(operand, here)
        if not all(isinstance(value, str) for value in values):
            raise _bad(here, "a list of texts", operand)
        given = f"{self.params.add(values)}::VARCHAR[]"
        if operator == "$in":
            return f"coalesce(list_has_any(c.tags, {given}), false)"
        exact = f" AND len(c.tags) = {len(set(values))}" if operator == "$eq" else ""
        return f"coalesce(list_has_all(c.tags, {given}){exact}, false)"

    # ---------------------------------------------------------------------------------------------- values

    def _list(self, operand: Any, here: str) -> list[Any]:
        if not isinstance(operand, list):
            raise _bad(here, "a list", operand)
        for _ in operand:
            self._count(here)
        return operand

    def _number(self, value: Any, here: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _bad(here, "a number", value)
        return value

    def _time_ms(self, value: Any, here: str) -> int:
        """ISO-8601 (UTC where it does not say), or an epoch number in s or ms."""
        if isinstance(value, str):
            try:
                when = datetime.fromisoformat(value)
                return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
            except (ValueError, OverflowError, OSError) as error:
                raise _bad(here, "an ISO-8601 time", value) from error
        number = self._number(value, here)
        ms = number if abs(number) >= _EPOCH_MS_FROM else number * 1000
        if abs(ms) >= 1 << 63:
            raise _bad(here, "a time", value)
        return round(ms)

    def _pattern(self, operand: Any, here: str, options: Any) -> str:
        """A regular expression (RE2), tried here so that a bad one is the caller's error."""
        if not isinstance(operand, str) or len(operand) > most("name_chars"):
            raise _bad(here, f"a regular expression of at most {most('name_chars')} characters", operand)
        pattern = f"(?i){operand}" if options == "i" else operand
        try:
            self.cursor.execute("SELECT regexp_matches('', $p)", {"p": pattern}).fetchall()
        except duckdb.InterruptException:
            raise
        except duckdb.Error as error:
            raise Invalid(
                f"expected a regular expression (RE2) at {here}, got {operand[:120]!r}: {str(error)[:200]}", where=here
            ) from error
        return self.params.add(pattern)

    def _count(self, where: str) -> None:
        self.nodes += 1
        if self.nodes > most("filter_nodes"):
            raise Invalid(
                f"expected a filter of at most {most('filter_nodes')} operators and values, got more at {where[:200]}",
                limit="filter_nodes",
                most=most("filter_nodes"),
                value=self.nodes,
            )


def parse_filters(text: str | None) -> Any:
    """The `filters` parameter.

    Raises:
        Invalid: it is no JSON.
    """
    if not text:
        return {}
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"expected filters to be JSON, got {text[:120]!r}: {error}", where="filters") from error


def _several(condition: Any, here: str) -> list[Any]:
    if not isinstance(condition, list) or not condition:
        raise _bad(here, "a list of at least one filter", condition)
    return condition


def _bad(where: str, expected: str, got: Any) -> Invalid:
    return Invalid(f"expected {expected} at {where[:300]}, got {repr(got)[:120]}", where=where[:300])


def _unknown(operator: str, where: str, known: str) -> Invalid:
    return Invalid(
        f"expected an operator at {where[:300]}, got {operator[:80]!r}", hint=f"known: {known}", where=where[:300]
    )
