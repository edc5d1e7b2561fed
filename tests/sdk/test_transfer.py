"""Transfers: how far they are, and what is done where another client was quicker."""

from __future__ import annotations

import logging

import pytest

from icecore.direct import BucketClient
from icecore.errors import ServerFailed, ServerUnreachable
from icecore.transfer import PART_BYTES, Progress
from icecore.uploads import part_size


class Clock:
    """Seconds that go when they are told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_says_rate_and_time_left() -> None:
    """Bytes done, bytes a second of late, and how long the rest takes at that; what was there before is no rate."""
    clock = Clock()
    progress = Progress(clock)
    assert str(progress) == "0.0 of 0.0 MB, 0.0 MB/s"
    progress.expect(100_000_000)
    progress.add(40_000_000, moved=False)
    assert str(progress) == "40.0 of 100.0 MB, 0.0 MB/s"
    for _ in range(4):
        clock.now += 2
        progress.add(5_000_000)
    assert progress.rate == 2_500_000
    assert str(progress) == "60.0 of 100.0 MB, 2.5 MB/s, 16 s left"
    clock.now += 1000
    assert progress.rate < 2_500_000
    progress.add(40_000_000)
    assert str(progress).startswith("100.0 of 100.0 MB")
    assert "left" not in str(progress)


@pytest.mark.parametrize("gigabytes", [0.1, 20, 200, 5000])
def test_every_size_has_parts_that_servers_take(gigabytes: float) -> None:
    """Parts are of at least 16 MiB, whole MiB, at most 10,000 of them, and the same for every upload of a size."""
    size = int(gigabytes * 1e9)
    step = part_size(size)
    assert step >= PART_BYTES
    assert step % (1 << 20) == 0
    assert -(-size // step) <= 10_000
    assert step <= 1 << 30
    assert part_size(size) == step


def test_a_bucket_that_is_away_is_told_without_its_address(caplog: pytest.LogCaptureFixture) -> None:
    """What a signed address has behind its question mark is in no error and no log."""
    url = "http://127.0.0.1:9/bucket/key?X-Amz-Signature=secret"
    with caplog.at_level(logging.DEBUG), pytest.raises(ServerUnreachable) as away:
        BucketClient(2).put(url, {}, b"x")
    with pytest.raises(ServerFailed, match="expected a range"):
        BucketClient(2).get(url, "all of it")
    assert "127.0.0.1:9" in away.value.message
    assert away.value.__cause__ is None
    assert "secret" not in f"{away.value} {caplog.text}"
