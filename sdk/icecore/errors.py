"""The one tree of errors.

Every error says what was expected and what was found, and where a person can act, it carries a hint: the next
step to take. `status` is the HTTP status the API answers with, `code` the word programs may branch on.

    IcecoreError
    |-- UsageError              the client library was called wrongly
    |-- SettingsError           a setting is missing or makes no sense
    |-- BadRequest        400   the request cannot be read
    |-- Unauthenticated   401   no key, or an unknown or revoked one
    |-- Forbidden         403   a known caller who may not do this, or a foreign Host or Origin
    |   `-- ReadOnlyCopy  403   a copy as of a moment takes no changes
    |-- NotFound          404
    |-- Conflict          409   the fold decided otherwise: expected v4, found v5
    |-- TooLarge          413   a size limit (limits.py)
    |-- RangeNotThere     416   the bytes asked for are beyond the end: `size`
    |-- Invalid           422   readable, but breaks a rule or a limit
    |   |-- DigestMismatch  422   the bytes are not those of the digest they were sent under
    |   `-- BlobsMissing    422   blobs that are named are not there: `missing`
    |-- TooBusy           429   this key has too many bytes in flight
    |-- StoreLost         502   the store went away before it answered
    |-- Unavailable       503   try again later
    |   `-- NotYet        503   the projection has not reached the position asked for
    |-- ServerUnreachable       the client found no server
    |-- ServerFailed      500   the server answered, but not with anything that is in this tree
    |-- LogError          503   the log cannot take or give records
    |   |-- LogFull             no space left
    |   |-- LogReadOnly         the folder or file cannot be written
    |   |-- LogLocked           another process holds it
    |   |-- LogPoisoned         a write or fsync failed: no success until reopened
    |   |-- LogCorrupt          a record fails its checksum
    |   |-- LogForeign          not an icecore log, or not the one it was
    |   |-- LogTooNew           written by a newer icecore
    |   |-- LogAway             no broker answers, or a partition has no leader
    |   |-- LogNotReplicated    too few replicas are in sync to take anything
    |   |-- LogUnsure           no answer in time: written or not
    |   |-- LogBusy             as much waits to be written as may wait
    |   |-- LogTooLarge   413   more than one append takes
    |   |-- LogDenied           the brokers refuse this user, or its certificate or password
    |   |-- LogTopicMissing     a topic is not there
    |   |-- LogTruncated        records were deleted or lost
    |   `-- LogDrift            a topic's settings could lose records
    |-- BlobError         503   the blobs cannot be written or read
    |   `-- BlobsFull           no space left: nothing of what was sent is kept
    |-- BlobDamaged       500   what is stored is no longer what was sent
    `-- StoreError        503   the projection store cannot be used
        |-- StoreDamaged        set aside and rebuilt from the log
        |-- StoreTooNew         written by a newer icecore: set aside and rebuilt
        |-- StoreLocked         another process holds it
        |-- StoreFull           no space left: folding goes on when there is some
        `-- StoreAhead          it has folded records the log does not have
"""

from __future__ import annotations

from typing import Any, ClassVar


class IcecoreError(Exception):
    """The root of every error icecore raises on purpose.

    Args:
        message: what was expected and what was found, in one sentence.
        hint: the next step to take, or empty.
        facts: what a program may want to read, such as `limit` and `value`; shown in the API's error body.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def body(self) -> dict[str, Any]:
        """The JSON body of an API answer."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint, **self.facts}}


class UsageError(IcecoreError):
    """The client library was called wrongly."""

    code = "usage"


class SettingsError(IcecoreError):
    """A setting is missing or makes no sense."""

    code = "settings"


class BadRequest(IcecoreError):
    """The request cannot be read."""

    status = 400
    code = "bad_request"


class Unauthenticated(IcecoreError):
    """No key, or an unknown or revoked one."""

    status = 401
    code = "unauthenticated"


class Forbidden(IcecoreError):
    """A known caller who may not do this, or a foreign Host or Origin."""

    status = 403
    code = "forbidden"


class ReadOnlyCopy(Forbidden):
    """A server that only shows its data takes no changes; `as_of` in the facts says what moment it shows."""

    code = "read_only"


class NotFound(IcecoreError):
    """Nothing of that name, or nothing the caller may see."""

    status = 404
    code = "not_found"


class Conflict(IcecoreError):
    """The fold decided otherwise."""

    status = 409
    code = "conflict"


class TooLarge(IcecoreError):
    """A size is over its limit; `limit` and `value` are in the facts."""

    status = 413
    code = "too_large"


