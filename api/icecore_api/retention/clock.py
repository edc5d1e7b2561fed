"""What time it is, where something ends by it: a clock that jumped is not believed for a while.

The rule (docs/decisions/0009). The wall clock is compared with the monotonic one. Where it has gone ahead by more than
`TOLERANCE_S`, or where this process began more than `GAP_S` after the last record of the log, nothing ends until it
has gone evenly for `SETTLE_S`. A clock that went back is believed at once: by an earlier time nothing ends early.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

TOLERANCE_S: Final = 5.0
GAP_S: Final = 3600.0
SETTLE_S: Final = 600.0


def steady_s() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


class RetentionClock:
    """Says the time as long as it can be believed.

    Args:
        wall_ms: milliseconds since 1970 UTC.
        last_ms: the time of the last record of the log; None where there is none. Asked at the first look.
        steady: a clock that nobody sets, in seconds.
    """

    def __init__(
        self, wall_ms: Callable[[], int], last_ms: Callable[[], int | None], steady: Callable[[], float] = steady_s
    ) -> None:
        self._wall_ms = wall_ms
        self._last_ms = last_ms
        self._steady = steady
        self._ahead: float | None = None
        self._believed_from = 0.0

    def now_ms(self) -> int | None:
        """Milliseconds since 1970 UTC; None where the clock is not believed."""
        now, steady = self._wall_ms(), self._steady()
        ahead = now / 1000 - steady
        if self._ahead is None:
            last = self._last_ms()
            jumped = last is not None and now - last > GAP_S * 1000
        else:
            jumped = ahead - self._ahead > TOLERANCE_S
        if jumped:
            self._believed_from = steady + SETTLE_S
        self._ahead = ahead
        return now if steady >= self._believed_from else None

    @property
    def believed_in_s(self) -> float:
        """In how many seconds it will be believed, if it goes evenly."""
        return max(0.0, self._believed_from - self._steady())
