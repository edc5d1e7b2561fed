"""Every limit, in one table: docs/limits.md is made from it, and each error over a limit names its row.

Sizes are bytes of the decompressed data. A client splits what it sends to stay under them; the gateway enforces
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

LimitName = Literal[
    "event_bytes",
    "request_bytes",
    "request_events",
    "json_depth",
    "name_chars",
    "path_part_chars",
    "key_chars",
    "text_value_bytes",
    "console_bytes",
    "metric_keys",
    "block_rows",
    "config_bytes",
    "tags",
    "compression_ratio",
    "page_runs",
    "series_per_request",
    "series_points",
    "filter_nodes",
    "artifact_files",
    "aliases",
    "blob_bytes",
    "blob_pack_bytes",
    "digests_per_request",
    "upload_part_bytes",
    "upload_parts",
]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: its name, the largest value allowed, its unit, and what it is for."""

    name: LimitName
    most: int
    unit: str
    why: str


_MB: Final = 1024 * 1024

_TABLE: Final = (
    Limit("event_bytes", _MB, "bytes", "one event's payload; Kafka's default record limit"),
    Limit("request_bytes", 8 * _MB, "bytes", "one request's body after decompression"),
    Limit("request_events", 1_000, "events", "events in one request; a request is all or nothing"),
    Limit("json_depth", 64, "levels", "nesting of a payload; parsers differ beyond it"),
    Limit("name_chars", 256, "characters", "display names, groups, job types, tags"),
    Limit("path_part_chars", 128, "characters", "entity, project and run id: the parts of a run's path"),
    Limit("key_chars", 256, "characters", "metric keys, config and summary paths"),
    Limit("text_value_bytes", 64 * 1024, "bytes", "one text value in history, one console line"),
    Limit("console_bytes", 64 * _MB, "bytes", "console output that one process sends for a run; the rest is counted"),
    Limit("metric_keys", 100_000, "keys", "distinct metric keys of a run"),
    Limit("block_rows", 100_000, "rows", "rows of one columnar block"),
    Limit("config_bytes", _MB, "bytes", "a run's whole config as JSON"),
    Limit("tags", 256, "tags", "tags of a run"),
    Limit("compression_ratio", 200, "times", "decompressed over compressed size: beyond it is a bomb"),
    Limit("page_runs", 1_000, "runs", "runs in one page of a listing"),
    Limit("series_per_request", 10_000, "series", "runs times keys in one series request"),
    Limit("series_points", 5_000_000, "points", "points or buckets in one series answer; exports have no limit"),
    Limit("filter_nodes", 256, "nodes", "operators and values in one filter"),
    Limit("artifact_files", 1_000_000, "files", "files of one version of an artifact"),
    Limit("aliases", 100, "aliases", "aliases that one commit, link or bundle gives a version"),
    Limit("blob_bytes", 5 << 40, "bytes", "one file of an artifact; what S3 takes as one object"),
    Limit("blob_pack_bytes", 64 * _MB, "bytes", "small blobs sent in one request; it is all or nothing"),
    Limit("digests_per_request", 10_000, "digests", "blobs asked about, or read, in one request"),
    Limit("upload_part_bytes", 1 << 30, "bytes", "one part of a large blob"),
    Limit("upload_parts", 10_000, "parts", "parts of a large blob; as many as S3 takes"),
)

LIMITS: Final[dict[LimitName, Limit]] = {limit.name: limit for limit in _TABLE}
assert set(LIMITS) == set(get_args(LimitName)), "every limit name has its row"


def most(name: LimitName) -> int:
    """The largest value allowed for `name`."""
    return LIMITS[name].most
