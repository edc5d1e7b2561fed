# ruff: noqa: S608 - the texts are fixed, and what callers send goes through Params
"""Config and summary values as relations: (run, number, text), one row a run.

A summary value is what was set by hand (`run_values`), else what the metrics give (`series`) by the run's
define_metric: last unless it says otherwise. Of a key that logged both numbers and texts, the numbers count.
Several aggregations ("min,max") give `KEY.min` and `KEY.max`, and `KEY` stays the last value.

Nothing a caller sent ever becomes part of the SQL text: `Params` turns it into a named parameter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

import duckdb
import orjson

from icecore.limits import most
from icecore_projections.schema import name_number

_PARAMETER: Final = re.compile(r"\$(\w+)")

AGGREGATES: Final[Mapping[str, str]] = {
    "last": "{s}.last",
    "min": "{s}.least",
    "max": "{s}.most",
    "mean": "{s}.total / nullif({s}.n - {s}.nans, 0)",
    "first": "{s}.first",
    "none": "NULL::DOUBLE",
}
"""A mode of define_metric -> its SQL over `series`, by the alias it has."""


@dataclass(slots=True)
class Params:
    """The parameters of one statement, by name."""

    values: dict[str, Any] = field(default_factory=dict)

    def add(self, value: Any) -> str:
        """Take a value in; returns what stands for it in the SQL."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"${name}"

    def used_by(self, sql: str) -> dict[str, Any]:
        """Those that a statement names: DuckDB refuses others."""
        named = set(_PARAMETER.findall(sql))
        return {name: value for name, value in self.values.items() if name in named}

    def fixed(self, name: str, value: Any) -> str:
        """A value used in many places: one parameter."""
        self.values[name] = value
        return f"${name}"


def at_path(path: str, params: Params) -> str:
    """The condition of a path's rows in `run_values`: its number finds them, its name is what counts."""
    return f"path_number = {name_number(path)} AND path = {params.add(path)}"


def of_key(key: str, params: Params, series: str = "") -> str:
    """The condition of a key's rows in `series`, by the alias it has."""
    dot = f"{series}." if series else ""
    return f"{dot}key_number = {name_number(key)} AND {dot}key = {params.add(key)}"


def modes_of(metrics: Mapping[str, Mapping[str, str]], key: str) -> tuple[str, ...]:
    """The modes define_metric gives a key: of its own name first, else of the first glob that fits."""
    rule = metrics.get(key)
    if rule is None:
        rule = next((metrics[glob] for glob in sorted(metrics) if "*" in glob and fnmatchcase(key, glob)), {})
    said = rule.get("summary") or "last"
    modes = tuple(dict.fromkeys(mode.strip() for mode in said.split(",")))
    known = tuple(mode for mode in modes if mode in AGGREGATES)
    return known or ("last",)


def plain_mode(modes: Sequence[str]) -> str:
    """The mode of the key's own summary value."""
    return modes[0] if len(modes) == 1 else "last"


