"""Two requests as aiokafka does not make them: metadata with topic ids, and a fetch that only a leader answers.

A topic that was deleted and made again has its old name and a new id; only the id tells one log from another
(Kafka 2.8 and newer, KIP-516).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_NONE = bytes(16)
_LEADER_ONLY = 10


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    """16 bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


_PARTITIONS = CompactArray(
    ("error_code", Int16),
    ("partition", Int32),
    ("leader", Int32),
    ("leader_epoch", Int32),
    ("replicas", CompactArray(Int32)),
    ("isr", CompactArray(Int32)),
    ("offline_replicas", CompactArray(Int32)),
    ("tags", TaggedFields),
)


class _TopicsResponse(Response):  # type: ignore[misc]
    API_KEY = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    API_VERSION = 12  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                ("partitions", _PARTITIONS),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TopicsRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _TopicsResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicsRequest(Request[_TopicsRequest]):  # type: ignore[misc]
    """Metadata of some topics; never makes one.

    Args:
        topics: their names.
    """

    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_TopicsRequest]) -> _TopicsRequest:
        """The request as it goes over the wire."""
        none: dict[int, Any] = {}
        return request_struct_class([(_NONE, topic, none) for topic in self._topics], False, False, none)  # noqa: FBT003


class LeaderFetchRequest(FetchRequest):  # type: ignore[misc]
    """A fetch that a broker refuses where it does not lead.

    From version 11 on (KIP-392) a follower answers too, with as much as it has: a leader of yesterday would show an
    older end, and no error that makes us look for today's.
    """

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        """The request in the newest version below that one, which the broker knows."""
        least, newest = versions[self.API_KEY]
        return super().prepare({self.API_KEY: (least, min(newest, _LEADER_ONLY))})
