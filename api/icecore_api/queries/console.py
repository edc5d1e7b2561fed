"""What a run printed: paged, its end, searched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import duckdb

from icecore.errors import Invalid

LINES_MOST: Final = 10_000
_AFTER: Final = re.compile(r"(\d{1,18})\.(\d{1,9})")


@dataclass(frozen=True, slots=True)
class ConsoleQuestion:
    """Which lines of a run."""

    run: int
    after: str | None = None
    """`next` of an earlier answer."""
    limit: int = 1000
    tail: bool = False
    """The last `limit` lines instead of the first."""
    search: str | None = None
    """Text that a line contains, in any case of letters."""
    stream: Literal["stdout", "stderr"] | None = None


def console(cursor: duckdb.DuckDBPyConnection, question: ConsoleQuestion) -> dict[str, Any]:
    """The lines in the order they arrived, and where to go on.

    Raises:
        Invalid: `after` is of no earlier answer.
    """
    conditions, values = ["run = $run"], {"run": question.run, "n": question.limit}
    if question.after:
        found = _AFTER.fullmatch(question.after)
        if not found:
            raise Invalid(
                f"expected `next` of an earlier answer, got {question.after[:60]!r}", hint="give it back unchanged"
            )
        conditions.append("(off > $off OR (off = $off AND line > $line))")
        values |= {"off": int(found[1]), "line": int(found[2])}
    if question.search:
        conditions.append("contains(lower(text), lower($search))")
        values["search"] = question.search  # type: ignore[assignment]
    if question.stream:
        conditions.append("stream = $stream")
        values["stream"] = question.stream  # type: ignore[assignment]
    way = "DESC" if question.tail else "ASC"
    rows = cursor.execute(
        f"SELECT off, line, ts, stream, text FROM console WHERE {' AND '.join(conditions)} "  # noqa: S608 - fixed texts
        f"ORDER BY off {way}, line {way} LIMIT $n",
        values,
    ).fetchall()
    if question.tail:
        rows.reverse()
    lines = [
        {"off": off, "line": line, "ts": ts, "stream": stream, "text": text} for off, line, ts, stream, text in rows
    ]
    following = f"{rows[-1][0]}.{rows[-1][1]}" if rows else question.after
    return {"lines": lines, "next": following}
