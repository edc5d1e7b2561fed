"""Filters in the Mongo style, against a second opinion in Python and against what people get wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icecore.errors import Invalid
from icecore.position import Place, Token
from icecore_api.context import Store
from icecore_api.deps import Deadline, Reading
from icecore_api.queries.filters import parse_filters
from icecore_api.queries.runs import Question, find
from icecore_projections.folds.run_row import RunRow, values
from icecore_projections.schema import INDEXES, definitions, name_number

NOW = 1_800_000_000_000
SILENT = NOW - 300_000
CREATED = 1_750_000_000_000

RUNS: dict[str, dict[str, Any]] = {
    "a": {"config": {"lr": 0.1, "opt": "adam", "flag": True, "net": {"depth": 3}}, "tags": ["x", "y"], "group": "g"},
    "b": {"config": {"lr": 1, "opt": "sgd", "flag": 1, "list": [1, 2]}, "tags": ["x"], "job_type": "train"},
    "c": {"config": {"lr": "auto", "opt": None, "big": (1 << 53) + 1}, "name": "Émile", "notes": "50% done"},
    "d": {"config": {"lr": {"value": 0.5}, "opt": "true", "empty": {}}, "state": "finished", "summary": {"loss": 0.5}},
    "e": {"summary": {"loss": 0.25, "why": "it's; DROP TABLE runs --"}, "state": "failed"},
}


@pytest.fixture(scope="module")
def reading() -> Iterator[Reading]:
    """A store's tables with the runs above; the metrics of `a` and `e` say loss 2.0."""
    con = duckdb.connect()
    for statement in definitions():
        con.execute(statement)
    for name, where in INDEXES.items():
        con.execute(f"CREATE INDEX {name} ON {where}")
    con.execute("INSERT INTO offsets VALUES ('ledger', 0, 1000, 0)")
    for i, (run_id, fields) in enumerate(RUNS.items()):
        heard = NOW if run_id == "a" else SILENT - 1
        row = RunRow(
            path=f"team/project/{run_id}", entity="team", project="project", id=run_id, user="ann",
            created_ts=CREATED + i * 1000, started_ts=CREATED, heard_ts=heard, off_first=i, off=i, **fields,
        )  # fmt: skip
        con.execute(
            "INSERT INTO current_runs BY NAME SELECT $run AS run, $off AS off_first, $entity AS entity, "
            '$project AS project, $id AS id, $name AS name, $group AS "group", $job_type AS job_type, $tags AS tags, '
            "$notes AS notes, $user AS username, $state AS state, $created AS created_ts, $started AS started_ts, "
            "$heard AS heard_ts, 0 AS runtime_ms, false AS deleted",
            {
                "run": row.number, "off": i, "entity": "team", "project": "project", "id": run_id, "name": row.name,
                "group": row.group, "job_type": row.job_type, "tags": row.tags, "notes": row.notes, "user": "ann",
                "state": row.state, "created": row.created_ts, "started": row.started_ts, "heard": heard,
            },
        )  # fmt: skip
        con.executemany(
            "INSERT INTO run_values VALUES (?, ?, ?, ?, ?)",
            [(row.number, *value, name_number(value.path)) for value in values(row)] or [(0, "", 0, "", 0)],
        )
        if run_id in "ae":
            con.execute(
                "INSERT INTO series BY NAME SELECT $i AS series, $run AS run, 'metric' AS kind, 'loss' AS key, "
                "2.0 AS last, 3 AS n, 0 AS nans, 9 AS last_step, $key AS key_number",
                {"i": i, "run": row.number, "key": name_number("loss")},
            )
    con.execute("CREATE TEMP TABLE ids AS SELECT run, id FROM current_runs")
    yield Reading(cast("Store", None), con, Token({Place("ledger", 0): len(RUNS)}), NOW, SILENT, cast("Deadline", None))
    con.close()


