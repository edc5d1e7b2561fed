"""Small things under the names that people know: `icecore.util.parse_time("7d")`, `icecore.ArtifactTTL.INHERIT`."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import Enum
from typing import Final

from icecore.errors import UsageError

_UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(w|d|h|m|s)[a-z]*\s*")
TTL_MOST: Final = 100 * 366 * 86_400
"""Seconds: a hundred years."""


class ArtifactTTL(Enum):
    """How long a version lives, where it is not said in time."""

    INHERIT = 0
    """As the artifact, its project or its team says."""


INHERIT: Final = ArtifactTTL.INHERIT


def parse_time(text: str) -> timedelta:
    """A time such as `7d`, `12h`, `1d12h`, `2 weeks` or `90m`.

    Raises:
        UsageError: it is none.
    """
    rest, seconds = str(text).strip().lower(), 0.0
    while found := _PIECE.match(rest):
        seconds += float(found[1]) * _UNITS[found[2]]
        rest = rest[found.end() :]
    if rest or not text.strip():
        raise UsageError(f"expected a time such as 7d, 12h or 1d12h, got {str(text)[:80]!r}")
    if seconds > TTL_MOST:
        raise UsageError(f"expected a time of at most a hundred years, got {str(text)[:80]!r}")
    return timedelta(seconds=seconds)


def ttl_seconds(ttl: timedelta | ArtifactTTL | None) -> int | None:
    """A time to live as it is sent: whole seconds, 0 for ever, None as the wider scopes say.

    Raises:
        UsageError: it is no time, or less than a second.
    """
    if ttl is INHERIT:
        return None
    if ttl is None:
        return 0
    if not isinstance(ttl, timedelta):
        raise UsageError(
            f"expected a timedelta, icecore.ArtifactTTL.INHERIT or None (for ever) as ttl, got {ttl!r}",
            hint="icecore.util.parse_time reads '7d'",
        )
    seconds = round(ttl.total_seconds())
    if not 1 <= seconds <= TTL_MOST:
        raise UsageError(f"expected a ttl from a second to a hundred years, got {ttl}")
    return seconds
