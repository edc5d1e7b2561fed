"""The same ingest through Kafka: gateway -> one real broker -> Faust -> store, all on the cores of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks import ingest
from benchmarks.results import Result, Sense
from benchmarks.server import Served, serving
from icecore_api.broker import Cluster
from icecore_ingest.logs import kafka_topics
from icecore_ingest.logs.kafka_settings import KafkaSettings

PARTITIONS = 4


@contextlib.contextmanager
def on_kafka() -> Iterator[tuple[Served, Cluster]]:
    """A server whose log is one broker: acknowledged in its memory, as brokers of a cluster do."""
    with tempfile.TemporaryDirectory(prefix="icecore-bench-kafka-") as folder, Cluster(Path(folder)) as cluster:
        where = f"kafka://{cluster.bootstrap}?single_replica=1&partitions={PARTITIONS}"
        asyncio.run(kafka_topics.create(KafkaSettings.parse(where)))
        with serving(log=where) as served:
            yield served, cluster


def run(scale: float) -> list[Result]:
    """Both sizes of request."""
    results: list[Result] = []
    for points_a_request, floor in ((200, None), (1000, 1.0)):
        with on_kafka() as (served, cluster):
            brokers = [psutil.Process(broker.pid) for broker in cluster.brokers]
            before = sum(sum(broker.cpu_times()[:2]) for broker in brokers)
            accepted, folded = ingest.measure(served, points_a_request, int(20_000_000 * scale))
            used = sum(sum(broker.cpu_times()[:2]) for broker in brokers) - before
        name = f"through Kafka and Faust, {points_a_request} points a request"
        note = f"{accepted.limit_by}; broker {used:.1f} s of CPU"
        results.append(Result(f"{name}, accepted", accepted.value, accepted.unit, None, "report", note))
        sense: Sense = "at least" if floor else "report"
        results.append(Result(f"{name}, folded", folded.value, folded.unit, floor, sense, "cores: broker included"))
    return results
