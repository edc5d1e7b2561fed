"""The digest: equal for the same records however they came, different for anything else."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histories import HISTORIES, Said, doubled, folded, sample, shuffled, to_records
from icecore_projections.digest import Digest, digest
from icecore_projections.schema import TABLES, definitions

_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digest")


def fresh(folder: Path) -> Path:
    return folder / f"{next(_numbers)}.duckdb"


slow_examples = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow_examples
@given(history=HISTORIES, batch=st.integers(1, 7), compact=st.integers(0, 2))
def test_any_batching_gives_the_same_digest(folder: Path, history: list[Said], batch: int, compact: int) -> None:
    """However the records are cut into batches and compacted between them, the digest is the same."""
    records = to_records(history)
    whole = folded(records, fresh(folder))
    parts = folded(records, fresh(folder), batch=batch, compact=compact)
    assert parts.differing(whole) == []
    assert parts.hex == whole.hex


@slow_examples
@given(history=HISTORIES, seed=st.integers(0, 9), batch=st.integers(1, 9))
def test_duplicates_change_nothing(folder: Path, history: list[Said], seed: int, batch: int) -> None:
    """Records that clients sent again, at any later moment, leave the digest as it was."""
    records = to_records(history)
    once = folded(records, fresh(folder))
    again = folded(doubled(records, seed), fresh(folder), batch=batch)
    assert again.differing(once) == []


@slow_examples
@given(history=HISTORIES, seed=st.integers(0, 9), partitions=st.integers(1, 3), batch=st.integers(1, 9))
def test_any_interleaving_gives_the_same_digest(
    folder: Path, history: list[Said], seed: int, partitions: int, batch: int
) -> None:
    """However the runs' records lie between each other, in however many partitions, the digest is the same."""
    records = to_records(history)
    one = folded(records, fresh(folder))
    other = folded(shuffled(records, seed), fresh(folder), partitions=partitions, batch=batch)
    assert other.differing(one) == []


def test_no_records_give_a_digest_too(folder: Path) -> None:
    """An empty store has a digest of every table, all without rows."""
    empty = folded([], fresh(folder))
    assert {table.rows for table in empty.tables.values()} == {0}


# --------------------------------------------------------------------------------------------- what must differ


@pytest.fixture(scope="module")
def altered(folder: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, Digest]]:
    """A store with rows in every table, to be altered within a transaction, and its digest."""
    path = fresh(folder)
    before = folded(to_records(sample()), path)
    with contextlib.closing(duckdb.connect(path)) as con:
        yield con, before


ALTERATIONS = {
    "points": [
        "UPDATE points_hot SET value = value + 1e-15 WHERE off = (SELECT min(off) FROM points_hot) AND isfinite(value)",
        "UPDATE points_hot SET value = '-inf' WHERE isinf(value)",
        "UPDATE points_hot SET step = step + 1 WHERE off = 3",
        "UPDATE points_hot SET ts = ts + 1 WHERE off = 3",
        "DELETE FROM points_hot WHERE off = 3",
        "INSERT INTO points_hot SELECT * FROM points_hot WHERE off = 3",
    ],
    "system": ["UPDATE system_hot SET value = 0.75 WHERE value = 0.5"],
    "texts": ["UPDATE texts SET text = 'main' WHERE off = 3 AND text = 'warm'"],
    "console": ["UPDATE console SET text = 'One' WHERE text = 'one'", "UPDATE console SET line = line + 1"],
    "series": ["UPDATE series SET nans = nans + 1 WHERE key = 'acc'", "UPDATE series SET last_text = NULL"],
    "run_activity": ["UPDATE run_activity SET points = points + 1"],
    "run_values": [
        "UPDATE run_values SET number = NULL WHERE path = 'config.lr'",
        "UPDATE run_values SET text = '' WHERE path = 'config.lr'",
    ],
    "runs": ["UPDATE runs SET doc = replace(doc, '0.1', '0.2')", "DELETE FROM runs WHERE off = 0"],
    "current_runs": ["UPDATE current_runs SET state = 'failed'", "UPDATE current_runs SET tags = ['x']"],
    "producers": ["UPDATE producers SET intervals = '[[0, 1]]'"],
    "dead_letters": ["DELETE FROM dead_letters"],
    "rejections": ["UPDATE rejections SET reason = 'no'"],
    "skipped": ["UPDATE skipped SET n = n + 1"],
}