@pytest.fixture
def twin(reading: Reading) -> Iterator[None]:
    """Run `e` has a path and a key whose numbers are those of others."""
    con = reading.cursor
    (run,) = con.execute("SELECT run FROM ids WHERE id = 'e'").fetchall()[0]
    con.begin()
    con.execute("INSERT INTO run_values VALUES (?, 'config.twin', 0.1, NULL, ?)", [run, name_number("config.lr")])
    con.execute(
        "INSERT INTO series BY NAME SELECT 99 AS series, ? AS run, 'metric' AS kind, 'twin' AS key, 7.0 AS last, "
        "1 AS n, 0 AS nans, ? AS key_number",
        [run, name_number("acc")],
    )
    yield
    con.rollback()


def ids(reading: Reading, filters: Any, order: str = "id") -> list[str]:
    found = find(reading, Question("team", "project", filters, repr(filters), order, 100))
    known = dict(reading.cursor.execute("SELECT run, id FROM ids").fetchall())
    assert found.count == len(found.runs)
    return [known[run] for run in found.runs]


@pytest.mark.usefixtures("twin")
def test_two_names_of_one_number_are_two(reading: Reading) -> None:
    """A number only finds a path or key: values of another name with it are not the ones asked for."""
    assert ids(reading, {"config.lr": 0.1}) == ["a"]
    assert ids(reading, {"config.lr": {"$exists": False}}) == ["e"]
    assert ids(reading, {}, "-config.lr") == ["b", "a", "c", "d", "e"]
    assert ids(reading, {"summary_metrics.acc": 7}) == []
    assert ids(reading, {"summary_metrics.acc": {"$exists": True}}) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "abcde"),
        ({"config.lr": 0.1}, "a"),
        ({"config.lr": 1}, "b"),
        ({"config.lr": "auto"}, "c"),
        ({"config.lr": 0.5}, ""),
        ({"config.lr.value": 0.5}, "d"),
        ({"config.lr.value": 0.1}, "a"),
        ({"config.lr": {"$gt": 0.05, "$lt": 1}}, "a"),
        ({"config.lr": {"$gte": 0.1}}, "ab"),
        ({"config.lr": {"$gt": "a"}}, "c"),
        ({"config.lr": {"$ne": 1}}, "acde"),
        ({"config.lr": {"$in": [1, "auto", True]}}, "bc"),
        ({"config.lr": {"$nin": [1, "auto"]}}, "ade"),
        ({"config.lr": {"$exists": True}}, "abcd"),
        ({"config.lr": {"$exists": False}}, "e"),
        ({"config.net": {"$exists": True}}, "a"),
        ({"config.net.depth": {"$lte": 3}}, "a"),
        ({"config.flag": True}, "a"),
        ({"config.flag": 1}, "b"),
        ({"config.flag": {"$not": {"$eq": True}}}, "bcde"),
        ({"config.opt": None}, "ce"),
        ({"config.opt": {"$ne": None}}, "abd"),
        ({"config.opt": {"$in": [None, "sgd"]}}, "bce"),
        ({"config.opt": "true"}, "d"),
        ({"config.opt": True}, ""),
        ({"config.opt": {"$regex": "^a.am$"}}, "a"),
        ({"config.opt": {"$regex": "SGD", "$options": "i"}}, "b"),
        ({"config.opt": {"$not": {"$regex": "a"}}}, "bcde"),
        ({"config.list": [1, 2]}, "b"),
        ({"config.empty": {}}, "d"),
        ({"config.big": (1 << 53) + 1}, "c"),
        ({"config.big": (1 << 53) + 2}, ""),
        ({"summary_metrics.loss": {"$gt": 1}}, "a"),
        ({"summary.loss": {"$lt": 1}}, "de"),
        ({"summary_metrics.loss": {"$ne": 2}}, "bcde"),
        ({"summary.why": "it's; DROP TABLE runs --"}, "e"),
        ({"tags": "x"}, "ab"),
        ({"tags": {"$in": ["y", "z"]}}, "a"),
        ({"tags": {"$nin": ["y"]}}, "bcde"),
        ({"tags": {"$all": ["y", "x"]}}, "a"),
        ({"tags": ["x"]}, "b"),
        ({"tags": {"$ne": "x"}}, "cde"),
        ({"tags": {"$exists": False}}, "cde"),
        ({"state": "running"}, "a"),
        ({"state": "crashed"}, "bc"),
        ({"state": {"$in": ["finished", "failed"]}}, "de"),
        ({"group": "g"}, "a"),
        ({"group": None}, "bcde"),
        ({"jobType": "train"}, "b"),
        ({"job_type": {"$exists": False}}, "acde"),
        ({"display_name": {"$regex": "mile"}}, "c"),
        ({"name": "Émile"}, "c"),
        ({"username": "ann"}, "abcde"),
        ({"notes": {"$regex": "50%"}}, "c"),
        ({"id": {"$in": ["a", "e"]}}, "ae"),
        ({"created_at": {"$gt": "2025-06-15T15:06:41Z"}}, "cde"),
        ({"created_at": {"$lte": CREATED / 1000 + 1}}, "ab"),
        ({"createdAt": {"$gt": CREATED + 3000}}, "e"),
        ({"heartbeat_at": {"$gte": NOW}}, "a"),
        ({"$or": [{"config.lr": 1}, {"state": "failed"}]}, "be"),
        ({"$and": [{"tags": "x"}, {"$or": [{"config.opt": "sgd"}, {"config.opt": "lion"}]}]}, "b"),
        ({"$nor": [{"tags": "x"}, {"config.lr": "auto"}]}, "de"),
        ({"$not": {"tags": "x"}}, "cde"),
        ({"config.lr": {"$in": []}}, ""),
        ({"config.lr": {"$nin": []}}, "abcde"),
        ({"config.x' OR '1'='1": 1}, ""),
    ],
)
def test_filters_select_as_mongo_would(reading: Reading, filters: Any, expected: str) -> None:
    """Each filter selects the runs it says, missing values as in Mongo."""
    assert "".join(ids(reading, filters)) == expected


