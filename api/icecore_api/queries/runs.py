# ruff: noqa: S608 - the texts are fixed, and what callers send goes through Params
"""The runs of a project: found, ordered, paged, counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import duckdb

from icecore.errors import Invalid
from icecore.limits import most
from icecore.position import LEDGER, Place
from icecore_api.deps import Reading
from icecore_api.queries.filters import Compiled, Compiler
from icecore_api.queries.order import Cursor, beyond, ordering, question_of, read_cursor, write_cursor
from icecore_api.queries.values import Params, Rules


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a project's runs."""

    entity: str
    project: str
    filters: Any
    filters_text: str
    """The filters as they came: a cursor belongs to them."""
    order: str = "-created_at"
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A page of run numbers, in order."""

    runs: list[int]
    cursor: str | None
    count: int


@dataclass(slots=True)
class Matching:
    """The runs that match a filter, as SQL that a statement may start from."""

    reading: Reading
    question: Question
    params: Params = field(default_factory=Params)
    _rules: Rules | None = None
    compiled: Compiled | None = None

    def rules(self) -> Rules:
        """The project's define_metric, read once and only if it matters."""
        if self._rules is None:
            self._rules = Rules.of_project(self.reading.cursor, self.question.entity, self.question.project)
        return self._rules

    def sql(self, columns: str, *, joins: str = "", activity: bool = False, where: str = "") -> str:
        """`SELECT columns` over the matching runs: `c` is current_runs, `a` run_activity where it is needed."""
        if self.compiled is None:
            compiler = Compiler(self.params, self.rules, self.reading.cursor)
            self.compiled = compiler.compile(self.question.filters)
        compiled = self.compiled
        source = " ".join(["current_runs c", *compiled.joins])
        if activity or compiled.activity:
            source += " LEFT JOIN run_activity a USING (run)"
        entity = self.params.fixed("entity", self.question.entity)
        project = self.params.fixed("project", self.question.project)
        conditions = [f"c.entity = {entity}", f"c.project = {project}", "NOT c.deleted"]
        conditions += [each for each in (compiled.where, where) if each not in ("", "true")]
        return f"SELECT {columns} FROM {source} {joins} WHERE {' AND '.join(conditions)}"

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement over the matching runs."""
        self.params.fixed("crashed_before", self.reading.crashed_before_ms)
        try:
            return self.reading.cursor.execute(sql, self.params.used_by(sql)).fetchall()
        except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:
            raise Invalid(f"expected values that fit their fields, got {str(error)[:200]}", where="filters") from error


def find(reading: Reading, question: Question) -> Found:
    """One page, and how many match in all.

    Raises:
        Invalid: a bad filter, order, limit or cursor.
    """
    if not 0 <= question.limit <= most("page_runs"):
        raise Invalid(
            f"expected a limit of 0 to {most('page_runs')} runs, got {question.limit}",
            limit="page_runs",
            most=most("page_runs"),
            value=question.limit,
        )
    matching = Matching(reading, question)
    if question.limit == 0:
        return Found([], None, _count(matching))
    order = ordering(question.order, matching.rules, matching.params)
    asked = question_of(question.entity, question.project, question.filters_text, question.order)
    cursor = read_cursor(question.cursor, asked, len(order.keys)) if question.cursor else None
    as_of = cursor.as_of if cursor else reading.position.next_offset(Place(LEDGER, 0))
    names = [f"k{i}" for i in range(len(order.keys))]
    falls = [key.descending for key in order.keys]
    columns = ", ".join(["c.run", *(f"{key.sql} AS {name}" for key, name in zip(order.keys, names, strict=True))])
    inside = matching.sql(
        columns,
        joins=" ".join(order.joins),
        activity=order.activity,
        where=f"c.off_first < {matching.params.add(as_of)}",
    )
    after = f"WHERE {beyond(names, falls, cursor, matching.params)}" if cursor else ""
    by = ", ".join(
        [*(f"{name} {'DESC' if fall else 'ASC'} NULLS LAST" for name, fall in zip(names, falls, strict=True)), "run"]
    )
    rows = matching.run(
        f"SELECT run, matching, {', '.join(names)} "
        f"FROM (SELECT *, count(*) OVER () AS matching FROM ({inside})) {after} "
        f"ORDER BY {by} LIMIT {question.limit + 1}"
    )
    if not rows:
        return Found([], None, _count(matching) if cursor else 0)
    page = rows[: question.limit]
    following = None
    if len(rows) > question.limit:
        last = page[-1]
        following = write_cursor(Cursor(asked, as_of, last[0], list(last[2:])))
    return Found([row[0] for row in page], following, rows[0][1])


def _count(matching: Matching) -> int:
    """How many match, where the last page turned out empty."""
    return int(matching.run(matching.sql("count(*)"))[0][0])