@pytest.mark.parametrize(
    ("table", "statement"), [(table, statement) for table, all_of in ALTERATIONS.items() for statement in all_of]
)
def test_any_alteration_is_seen(altered: tuple[duckdb.DuckDBPyConnection, Digest], table: str, statement: str) -> None:
    """One changed, missing or additional cell changes the digest of its table, and of no other."""
    con, before = altered
    con.begin()
    try:
        con.execute(statement)
        after = digest(con, begun=True)
    finally:
        con.rollback()
    assert after.differing(before) == [table]
    assert after.hex != before.hex
    assert digest(con).hex == before.hex


def test_values_of_two_series_are_not_interchangeable(altered: tuple[duckdb.DuckDBPyConnection, Digest]) -> None:
    """Giving two series each other's names changes the digest of the points, whose numbers stay the same."""
    con, before = altered
    con.begin()
    try:
        con.execute("UPDATE series SET key = CASE key WHEN 'loss' THEN 'acc' ELSE 'loss' END WHERE kind = 'metric'")
        after = digest(con, begun=True)
    finally:
        con.rollback()
    assert "points" in after.differing(before)


def test_offsets_and_numbers_do_not_count(altered: tuple[duckdb.DuckDBPyConnection, Digest]) -> None:
    """Where a record lies in the log, its series' number, and the signs of NaN and zero change nothing."""
    con, before = altered
    con.begin()
    try:
        for table, columns in TABLES.items():
            if " off BIGINT" in f" {columns}" and table not in ("runs", "current_runs"):
                con.execute(f"UPDATE {table} SET off = off + 1000")
            if "series INTEGER" in columns:
                con.execute(f"UPDATE {table} SET series = series + 7")
        con.execute("UPDATE points_hot SET value = -value WHERE isnan(value) OR value = 0")
        after = digest(con, begun=True)
    finally:
        con.rollback()
    assert after.differing(before) == []


def test_the_digest_is_the_same_everywhere(folder: Path) -> None:
    """A digest that was written down once is found again: on other machines, and with other versions of DuckDB."""
    found = folded(to_records(sample()), fresh(folder))
    written = Path(__file__).parent.parent / "golden" / "digest.txt"
    assert f"{found.hex}\n" == written.read_text()


def test_the_digest_sees_one_moment(folder: Path) -> None:
    """While another cursor writes, the digest and its token are those of one commit."""
    path = fresh(folder)
    before = folded(to_records(sample()), path)
    with contextlib.closing(duckdb.connect(path)) as con:
        reader, writer = con.cursor(), con.cursor()

        def disturb(table: str) -> None:
            writer.execute("UPDATE offsets SET next_offset = next_offset + 1")
            writer.execute(f"INSERT INTO console VALUES (1, 1, 1, 1, 'stdout', '{table}')")

        seen = digest(reader, progress=disturb)
        assert (seen.hex, seen.token) == (before.hex, before.token)
        assert digest(reader).token != before.token


def test_the_digest_is_fast() -> None:
    """A million points take the digest less time than counting them one by one in Python takes."""
    n = 1_000_000
    with contextlib.closing(duckdb.connect()) as con:
        for statement in definitions():
            con.execute(statement)
        con.execute(f"INSERT INTO points_sorted SELECT i % 100, i, 0, 0, i, NULL, random(), i FROM range({n}) t(i)")
        started = time.perf_counter()
        found = digest(con)
        took = time.perf_counter() - started
    started = time.perf_counter()
    total = 0
    for i in range(n):
        total += hash((i, math.sqrt(i)))
    in_python = time.perf_counter() - started
    assert found.tables["points"].rows == n
    assert took < 3 * in_python
