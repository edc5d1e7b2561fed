"""Admission: from a request's bytes to records, or an error that says which event is wrong and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateways import RUN, Producer
from icecore.codec import decode_event, encode_envelope
from icecore.errors import BadRequest, IcecoreError, Invalid, TooLarge
from icecore.events import EVENTS, Event
from icecore.limits import most
from icecore_ingest.admit import Admitted, Sender, admit, stream_of

SENDER = Sender("ada", "key_1")
HOSTILE = json.loads((Path(__file__).parents[1] / "golden" / "hostile_names.json").read_text())


def take(body: bytes) -> list[Admitted]:
    return admit(body, SENDER, 1_800_000_000_000)


def refused(body: bytes, kind: type[IcecoreError] = Invalid) -> IcecoreError:
    with pytest.raises(kind) as found:
        take(body)
    return found.value


def status_of(body: bytes) -> int:
    try:
        take(body)
    except IcecoreError as error:
        return error.status
    return 200


def block(**fields: Any) -> bytes:
    return Producer().metrics(**fields)


def test_payload_bytes_are_kept_as_they_came() -> None:
    """The payload goes into the record byte for byte, spaces, key order and unknown fields included."""
    payload = b'{ "later":{"x":[1]}, "blocks": [{"ts":[1], "step":[ 0],"cols":{"a":[1e-7]}}],  "run":"team/project/r"}'
    (one,) = take(Producer().event("metrics.logged", payload))

    assert one.record.payload == payload


def test_the_server_alone_says_who_and_when() -> None:
    """Actor, credential and server time in a client's envelope are replaced by what the server knows."""
    body = Producer().event("run.heartbeat", {"run": RUN}, actor="system", credential="key_of_another", ts_server=1)
    envelope = take(body)[0].record.envelope

    assert (envelope.actor, envelope.credential, envelope.ts_server) == ("ada", "key_1", 1_800_000_000_000)


def test_records_go_to_their_streams_under_their_run() -> None:
    """Ledger events go to the ledger, the rest to the metrics, each with its run's path as the key, in order."""
    p = Producer()
    admitted = take(
        p.started() + p.metrics() + p.event("console.logged", {"run": RUN, "ts": [], "stream": [], "text": []})
    )

    assert [(one.stream, one.record.key) for one in admitted] == [
        ("ledger", RUN),
        ("metrics", RUN),
        ("metrics", RUN),
    ]


@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        ("run.celebrated", "ledger"),
        ("metrics.histogram", "metrics"),
        ("system.x.y", "metrics"),
        ("console.x", "metrics"),
    ],
)
def test_unknown_types_of_known_families_are_kept(kind: str, stream: str) -> None:
    """A newer client's event types are taken and kept, as long as they say which run they are about."""
    (one,) = take(Producer().event(kind, {"run": RUN, "whatever": [1, {"a": None}]}))

    assert one.stream == stream
    assert "run" in refused(Producer().event(kind, {"whatever": 1})).message


def test_a_newer_version_of_a_known_type_is_kept() -> None:
    """Version 2 of run.started goes to the ledger unread."""
    (one,) = take(Producer().event("run.started", {"run": RUN, "started_ts": "another type"}, v=2))

    assert one.stream == "ledger"


@pytest.mark.parametrize(
    "kind",
    [cls.TYPE for cls in EVENTS.values() if not cls.FROM_CLIENTS] + ["alias.moved", "x", "run", "Run.started", ""],
)
def test_other_types_are_refused(kind: str) -> None:
    """What only the server may say, and what is of no known family, is refused."""
    assert "type" in refused(Producer().event(kind, {"run": RUN, "user": "a"})).message


