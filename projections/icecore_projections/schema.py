"""The tables of the store: what the folds write and the queries read.

Conventions: `run` is `run_number(path)`, `off` the offset of the record that made the row (in the stream that the
table is folded from), times are ms since 1970 UTC, every table's comment says which stream makes it. Streams
commute: no table is written from two streams.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

FORMAT: Final = 5
"""Raised whenever tables or folds change so that an old store must be rebuilt from the log."""

TABLES: Final[dict[str, str]] = {
    # ---- the runner's own
    "meta": "key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL",  # format, log_id, last STREAM:PART
    "offsets": "stream VARCHAR, part INTEGER, next_offset BIGINT, ts_server BIGINT, PRIMARY KEY (stream, part)",
    # applied sequence numbers of each producer, as JSON [[first, last], …]: more than one interval is a gap
    "producers": "stream VARCHAR, part INTEGER, producer VARCHAR, key VARCHAR, intervals VARCHAR, duplicates BIGINT, "
    "PRIMARY KEY (stream, part, producer)",
    "dead_letters": "stream VARCHAR, part INTEGER, off BIGINT, id VARCHAR, type VARCHAR, key VARCHAR, "
    "reason VARCHAR, attempts INTEGER, ts_server BIGINT",
    # what a fold decided against: readable, well-formed, but not to be applied
    "rejections": "stream VARCHAR, part INTEGER, off BIGINT, id VARCHAR, type VARCHAR, key VARCHAR, reason VARCHAR",
    "skipped": "stream VARCHAR, part INTEGER, type VARCHAR, v INTEGER, n BIGINT",
    # ---- ledger: runs. `runs` keeps every version of a row, `current_runs` the last one
    "runs": "run BIGINT, off BIGINT, doc VARCHAR",
    "current_runs": "run BIGINT PRIMARY KEY, off BIGINT, off_first BIGINT, entity VARCHAR, project VARCHAR, "
    'id VARCHAR, name VARCHAR, "group" VARCHAR, job_type VARCHAR, tags VARCHAR[], notes VARCHAR, username VARCHAR, '
    "state VARCHAR, exit_code INTEGER, created_ts BIGINT, started_ts BIGINT, finished_ts BIGINT, runtime_ms BIGINT, "
    "heard_ts BIGINT, deleted BOOLEAN, doc VARCHAR, metrics VARCHAR",  # the doc's metrics as JSON; NULL where empty
    # config.* and explicitly set summary.* values, one row a leaf, kept roughly sorted by (path_number, run) (resorted
    # when the unsorted tail is large): booleans are number 0/1 with text 'true'/'false'. `path_number` is
    # `name_number(path)`: the file knows of a text only the first 8 bytes of the least and the most, so that paths
    # that begin alike are not told apart without reading them, and numbers are
    "run_values": "run BIGINT, path VARCHAR, number DOUBLE, text VARCHAR, path_number BIGINT",
    # ---- ledger: artifacts. `collections` and `versions` keep every row, `current_…` the last one of each
    "collections": "artifact BIGINT, off BIGINT, doc VARCHAR",
    "current_collections": "artifact BIGINT PRIMARY KEY, off BIGINT, off_first BIGINT, entity VARCHAR, "
    "project VARCHAR, name VARCHAR, type VARCHAR, versions INTEGER, created_ts BIGINT, username VARCHAR, doc VARCHAR",
    "versions": "artifact BIGINT, version INTEGER, off BIGINT, doc VARCHAR",
    "current_versions": "artifact BIGINT, version INTEGER, off BIGINT, off_first BIGINT, digest VARCHAR, "
    "files BIGINT, size BIGINT, tags VARCHAR[], username VARCHAR, created_ts BIGINT, updated_ts BIGINT, "
    "deleted BOOLEAN, doc VARCHAR, PRIMARY KEY (artifact, version)",
    # where each alias went; the aliases as they are now are in the collection's doc
    "alias_moves": "artifact BIGINT, alias VARCHAR, version INTEGER, version_before INTEGER, off BIGINT, ts BIGINT, "
    "username VARCHAR, credential VARCHAR, reason VARCHAR",
    # retention: what is said of teams, projects, artifacts and versions (time to live, holds, protected aliases)
    "scopes": "scope BIGINT, off BIGINT, doc VARCHAR",
    "current_scopes": "scope BIGINT PRIMARY KEY, off BIGINT, off_first BIGINT, path VARCHAR, ttl BIGINT, "
    "holds INTEGER, doc VARCHAR",
    # what keeps a version from deletion besides: kind is link or bundle, the last row of each says whether it does
    "artifact_keeps": "artifact BIGINT, version INTEGER, kind VARCHAR, keeper VARCHAR, kept BOOLEAN, off BIGINT, "
    "ts BIGINT, username VARCHAR",
    # what was to be erased and what was: the digests are in the log, at `off`
    "erasures": "plan VARCHAR, kind VARCHAR, off BIGINT, ts BIGINT, username VARCHAR, blobs BIGINT, bytes BIGINT, "
    "done BOOLEAN",  # kind: erasing or erased
    # lineage: a run logged or used a version, files of it lie at a URI (refers), it is part of a bundle, or it is
    # linked into a collection; `path` is the run's, the URI, or that other version as entity/project/name:v3, and
    # `run` the number of that text
    "artifact_edges": "run BIGINT, path VARCHAR, artifact BIGINT, version INTEGER, kind VARCHAR, alias VARCHAR, "
    "off BIGINT, ts BIGINT",
    # registries: what happened to each promotion; `checks` is JSON, how they came out. Of a roll back, `version` is
    # what the alias names again
    "promotions": "artifact BIGINT, path VARCHAR, promotion VARCHAR, step VARCHAR, alias VARCHAR, version INTEGER, "
    "off BIGINT, ts BIGINT, username VARCHAR, credential VARCHAR, reason VARCHAR, checks VARCHAR",
    # versions of several writers: manifests of parts, and ends (kind finished), which take the parts before `upto`
    "draft_parts": "artifact BIGINT, distributed_id VARCHAR, kind VARCHAR, digest VARCHAR, upto BIGINT, run VARCHAR, "
    "off BIGINT, ts BIGINT, username VARCHAR",
    # ---- metrics: one row a run that logged anything
    "run_activity": "run BIGINT, path VARCHAR, first_ts BIGINT, heard_ts BIGINT, last_step BIGINT, points BIGINT, "
    "rows_seen BIGINT, console_lines BIGINT, off BIGINT",
    # one row a (run, kind, key): its number in the points tables, and its running statistics (NaN left out of
    # min, max and total; last is the value at the highest step, of equals the later). Resorted by (key_number, kind,
    # run) when the unsorted tail is large: one key of 100,000 runs is read in 2 ms then, in 20 ms in arrival order.
    # `key_number` is `name_number(key)`. `last` lies uncompressed, since a page of runs reads it row by row: of a
    # compressed column each row unpacks a thousand others
    "series": "series INTEGER, run BIGINT, kind VARCHAR, key VARCHAR, n BIGINT, nans BIGINT, least DOUBLE, "
    "most DOUBLE, total DOUBLE, first_step BIGINT, first DOUBLE, last_step BIGINT, "
    "last DOUBLE USING COMPRESSION uncompressed, last_text VARCHAR, last_ts BIGINT, off BIGINT, key_number BIGINT",
    # texts and booleans of history
    "texts": "series INTEGER, step BIGINT, ts BIGINT, text VARCHAR, off BIGINT",
    "console": "run BIGINT, off BIGINT, line INTEGER, ts BIGINT, stream VARCHAR, text VARCHAR",
}

_POINTS: Final = "series INTEGER, step BIGINT, ts BIGINT, value DOUBLE, off BIGINT"

# How a piece holds its points: `ts` as what is left over from a straight line (`clock + pace * step`, a line for each
# series of a piece), and the values of a series that float32 holds exactly as float32. The other value is NULL.
_SORTED: Final = (
    "series INTEGER, step BIGINT, clock BIGINT, pace INTEGER, late BIGINT, value32 FLOAT, value64 DOUBLE, off BIGINT"
)
_COLD: Final = (
    "SELECT rowid AS rowid, series, step, clock + pace * step + late AS ts, "
    "coalesce(value32::DOUBLE, value64) AS value, off FROM {}"
)

# The same for what a bucket of the rollup says: its first and last time lie on the line of its series, and its least,
# most and last value are values of the series.
_ROLLED: Final = (
    "series INTEGER, step_first BIGINT, step_last BIGINT, clock BIGINT, pace INTEGER, late_first BIGINT, "
    "late_last BIGINT, n INTEGER, nans INTEGER, least32 FLOAT, least64 DOUBLE, most32 FLOAT, most64 DOUBLE, "
    "total DOUBLE, last32 FLOAT, last64 DOUBLE, off_last BIGINT"
)
_ROLLUP: Final = (
    "SELECT rowid AS rowid, series, step_first, step_last, clock + pace * step_first + late_first AS ts_first, "
    "clock + pace * step_last + late_last AS ts_last, n, nans, coalesce(least32::DOUBLE, least64) AS least, "
    "coalesce(most32::DOUBLE, most64) AS most, total, coalesce(last32::DOUBLE, last64) AS last, off_last FROM {}"
)

VIEWS: Final[dict[str, str]] = {}

# `points` are the history's numbers, `system` the system metrics: their clock is ts, and they would halve the
# density of the others' row groups. Hot: arrival order. Sorted: pieces, each by (series, step); cold: the same as
# points to be read. Rolled: every 64 consecutive points of a series within a piece; rollup: the same to be read.
for _kind in ("points", "system"):
    TABLES[f"{_kind}_hot"] = _POINTS
    TABLES[f"{_kind}_sorted"] = _SORTED
    TABLES[f"{_kind}_rolled"] = _ROLLED
    VIEWS[f"{_kind}_cold"] = _COLD.format(f"{_kind}_sorted")
    VIEWS[f"{_kind}_rollup"] = _ROLLUP.format(f"{_kind}_rolled")

INDEXES: Final[dict[str, str]] = {
    "series_of_run": "series (run)",
    "edges_of_run": "artifact_edges (run)",
    "edges_of_artifact": "artifact_edges (artifact)",
    "keeps_of_artifact": "artifact_keeps (artifact)",
    "versions_of_digest": "current_versions (artifact, digest)",
}
"""Made with the tables: the summaries of a page of runs are read by it (4 million series: 4 ms, 55 ms without)."""


def definitions() -> Iterator[str]:
    """The statements that make the tables and views; the indexes come after."""
    for name, columns in TABLES.items():
        yield f"CREATE TABLE {name} ({columns})"
    for name, query in VIEWS.items():
        yield f"CREATE VIEW {name} AS {query}"


KINDS: Final = ("metric", "system", "text", "bool")
"""`series.kind`; metric -> points_*, system -> system_*, text and bool -> texts."""


def run_number(path: str) -> int:
    """The number of a run in every table: 63 bits of BLAKE2b of its path.

    It depends on nothing but the path, so the ledger's and the metrics' folds agree without reading each other.
    """
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest()) >> 1


def artifact_number(path: str) -> int:
    """The number of an artifact in every table: of its path, as a run's is."""
    return run_number(path)


def scope_number(scope: str) -> int:
    """The number of a team, project, artifact or version in the tables of retention: of its text, as a run's is."""
    return run_number(scope)


@lru_cache(maxsize=4096)
def name_number(name: str) -> int:
    """The number beside a key or a dotted path, by which it is found: 63 bits of BLAKE2b of its UTF-8.

    Two names may have one number, so that whoever looks for it compares the name, too.
    """
    return run_number(name)
