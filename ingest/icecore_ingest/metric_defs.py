"""Every metric that /metrics shows, of the gateway and of the store, in one list, and the counters behind it.

docs/observability.md says what each is good for; a test holds the two together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final, Literal, NamedTuple, get_args

from icecore import errors

Process = Literal["gateway", "store"]

MetricName = Literal[
    "icecore_requests_total",
    "icecore_events_total",
    "icecore_received_bytes_total",
    "icecore_accepted_bytes_total",
    "icecore_in_flight_bytes",
    "icecore_in_flight_requests",
    "icecore_refused_total",
    "icecore_append_seconds",
    "icecore_proxied_total",
    "icecore_proxy_errors_total",
    "icecore_identities_offset",
    "icecore_connections",
    "icecore_internal_errors_total",
    "icecore_log_trouble",
    "icecore_store_up",
    "icecore_fold_lag_records",
    "icecore_fold_lag_seconds",
    "icecore_fold_batch_records",
    "icecore_fold_seconds",
    "icecore_fold_commit_seconds",
    "icecore_folded_records_total",
    "icecore_duplicates_total",
    "icecore_dead_letters",
    "icecore_dead_letters_total",
    "icecore_runner_state",
    "icecore_rebuild_progress",
    "icecore_rebuild_running",
    "icecore_store_log_trouble",
    "icecore_store_internal_errors_total",
    "icecore_summaries_pending",
    "icecore_summaries_total",
]

SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds in seconds of a histogram's buckets."""
RECORDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 200_000)
"""Upper bounds in records."""

LOG_TROUBLES: Final = tuple(
    sorted(
        found.code for found in vars(errors).values() if isinstance(found, type) and issubclass(found, errors.LogError)
    )
)
"""The codes of everything that can be wrong with a log."""
RUNNER_STATES: Final = ("running", "waiting", "halted")


