"""What the gateway says about itself: its metrics and its part of the OpenAPI document."""

from __future__ import annotations

from icecore.errors import BadRequest, Forbidden, Invalid, LogFull, TooBusy, TooLarge, Unauthenticated
from icecore_ingest.metric_defs import METRICS, SECONDS, Metrics
from icecore_ingest.openapi import openapi_paths


def test_every_metric_is_rendered_with_its_help_and_type() -> None:
    """All names of a process appear and no others, and counters and histograms add up."""
    metrics = Metrics("gateway")
    metrics.add("icecore_requests_total", label="accepted")
    metrics.add("icecore_requests_total", 2, "accepted")
    for seconds in (0.0001, 0.003, 99.0):
        metrics.observe("icecore_append_seconds", seconds, "ledger")
    lines = metrics.render().decode().splitlines()

    for name, definition in METRICS.items():
        assert (f"# HELP {name} {definition.help}" in lines) == (definition.process == "gateway")
        assert (f"# TYPE {name} {definition.kind}" in lines) == (definition.process == "gateway")
    assert 'icecore_requests_total{code="accepted"} 3' in lines
    assert 'icecore_append_seconds_bucket{stream="ledger",le="0.0005"} 1' in lines
    assert 'icecore_append_seconds_bucket{stream="ledger",le="0.005"} 2' in lines
    assert f'icecore_append_seconds_bucket{{stream="ledger",le="{SECONDS[-1]}"}} 2' in lines
    assert 'icecore_append_seconds_bucket{stream="ledger",le="+Inf"} 3' in lines
    assert 'icecore_append_seconds_count{stream="ledger"} 3' in lines


def test_the_document_names_every_error_of_the_event_path() -> None:
    """Each status the event path can answer with is described."""
    responses = openapi_paths()["/api/v1/events"]["post"]["responses"]

    for error in (BadRequest, Unauthenticated, Forbidden, TooLarge, Invalid, TooBusy, LogFull):
        assert str(error.status) in responses
