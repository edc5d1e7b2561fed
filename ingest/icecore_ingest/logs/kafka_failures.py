"""What a Kafka cluster says, in the words of `icecore.errors`: which topic, and the next step."""

from __future__ import annotations

import asyncio
import ssl

from aiokafka import errors as kafka

from icecore.errors import (
    LogAway,
    LogBusy,
    LogCorrupt,
    LogDenied,
    LogError,
    LogForeign,
    LogNotReplicated,
    LogTooLarge,
    LogTopicMissing,
    LogTruncated,
    LogUnsure,
)
from icecore.position import Place

AWAY = (
    kafka.KafkaConnectionError,
    kafka.NodeNotReadyError,
    kafka.NoBrokersAvailable,
    kafka.StaleMetadata,
    kafka.RequestTimedOutError,
    kafka.KafkaTimeoutError,
    kafka.BrokerNotAvailableError,
    kafka.LeaderNotAvailableError,
    kafka.NotLeaderForPartitionError,
    kafka.ReplicaNotAvailableError,
    kafka.KafkaStorageError,
    OSError,
    asyncio.TimeoutError,
)
DENIED = (
    kafka.AuthenticationFailedError,
    kafka.AuthenticationMethodNotSupported,
    kafka.TopicAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
    kafka.SaslAuthenticationFailed,
)


def translate(error: BaseException, where: str) -> LogError:
    """The `LogError` for what aiokafka raised about `where`: a topic, a partition or the cluster."""
    if isinstance(error, LogError):
        return error
    kind = type(error).__name__
    said = kind if str(error) in {"", kind} else f"{kind}: {error}"
    match error:
        case kafka.NotEnoughReplicasError() | kafka.NotEnoughReplicasAfterAppendError():
            return not_replicated(where, said)
        case kafka.MessageSizeTooLargeError() | kafka.RecordListTooLargeError():
            return LogTooLarge(
                f"expected {where} to take the records, got {said}",
                hint="raise the topic's max.message.bytes: `icecore topics check` says to what",
            )
        case kafka.UnknownTopicOrPartitionError():
            return topic_missing(where)
        case _ if isinstance(error, DENIED) or _is_tls(error):
            return denied(where, said)
        case _ if isinstance(error, AWAY):
            return away(where, said)
        case _:
            return LogError(f"expected {where} to take or give records, got {said}")


def away(where: str, said: str) -> LogAway:
    """Nobody answers, or nobody leads."""
    return LogAway(
        f"expected a broker that answers for {where}, got {said}",
        hint="check the brokers, their address, and ICECORE_KAFKA_SECURITY_PROTOCOL; a server goes on by itself",
        retry_after=2,
    )


def denied(where: str, said: str) -> LogDenied:
    """We are not who may, or the brokers are not whom we trust."""
    return LogDenied(
        f"expected the brokers to let us use {where}, got {said}",
        hint="check ICECORE_KAFKA_* (user, password, certificates) and the cluster's ACLs",
        retry_after=10,
    )


def not_replicated(where: str, said: str) -> LogNotReplicated:
    """The leader is there, too few of the others are."""
    return LogNotReplicated(
        f"expected enough replicas of {where} in sync, got {said}",
        hint="bring the missing brokers back; appends then go on by themselves",
        retry_after=5,
    )


def topic_missing(where: str) -> LogTopicMissing:
    """Not made yet, or deleted."""
    return LogTopicMissing(
        f"expected the topic of {where}, got none",
        hint="`icecore topics create` makes it; if it was deleted, its records are lost: restore the log from a copy",
        retry_after=10,
    )


def topic_replaced(where: str) -> LogForeign:
    """Deleted and made again: another log of the same name, which this process must not mix with the first."""
    return LogForeign(
        f"expected {where} as it was when the log was opened, got another topic or cluster of that name",
        hint="it was deleted and made again: restore the log from a copy, or start with an empty store",
    )


def truncated(place: Place, offset: int, start: int) -> LogTruncated:
    """History was deleted: the log begins later than it did."""
    return LogTruncated(
        f"expected every record of {place.stream}:{place.partition} from {offset} on, got a log that starts at {start}",
        hint="records were deleted: restore the log from a copy, then deny DeleteRecords and AlterConfigs by ACLs",
        stream=place.stream,
        partition=place.partition,
        offset=offset,
        start=start,
    )


def lost_tail(place: Place, known: int, end: int) -> LogTruncated:
    """The end went back: what was acknowledged is not there any more."""
    return LogTruncated(
        f"expected {place.stream}:{place.partition} to end at {known} or later, got {end}",
        hint="acknowledged records were lost (an unclean election?): restore the log from a copy",
        stream=place.stream,
        partition=place.partition,
        offset=known,
        start=end,
    )


def unsure(where: str, seconds: float, why: str) -> LogUnsure:
    """The batch is on its way, and nothing was heard."""
    return LogUnsure(
        f"expected {where} to acknowledge within {seconds:g} s, got no answer{f': {why}' if why else ''}",
        hint="it may be written or not: send the same records again, they are folded once",
        retry_after=2,
    )


def busy(waiting: int, most: int) -> LogBusy:
    """The buffer is full: nothing of this call was taken."""
    return LogBusy(
        f"expected at most {most} bytes to wait to be written, got {waiting}",
        hint="the brokers are slower than what comes in",
        retry_after=1,
    )


def too_large(place: Place, size: int, most: int) -> LogTooLarge:
    """More than one batch holds, and a call is all or nothing in each partition."""
    return LogTooLarge(
        f"expected at most {most} bytes in one append to {place.stream}:{place.partition}, got {size}",
        hint="append it in several calls",
        most=most,
        value=size,
    )


def corrupt(place: Place, offset: int, got: str) -> LogCorrupt:
    """Bytes that are not what was written."""
    return LogCorrupt(
        f"expected a whole record at {place.stream}:{place.partition}:{offset}, got {got}",
        hint="compare with another replica (kafka-dump-log), or restore the log from a copy",
        stream=place.stream,
        partition=place.partition,
        offset=offset,
    )


def _is_tls(error: BaseException) -> bool:
    """Whether TLS failed, here or beneath: a broker is there, but not one we trust, or it does not trust us."""
    return isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError)
