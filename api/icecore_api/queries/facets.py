"""Facets: how many of the matching runs have each value of a field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from icecore.errors import Invalid
from icecore_api.queries.fields import Column, field_named
from icecore_api.queries.runs import Matching
from icecore_api.queries.values import config_relation, summary_relation

FACETS_MOST: Final = 16
VALUES_MOST: Final = 100


def facets(matching: Matching, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The most frequent values of each field, and their counts; null is for runs without one.

    Raises:
        Invalid: an unknown field, or too many.
    """
    if len(names) > FACETS_MOST:
        raise Invalid(f"expected at most {FACETS_MOST} facets, got {len(names)}", where="facets")
    return {name: _facet(matching, name) for name in names}


def _facet(matching: Matching, name: str) -> list[dict[str, Any]]:
    field = field_named(name, "facets")
    joins, activity = "", False
    if isinstance(field, Column):
        activity = field.activity
        # a run without tags counts once, as null
        value = (
            f"unnest(CASE WHEN len({field.sql}) > 0 THEN {field.sql} ELSE [NULL] END)"
            if field.kind == "tags"
            else field.sql
        )
        columns = (
            f"{value} AS v, NULL::VARCHAR AS t"
            if field.kind not in ("text", "tags")
            else f"NULL::DOUBLE AS v, {value} AS t"
        )
    else:
        path = f"config.{field.key}"
        relation = (
            config_relation(path, matching.params)
            if field.source == "config"
            else summary_relation(field.key, matching.rules(), matching.params)
        )
        joins = f"LEFT JOIN ({relation}) f USING (run)"
        columns = "f.number AS v, f.text AS t"
    inside = matching.sql(columns, joins=joins, activity=activity)
    rows = matching.run(
        f"SELECT v, t, count(*) AS n FROM ({inside}) GROUP BY v, t "  # noqa: S608 - fixed texts and parameters
        f"ORDER BY n DESC, v NULLS LAST, t NULLS LAST LIMIT {VALUES_MOST}"
    )
    return [{"value": _value(number, text), "count": count} for number, text, count in rows]


def _value(number: float | None, text: str | None) -> Any:
    if number is None:
        return text
    if text in ("true", "false"):
        return text == "true"
    return number