@pytest.mark.parametrize("kind", ["run.deleted", "run.restored"])
@pytest.mark.parametrize("version", [1, 2, 99])
def test_commands_cannot_come_in_by_another_version(kind: str, version: int) -> None:
    """A server's command is refused from clients at any version."""
    refused(Producer().event(kind, {"run": RUN}, v=version))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "1"),
        ("id", "0190A5D0-0000-7000-8000-000000000000"),
        ("id", "../../etc/passwd"),
        ("producer", ""),
        ("producer", "x" * 36),
        ("seq", -1),
        ("seq", (1 << 53) + 1),
        ("v", 0),
        ("v", -1),
        ("v", 1 << 20),
        ("ts_client", 1 << 62),
        ("ts_client", -(1 << 62)),
    ],
)
def test_envelope_fields_are_checked(field: str, value: Any) -> None:
    """Ids are lower-case UUIDs, numbers in their ranges: else 422."""
    refused(Producer().event("run.heartbeat", {"run": RUN}, **{field: value}))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"id":1}',
        b"{" * 5000,
        encode_envelope(Producer().envelope()).replace(b'"seq":0', b'"seq":' + b"9" * 5000),
        encode_envelope(Producer().envelope()).replace(b'"seq":0', b'"seq":1e400'),
        encode_envelope(Producer().envelope()).replace(b'"seq":0', b'"seq":"0"'),
        encode_envelope(Producer().envelope()).replace(b"metrics.logged", b"\\ud800"),
    ],
)
def test_an_unreadable_envelope_is_a_bad_request(line: bytes) -> None:
    """A line that is no envelope is 400 and names the event."""
    good = Producer().metrics()

    assert refused(good + line + b'\n{"run":"a/b/c"}\n', BadRequest).facts["event"] == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"run":"a/b/c"',
        b'{"run":"a/b/c","x":1e999}',
        b'{"run":"a/b/c","x":-1e999}',
        b'{"run":"a/b/c","x":NaN}',
        b'{"run":"a/b/c","x":Infinity}',
        b'{"run":"a/b/c","x":' + b"9" * 5000 + b"}",
        b'{"run":"a/b/c","x":"\\ud800"}',
        b'{"run":"a/b/c","\\udfff":1}',
        b'{"run":"a/b/c","x":"\xed\xa0\x80"}',
        b'{"run":"a/b/c","x":"\xff"}',
        b'{"run":"a/b/c"} {"run":"a/b/c"}',
        b'{"run":"a/b/c",}',
        b"\xef\xbb\xbf{}",
    ],
)
@pytest.mark.parametrize("kind", ["metrics.logged", "run.heartbeat", "run.unknown"])
def test_unreadable_payloads_are_bad_requests(kind: str, payload: bytes) -> None:
    """Malformed JSON, numbers beyond a double, lone surrogates and invalid UTF-8 are 400, whatever the type."""
    refused(Producer().event(kind, payload), BadRequest)


@pytest.mark.parametrize("kind", ["run.heartbeat", "run.unknown", "metrics.logged", "run.started"])
@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
def test_depth_is_limited(kind: str, opened: bytes) -> None:
    """64 levels of nesting are taken, 65 are 422 and 5,000 a clear 4xx too."""
    closed = b"]" if opened == b"[" else b"}"
    fields = b'"blocks":[],' if kind == "metrics.logged" else b'"started_ts":1,'

    def nested(levels: int) -> bytes:
        inner = levels - 1
        middle = opened * (inner - 1) + (b"[]" if opened == b"[" else b"{}") + closed * (inner - 1)
        return Producer().event(kind, b'{"run":"a/b/c",' + fields + b'"deep":' + middle + b"}")

    assert take(nested(64))
    assert refused(nested(65)).facts["limit"] == "json_depth"
    refused(nested(5_000), IcecoreError)


def test_event_and_request_sizes_are_limited() -> None:
    """An event over 1 MB and a request of over 1,000 events say the limit and the value."""
    p = Producer()
    large = p.event("run.heartbeat", {"run": RUN, "x": "a" * most("event_bytes")})
    error = refused(large, TooLarge)
    assert error.facts["limit"] == "event_bytes"
    assert error.facts["value"] > error.facts["most"] == most("event_bytes")

    beat = {"run": RUN}
    assert len(take(b"".join(p.event("run.heartbeat", beat) for _ in range(1000)))) == 1000
    error = refused(b"".join(p.event("run.heartbeat", beat) for _ in range(1001)))
    assert (error.facts["limit"], error.facts["value"]) == ("request_events", 1001)
    assert refused(b"\n" * 8_000_000).facts["limit"] == "request_events"


@pytest.mark.parametrize("body", [b"", b"\n", b"{}\n", encode_envelope(Producer().envelope())])
def test_bodies_without_whole_events_are_bad_requests(body: bytes) -> None:
    """No event, or an envelope without its payload, is 400."""
    refused(body, BadRequest)


