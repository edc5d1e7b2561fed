"""From a request's bytes to records: pure, all or nothing.

What is admitted is never re-serialised: the payload goes into the log as it came. The steps, for every event:

    1. the body is pairs of lines, within `request_events`
    2. the envelope is one: ids are UUIDs, numbers in range
    3. the type is known and may come from clients, or is of a family that is kept unread
    4. the payload is a JSON object within `event_bytes` and `json_depth`
    5. the run it is about has a good path: it becomes the record's key
    6. its fields have their types; names, texts and columns keep to their rules and limits
    7. the record says who sent it, with which credential, and when it came
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from icecore.codec import decode_envelope, decode_event, frames, parse_json
from icecore.errors import BadRequest, IcecoreError, Invalid, TooLarge
from icecore.events import (
    EVENTS,
    NEWEST,
    ConsoleLogged,
    Envelope,
    Event,
    RunDropped,
    RunFinished,
    RunStarted,
    RunSummarised,
    RunUpdated,
    check_name,
    check_uuid,
    split_run_path,
)
from icecore.limits import most
from icecore.log import Record
from icecore.position import LEDGER, METRICS
from icecore_ingest.blocks import check_blocks, check_limit, check_texts, check_ts

FAMILIES: Final[Mapping[str, str]] = {"run": LEDGER, "metrics": METRICS, "system": METRICS, "console": METRICS}
"""Families of which also unknown types and versions are taken and kept, and the stream they go to."""

SEQ_MOST: Final = 1 << 53
_VERSION_MOST: Final = 1 << 16
_TYPE: Final = re.compile(r"[a-z][a-z0-9_]{0,31}(\.[a-z][a-z0-9_]{0,31}){1,3}")
_COLUMNAR: Final = frozenset({("metrics.logged", 1), ("system.logged", 1)})
_COLUMNAR_FIELDS: Final = frozenset({"run", "blocks"})


class Sender(NamedTuple):
    """Who sent a request."""

    actor: str
    credential: str
    trace: str = ""
    """The W3C traceparent of the request, where its trace is kept."""


class Admitted(NamedTuple):
    """One record, and the stream to append it to."""

    stream: str
    record: Record


def admit(body: bytes, sender: Sender, ts_server: int) -> list[Admitted]:
    """All records of a request body, or an error about the first event that is wrong.

    Args:
        body: pairs of lines, decompressed.
        sender: the authenticated caller.
        ts_server: when it came, in ms since 1970 UTC.

    Raises:
        BadRequest: it cannot be read.
        TooLarge: an event is over `event_bytes`.
        Invalid: it breaks a rule or a limit. All carry `event`, the index of the event within the request.
    """
    # 1
    lines = body.count(b"\n") + 1
    if lines > 2 * most("request_events") + 1:
        check_limit("request_events", lines // 2, "a request")
    admitted: list[Admitted] = []
    for index, (line, payload) in enumerate(frames(body)):
        try:
            admitted.append(_admit_event(line, payload, sender, ts_server))
        except IcecoreError as error:
            error.facts["event"] = index
            raise
    if not admitted:
        raise BadRequest("expected at least one event, got an empty body", hint="docs/events.md shows a request")
    if len(admitted) > most("request_events"):
        check_limit("request_events", len(admitted), "a request")
    return admitted


def _admit_event(line: bytes, payload: bytes, sender: Sender, ts_server: int) -> Admitted:
    # 2
    envelope = decode_envelope(line)
    check_uuid("`id`", envelope.id)
    _check_producer(envelope.producer)
    if not 0 <= envelope.seq <= SEQ_MOST:
        raise Invalid(f"expected `seq` from 0 to 2^53, got {envelope.seq}")
    check_ts("ts_client", envelope.ts_client)
    # 3
    stream = stream_of(envelope.type, envelope.v)
    # 4
    if len(payload) > most("event_bytes"):
        raise TooLarge(
            f"expected an event of at most {most('event_bytes')} bytes, got {len(payload)}",
            hint="the limit is `event_bytes` in docs/limits.md; send it as several events",
            limit="event_bytes",
            most=most("event_bytes"),
            value=len(payload),
        )
    fields = parse_json(payload)
    # 5
    run = fields.get("run")
    if type(run) is not str:
        raise Invalid("expected `run` to be the path entity/project/run_id, got none")
    _check_run(run)
    # 6
    if (envelope.type, envelope.v) in _COLUMNAR:
        # what blocks may hold is four levels deep: only fields unknown to this version can be deeper
        all_known = check_blocks(fields.get("blocks")) and fields.keys() <= _COLUMNAR_FIELDS
        if not all_known:
            check_depth(fields)
    else:
        if payload.count(b"[") + payload.count(b"{") > most("json_depth"):
            check_depth(fields)
        event = decode_event(envelope, fields)
        if event is not None and (check := _CHECKS.get(type(event))) is not None:
            check(event)
    # 7
    stamped = Envelope(
        envelope.id,
        envelope.type,
        envelope.v,
        envelope.producer,
        envelope.seq,
        envelope.ts_client,
        ts_server,
        sender.actor,
        sender.credential,
        sender.trace,
    )
    return Admitted(stream, Record(run, stamped, payload))


@lru_cache(maxsize=1024)
def stream_of(name: str, version: int) -> str:
    """The stream that events of a type go to.

    Raises:
        Invalid: clients may not send it, or it is of no known family.
    """
    if not _TYPE.fullmatch(name) or not 1 <= version <= _VERSION_MOST:
        raise Invalid(f"expected an event type like run.started and a version from 1, got {name[:80]!r} v{version}")
    known = EVENTS.get((name, version)) or NEWEST.get(name)
    if known is not None and known.FROM_CLIENTS:
        return known.STREAM
    family = FAMILIES.get(name.partition(".")[0])
    if known is not None or family is None:
        raise Invalid(
            f"expected an event type that clients may send, got {name!r}",
            hint="docs/events.md lists them; others are made by the server's commands",
        )
    return family


def check_depth(root: Mapping[str, Any], what: str = "a payload") -> None:
    """Check that no value nests deeper than `json_depth`. Level by level: nothing recurses.

    Raises:
        Invalid: one does.
    """
    level: list[Any] = [root]
    depth = 0
    while level:
        depth += 1
        if depth > most("json_depth"):
            check_limit("json_depth", depth, what)
        deeper: list[Any] = []
        for value in level:
            members = value.values() if type(value) is dict else value
            deeper += [member for member in members if type(member) is dict or type(member) is list]
        level = deeper


@lru_cache(maxsize=4096)
def _check_producer(text: str) -> None:
    check_uuid("`producer`", text)


@lru_cache(maxsize=4096)
def _check_run(path: str) -> None:
    whole = "/".join(split_run_path(path))
    if whole != path:
        raise Invalid(
            f"expected a run path in Unicode normal form C, got {path[:200]!r}",
            hint="normalise names with NFC, so that what looks the same is the same run",
        )


# ------------------------------------------------------------------------------------- step 6, by type of event


def _check_started(event: RunStarted) -> None:
    _check_names(event.name, event.group, event.job_type, event.tags)
    check_ts("started_ts", event.started_ts)
    _check_keys("config", event.config)


def _check_updated(event: RunUpdated) -> None:
    _check_names(event.name or "", event.group or "", event.job_type or "", event.tags or [])
    _check_keys("config", event.config)
    for key, rules in event.metrics.items():
        check_name("a metric key", key, "key_chars")
        for rule in rules.values():
            check_name("a metric's rule", rule, "key_chars")
    for key in event.config_removed:
        check_name("a config key", key, "key_chars")


def _check_summarised(event: RunSummarised) -> None:
    for key in (*event.set, *event.removed):
        check_name("a summary key", key, "key_chars")


def _check_finished(event: RunFinished) -> None:
    check_ts("finished_ts", event.finished_ts)
    if not -(1 << 31) <= event.exit_code < 1 << 31:
        raise Invalid(f"expected `exit_code` in 32 bits, got {event.exit_code}")
    if not 0 <= event.runtime_ms <= SEQ_MOST:
        raise Invalid(f"expected `runtime_ms` from 0 to 2^53, got {event.runtime_ms}")


def _check_dropped(event: RunDropped) -> None:
    for what, count in (("events", event.events), ("points", event.points), ("bytes", event.bytes)):
        if not 0 <= count <= SEQ_MOST:
            raise Invalid(f"expected `{what}` from 0 to 2^53, got {count}")


def _check_console(event: ConsoleLogged) -> None:
    if not len(event.ts) == len(event.stream) == len(event.text):
        raise Invalid(
            "expected `ts`, `stream` and `text` of one length, "
            f"got {len(event.ts)}, {len(event.stream)} and {len(event.text)}"
        )
    check_limit("block_rows", len(event.ts), "an event")
    check_texts(event.text, "a console line")
    if event.ts:
        check_ts("ts", min(event.ts))
        check_ts("ts", max(event.ts))


def _check_names(name: str, group: str, job_type: str, tags: list[str]) -> None:
    check_name("a run's name", name)
    check_name("a group", group)
    check_name("a job type", job_type)
    check_limit("tags", len(tags), "a run")
    for tag in tags:
        check_name("a tag", tag)


def _check_keys(what: str, values: dict[str, Any]) -> None:
    """Check the names in nested values, by their dotted paths' length, and the size of the whole."""
    pending: list[tuple[int, Any]] = [(0, values)]
    while pending:
        chars, value = pending.pop()
        if type(value) is dict:
            for key, member in value.items():
                check_name(f"a {what} key", key, "key_chars")
                if chars + len(key) > most("key_chars"):
                    check_limit("key_chars", chars + len(key), f"a {what} path")
                if type(member) is dict or type(member) is list:
                    pending.append((chars + len(key) + 1, member))
        else:
            pending += [(chars, member) for member in value if type(member) is dict or type(member) is list]
    if most("config_bytes") < most("event_bytes"):
        check_limit("config_bytes", len(orjson.dumps(values)), what)


_CHECKS: Final[Mapping[type[Event], Callable[[Any], None]]] = {
    RunStarted: _check_started,
    RunUpdated: _check_updated,
    RunSummarised: _check_summarised,
    RunFinished: _check_finished,
    RunDropped: _check_dropped,
    ConsoleLogged: _check_console,
}