@dataclass(frozen=True, slots=True)
class Rules:
    """Every distinct define_metric of a project, as its JSON and parsed."""

    docs: Mapping[str, Mapping[str, Mapping[str, str]]]
    cursor: duckdb.DuckDBPyConnection

    @classmethod
    def of_project(cls, cursor: duckdb.DuckDBPyConnection, entity: str, project: str) -> Rules:
        """Read them: few, however many runs there are."""
        rows = cursor.execute(
            "SELECT DISTINCT metrics FROM current_runs WHERE entity = $e AND project = $p AND metrics IS NOT NULL",
            {"e": entity, "p": project},
        ).fetchall()
        return cls({doc: orjson.loads(doc) for (doc,) in sorted(rows)}, cursor)

    @classmethod
    def of_runs(cls, cursor: duckdb.DuckDBPyConnection, runs: Sequence[int]) -> Rules:
        """Read those of some runs."""
        rows = cursor.execute(
            "SELECT DISTINCT metrics FROM current_runs WHERE run IN (SELECT unnest($runs)) AND metrics IS NOT NULL",
            {"runs": list(runs)},
        ).fetchall()
        return cls({doc: orjson.loads(doc) for (doc,) in sorted(rows)}, cursor)

    def sources(self, key: str) -> tuple[bool, bool]:
        """Whether any run set the key's summary by hand, and whether any logged it as text or boolean.

        A look-up (1 ms) that mostly spares a statement two joins (several ms).
        """
        params = Params()
        sql = (
            f"(SELECT 0 FROM run_values WHERE {at_path(f'summary.{key}', params)} LIMIT 1) UNION ALL "
            f"(SELECT 1 FROM series WHERE {of_key(key, params)} AND kind IN ('text', 'bool') LIMIT 1)"
        )
        found = {which for (which,) in self.cursor.execute(sql, params.values).fetchall()}
        return 0 in found, 1 in found

    def by_mode(self, key: str) -> dict[str, list[str]]:
        """Modes other than last -> the documents in which the key has it."""
        found: dict[str, list[str]] = {}
        for doc, metrics in self.docs.items():
            mode = plain_mode(modes_of(metrics, key))
            if mode != "last":
                found.setdefault(mode, []).append(doc)
        return found

    def with_aggregate(self, key: str) -> tuple[str, str, list[str]]:
        """`loss.min` -> ("loss", "min", the documents in which loss has several modes and min is one)."""
        base, _, mode = key.rpartition(".")
        if not base or mode not in AGGREGATES or mode == "none":
            return "", "", []
        docs = []
        for doc, metrics in self.docs.items():
            modes = modes_of(metrics, base)
            if len(modes) > 1 and mode in modes:
                docs.append(doc)
        return base, mode, docs


def config_relation(path: str, params: Params) -> str:
    """`config.x`; `config.x.value`, as wandb spells it, is also `config.x`."""
    here = at_path(path, params)
    found = f"SELECT run, number, text FROM run_values WHERE {here}"
    if not path.endswith(".value") or path.count(".") < 2:
        return found
    plain = at_path(path.removesuffix(".value"), params)
    return (
        f"{found} UNION ALL SELECT run, number, text FROM run_values WHERE {plain} "
        f"AND run NOT IN (SELECT run FROM run_values WHERE {here})"
    )


def summary_relation(key: str, rules: Rules, params: Params) -> str:
    """`summary.KEY` of every run that has it; what no run has is left out of the SQL."""
    by_hand, texts = rules.sources(key)
    here, mine = at_path(f"summary.{key}", params), of_key(key, params)
    free = f"AND s.run NOT IN (SELECT run FROM run_values WHERE {here})" if by_hand else ""
    mode, join = mode_sql(key, rules, params)
    metric = (
        f"SELECT s.run, {mode} AS number, NULL::VARCHAR AS text FROM series s {join} "
        f"WHERE s.kind = 'metric' AND {of_key(key, params, 's')} {free}"
    )
    parts = [metric]
    if by_hand:
        parts.append(f"SELECT run, number, text FROM run_values WHERE {here}")
    if texts:
        parts.append(
            f"SELECT s.run, s.number, s.text FROM ({text_relation(key, rules, params)}) s "
            f"WHERE s.run NOT IN (SELECT run FROM series WHERE kind = 'metric' AND {mine}) {free}"
        )
    base, aggregate, docs = rules.with_aggregate(key)
    if docs:
        parts.append(
            f"SELECT s.run, {AGGREGATES[aggregate].format(s='s')}, NULL FROM series s "
            f"JOIN current_runs m ON m.run = s.run WHERE s.kind = 'metric' AND {of_key(base, params, 's')} "
            f"AND m.metrics IN ({names(docs, params)}) {free}"
        )
    return " UNION ALL ".join(parts)


def mode_sql(key: str, rules: Rules, params: Params, series: str = "s", runs: str = "") -> tuple[str, str]:
    """The SQL of a metric's summary over `series`, and the join it needs; `runs` names a joined current_runs."""
    last = AGGREGATES["last"].format(s=series)
    by_mode = rules.by_mode(key)
    if not by_mode:
        return last, ""
    metrics = runs or "m"
    cases = " ".join(
        f"WHEN {metrics}.metrics IN ({names(docs, params)}) THEN {AGGREGATES[mode].format(s=series)}"
        for mode, docs in sorted(by_mode.items())
    )
    return f"CASE {cases} ELSE {last} END", "" if runs else f"JOIN current_runs m ON m.run = {series}.run"


