"""Times as people write them, and as they are sent."""

from __future__ import annotations

from datetime import timedelta

import pytest

import icecore
from icecore.errors import UsageError
from icecore.util import INHERIT, ArtifactTTL, parse_time, ttl_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604_800), ("12h", 43_200), ("1d12h", 129_600), ("2 weeks", 1_209_600), ("90m", 5400), (" 1.5h ", 5400)],
)
def test_times_are_read(text: str, seconds: int) -> None:
    """Weeks, days, hours, minutes and seconds, one after the other."""
    assert parse_time(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "d", "7d x", "-1d", "7y", "999999w", "1d,2h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """The message shows what was given."""
    with pytest.raises(UsageError, match="expected a time"):
        parse_time(text)


def test_times_to_live_are_sent_in_seconds() -> None:
    """None is for ever, INHERIT as the wider scopes say; less than a second, or a number, is a mistake."""
    assert [ttl_seconds(ttl) for ttl in (timedelta(days=7), None, INHERIT)] == [604_800, 0, None]
    for wrong in (timedelta(0), timedelta(seconds=-5), timedelta(days=99_999), 7, "7d"):
        with pytest.raises(UsageError):
            ttl_seconds(wrong)  # type: ignore[arg-type]


def test_a_draft_takes_a_time_to_live() -> None:
    """It says what was set; what is no time is refused when it is set; the names are those of the package."""
    artifact = icecore.Artifact("x", "model")
    assert artifact.ttl is None
    artifact.ttl = icecore.util.parse_time("7d")
    assert artifact.ttl == timedelta(days=7)
    artifact.ttl = icecore.ArtifactTTL.INHERIT
    assert (artifact.ttl, icecore.ArtifactTTL) == (None, ArtifactTTL)
    with pytest.raises(UsageError, match="expected a timedelta"):
        artifact.ttl = 7  # type: ignore[assignment]
