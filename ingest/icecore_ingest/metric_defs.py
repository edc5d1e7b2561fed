"""Every metric the gateway shows at /metrics, in one list, and the counters behind it."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import Final, Literal, NamedTuple, get_args

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
]


class Definition(NamedTuple):
    """How Prometheus is told of a metric."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


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
}
assert set(METRICS) == set(get_args(MetricName)), "every metric name has its definition"

BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds in seconds of the histogram's buckets."""


class Metrics:
    """Counters and gauges of one process. Labels come from fixed sets of ours, never from a request's data."""

    def __init__(self) -> None:
        self._values: defaultdict[MetricName, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._seen: defaultdict[tuple[MetricName, str], list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))

    def add(self, name: MetricName, value: float = 1, label: str = "") -> None:
        """Raise a counter."""
        self._values[name][label] += value

    def put(self, name: MetricName, value: float, label: str = "") -> None:
        """Set a gauge, or a counter that is kept elsewhere."""
        self._values[name][label] = value

    def observe(self, name: MetricName, seconds: float, label: str = "") -> None:
        """Count one duration in a histogram."""
        self._seen[name, label][bisect_left(BUCKETS, seconds)] += 1
        self._values[name][label] += seconds

    def value(self, name: MetricName, label: str = "") -> float:
        """What a counter or gauge stands at; of a histogram, the sum."""
        return self._values[name][label]

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        lines: list[str] = []
        for name, (kind, labels, text) in METRICS.items():
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
        for bound, seen in zip((*BUCKETS, "+Inf"), self._seen[name, label], strict=True):
            count += seen
            lines.append(f'{name}_bucket{{{shown},le="{bound}"}} {count}')
        return [*lines, f"{name}_sum{{{shown}}} {total:.9g}", f"{name}_count{{{shown}}} {count}"]