def text_relation(key: str, rules: Rules, params: Params) -> str:
    """The last text or boolean of a key, of the runs that logged one and whose mode is not none."""
    silent = [doc for mode, docs in rules.by_mode(key).items() if mode == "none" for doc in docs]
    hidden = ""
    if silent:
        chosen = ", ".join(params.add(doc) for doc in silent)
        hidden = f"AND run NOT IN (SELECT run FROM current_runs WHERE metrics IN ({chosen}))"
    return (
        "SELECT run, arg_max(CASE WHEN kind = 'bool' THEN (last_text = 'true')::INT::DOUBLE END, last_step) AS number, "
        "arg_max(last_text, last_step) AS text "
        f"FROM series WHERE kind IN ('text', 'bool') AND {of_key(key, params)} {hidden} GROUP BY run"
    )


class TooWide(Exception):
    """The summaries of these runs are too much for one answer: ask for fewer runs."""


SUMMARY_KEYS_MOST: Final = 2 * most("metric_keys")
"""Summary values in one page, so that any one run fits: 50 runs of 100,000 keys would take gigabytes."""
_ROWS_MOST: Final = SUMMARY_KEYS_MOST + 1


def summaries(
    cursor: duckdb.DuckDBPyConnection, runs: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[int, dict[str, Any]]:
    """The whole summary of some runs, by dotted key.

    Args:
        cursor: of the store.
        runs: run number -> (its explicit summary, its define_metric).

    Raises:
        TooWide: of several runs, they are more than `SUMMARY_KEYS_MOST`.
    """
    plain = [run for run, (_, metrics) in runs.items() if not metrics]
    ruled = [run for run, (_, metrics) in runs.items() if metrics]
    found: dict[int, dict[str, Any]] = {run: {} for run in runs}
    if plain:
        rows = cursor.execute(
            f"SELECT run, kind, key, last, last_text FROM {_series_of(plain)} WHERE kind <> 'system' LIMIT {_ROWS_MOST}"
        ).fetchall()
        _check_width(rows, runs)
        for run, kind, key, last, text in rows:
            if kind == "metric":
                found[run][key] = _named(last)
            else:
                found[run].setdefault(key, _logged(kind, text))
    if ruled:
        _by_rules(cursor, {run: runs[run][1] for run in ruled}, found)
    for run, (explicit, _) in runs.items():
        found[run].update(explicit)
    return found


def _by_rules(
    cursor: duckdb.DuckDBPyConnection,
    metrics: Mapping[int, Mapping[str, Any]],
    found: Mapping[int, dict[str, Any]],
) -> None:
    """Summaries of runs that define their metrics."""
    modes = [mode for mode in AGGREGATES if mode != "none"]
    columns = ", ".join(AGGREGATES[mode].format(s="s") for mode in modes)
    rows = cursor.execute(
        f"SELECT s.run, s.kind, s.key, s.last_text, {columns} FROM {_series_of(metrics)} s "
        f"WHERE s.kind <> 'system' LIMIT {_ROWS_MOST}"
    ).fetchall()
    _check_width(rows, found)
    for run, kind, key, text, *numbers in rows:
        wanted = modes_of(metrics[run], key)
        if plain_mode(wanted) == "none":
            continue
        if kind != "metric":
            found[run].setdefault(key, _logged(kind, text))
            continue
        values = dict(zip(modes, map(_named, numbers), strict=True))
        found[run][key] = values[plain_mode(wanted)]
        if len(wanted) > 1:
            found[run].update({f"{key}.{mode}": values[mode] for mode in wanted if mode in values})


def _series_of(runs: Iterable[int]) -> str:
    """The series of some runs as a relation of one condition on numbers: only then the index on `run` serves it."""
    return f"(SELECT * FROM series WHERE run IN ({', '.join(str(int(run)) for run in runs)}) OFFSET 0)"


def _check_width(rows: Sequence[object], runs: Mapping[int, object]) -> None:
    if len(rows) > SUMMARY_KEYS_MOST and len(runs) > 1:
        raise TooWide


def _named(value: float | None) -> float | str | None:
    """NaN and the infinities by their names, as everywhere in the API's JSON, which has no numbers for them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _logged(kind: str, text: str | None) -> Any:
    return text == "true" if kind == "bool" else text


def names(values: Iterable[Any], params: Params) -> str:
    """Several values, as a list for IN."""
    return ", ".join(params.add(value) for value in values)
