r"""Events to bytes and back.

**Payloads** are JSON (orjson), kept in the log exactly as they came. **On the wire and in the spool** an event is
two lines: its envelope and its payload. A request body is such pairs, one after another.

**Blocks** carry metric values by column. Within a block every column has the block's length, and a key has one
column:

    {"step": [0, 1, 2], "ts": [1700000000000, …],        int64; ts in ms since 1970 UTC
     "cols": {"loss": [0.5, null, null]},                float64; null is NaN …
     "inf":  {"loss": {"+": [2], "-": []}},              … unless its row is listed here
     "text": {"phase": ["warm", "warm", "main"]},
     "bool": {"best": [true, false, true]}}

Steps may come in any order and more than once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

import msgspec
import orjson

import icecore.artifact_events
import icecore.registry_events
import icecore.retention_events  # noqa: F401  each of the three registers its events
from icecore.errors import BadRequest
from icecore.events import EVENTS, NEWEST, Envelope, Event, upcast

_envelope_decoder = msgspec.json.Decoder(Envelope)
_envelope_encoder = msgspec.json.Encoder()

Scalar = float | int | bool | str


# -------------------------------------------------------------------------------------------- envelopes, events


def encode_envelope(envelope: Envelope) -> bytes:
    """One line of JSON."""
    return _envelope_encoder.encode(envelope)


def decode_envelope(line: bytes | memoryview) -> Envelope:
    """What `encode_envelope` wrote.

    Raises:
        BadRequest: it is not an envelope; the message says which field.
    """
    try:
        return _envelope_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"expected an event envelope, got {bytes(line[:120])!r}: {error}") from error


def encode_event(event: Event) -> bytes:
    """The event's payload: its fields, then the unknown ones it came with."""
    fields = cast("dict[str, Any]", msgspec.to_builtins(event))
    fields.pop("unknown", None)
    return orjson.dumps({**event.unknown, **fields})


def decode_event(envelope: Envelope, payload: bytes | Mapping[str, Any]) -> Event | None:
    """The event of a record at its newest version, or None where its type or version is not known here.

    Raises:
        BadRequest: the payload is no JSON object, or a field has another type; the message says which.
    """
    body = parse_json(payload) if isinstance(payload, bytes) else payload
    version, body = upcast(envelope.type, envelope.v, body)
    cls = EVENTS.get((envelope.type, version))
    if cls is None or cls is not NEWEST[envelope.type]:
        return None
    known = cls.__struct_fields__
    unknown = {name: value for name, value in body.items() if name not in known}
    fields = {name: value for name, value in body.items() if name in known and name != "unknown"}
    if unknown:
        fields["unknown"] = unknown
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as error:
        raise BadRequest(f"expected a {envelope.type} v{version} payload: {error}") from error


def parse_json(payload: bytes) -> Mapping[str, Any]:
    """A JSON object by the one parser everyone uses (orjson: strict UTF-8, no NaN tokens; of two equal keys the last).

    Raises:
        BadRequest: it is not JSON, or not an object.
    """
    try:
        body = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"expected JSON, got {payload[:120]!r}: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"expected a JSON object, got {type(body).__name__}")
    return body


# --------------------------------------------------------------------------------------------------- the wire


def frame(envelope: Envelope, payload: bytes) -> bytes:
    """One event as two lines."""
    return encode_envelope(envelope) + b"\n" + payload + b"\n"


