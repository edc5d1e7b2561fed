"""What the store shows at /metrics: counted as batches are committed, and looked up when it is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from icecore import tracing
from icecore.errors import LogError
from icecore.position import STREAMS, Place, Token
from icecore_api.context import Context
from icecore_api.jobs import Job
from icecore_ingest.metric_defs import LOG_TROUBLES, RUNNER_STATES, Metrics
from icecore_projections.runner import Prepared

WITHIN_S: Final = 1.0
"""How long the log may take to say how far it goes: Prometheus must not wait for brokers that are away."""


class FoldMetrics:
    """Takes note of every committed batch: for /metrics, and for traces."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def committed(self, batch: Prepared) -> None:
        """Note one batch; called in the folding thread."""
        metrics = self._metrics
        metrics.observe("icecore_fold_batch_records", batch.records)
        metrics.observe("icecore_fold_seconds", batch.fold_s)
        metrics.observe("icecore_fold_commit_seconds", batch.commit_s)
        metrics.add("icecore_folded_records_total", batch.records)
        metrics.add("icecore_duplicates_total", batch.duplicates)
        metrics.add("icecore_dead_letters_total", batch.dead)
        if batch.traces:
            spent_ns = round((batch.fold_s + batch.commit_s) * 1e9)
            tracing.folded(batch.traces, batch.began_ns, batch.began_ns + spent_ns, records=batch.records)

    def published(self, runs: int, waiting: int) -> None:
        """Note run summaries that the brokers have."""
        self._metrics.add("icecore_summaries_total", runs)
        self._metrics.put("icecore_summaries_pending", waiting)


async def render(context: Context, rebuild: Job) -> bytes:
    """Everything, as it is now."""
    metrics = context.metrics
    folding: Mapping[str, Any] = context.processes().get("folding", {})
    _one_of(metrics, "icecore_runner_state", RUNNER_STATES, folding.get("state", "running"))
    _one_of(metrics, "icecore_store_log_trouble", LOG_TROUBLES, context.log.trouble.partition(":")[0])
    state = rebuild.as_json()
    metrics.put("icecore_rebuild_running", float(rebuild.running))
    metrics.put("icecore_rebuild_progress", _progress(state))
    metrics.put("icecore_dead_letters", await asyncio.to_thread(_dead_letters, context))
    await _put_lag(context, metrics)
    return metrics.render()


def _one_of(metrics: Metrics, name: Any, states: tuple[str, ...], now: str) -> None:
    for state in states:
        metrics.put(name, float(state == now), state)


def _progress(state: Mapping[str, Any]) -> float:
    if state["state"] == "done":
        return 1.0
    found = state["progress"]
    done, total = found.get("done", 0), found.get("total", 0)
    return min(1.0, done / total) if total else 0.0


def _dead_letters(context: Context) -> float:
    with contextlib.closing(context.store.cursor()) as cursor:
        return float(cursor.execute("SELECT count(*) FROM dead_letters").fetchall()[0][0])


async def _put_lag(context: Context, metrics: Metrics) -> None:
    """How far the folding is behind, by stream; nothing where the log does not say."""
    try:
        async with asyncio.timeout(WITHIN_S):
            folded = context.store.token()
            end = await context.log.end()
            behind = {place: n - folded.next_offset(place) for place, n in end.as_dict().items()}
            ages: dict[str, float] = dict.fromkeys(STREAMS, 0.0)
            late = [place for place, n in behind.items() if n > 0]
            found = await asyncio.gather(*(_age_s(context, place, folded) for place in late))
    except (LogError, TimeoutError):
        metrics.drop("icecore_fold_lag_records")
        metrics.drop("icecore_fold_lag_seconds")
        return
    for place, age in zip(late, found, strict=True):
        ages[place.stream] = max(ages[place.stream], age)
    for stream in STREAMS:
        records = sum(max(0, n) for place, n in behind.items() if place.stream == stream)
        metrics.put("icecore_fold_lag_records", records, stream)
        metrics.put("icecore_fold_lag_seconds", ages[stream], stream)


async def _age_s(context: Context, place: Place, folded: Token) -> float:
    """How long ago the first record that is not folded was accepted."""
    batch = await context.log.read(place, folded.next_offset(place), records=1, size=1)
    if not batch.records:
        return 0.0
    return max(0.0, (context.clock_ms() - batch.records[0].envelope.ts_server) / 1000)
