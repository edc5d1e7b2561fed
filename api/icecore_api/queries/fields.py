"""The fields of a run that a filter, an order or a facet may name: an allow-list, each with its SQL.

`c` is `current_runs`, `a` is `run_activity`. Everything else a caller may name is a config or summary path, which
is data and goes through parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from icecore.errors import Invalid
from icecore.events import check_name

Kind = Literal["text", "number", "time", "tags"]


@dataclass(frozen=True, slots=True)
class Column:
    """A field with a column of its own. `time` is ms since 1970 UTC."""

    sql: str
    kind: Kind
    activity: bool = False
    """Its SQL reads `a`."""


@dataclass(frozen=True, slots=True)
class PathField:
    """A config or summary path."""

    source: Literal["config", "summary"]
    key: str
    """Without `config.` or `summary.`."""


Field = Column | PathField

_HEARD: Final = "greatest(c.heard_ts, coalesce(a.heard_ts, 0))"
_RUNTIME: Final = (
    f"CASE WHEN c.state = 'running' THEN greatest(0, {_HEARD} - c.started_ts) ELSE c.runtime_ms END / 1000.0"
)
_STATE: Final = f"CASE WHEN c.state = 'running' AND {_HEARD} < $crashed_before THEN 'crashed' ELSE c.state END"

STATE: Final = Column(_STATE, "text", activity=True)
_NAME: Final = Column("c.name", "text")
_JOB_TYPE: Final = Column("c.job_type", "text")
_USER: Final = Column("c.username", "text")
_CREATED: Final = Column("c.created_ts", "time")
_HEARD_AT: Final = Column(_HEARD, "time", activity=True)
_DURATION: Final = Column(_RUNTIME, "number", activity=True)

COLUMNS: Final[Mapping[str, Column]] = {
    "id": Column("c.id", "text"),
    "name": _NAME,
    "display_name": _NAME,
    "displayName": _NAME,
    "group": Column('c."group"', "text"),
    "job_type": _JOB_TYPE,
    "jobType": _JOB_TYPE,
    "state": STATE,
    "tags": Column("c.tags", "tags"),
    "notes": Column("c.notes", "text"),
    "user": _USER,
    "username": _USER,
    "created_at": _CREATED,
    "createdAt": _CREATED,
    "started_at": Column("c.started_ts", "time"),
    "finished_at": Column("c.finished_ts", "time"),
    "heartbeat_at": _HEARD_AT,
    "heartbeatAt": _HEARD_AT,
    "heard_at": _HEARD_AT,
    "runtime": _DURATION,
    "duration": _DURATION,
    "exit_code": Column("c.exit_code", "number"),
    "last_step": Column("a.last_step", "number", activity=True),
}

_SPECIAL: Final[Mapping[str, Column]] = {
    "_step": COLUMNS["last_step"],
    "_runtime": _DURATION,
    "_timestamp": Column(f"{_HEARD} / 1000.0", "number", activity=True),
}
"""Summary keys that are readings of the run itself."""

_PREFIXES: Final = ("config.", "summary_metrics.", "summary.")


def field_named(name: str, where: str) -> Field:
    """The field a caller named.

    Raises:
        Invalid: there is none of that name; `where` says where it was named.
    """
    column = COLUMNS.get(name)
    if column is not None:
        return column
    for prefix in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            key = check_name(f"the key at {where}", name.removeprefix(prefix), "key_chars")
            if prefix == "config.":
                return PathField("config", key)
            return _SPECIAL.get(key) or PathField("summary", key)
    raise Invalid(
        f"expected a field of a run at {where}, got {name[:120]!r}",
        hint=f"one of {', '.join(sorted(COLUMNS))}, config.KEY or summary_metrics.KEY",
        where=where,
    )
