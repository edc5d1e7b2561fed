"""A run as the ledger tells it: one version of its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec
import orjson

from icecore_projections.schema import run_number

State = Literal["running", "finished", "failed", "killed"]
"""What the ledger says. *Crashed* is never stored: it is a reading, running and nothing heard for five minutes."""

RANK: Final[Mapping[str, int]] = {"finished": 0, "killed": 1, "failed": 2}
"""How bad an ending is: a run of several processes ended as its worst one did."""

_EXACT: Final = 1 << 53
"""Integers beyond it do not fit a float64, so `run_values` keeps their digits too."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a writer ended."""

    state: Literal["finished", "failed", "killed"]
    exit_code: int
    error_type: str
    error_message: str


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """What clients could not keep, for one reason, in all."""

    reason: str
    times: int
    events: int
    points: int
    bytes: int
    keys: list[str]
    """The first keys it happened to, sorted."""


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a run's row, made by the ledger's record at `off`.

    Times are ms since 1970 UTC. The values inside are never changed in place: a new version is a new row.
    """

    path: str
    entity: str
    project: str
    id: str
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = []
    notes: str = ""
    user: str
    """Actor of the first start."""
    state: State = "running"
    exit_code: int | None = None
    error_type: str = ""
    error_message: str = ""
    created_ts: int
    """The gateway's clock at the first start."""
    started_ts: int
    """The client's clock at the first start."""
    finished_ts: int | None = None
    """The client's clock when the last writer ended; None while running."""
    runtime_ms: int = 0
    """By the writers' monotonic clocks: the longest of those that ran together, plus what ran before a resume."""
    runtime_before_ms: int = 0
    """`runtime_ms` at the last fresh start."""
    heard_ts: int
    """The gateway's clock at the last word of a writer: a person's edit does not make a dead run look alive."""
    config: dict[str, Any] = {}
    """Nested."""
    summary: dict[str, Any] = {}
    """Values set by hand: dotted path -> JSON."""
    metadata: dict[str, Any] = {}
    metrics: dict[str, dict[str, str]] = {}
    """From define_metric."""
    dropped: list[Dropped] = []
    deleted: bool = False
    open: list[str] = []
    """Producers that have started and not finished, in the order of their starts."""
    worst: Ending | None = None
    """The worst ending since the last fresh start."""
    off_first: int
    off: int

    @property
    def number(self) -> int:
        """The run's number in every table."""
        return run_number(self.path)

    def to_doc(self) -> str:
        """This version as canonical JSON: sorted keys, and without offsets, which are columns of their own."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        del fields["off"], fields["off_first"]
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def from_doc(cls, doc: str | bytes, *, off: int, off_first: int) -> RunRow:
        """What `to_doc` wrote."""
        return msgspec.convert({**orjson.loads(doc), "off": off, "off_first": off_first}, cls)


class Value(NamedTuple):
    """A leaf of a run's config or summary, as it is filtered and sorted by."""

    path: str
    number: float | None
    text: str | None


def values(row: RunRow) -> list[Value]:
    """The leaves of `config.*` and of the explicit `summary.*`, one for each dotted path, sorted by it.

    A boolean is number 0 or 1 with text 'true' or 'false'; a string is text; a number is number (an integer beyond
    2^53 has its digits as text, too); null is neither; a list or an empty object is its JSON as text. Where two
    spellings give one dotted path, the nested one wins.
    """
    leaves: dict[str, Value] = {}
    for path, leaf in (*_leaves("config", row.config), *_leaves("summary", row.summary)):
        leaves.setdefault(path, Value(path, *_cell(leaf)))
    return [leaves[path] for path in sorted(leaves)]


def _leaves(path: str, tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Leaves of a tree, the deepest first; a stack, since a log may hold deeper trees than Python recurses."""
    leaves: list[tuple[int, str, Any]] = []
    stack: list[tuple[int, str, Mapping[str, Any]]] = [(0, path, tree)]
    while stack:
        depth, prefix, branch = stack.pop()
        for name in sorted(branch):
            value = branch[name]
            if isinstance(value, dict) and value:
                stack.append((depth + 1, f"{prefix}.{name}", value))
            else:
                leaves.append((depth, f"{prefix}.{name}", value))
    leaves.sort(key=lambda leaf: (-leaf[0], leaf[1]))
    return [(name, value) for _, name, value in leaves]


def _cell(leaf: Any) -> tuple[float | None, str | None]:
    if leaf is None:
        return None, None
    if isinstance(leaf, bool):
        return float(leaf), "true" if leaf else "false"
    if isinstance(leaf, int):
        return float(leaf), str(leaf) if abs(leaf) > _EXACT else None
    if isinstance(leaf, float):
        return leaf, None
    if isinstance(leaf, str):
        return None, leaf
    return None, orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS).decode()
