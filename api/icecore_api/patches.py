"""A PATCH as events, by the limits that clients' events have."""

from __future__ import annotations

import uuid
from typing import Any

import orjson

from icecore.codec import encode_event, frame
from icecore.errors import IcecoreError, Invalid
from icecore.events import Envelope, Event, RunSummarised, RunUpdated, now_ms, uuid7
from icecore_api.models import RunPatch
from icecore_ingest.admit import Sender, admit


def patch_events(path: str, patch: RunPatch) -> list[Event]:
    """The events a patch makes: one of the run's fields, one of its summary; none where it changes nothing.

    Raises:
        Invalid, TooLarge: a name, a value or the whole is over its limit.
    """
    fields = patch.model_dump(exclude_none=True)
    summary: dict[str, Any] = fields.pop("summary", {})
    summary_removed: list[str] = fields.pop("summary_removed", [])
    events: list[Event] = []
    if fields:
        events.append(RunUpdated(run=path, **fields))
    if summary or summary_removed:
        events.append(RunSummarised(run=path, set=summary, removed=summary_removed))
    for event in events:
        _check(event)
    return events


def _check(event: Event) -> None:
    """What the gateway checks of a client's event."""
    try:
        payload = encode_event(event)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise Invalid(f"expected values that JSON can hold, got {error}") from error
    now = now_ms()
    envelope = Envelope(
        id=uuid7(now), type=event.TYPE, v=event.VERSION, producer=str(uuid.UUID(int=0)), seq=0, ts_client=now
    )
    try:
        admit(frame(envelope, payload), Sender("", ""), now)
    except IcecoreError as error:
        error.facts.pop("event", None)  # the index within a request of events: this is none
        raise
