"""Grouped charts: one curve with its band for every value of a config entry, summary entry, tag, group or job type.

The mean of a group is the mean of its runs, each run counting once in a bucket however many points it has there: the
points of a run in the bucket are averaged first, and mean, least, most and standard deviation are taken over these
run means. Every point takes part, none is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from icecore.errors import Invalid
from icecore_api.queries.buckets import Array, Curve, bucket_of, gather
from icecore_api.queries.points import Run, SeriesNumbers
from icecore_api.queries.series import Question, curves
from icecore_api.queries.values import Params, Rules, summary_relation
from icecore_projections.schema import name_number

GroupValue = str | float | bool | None

_COLUMNS: Final = {"group": "group", "job_type": "job_type", "tags": "tags"}


@dataclass(frozen=True, slots=True)
class Band:
    """One group's curve. Arrays of one length, an entry a bucket: x to x_last is where its points lie.

    `mean`, `min`, `max` and `std` (of the population) are over the means of the `runs` runs that have a number there;
    `n` counts points, NaN included.
    """

    group: GroupValue
    key: str
    x: Array
    x_last: Array
    mean: Array
    min: Array
    max: Array
    std: Array
    n: Array
    runs: Array


def bands(cursor: Any, runs: Sequence[Run], question: Question, group_by: str, numbers: SeriesNumbers) -> list[Band]:
    """Curves of `runs` grouped by `config.x`, `summary.x`, `tags`, `group` or `job_type`, ordered by key and group.

    All groups of a key share their buckets: equal widths over all of its runs' x, or, with `buckets` None, one for
    each x that occurs. A run with several tags is in the group of each; a run without the value is in group None.

    Raises:
        Invalid: `group_by` is none of these; see also `Question.check`.
    """
    question.check(len(runs))
    values = group_values(cursor, runs, group_by)
    by_key: dict[str, list[tuple[Run, Curve]]] = {key: [] for key in question.keys}
    for run, key, curve in curves(cursor, runs, question, numbers):
        by_key[key].append((run, curve))
    answer: list[Band] = []
    for key, members in by_key.items():
        if members:
            answer += _bands_of_key(key, members, values, question.buckets)
    return answer


def _bands_of_key(
    key: str, members: list[tuple[Run, Curve]], values: dict[int, list[GroupValue]], buckets: int | None
) -> list[Band]:
    pieces = _per_run(members, buckets)
    groups: dict[tuple[str, GroupValue], list[int]] = {}
    for index, (run, _) in enumerate(members):
        for value in values[run.number]:
            groups.setdefault((type(value).__name__, value), []).append(index)
    answer = []
    for (_, value), indices in sorted(groups.items(), key=lambda item: _order(item[0][1])):
        chosen = pieces[np.isin(pieces["run"], indices)]
        answer.append(_band(value, key, chosen[np.argsort(chosen["place"], kind="stable")]))
    return answer


_COUNTS: Final = [("run", "i8"), ("place", "i8"), ("mean", "f8"), ("n", "i8"), ("counted", "i8")]


def _per_run(members: list[tuple[Run, Curve]], buckets: int | None) -> Any:
    """What each run has in each bucket, as one structured array."""
    kind = members[0][1].x.dtype.str  # int64 steps stay exact
    layout = np.dtype([*_COUNTS, ("x", kind), ("x_last", kind)])
    span = min(c.x[0].item() for _, c in members), max(c.x[-1].item() for _, c in members)
    distinct = np.unique(np.concatenate([c.x for _, c in members])) if buckets is None else None
    pieces = []
    for index, (_, curve) in enumerate(members):
        places = bucket_of(curve.x, span, buckets) if buckets else np.searchsorted(distinct, curve.x)  # type: ignore[arg-type]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        cut = gather(curve, starts)
        piece = np.zeros(len(starts), layout)
        piece["run"], piece["place"] = index, places[starts]
        piece["x"], piece["x_last"], piece["mean"] = cut.x, cut.x_last, cut.mean
        piece["n"], piece["counted"] = cut.n, cut.n - cut.nans
        pieces.append(piece)
    return np.concatenate(pieces)


def _band(group: GroupValue, key: str, pieces: Any) -> Band:
    """Statistics over the run means of each bucket; pieces are ordered by bucket."""
    starts = np.flatnonzero(np.diff(pieces["place"], prepend=-1))
    has = pieces["counted"] > 0
    mean = pieces["mean"]
    runs = np.add.reduceat(has.astype(np.int64), starts)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        centre = np.add.reduceat(np.where(has, mean, 0.0), starts) / runs
        sizes = np.diff(np.append(starts, len(pieces)))
        apart = np.where(has, mean - np.repeat(centre, sizes), 0.0)
        std = np.sqrt(np.add.reduceat(apart * apart, starts) / runs)
    none = runs == 0
    return Band(
        group,
        key,
        x=np.minimum.reduceat(pieces["x"], starts),
        x_last=np.maximum.reduceat(pieces["x_last"], starts),
        mean=centre,
        min=np.where(none, np.nan, np.minimum.reduceat(np.where(has, mean, np.inf), starts)),
        max=np.where(none, np.nan, np.maximum.reduceat(np.where(has, mean, -np.inf), starts)),
        std=std,
        n=np.add.reduceat(pieces["n"], starts),
        runs=runs,
    )


def _order(value: GroupValue) -> tuple[int, float, str]:
    """Numbers by size, then texts, then None."""
    if value is None:
        return 3, 0.0, ""
    if isinstance(value, str):
        return 2, 0.0, value
    return (0, 0.0, str(value)) if isinstance(value, bool) else (1, value, "")


# -------------------------------------------------------------------------------------------------- group values


def group_values(cursor: Any, runs: Sequence[Run], group_by: str) -> dict[int, list[GroupValue]]:
    """The groups that each run is in, never none. At an earlier position if the cursor looks back.

    Raises:
        Invalid: `group_by` is not of a known form.
    """
    root, _, path = group_by.partition(".")
    numbers = [run.number for run in runs]
    if group_by in _COLUMNS:
        found = _column_values(cursor, numbers, _COLUMNS[group_by])
    elif root == "config" and path:
        found = _leaf_values(cursor, numbers, group_by)
    elif root == "summary" and path:
        found = _summary_values(cursor, numbers, path)
    else:
        raise Invalid(
            f"expected group_by to be config.NAME, summary.NAME, tags, group or job_type, got {group_by!r}",
            hint="a nested config entry is config.model.depth",
        )
    return {number: found.get(number) or [None] for number in numbers}


def _column_values(cursor: Any, numbers: list[int], column: str) -> dict[int, list[GroupValue]]:
    rows = cursor.execute(
        f'SELECT run, "{column}" FROM current_runs WHERE run IN (SELECT unnest($1))',  # noqa: S608 - of a list
        [numbers],
    ).fetchall()
    return {
        number: list(dict.fromkeys(value)) if isinstance(value, list) else [value] for number, value in rows if value
    }


def _leaf_values(cursor: Any, numbers: list[int], path: str) -> dict[int, list[GroupValue]]:
    rows = cursor.execute(
        "SELECT run, number, text FROM run_values WHERE path_number = $3 AND path = $2 AND run IN (SELECT unnest($1))",
        [numbers, path, name_number(path)],
    ).fetchall()
    return {run: [_leaf(number, text)] for run, number, text in rows}


def _summary_values(cursor: Any, numbers: list[int], key: str) -> dict[int, list[GroupValue]]:
    """The value that the run's summary shows: set by hand, else by its define_metric, else the last one logged."""
    params = Params()
    chosen = params.add(numbers)
    rules = Rules.of_runs(cursor, numbers)
    relation = summary_relation(key, rules, params)
    sql = f"SELECT run, number, text FROM ({relation}) WHERE run IN (SELECT unnest({chosen}))"  # noqa: S608 - parameters
    rows = cursor.execute(sql, params.used_by(sql)).fetchall()
    return {run: [_leaf(number, text)] for run, number, text in rows}


def _leaf(number: float | None, text: str | None) -> GroupValue:
    if number is not None and text in ("true", "false"):
        return text == "true"
    return text if number is None else number