@pytest.mark.parametrize(
    ("filters", "where"),
    [
        ({"$and": [{"state": "x"}, {"config.lr": {"$foo": 1}}]}, "filters.$and[1].config.lr.$foo"),
        ({"$xor": []}, "filters.$xor"),
        ({"colour": 1}, "filters.colour"),
        ({"config.": 1}, "filters.config."),
        ({"$or": {}}, "filters.$or"),
        ({"$or": []}, "filters.$or"),
        ({"$or": [1]}, "filters.$or[0]"),
        ({"created_at": {"$gt": "yesterday"}}, "filters.created_at.$gt"),
        ({"created_at": {"$gt": 1e300}}, "filters.created_at.$gt"),
        ({"config.lr": {"$gt": None}}, "filters.config.lr.$gt"),
        ({"config.lr": {"$gt": True}}, "filters.config.lr.$gt"),
        ({"config.lr": {"$in": 1}}, "filters.config.lr.$in"),
        ({"config.lr": {"$exists": 1}}, "filters.config.lr.$exists"),
        ({"config.lr": {"$regex": "("}}, "filters.config.lr.$regex"),
        ({"config.lr": {"$regex": 1}}, "filters.config.lr.$regex"),
        ({"config.lr": {"$options": "i"}}, "filters.config.lr.$options"),
        ({"config.lr": {"$not": 1}}, "filters.config.lr.$not"),
        ({"config.lr": {"a": 1}}, "filters.config.lr"),
        ({"state": 5}, "filters.state"),
        ({"tags": 5}, "filters.tags"),
        ({"tags": {"$gt": "a"}}, "filters.tags.$gt"),
        ([], "filters"),
        ("x", "filters"),
    ],
)
def test_a_bad_filter_says_what_and_where(reading: Reading, filters: Any, where: str) -> None:
    """An unknown operator or field, or a bad value, is 422 and names its place."""
    with pytest.raises(Invalid, match="expected") as caught:
        ids(reading, filters)
    assert caught.value.facts["where"] == where