class Definition(NamedTuple):
    """How Prometheus is told of a metric."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    process: Process = "gateway"
    """The process that shows it."""
    buckets: tuple[float, ...] = SECONDS


METRICS: Final[dict[MetricName, Definition]] = {
    "icecore_requests_total": Definition("counter", ("code",), "event requests by the code of their answer"),
    "icecore_events_total": Definition("counter", ("stream",), "events accepted: durable in the log"),
    "icecore_received_bytes_total": Definition("counter", (), "bytes of event request bodies as they came"),
    "icecore_accepted_bytes_total": Definition("counter", (), "bytes of accepted requests after decompression"),
    "icecore_in_flight_bytes": Definition("gauge", (), "bytes of event requests not answered yet"),
    "icecore_in_flight_requests": Definition("gauge", (), "event requests not answered yet"),
    "icecore_refused_total": Definition("counter", ("reason",), "event requests refused by back-pressure"),
    "icecore_append_seconds": Definition("histogram", ("stream",), "time until an append was durable"),
    "icecore_proxied_total": Definition("counter", ("status",), "requests passed to the store, by class of status"),
    "icecore_proxy_errors_total": Definition("counter", ("reason",), "requests the store did not answer in full"),
    "icecore_identities_offset": Definition("gauge", (), "ledger offset the gateway's identities have reached"),
    "icecore_connections": Definition("gauge", (), "open client connections"),
    "icecore_internal_errors_total": Definition("counter", (), "errors that should not happen; each is in stderr"),
    "icecore_log_trouble": Definition("gauge", ("state",), "1 for what is wrong with the log, as the gateway sees it"),
    "icecore_store_up": Definition("gauge", (), "1 where the store answered the gateway just now"),
    "icecore_fold_lag_records": Definition("gauge", ("stream",), "records in the log and not folded yet", "store"),
    "icecore_fold_lag_seconds": Definition(
        "gauge", ("stream",), "age of the oldest record that is not folded yet; 0 where all are", "store"
    ),
    "icecore_fold_batch_records": Definition("histogram", (), "records of a committed batch", "store", RECORDS),
    "icecore_fold_seconds": Definition("histogram", (), "time to fold a batch, without its commit", "store"),
    "icecore_fold_commit_seconds": Definition("histogram", (), "time to commit a batch", "store"),
    "icecore_folded_records_total": Definition("counter", (), "records folded and committed", "store"),
    "icecore_duplicates_total": Definition("counter", (), "records dropped because they were folded before", "store"),
    "icecore_dead_letters": Definition("gauge", (), "records set aside because they cannot be folded", "store"),
    "icecore_dead_letters_total": Definition("counter", (), "records set aside since the process started", "store"),
    "icecore_runner_state": Definition("gauge", ("state",), "1 for what the folding is doing", "store"),
    "icecore_rebuild_progress": Definition(
        "gauge", (), "part of the log that the rebuild has folded, 0 to 1; 0 before the first", "store"
    ),
    "icecore_rebuild_running": Definition("gauge", (), "1 while a rebuild is under way", "store"),
    "icecore_store_log_trouble": Definition(
        "gauge", ("state",), "1 for what is wrong with the log, as the store sees it", "store"
    ),
    "icecore_store_internal_errors_total": Definition(
        "counter", (), "errors of the store that should not happen; each is in stderr", "store"
    ),
    "icecore_summaries_pending": Definition("gauge", (), "runs that changed and are not published yet", "store"),
    "icecore_summaries_total": Definition("counter", (), "run summaries published", "store"),
}
assert set(METRICS) == set(get_args(MetricName)), "every metric name has its definition"


class Metrics:
    """Counters and gauges of one process, for many threads. Labels come from fixed sets of ours, never from a request.

    Args:
        process: whose metrics are shown.
    """

    def __init__(self, process: Process = "gateway") -> None:
        self._shown: dict[MetricName, Definition] = {
            name: found for name, found in METRICS.items() if found.process == process
        }
        self._values: defaultdict[MetricName, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._seen: defaultdict[tuple[MetricName, str], list[int]] = defaultdict(list)

    def add(self, name: MetricName, value: float = 1, label: str = "") -> None:
        """Raise a counter."""
        self._values[name][label] += value

    def put(self, name: MetricName, value: float, label: str = "") -> None:
        """Set a gauge, or a counter that is kept elsewhere."""
        self._values[name][label] = value

    def drop(self, name: MetricName) -> None:
        """Show nothing of a gauge: what it stands at is not known."""
        self._values[name].clear()

    def observe(self, name: MetricName, value: float, label: str = "") -> None:
        """Count one duration or size in a histogram."""
        buckets = METRICS[name].buckets
        seen = self._seen[name, label]
        if not seen:
            seen += [0] * (len(buckets) + 1)
        seen[bisect_left(buckets, value)] += 1
        self._values[name][label] += value

    def value(self, name: MetricName, label: str = "") -> float:
        """What a counter or gauge stands at; of a histogram, the sum."""
        return self._values[name][label]

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        lines: list[str] = []
        for name, (kind, labels, text, _, _) in self._shown.items():
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            values = self._values[name] or ({} if labels else {"": 0.0})
            for label, value in sorted(values.items()):
                shown = f'{labels[0]}="{label}"' if labels else ""
                if kind == "histogram":
                    lines += self._histogram(name, label, shown, value)
                else:
                    lines.append(f"{name}{{{shown}}} {value:.17g}" if shown else f"{name} {value:.17g}")
        return ("\n".join(lines) + "\n").encode()

    def _histogram(self, name: MetricName, label: str, shown: str, total: float) -> list[str]:
        lines, count = [], 0
        buckets = METRICS[name].buckets
        before, around = (f"{shown},", f"{{{shown}}}") if shown else ("", "")
        for bound, seen in zip((*buckets, "+Inf"), self._seen[name, label] or [0] * (len(buckets) + 1), strict=True):
            count += seen
            lines.append(f'{name}_bucket{{{before}le="{bound}"}} {count}')
        return [*lines, f"{name}_sum{around} {total:.9g}", f"{name}_count{around} {count}"]
