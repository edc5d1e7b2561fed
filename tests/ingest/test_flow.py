"""Back-pressure: bytes in flight are bounded in all and by key, and come back when requests end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icecore.errors import TooBusy, Unavailable
from icecore_ingest.flow import REQUEST_BYTES, Flow


def test_a_key_over_its_bound_is_refused_and_others_go_on() -> None:
    """One greedy key gets 429 with a time to wait; another key is let in."""
    flow = Flow(most=1000 + 3 * REQUEST_BYTES, most_per_key=500 + REQUEST_BYTES)
    with flow.hold("greedy", 500):
        with pytest.raises(TooBusy) as found:
            flow.hold("greedy", 1)
        assert found.value.facts["retry_after"] >= 1
        with flow.hold("modest", 400):
            assert flow.requests == 2
    assert (flow.bytes, flow.requests, flow.refused_key) == (0, 0, 1)


def test_all_keys_together_are_bounded() -> None:
    """Over the bound of all, anybody gets 503."""
    flow = Flow(most=1000 + 2 * REQUEST_BYTES, most_per_key=1000 + REQUEST_BYTES)
    with flow.hold("a", 1000), pytest.raises(Unavailable) as found:
        flow.hold("b", 1)
    assert found.value.status == 503
    assert flow.refused_all == 1


def test_a_request_that_grows_past_the_bound_is_refused_and_gives_all_back() -> None:
    """What was not declared counts as it is read, and is given back when the request is refused."""
    flow = Flow(most=10_000 + REQUEST_BYTES, most_per_key=10_000 + REQUEST_BYTES)
    with flow.hold("a", 0) as hold:
        hold.grow(9_000)
        with pytest.raises(TooBusy):
            hold.grow(2_000)
    assert flow.bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60_000)), max_size=30))
def test_the_count_never_passes_its_bounds_and_ends_at_zero(requests: list[tuple[str, int]]) -> None:
    """Whatever is let in or refused, the sum stays within the bound and returns to zero."""
    flow = Flow(most=200_000, most_per_key=100_000)
    holds = []
    for key, size in requests:
        try:
            holds.append(flow.hold(key, size))
        except (TooBusy, Unavailable):
            continue
        assert flow.bytes <= flow.most
    for hold in holds:
        hold.__exit__(None, None, None)
    assert (flow.bytes, flow.requests) == (0, 0)
