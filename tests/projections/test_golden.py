"""Golden cases: the same records make the same rows, in this release and in every later one."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

import goldens


@pytest.mark.parametrize("name", goldens.CASES)
@pytest.mark.parametrize("batch", [1, 5_000])
def test_records_make_the_rows_that_were_written_down(tmp_path: Path, name: str, batch: int) -> None:
    """Folded one by one or all at once, a case's records make exactly the rows of its file."""
    case = goldens.load(name)
    found = orjson.loads(orjson.dumps(goldens.rows(case, tmp_path / "store.duckdb", batch=batch)))
    assert found == case["rows"]
    # -0.0 == 0.0: what people see of the two differs
    assert orjson.dumps(found, option=orjson.OPT_SORT_KEYS) == orjson.dumps(case["rows"], option=orjson.OPT_SORT_KEYS)


def test_every_table_has_a_case() -> None:
    """Each table that a fold writes has rows in some case, and each case says what it is about."""
    cases = [goldens.load(name) for name in goldens.CASES]
    assert all(case["about"].endswith(".") for case in cases)
    assert {table for case in cases for table in case["rows"]} == set(goldens.QUERIES)
