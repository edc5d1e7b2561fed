"""What a version was made from, and what was made from it: a walk over runs, versions and references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from icecore_api.queries.lineage_edges import KIND, KINDS, Edges, mixed_number

Direction = Literal["up", "down", "both"]
NODES_DEFAULT: Final = 300
NODES_MOST: Final = 10_000
EVERYTHING: Final = 1 << 30

_PAIR_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_Ints = npt.NDArray[np.intp]


class VersionKey(NamedTuple):
    """A version by its numbers in the tables."""

    artifact: int
    version: int


class SubjectKey(NamedTuple):
    """A run or a reference by the number of its path."""

    number: int


Key = VersionKey | SubjectKey


class Link(NamedTuple):
    """An edge, from what was there first to what came of it."""

    start: Key
    end: Key
    kind: str


@dataclass(frozen=True, slots=True)
class Walk:
    """Which part of the graph to look at.

    Args:
        direction: up is what a version was made from: the run that logged it, what that run used, and so on.
        depth: steps, each from one node to the next.
        limit: nodes at most; where there are more the nearest are found, of each parent some.
    """

    direction: Direction = "both"
    depth: int = 5
    limit: int = NODES_DEFAULT


@dataclass(slots=True)
class Lineage:
    """Nodes and edges of a neighbourhood."""

    start: VersionKey
    nodes: dict[Key, int] = field(default_factory=dict)
    """Each with its distance from the start, in steps."""
    links: set[Link] = field(default_factory=set)
    numbers: set[int] = field(default_factory=set)
    """Of the nodes: as `lineage_edges` numbers them."""
    hidden: dict[tuple[Key, str], int] = field(default_factory=dict)
    """(node, up or down) -> how many of its neighbours that way are within the depth and not here."""

    @property
    def truncated(self) -> bool:
        """Whether there is more within the depth."""
        return bool(self.hidden)


_UP: Final = "up"
_AT_VERSION: Final = {
    # from a version up: who logged it, where it lies; down: who used it, what it is part of, where it is linked
    "up": 1 << KIND["logged"] | 1 << KIND["refers"],
    "down": 1 << KIND["used"] | 1 << KIND["part"] | 1 << KIND["linked"],
}
_AT_RUN: Final = {"up": 1 << KIND["used"], "down": 1 << KIND["logged"]}
_AT_URI: Final = {"up": 0, "down": 1 << KIND["refers"]}
_WITHIN: Final = 1 << KIND["part"] | 1 << KIND["linked"]


def walk(edges: Edges, upto: int, start: VersionKey, how: Walk) -> Lineage:
    """The neighbourhood of a version.

    Args:
        edges: of the store.
        upto: only edges of records before this offset of the ledger.
        start: the version.
        how: which part.
    """
    found = _walk(edges, upto, start, how, share=1)
    return _walk(edges, upto, start, how, share=2) if found.truncated else found


def _walk(edges: Edges, upto: int, start: VersionKey, how: Walk, *, share: int) -> Lineage:
    """A level takes at most one part in `share` of what is left, so that a hub leaves room for what lies beyond."""
    if how.direction == "both":
        limit = how.limit // 2 if share > 1 else how.limit
        above = _walk(edges, upto, start, replace(how, direction="up", limit=limit), share=share)
        rest = replace(how, direction="down", limit=how.limit + 1 - len(above.nodes))
        return _joined(above, _walk(edges, upto, start, rest, share=share))
    found = Lineage(start, {start: 0}, numbers={_number(start)})
    room, frontier, way = how.limit - 1, list[Key]([start]), how.direction
    for step in range(1, how.depth + 1):
        frontier = _step(edges, upto, found, frontier, way, step, room if step == how.depth else -(-room // share))
        room -= len(frontier)
        if not frontier or (found.hidden and share == 1):
            break  # the end; or it will be walked again, with room for every level
    return found


def _joined(above: Lineage, below: Lineage) -> Lineage:
    nodes = {**below.nodes, **above.nodes}  # a run that uses what it logged is on both sides
    return Lineage(above.start, nodes, above.links | below.links, hidden={**above.hidden, **below.hidden})


class Reach(NamedTuple):
    """All that came of a version."""

    versions: dict[VersionKey, int]
    """Each with its distance, in steps; the nearest first."""
    runs: dict[int, int]
    truncated: bool


def everything_down(edges: Edges, upto: int, start: VersionKey, limit: int) -> Reach:
    """All that came of a version, as deep as it goes; not deeper where that would be more than `limit` nodes."""
    reach = Reach({start: 0}, {}, truncated=False)
    versions, runs = [start], np.array([], np.int64)
    for step in range(1, EVERYTHING):
        if not versions and not len(runs):
            break
        if len(reach.versions) + len(reach.runs) > limit:
            return reach._replace(truncated=True)
        artifacts = np.array([key.artifact for key in versions], np.int64)
        numbers = np.array([key.version for key in versions], np.int32)
        _, found = edges.of_versions(artifacts, numbers, _AT_VERSION["down"], upto)
        _, made = edges.of_subjects(runs, _AT_RUN["down"], upto)
        subjects = list(dict.fromkeys(edges.subject[found].tolist()))
        keys = [VersionKey(*edges.versions[number]) for number in subjects if number in edges.versions]
        keys += map(VersionKey, edges.artifact[made].tolist(), edges.version[made].tolist())
        versions = [key for key in dict.fromkeys(keys) if key not in reach.versions]
        fresh = [number for number in subjects if number not in edges.versions and number not in reach.runs]
        reach.versions.update(dict.fromkeys(versions, step))
        reach.runs.update(dict.fromkeys(fresh, step))
        runs = np.array(fresh, np.int64)
    return reach


class _Hop(NamedTuple):
    """Edges that go on from nodes of one kind to nodes of one kind."""

    nodes: Sequence[Key]
    owner: _Ints
    """Of each edge: which of `nodes` it goes on from."""
    rows: _Ints
    to_versions: bool
    """Else to subjects."""


def _step(
    edges: Edges, upto: int, found: Lineage, frontier: Sequence[Key], way: str, step: int, room: int
) -> list[Key]:
    """Go on from some nodes: those next to them that were not met before, at most `room`, in turns between parents."""
    new: list[Key] = []
    for hop in _hops(edges, upto, frontier, way):
        if len(hop.rows):
            new += _follow(edges, found, hop, way, step, room - len(new))
    return new


def _hops(edges: Edges, upto: int, frontier: Sequence[Key], way: str) -> Iterator[_Hop]:
    versions = [key for key in frontier if isinstance(key, VersionKey)]
    artifacts = np.array([key.artifact for key in versions], np.int64)
    numbers = np.array([key.version for key in versions], np.int32)
    yield _Hop(versions, *edges.of_versions(artifacts, numbers, _AT_VERSION[way], upto), to_versions=False)
    within = [key for key in versions if way == _UP and key in edges.subjects]
    yield _from_subjects(edges, upto, within, [edges.subjects[key] for key in within], _WITHIN)
    for kinds, is_uri in ((_AT_RUN[way], False), (_AT_URI[way], True)):
        subjects = [key for key in frontier if isinstance(key, SubjectKey) and (key.number in edges.paths) == is_uri]
        yield _from_subjects(edges, upto, subjects, [key.number for key in subjects], kinds)


def _from_subjects(edges: Edges, upto: int, nodes: Sequence[Key], subjects: Sequence[int], kinds: int) -> _Hop:
    owner, rows = edges.of_subjects(np.array(subjects, np.int64), kinds, upto)
    return _Hop(nodes, owner, rows, to_versions=True)


def _follow(edges: Edges, found: Lineage, hop: _Hop, way: str, step: int, room: int) -> list[Key]:
    """Take the edges of a hop whose other ends are known or among the first `room` new ones; count the others."""
    owner, rows, other = _in_turns(hop, _others(edges, hop))
    distinct, first, inverse = np.unique(other, return_index=True, return_inverse=True)
    known = np.isin(distinct, np.fromiter(found.numbers, np.uint64, len(found.numbers)))
    candidates = np.sort(first[~known])
    known |= np.isin(first, candidates[:room])
    kept = known[inverse]
    hidden = np.bincount(owner[~kept], minlength=len(hop.nodes))
    for index in np.flatnonzero(hidden).tolist():
        place = (hop.nodes[index], way)
        found.hidden[place] = found.hidden.get(place, 0) + int(hidden[index])
    new: list[Key] = []
    for index, row, number in zip(owner[kept].tolist(), rows[kept].tolist(), other[kept].tolist(), strict=True):
        key, node = _key(edges, row, to_version=hop.to_versions), hop.nodes[index]
        if key not in found.nodes:
            found.nodes[key] = step
            found.numbers.add(number)
            new.append(key)
        kind = KINDS[edges.kind[row]]
        found.links.add(Link(key, node, kind) if way == _UP else Link(node, key, kind))
    return new


def _others(edges: Edges, hop: _Hop) -> npt.NDArray[np.uint64]:
    """A number for the node at the other end of each edge."""
    rows = hop.rows
    if hop.to_versions:
        return mixed_number(edges.artifact[rows], edges.version[rows])
    numbers = edges.subject[rows].view(np.uint64)
    if edges.versions:
        for place in np.flatnonzero(_WITHIN >> edges.kind[rows].astype(np.int64) & 1).tolist():
            numbers[place] = _number(VersionKey(*edges.versions[int(edges.subject[rows[place]])]))
    return numbers


def _in_turns(hop: _Hop, other: npt.NDArray[np.uint64]) -> tuple[_Ints, _Ints, npt.NDArray[np.uint64]]:
    """The edges, each other end once for each node: the first of every node, then the second, and so on."""
    pairs = other * _PAIR_MIX + hop.owner.astype(np.uint64)
    once = np.sort(np.unique(pairs, return_index=True)[1])
    once = once[np.argsort(hop.owner[once], kind="stable")]
    owner = hop.owner[once]
    starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    rank = np.arange(len(owner)) - np.repeat(starts, np.diff(np.append(starts, len(owner))))
    turns = once[np.argsort(rank, kind="stable")]
    return hop.owner[turns], hop.rows[turns], other[turns]


def _key(edges: Edges, row: int, *, to_version: bool) -> Key:
    if to_version:
        return VersionKey(int(edges.artifact[row]), int(edges.version[row]))
    subject = int(edges.subject[row])
    if _WITHIN >> int(edges.kind[row]) & 1:
        return VersionKey(*edges.versions[subject])
    return SubjectKey(subject)


def _number(key: VersionKey) -> int:
    return int(mixed_number(np.array([key.artifact], np.int64), np.array([key.version], np.int32))[0])
