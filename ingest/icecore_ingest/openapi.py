"""What the gateway answers by itself, for the OpenAPI document that the store serves."""

from __future__ import annotations

from typing import Any

_ERRORS = {
    "400": "the request cannot be read: malformed lines, JSON or compression, or a body that stopped coming",
    "401": "no API key, or one that is unknown or revoked",
    "403": "a foreign Host or Origin",
    "413": "over `request_bytes`, `event_bytes` or `compression_ratio`; the error names the limit and the value",
    "422": "an event breaks a rule or a limit; the error says which event, by index",
    "429": "this key has too many bytes in flight; Retry-After says when to try again",
    "503": "the log cannot take records now, or too much is in flight; Retry-After says when to try again",
}


def openapi_paths() -> dict[str, Any]:
    """OpenAPI path items of `POST /api/v1/events`, `/healthz`, `/readyz` and `/metrics`."""
    return {
        "/api/v1/events": {"post": _events()},
        "/healthz": {
            "get": {
                "operationId": "healthz",
                "summary": "Whether the gateway is alive",
                "tags": ["operations"],
                "security": [],
                "responses": {"200": _json("alive", {"ok": {"type": "boolean"}})},
            }
        },
        "/readyz": {
            "get": {
                "operationId": "readyz",
                "summary": "Whether log, identities and store are ready, and what is wrong where not",
                "tags": ["operations"],
                "security": [],
                "responses": {"200": _json("ready", _READY), "503": _json("not ready", _READY)},
            }
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "The gateway's metrics in Prometheus's text format",
                "tags": ["operations"],
                "security": [],
                "responses": {
                    "200": {"description": "metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}
                },
            }
        },
    }


_READY = {
    "ready": {"type": "boolean"},
    "parts": {"type": "object", "additionalProperties": {"type": "string"}},
}


def _events() -> dict[str, Any]:
    accepted = {
        "token": {"type": "string", "description": "give it to a read as Icecore-Position to read your own writes"},
        "positions": {
            "type": "array",
            "description": "stream, partition and offset of every event, in the order of the request",
            "items": {
                "type": "array",
                "minItems": 3,
                "maxItems": 3,
                "items": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
            },
        },
    }
    return {
        "operationId": "append_events",
        "summary": "Append events; answered once they are durable",
        "description": "The body is pairs of lines, an envelope and a payload each (docs/events.md). All or nothing. "
        "Sending the same events again changes nothing: (producer, seq) is folded once.",
        "tags": ["events"],
        "security": [{"key": []}],
        "parameters": [
            {
                "name": "Content-Encoding",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "enum": ["gzip", "zstd", "identity"]},
            }
        ],
        "requestBody": {"required": True, "content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
        "responses": {
            "200": {
                **_json("accepted: durable in the log", accepted),
                "headers": {"Icecore-Position": {"schema": {"type": "string"}}},
            },
            **{
                status: {
                    "description": text,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
                }
                for status, text in _ERRORS.items()
            },
        },
    }


def _json(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