class RangeNotThere(IcecoreError):
    """The bytes asked for are beyond the end; `size` is in the facts."""

    status = 416
    code = "range"


class Invalid(IcecoreError):
    """Readable, but breaks a rule or a limit."""

    status = 422
    code = "invalid"


class DigestMismatch(Invalid):
    """The bytes are not those of the digest they were sent under; `digest` and `got` are in the facts."""

    code = "digest_mismatch"


class BlobsMissing(Invalid):
    """Blobs that are named are not there; `missing` in the facts lists their digests."""

    code = "blobs_missing"


class TooBusy(IcecoreError):
    """This key has too many bytes in flight; `retry_after` seconds are in the facts."""

    status = 429
    code = "too_busy"


class StoreLost(IcecoreError):
    """The store went away before it answered: what was asked for may have been done or not."""

    status = 502
    code = "store_lost"


class Unavailable(IcecoreError):
    """Try again later; `retry_after` seconds are in the facts."""

    status = 503
    code = "unavailable"


class NotYet(Unavailable):
    """The projection has not reached the position asked for; `have` and `want` are in the facts."""

    code = "not_yet"


class ServerUnreachable(IcecoreError):
    """The client found no server at its URL."""

    status = 503
    code = "server_unreachable"


class ServerFailed(IcecoreError):
    """The server, or something before it, answered with no error of this tree."""

    code = "server_failed"


class LogError(IcecoreError):
    """The log cannot take or give records."""

    status = 503
    code = "log"


class LogFull(LogError):
    """No space left."""

    code = "log_full"


class LogReadOnly(LogError):
    """The folder or file cannot be written."""

    code = "log_read_only"


class LogLocked(LogError):
    """Another process holds it."""

    code = "log_locked"


class LogPoisoned(LogError):
    """A write or fsync failed: what is on disk is unknown, so nothing succeeds until the log is reopened."""

    code = "log_poisoned"


class LogCorrupt(LogError):
    """A record fails its checksum; `stream`, `partition` and `offset` are in the facts."""

    code = "log_corrupt"


class LogForeign(LogError):
    """The file or topic is not an icecore log, or not the one it was."""

    code = "log_foreign"


class LogTooNew(LogError):
    """Written by a newer icecore."""

    code = "log_too_new"


class LogAway(LogError):
    """No broker answers, or a partition has no leader; it goes on by itself when there is one."""

    code = "log_away"


class LogNotReplicated(LogError):
    """Too few replicas are in sync to take anything; it goes on by itself when they are back."""

    code = "log_not_replicated"


class LogUnsure(LogError):
    """No answer in time: what was sent may be written or not. Sent again it is folded once, by (producer, seq)."""

    code = "log_unsure"


class LogBusy(LogError):
    """As much waits to be written as may wait; nothing of this call was taken."""

    code = "log_busy"


class LogTooLarge(LogError):
    """More than one append takes; `most` and `value` are in the facts, in bytes."""

    status = 413
    code = "log_too_large"


class LogDenied(LogError):
    """The brokers refuse this user, or its certificate or password."""

    code = "log_denied"


class LogTopicMissing(LogError):
    """A topic is not there: not yet made, or deleted."""

    code = "log_topic_missing"


class LogTruncated(LogError):
    """Records were deleted or lost; `stream`, `partition`, `offset` and `start` are in the facts."""

    code = "log_truncated"


class LogDrift(LogError):
    """A topic's settings could lose records; `drift` in the facts lists setting, what it is and what it must be."""

    code = "log_drift"


class BlobError(IcecoreError):
    """The blobs cannot be written or read."""

    status = 503
    code = "blobs"


class BlobsFull(BlobError):
    """No space left; nothing of what was sent is kept, and what was there before is safe."""

    code = "blobs_full"


class BlobDamaged(IcecoreError):
    """What is stored is no longer what was sent; `digest` is in the facts. A backup may still have it."""

    code = "blob_damaged"


class StoreError(IcecoreError):
    """The projection store cannot be used."""

    status = 503
    code = "store"


class StoreDamaged(StoreError):
    """The store cannot be read: it is set aside and rebuilt from the log."""

    code = "store_damaged"


class StoreTooNew(StoreError):
    """Written by a newer icecore: it is set aside and rebuilt from the log."""

    code = "store_too_new"


class StoreLocked(StoreError):
    """Another process holds it."""

    code = "store_locked"


class StoreFull(StoreError):
    """No space left; what was folded is safe, and folding goes on by itself when there is some."""

    code = "store_full"


class StoreAhead(StoreError):
    """The store has folded records that the log does not have: the log lost data, or is another log."""

    code = "store_ahead"