def frames(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (envelope, payload) lines of a request body.

    Raises:
        BadRequest: the last event has no payload.
    """
    lines = body.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) % 2:
        raise BadRequest(
            f"expected pairs of lines, an envelope and a payload each, got {len(lines)} lines",
            hint="docs/events.md shows a request",
        )
    return zip(lines[::2], lines[1::2], strict=True)


# ----------------------------------------------------------------------------------------------------- blocks


class Row(NamedTuple):
    """One call of `Run.log`: a step, a time in ms, and plain scalars by key."""

    step: int
    ts: int
    values: Mapping[str, Scalar]


NUMERIC: Final = frozenset({float, int})
_FLOAT_MAX_INT: Final = 1 << 63


def rows_to_blocks(rows: Iterable[tuple[int, int, Mapping[str, Scalar]]]) -> list[dict[str, Any]]:
    """Rows as blocks: one for each set of keys and kinds, the rows in their order within it.

    Args:
        rows: `Row`s, or plain tuples of the same three parts.
    """
    members = list(rows)
    if not members:
        return []
    keys = tuple(members[0][2])
    if {len(row[2]) for row in members} == {len(keys)}:
        try:
            return list(_blocks_of_group(keys, members))
        except KeyError:
            pass  # as many keys, but others
    groups: dict[tuple[str, ...], list[tuple[int, int, Mapping[str, Scalar]]]] = {}
    for row in members:
        keys = tuple(row[2])
        if keys in groups:
            groups[keys].append(row)
        else:
            groups[keys] = [row]
    return [block for keys, group in groups.items() for block in _blocks_of_group(keys, group)]


def _blocks_of_group(
    keys: tuple[str, ...], rows: Sequence[tuple[int, int, Mapping[str, Scalar]]]
) -> Iterator[dict[str, Any]]:
    """Blocks of rows with the same keys; keys whose kind changes within the rows get blocks of their own."""
    steps, stamps, values = zip(*rows, strict=True)
    block: dict[str, Any] = {"step": list(steps), "ts": list(stamps)}
    mixed: list[str] = []
    for key in keys:
        column = [*map(itemgetter(key), values)]
        kinds = {*map(type, column)}
        if kinds <= NUMERIC:
            _put_numbers(block, key, column, integers=int in kinds)
        elif kinds == {str}:
            block.setdefault("text", {})[key] = column
        elif kinds == {bool}:
            block.setdefault("bool", {})[key] = column
        else:
            mixed.append(key)
    if len(block) > 2 or not keys:
        yield block
    for key in mixed:
        for kind in (NUMERIC, {str}, {bool}):
            chosen = [(step, ts, {key: row[key]}) for step, ts, row in rows if type(row[key]) in kind]
            if chosen:
                yield from _blocks_of_group((key,), chosen)


def _put_numbers(block: dict[str, Any], key: str, column: list[Any], *, integers: bool) -> None:
    """Add a numeric column, its infinities aside. NaN becomes null in orjson by itself."""
    if integers:
        # beyond 64 bits orjson refuses an int; beyond 2^53 a float64 cannot hold it anyway
        column = [v if -_FLOAT_MAX_INT <= v < _FLOAT_MAX_INT else _as_float(v) for v in column]
    if not math.isfinite(sum(column)):
        plus = [i for i, value in enumerate(column) if value == math.inf]
        minus = [i for i, value in enumerate(column) if value == -math.inf]
        if plus or minus:
            block.setdefault("inf", {})[key] = {"+": plus, "-": minus}
    block.setdefault("cols", {})[key] = column


def _as_float(number: float) -> float:
    """The float64 nearest to a number, which is infinite for an int of more than 1,024 bits."""
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, 1 if number > 0 else -1)


def column_values(block: Mapping[str, Any], key: str) -> list[float]:
    """A numeric column of a block as floats, NaN and infinities put back."""
    values = [math.nan if value is None else float(value) for value in block["cols"][key]]
    for sign, rows in block.get("inf", {}).get(key, {}).items():
        for row in rows:
            values[row] = math.inf if sign == "+" else -math.inf
    return values


def block_rows(block: Mapping[str, Any]) -> list[Row]:
    """The rows of a block, in order: the inverse of `rows_to_blocks`, up to numbers being floats."""
    columns: dict[str, Sequence[Scalar]] = {key: column_values(block, key) for key in block.get("cols", {})}
    columns |= block.get("text", {})
    columns |= block.get("bool", {})
    return [
        Row(step, ts, {key: column[i] for key, column in columns.items()})
        for i, (step, ts) in enumerate(zip(block["step"], block["ts"], strict=True))
    ]
