"""What must hold of a version before it is promoted: checks as data, read from what people write, and judged.

    metadata.f1 >= 0.85
    evaluated by eval                       a run with job_type eval used the version
    evaluated by eval with f1 >= 0.8        … and its summary says so
    approved                                by another credential than the requester's

Pure: the server's dry run and the fold judge by the same functions.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import orjson

from icecore.errors import Invalid

_OPERATORS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON: Final = r"(?P<key>[^\s<>=!]+)\s*(?P<op>>=|<=|==|!=|>|<)\s*(?P<value>\S.*)"
_METADATA: Final = re.compile(rf"metadata\.{_COMPARISON}")
_EVALUATED: Final = re.compile(
    rf"evaluated by (a run with job_type )?(?P<job_type>\S+)( (with|and) (summary\.)?{_COMPARISON})?"
)
_APPROVED: Final = re.compile(r"approved( by another credential( than the requester's)?)?")
_HINT: Final = "write `metadata.f1 >= 0.85`, `evaluated by eval`, `evaluated by eval with f1 >= 0.8` or `approved`"

MISSING: Final = object()
"""What a mapping says where it says nothing."""


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One condition."""

    kind: Literal["metadata", "evaluated", "approved"]
    key: str = ""
    """Of the metadata, dotted; or of the evaluating run's summary."""
    op: Literal["", ">=", "<=", "==", "!=", ">", "<"] = ""
    value: Any = None
    job_type: str = ""
    """Of the evaluating run."""

    def __str__(self) -> str:
        if self.kind == "approved":
            return "approved by another credential than the requester's"
        condition = f"{self.key} {self.op} {_written(self.value)}"
        if self.kind == "metadata":
            return f"metadata.{condition}"
        return f"evaluated by a run with job_type {self.job_type}" + (f" and {condition}" if self.key else "")


class Evidence(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run that used a version says: read by the server, since a summary is made of two streams."""

    run: str
    """entity/project/run_id"""
    job_type: str
    values: dict[str, Any] = {}
    """Summary values that a check asks for."""


class Verdict(NamedTuple):
    """How a check came out."""

    check: str
    ok: bool
    found: str


def parse_check(text: str) -> Check:
    """The check that a text says.

    Raises:
        Invalid: it is none.
    """
    said = " ".join(text.split())
    if match := _METADATA.fullmatch(said):
        return Check("metadata", match["key"], _operator(match["op"]), _read(match["value"]))
    if match := _EVALUATED.fullmatch(said):
        compared = match["key"] is not None
        return Check(
            "evaluated",
            match["key"] or "",
            _operator(match["op"]) if compared else "",
            _read(match["value"]) if compared else None,
            match["job_type"],
        )
    if _APPROVED.fullmatch(said):
        return Check("approved")
    raise Invalid(f"expected a check, got {text[:120]!r}", hint=_HINT)


def judge(
    checks: Sequence[Check], metadata: Mapping[str, Any], evidence: Sequence[Evidence], requester: str, approver: str
) -> list[Verdict]:
    """How checks come out.

    Args:
        checks: what must hold.
        metadata: the version's.
        evidence: of the runs that used it.
        requester: the credential that asked.
        approver: the credential that approved; empty where none did yet.
    """
    return [_judged(check, metadata, evidence, requester, approver) for check in checks]


def _judged(
    check: Check, metadata: Mapping[str, Any], evidence: Sequence[Evidence], requester: str, approver: str
) -> Verdict:
    if check.kind == "approved":
        if not approver:
            return Verdict(str(check), ok=False, found="no approval yet")
        same = approver == requester
        return Verdict(str(check), ok=not same, found="the requester's own" if same else "approved by another")
    if check.kind == "metadata":
        found = at(metadata, check.key)
        return Verdict(str(check), ok=holds(check, found), found=_written(found))
    runs = [one for one in evidence if one.job_type == check.job_type]
    if not runs:
        return Verdict(str(check), ok=False, found=f"no run with job_type {check.job_type} used it")
    if not check.key:
        return Verdict(str(check), ok=True, found=runs[0].run)
    good = [one for one in runs if holds(check, one.values.get(check.key, MISSING))]
    shown = (good or runs)[0]
    value = _written(shown.values.get(check.key, MISSING))
    return Verdict(str(check), ok=bool(good), found=f"{value} in {shown.run}")


def holds(check: Check, value: Any) -> bool:
    """Whether a value is as a check asks; numbers compare with numbers only, texts with texts."""
    if value is MISSING or not check.op:
        return False
    if check.op in ("==", "!="):
        same = isinstance(value, bool) == isinstance(check.value, bool) and value == check.value
        return same == (check.op == "==")
    kinds: tuple[type, ...] = (str,) if isinstance(check.value, str) else (int, float)
    comparable = all(isinstance(one, kinds) and not isinstance(one, bool) for one in (value, check.value))
    return comparable and bool(_OPERATORS[check.op](value, check.value))


def at(document: Any, path: str) -> Any:
    """The value at a dotted path of nested mappings, whose keys may hold dots themselves; else `MISSING`."""
    if not isinstance(document, Mapping):
        return MISSING
    if path in document:
        return document[path]
    parts = path.split(".")
    for length in range(1, len(parts)):
        if (key := ".".join(parts[:length])) in document:
            found = at(document[key], ".".join(parts[length:]))
            if found is not MISSING:
                return found
    return MISSING


def _operator(text: str) -> Any:
    return text if text in _OPERATORS else ""


def _read(text: str) -> Any:
    """A value as people write it: JSON, or a bare word."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _written(value: Any) -> str:
    return "nothing" if value is MISSING else orjson.dumps(value).decode()