@pytest.mark.parametrize(
    "fields",
    [
        {"step": None},
        {"step": [0, 1]},
        {"step": [0, 1, True]},
        {"step": [0, 1, 2.0]},
        {"step": [0, 1, "2"]},
        {"step": [0, 1, None]},
        {"step": [0, 1, 1 << 63]},
        {"ts": [0, 1, 1 << 62]},
        {"ts": [0, 1, -(1 << 60)]},
        {"ts": [0, 1]},
        {"ts": "abc"},
        {"cols": []},
        {"cols": {"a": [1, 2]}},
        {"cols": {"a": "abc"}},
        {"cols": {"a": {"0": 1}}},
        {"cols": {"a": None}},
        {"cols": {"a": [1, 2, "3"]}},
        {"cols": {"a": [1, 2, True]}},
        {"cols": {"a": [1, 2, [3]]}},
        {"cols": {"a\nb": [1, 2, 3]}},
        {"cols": {"a" * 257: [1, 2, 3]}},
        {"text": {"t": ["a", "b", None]}},
        {"text": {"t": ["a", "b", 1]}},
        {"text": {"loss": ["a", "b", "c"]}},
        {"text": {"t": ["a", "b", "x" * 70_000]}},
        {"bool": {"t": [True, False, 1]}},
        {"bool": {"t": [True]}},
        {"inf": []},
        {"inf": {"loss": {"+": [0]}}},
        {"inf": {"other": {"+": [0]}}},
        {"cols": {"a": [None, 1, 2]}, "inf": {"a": {"+": [3]}}},
        {"cols": {"a": [None, 1, 2]}, "inf": {"a": {"+": [-3]}}},
        {"cols": {"a": [None, 1, 2]}, "inf": {"a": {"*": [0]}}},
        {"cols": {"a": [None, 1, 2]}, "inf": {"a": {"+": [True]}}},
        {"cols": {"a": [None, 1, 2]}, "inf": {"a": {"+": 0}}},
    ],
)
def test_bad_columns_are_refused(fields: dict[str, Any]) -> None:
    """Columns of another length, type, name or range are 422 and name the event."""
    assert refused(block(**fields)).facts["event"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"step": [5, -3, 5]},
        {"step": [-(1 << 63), 0, (1 << 63) - 1]},
        {"cols": {}},
        {"cols": {"a": [None, 1, -0.0]}, "inf": {"a": {"+": [0], "-": []}}},
        {"cols": {"a": [5e-324, 1 << 63, (1 << 53) + 1]}},
        {"text": {"phase": ["a", "", "ü" * 1000]}, "bool": {"best": [True, False, True]}},
        {"cols": {"": [1, 2, 3], "损失/ü": [1, 2, 3], "a.b..c": [1, 2, 3]}},
        {"cols": {"loss": [1, 2, 3]}, "of_a_newer_client": {"x": 1}},
    ],
)
def test_good_columns_are_taken(fields: dict[str, Any]) -> None:
    """Any step order, NaN, infinities, whole numbers, texts, booleans, any language and unknown fields are fine."""
    assert take(block(**fields))


def test_a_hundred_thousand_columns_are_taken_and_more_are_not() -> None:
    """One event may name as many keys as a run may have, not more."""
    few = {f"{n:x}": [] for n in range(most("metric_keys"))}
    assert take(block(rows=0, cols=few))

    error = refused(block(rows=0, cols={**few, "one more": []}))
    assert (error.facts["limit"], error.facts["value"]) == ("metric_keys", most("metric_keys") + 1)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("run.started", {}),
        ("run.started", {"started_ts": "now"}),
        ("run.started", {"started_ts": 1 << 62}),
        ("run.started", {"started_ts": 1, "name": "a" * 257}),
        ("run.started", {"started_ts": 1, "group": "a\u0000b"}),
        ("run.started", {"started_ts": 1, "tags": "abc"}),
        ("run.started", {"started_ts": 1, "tags": ["a"] * 257}),
        ("run.started", {"started_ts": 1, "tags": ["a" * 257]}),
        ("run.started", {"started_ts": 1, "config": []}),
        ("run.started", {"started_ts": 1, "config": {"a" * 257: 1}}),
        ("run.started", {"started_ts": 1, "config": {"a" * 200: [{"b" * 200: 1}]}}),
        ("run.updated", {"tags": [1]}),
        ("run.updated", {"metrics": {"a": {"summary": 1}}}),
        ("run.summarised", {"set": {"a" * 257: 1}}),
        ("run.summarised", {"set": []}),
        ("run.finished", {}),
        ("run.finished", {"finished_ts": 1, "state": "great"}),
        ("run.finished", {"finished_ts": 1, "exit_code": 1 << 40}),
        ("run.finished", {"finished_ts": 1, "runtime_ms": -1}),
        ("run.dropped", {"reason": "x", "points": -1}),
        ("console.logged", {"ts": [1], "stream": ["stdout"], "text": []}),
        ("console.logged", {"ts": [1], "stream": ["stdlog"], "text": ["a"]}),
        ("console.logged", {"ts": [1 << 62], "stream": ["stdout"], "text": ["a"]}),
        ("console.logged", {"ts": [1], "stream": ["stdout"], "text": ["a" * 70_000]}),
        ("metrics.logged", {}),
        ("metrics.logged", {"blocks": {}}),
        ("metrics.logged", {"blocks": [[]]}),
        ("system.logged", {"blocks": [None]}),
    ],
)
def test_fields_have_their_types_and_limits(kind: str, fields: dict[str, Any]) -> None:
    """Wrong types are 400 or 422, and so is what breaks a rule or a limit."""
    refused(Producer().event(kind, {"run": RUN, **fields}), IcecoreError)