def test_large_and_deep_filters_are_refused(reading: Reading) -> None:
    """A filter over its node or depth limit is refused rather than tried."""
    with pytest.raises(Invalid, match="at most 256"):
        ids(reading, {"config.lr": {"$in": list(range(300))}})
    deep: Any = {"state": "x"}
    for _ in range(80):
        deep = {"$not": deep}
    with pytest.raises(Invalid, match="at most 64 levels"):
        ids(reading, deep)
    deep = {"$eq": 1}
    for _ in range(80):
        deep = {"$not": deep}
    with pytest.raises(Invalid, match="at most 64 levels"):
        ids(reading, {"config.lr": deep})
    with pytest.raises(Invalid, match="JSON"):
        parse_filters("{")


# ------------------------------------------------------------------------------------------- a second opinion

SCALARS = st.sampled_from([0.1, 1, 0, True, False, "auto", "true", "adam", None, 0.5, 3])
COMPARED = st.sampled_from([0.1, 1, 0, 0.5, 3, "auto", "b"])
NAMES = st.sampled_from(["config.lr", "config.opt", "config.flag", "config.net.depth", "config.nope", "summary.loss"])


def _operators() -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(lambda op, v: {op: v}, st.sampled_from(["$eq", "$ne"]), SCALARS),
        st.builds(lambda op, v: {op: v}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), COMPARED),
        st.builds(lambda op, v: {op: v}, st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=4)),
        st.builds(lambda v: {"$exists": v}, st.booleans()),
    )


CONDITIONS = st.one_of(SCALARS, _operators(), st.builds(lambda inner: {"$not": inner}, _operators()))
FILTERS = st.recursive(
    st.dictionaries(NAMES, CONDITIONS, min_size=1, max_size=3),
    lambda inner: st.builds(
        lambda name, parts: {name: parts},
        st.sampled_from(["$and", "$or", "$nor"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)

MISSING = object()


def leaf(run_id: str, name: str) -> Any:
    if name == "summary.loss":
        return RUNS[run_id].get("summary", {}).get("loss", 2.0 if run_id == "a" else MISSING)
    value: Any = RUNS[run_id].get("config", {})
    for part in name.removeprefix("config.").split("."):
        value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
    return value


def same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def holds(value: Any, operator: str, operand: Any) -> bool:
    if operator == "$eq":
        return value is MISSING or value is None or isinstance(value, dict) if operand is None else same(value, operand)
    if operator in ("$ne", "$nin"):
        return not holds(value, {"$ne": "$eq", "$nin": "$in"}[operator], operand)
    if operator == "$in":
        return any(holds(value, "$eq", one) for one in operand)
    if operator == "$exists":
        return (value is not MISSING) == operand
    if operator == "$not":
        return not all(holds(value, *each) for each in operand.items())
    number = isinstance(value, int | float)
    if value is MISSING or value is None or isinstance(value, dict) or isinstance(operand, str) == number:
        return False
    return {"$gt": value > operand, "$gte": value >= operand, "$lt": value < operand, "$lte": value <= operand}[
        operator
    ]


def matches(run_id: str, filters: dict[str, Any]) -> bool:
    for name, condition in filters.items():
        if name in ("$and", "$or", "$nor"):
            each = [matches(run_id, one) for one in condition]
            good = {"$and": all(each), "$or": any(each), "$nor": not any(each)}[name]
        else:
            operators = condition if isinstance(condition, dict) else {"$eq": condition}
            good = all(holds(leaf(run_id, name), *each) for each in operators.items())
        if not good:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(FILTERS)
def test_filters_agree_with_a_second_opinion(reading: Reading, filters: dict[str, Any]) -> None:
    """Any combination of operators selects what a plain reading of the rules in Python does."""
    assert ids(reading, filters) == [run_id for run_id in RUNS if matches(run_id, filters)]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_reaches_the_sql(reading: Reading, name: str, value: str) -> None:
    """Any key, value or pattern is data: it finds nothing, or is refused."""
    for filters in ({f"config.{name}": value}, {f"summary.{name}": {"$regex": value}}, {name: value}, {"notes": value}):
        for order in ("name", f"config.{name}", f"-summary.{name}"):
            try:
                found = ids(reading, filters, order)
            except Invalid as error:
                assert re.match("expected", error.message)  # noqa: PT017 - it may be refused or not
            else:
                assert set(found) <= set(RUNS)
