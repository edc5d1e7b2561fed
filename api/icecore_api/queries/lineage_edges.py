"""The edges of the lineage in memory, as a store has them: neighbours in microseconds, whatever the graph's size.

A statement over the table takes 5-10 ms to plan and scan, and a walk asks for neighbours ten times. Here an edge takes
45 bytes: columns in log order, and two orders of them. What the store has learnt since is read before each walk.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

from icecore.position import LEDGER
from icecore_projections.schema import artifact_number

KINDS: Final = ("logged", "used", "refers", "part", "linked")
"""By the number that stands for them here."""
KIND: Final = {name: number for number, name in enumerate(KINDS)}

_Longs = npt.NDArray[np.int64]
_Versions = npt.NDArray[np.int32]
_Numbers = npt.NDArray[np.uint64]
_Rows = npt.NDArray[np.intp]
_VERSION_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_TAIL_MOST: Final = 20_000
"""So many new edges are looked through one by one before all are put in order anew."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Edges in log order. Each has a subject (a run, a URI, or another version) at one end, and a version."""

    subject: _Longs
    """`run_number` of the subject's path."""
    artifact: _Longs
    version: _Versions
    kind: npt.NDArray[np.int8]
    off: _Longs
    by_subject: _Rows
    by_version: _Rows
    """The order of the first edges by subject, and by version; the others are the tail."""
    subject_sorted: _Longs
    version_sorted: _Numbers
    paths: dict[int, str] = field(default_factory=dict)
    """Of subjects that are no runs: their text."""
    versions: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of subjects that are versions: which."""
    subjects: dict[tuple[int, int], int] = field(default_factory=dict)
    """The other way round."""
    bundles: frozenset[tuple[int, int]] = frozenset()
    """Versions that have parts."""
    next_offset: int = 0

    @property
    def tail(self) -> slice:
        """The edges that are in no order yet."""
        return slice(len(self.by_subject), None)

    def of_subjects(self, subjects: _Longs, kinds: int, upto: int) -> tuple[_Rows, _Rows]:
        """Edges at some subjects: which of `subjects` each is of, and its row; of one subject in log order.

        Args:
            subjects: their numbers, each once.
            kinds: a bit for each number of `KINDS`.
            upto: edges before this offset of the ledger.
        """
        owner, rows = _ranges(self.subject_sorted, self.by_subject, subjects)
        later = _among(self.subject[self.tail], subjects)
        return self._kept(owner, rows, later, kinds, upto)

    def of_versions(self, artifacts: _Longs, versions: _Versions, kinds: int, upto: int) -> tuple[_Rows, _Rows]:
        """Edges at some versions, each once. As `of_subjects`."""
        mixed = mixed_number(artifacts, versions)
        owner, rows = _ranges(self.version_sorted, self.by_version, mixed)
        later = _among(mixed_number(self.artifact[self.tail], self.version[self.tail]), mixed)
        owner, rows = self._kept(owner, rows, later, kinds, upto)
        same = (self.artifact[rows] == artifacts[owner]) & (self.version[rows] == versions[owner])
        return owner[same], rows[same]

    def of_run(self, run: int, upto: int) -> dict[str, list[tuple[int, int]]]:
        """(artifact, version) of what a run logged and used, each once, the first first."""
        found: dict[str, list[tuple[int, int]]] = {}
        for kind in ("logged", "used"):
            _, rows = self.of_subjects(np.array([run], np.int64), 1 << KIND[kind], upto)
            pairs = zip(self.artifact[rows].tolist(), self.version[rows].tolist(), strict=True)
            found[kind] = list(dict.fromkeys(pairs))
        return found

    def _kept(
        self, owner: _Rows, rows: _Rows, later: tuple[_Rows, _Rows], kinds: int, upto: int
    ) -> tuple[_Rows, _Rows]:
        owner = np.concatenate([owner, later[0]])
        rows = np.concatenate([rows, later[1] + len(self.by_subject)])
        wanted = ((np.int64(1) << self.kind[rows].astype(np.int64)) & kinds != 0) & (self.off[rows] < upto)
        return owner[wanted], rows[wanted]


class EdgesOf:
    """The edges of one store, read anew where it has more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        none = np.array([], np.int64)
        self._edges = _ordered(_Columns(none, none, np.array([], np.int32), np.array([], np.int8), none))

    def seen_by(self, cursor: duckdb.DuckDBPyConnection) -> tuple[Edges, int]:
        """The edges, and the offset up to which the cursor's transaction sees them."""
        found = cursor.execute(
            "SELECT coalesce(max(next_offset), 0) FROM offsets WHERE stream = $ledger", {"ledger": LEDGER}
        ).fetchone()
        upto = int(found[0]) if found else 0
        with self._lock:
            if upto > self._edges.next_offset:
                self._edges = _read(cursor, self._edges, upto)
            return self._edges, upto