@pytest.mark.parametrize(
    "run", [None, 1, [], {}, "", "a", "a/b", "a/b/c/d", "a//c", "/b/c", "a/b/", "a/../c", "a/ b/c"]
)
def test_a_run_path_has_three_good_parts(run: Any) -> None:
    """Everything else is 422."""
    refused(Producer().event("run.heartbeat", {"run": run}))


def test_run_paths_are_in_one_normal_form() -> None:
    """The decomposed form of a name is refused: two runs that look the same would be two."""
    assert take(Producer().event("run.heartbeat", {"run": "team/project/\u00e9"}))
    assert "normal form" in refused(Producer().event("run.heartbeat", {"run": "team/project/e\u0301"})).message


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_data_or_refused(name: str) -> None:
    """Each of over 300 traversal and injection strings, in every name there is, is kept as it is or refused cleanly."""
    assert len(HOSTILE) >= 300
    p = Producer()
    for part in range(3):
        path = "/".join(name if i == part else "x" for i in range(3))
        try:
            (one,) = take(p.event("run.heartbeat", {"run": path}))
        except Invalid:
            continue
        assert one.record.key == path
        assert path.split("/")[part] == name
        assert not set(name) & set("/\\#?%:\0\n\r")
        assert name not in {".", ".."}
    for body in (
        p.metrics(cols={name: [1, 2, 3]}),
        p.metrics(cols={}, text={name: [name, name, name]}),
        p.started(name=name),
        p.started(group=name, job_type=name, tags=[name], notes=name, config={name: {name: name}}),
        p.event("run.summarised", {"run": RUN, "set": {name: name}, "removed": [name]}),
        p.event("console.logged", {"run": RUN, "ts": [1], "stream": ["stdout"], "text": [name]}),
    ):
        try:
            (one,) = take(body)
        except Invalid:
            continue
        assert one.record.payload == body.split(b"\n")[1]


def test_what_is_admitted_can_be_decoded() -> None:
    """A fold can read every event of a known type that admission lets through."""
    p = Producer()
    body = p.started(config={"a": {"b": [1]}}) + p.metrics() + p.event("run.finished", {"run": RUN, "finished_ts": 1})
    events = [decode_event(one.record.envelope, one.record.payload) for one in take(body)]

    assert all(isinstance(event, Event) for event in events)


@given(st.binary(max_size=300))
def test_any_bytes_end_in_records_or_our_error(body: bytes) -> None:
    """Whatever comes, admission answers with records or with an error of the tree, never with another exception."""
    assert status_of(body) in {200, 400, 413, 422}


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
_field = st.sampled_from(
    ["blocks", "step", "ts", "cols", "text", "bool", "inf", "tags", "config", "stream", "started_ts"]
)


@given(st.sampled_from(sorted({cls.TYPE for cls in EVENTS.values()})), st.dictionaries(_field, _json), _json)
def test_any_json_ends_in_records_or_our_error(kind: str, fields: dict[str, Any], block_fields: Any) -> None:
    """Any well-formed JSON in place of an event's fields is admitted or refused by an error of the tree."""
    blocks = [{"step": [1], "ts": [1], **block_fields}] if isinstance(block_fields, dict) else block_fields
    payload = orjson.dumps({"blocks": blocks, **fields, "run": RUN})

    assert status_of(Producer().event(kind, payload)) in {200, 400, 413, 422}


def test_the_stream_of_every_client_event_is_its_own() -> None:
    """Every registered event that clients may send goes to the stream it names."""
    for (name, version), cls in EVENTS.items():
        if cls.FROM_CLIENTS:
            assert stream_of(name, version) == cls.STREAM