_stores: weakref.WeakKeyDictionary[object, EdgesOf] = weakref.WeakKeyDictionary()
_stores_lock = threading.Lock()


def edges_of(store: object) -> EdgesOf:
    """The edges of a store, kept as long as it is."""
    with _stores_lock:
        return _stores.setdefault(store, EdgesOf())


def _read(cursor: duckdb.DuckDBPyConnection, known: Edges, upto: int) -> Edges:
    """What was known, and what came since."""
    bounds = {"first": known.next_offset, "upto": upto, "kinds": list(KINDS)}
    new = cursor.execute(
        "SELECT run, artifact, version, (list_position($kinds, kind) - 1)::TINYINT AS kind, off FROM artifact_edges "
        "WHERE off >= $first AND off < $upto AND list_contains($kinds, kind) ORDER BY off",
        bounds,
    ).fetchnumpy()
    named = cursor.execute(
        "SELECT DISTINCT run, path, kind FROM artifact_edges "
        "WHERE off >= $first AND off < $upto AND kind NOT IN ('logged', 'used') AND list_contains($kinds, kind)",
        bounds,
    ).fetchall()
    columns = _Columns(
        np.concatenate([known.subject, np.asarray(new["run"], np.int64)]),
        np.concatenate([known.artifact, np.asarray(new["artifact"], np.int64)]),
        np.concatenate([known.version, np.asarray(new["version"], np.int32)]),
        np.concatenate([known.kind, np.asarray(new["kind"], np.int8)]),
        np.concatenate([known.off, np.asarray(new["off"], np.int64)]),
    )
    paths = {**known.paths, **{int(run): str(path) for run, path, _ in named}}
    others = {int(run): (_version(str(path)), kind) for run, path, kind in named if kind != "refers"}
    versions = {**known.versions, **{subject: version for subject, (version, _) in others.items()}}
    bundles = known.bundles.union(version for version, kind in others.values() if kind == "part")
    edges = len(columns.subject)
    small = edges - len(known.by_subject) <= max(_TAIL_MOST, edges // 8)
    ordered = known if small and len(known.by_subject) else None
    found = _ordered(columns, ordered)
    subjects = {version: subject for subject, version in versions.items()}
    return replace(found, paths=paths, versions=versions, subjects=subjects, bundles=bundles, next_offset=upto)


class _Columns(NamedTuple):
    subject: _Longs
    artifact: _Longs
    version: _Versions
    kind: npt.NDArray[np.int8]
    off: _Longs


def _ordered(columns: _Columns, as_before: Edges | None = None) -> Edges:
    if as_before is None:
        mixed = mixed_number(columns.artifact, columns.version)
        by_subject, by_version = np.argsort(columns.subject, kind="stable"), np.argsort(mixed, kind="stable")
        return Edges(*columns, by_subject, by_version, columns.subject[by_subject], mixed[by_version])
    known = as_before
    return Edges(*columns, known.by_subject, known.by_version, known.subject_sorted, known.version_sorted)


def mixed_number(artifact: _Longs, version: _Versions) -> _Numbers:
    """One number for a version; two versions may have one, so whoever looks compares both."""
    return artifact.view(np.uint64) + (version.astype(np.uint64) + np.uint64(1)) * _VERSION_MIX


def _ranges(ordered: npt.NDArray[Any], order: _Rows, wanted: npt.NDArray[Any]) -> tuple[_Rows, _Rows]:
    """Where each of `wanted` is among the `ordered`: which it is, and the row."""
    first, last = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
    counts = last - first
    owner = np.repeat(np.arange(len(wanted)), counts)
    before = np.cumsum(counts) - counts
    return owner, order[np.repeat(first - before, counts) + np.arange(len(owner))]


def _among(numbers: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> tuple[_Rows, _Rows]:
    """The same of numbers in no order."""
    order = np.argsort(wanted, kind="stable")
    at = np.minimum(np.searchsorted(wanted[order], numbers), max(len(wanted) - 1, 0))
    rows = np.flatnonzero(wanted[order][at] == numbers) if len(wanted) else np.array([], np.intp)
    return order[at[rows]], rows


def _version(path: str) -> tuple[int, int]:
    """entity/project/name:v3 as in the tables."""
    artifact, _, number = path.rpartition(":v")
    return artifact_number(artifact), int(number)
