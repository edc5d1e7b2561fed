"""OpenTelemetry over real processes: one trace from a client's upload to the fold, and nothing without the setting."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateways import on_log, read_all
from icecore import tracing
from icecore.errors import SettingsError
from icecore.position import LEDGER
from servers import running_server, wait_until

SCRIPT = "import icecore\nwith icecore.init(project='p', mode='online') as run:\n    run.log({'loss': 1.0})\n"


@dataclass(frozen=True)
class Told:
    """A span as a collector has it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: tuple[str, ...]


@contextmanager
def collector() -> Iterator[tuple[str, list[Told]]]:
    """Takes spans as OTLP over HTTP; its address, and what came so far."""
    found: list[Told] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        links = tuple(link.trace_id.hex() for link in span.links)
                        ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                        found.append(Told(named["service.name"], span.name, *ids, links))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Takes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        server.server_close()


def test_one_trace_from_client_to_fold(tmp_path: Path) -> None:
    """An upload's trace has the client's, the gateway's and the store's spans, each below the one before it."""
    with collector() as (address, found):
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with running_server(tmp_path, **settings) as server:
            server.run("python", "-c", SCRIPT, **settings)
            uploads = [span for span in found if span.name == "icecore.upload"]
            wait_until(
                lambda: {one.trace for one in uploads} <= {one.trace for one in found if one.name == "icecore.folded"},
                what="a folded span in the trace of every upload",
            )

    assert uploads
    upload = uploads[0]
    trace = {span.name: span for span in found if span.trace == upload.trace}
    assert upload.service == "icecore-client"
    request = trace["POST /api/v1/events"]
    assert (request.service, request.parent) == ("icecore-gateway", upload.id)
    assert trace["icecore.admit"].parent == trace["icecore.append"].parent == request.id
    folded = trace["icecore.folded"]
    assert (folded.service, folded.parent) == ("icecore-store", request.id)
    (batch,) = [span for span in found if span.name == "icecore.fold" and span.trace in folded.links]
    assert upload.trace in batch.links


def test_what_is_not_sampled_is_not_in_the_log(tmp_path: Path) -> None:
    """With the sampler off nothing is exported, and no record carries a trace."""
    with collector() as (address, found):
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_TRACES_SAMPLER": "always_off"}
        with running_server(tmp_path, **settings) as server:
            server.run("python", "-c", SCRIPT, **settings)

    records = on_log(server.data, lambda log: read_all(log, LEDGER), readonly=True)
    assert "run.started" in {record.envelope.type for record in records}
    assert {record.envelope.trace for record in records} == {""}
    assert found == []


def test_nothing_is_imported_without_the_setting() -> None:
    """Neither the client nor the processes of a server import OpenTelemetry unless they are told to."""
    code = (
        "import sys\nfrom icecore import tracing\nimport icecore.transport, icecore_ingest.gateway_process\n"
        "assert tracing.begin('gateway') == '' and not tracing.on()\n"
        "with tracing.maybe_span('x'): pass\n"
        "tracing.folded(['00-' + '1' * 32 + '-' + '2' * 16 + '-01'], 0, 1)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"ICECORE_OTEL": "1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "ICECORE_OTEL": "0"}, False),
    ],
)
def test_who_asks_for_traces(environment: dict[str, str], expected: bool) -> None:
    """Either setting asks for traces, and ICECORE_OTEL has the last word."""
    assert tracing.wanted(environment) is expected


def test_a_missing_library_is_said() -> None:
    """Asked for by name, traces without OpenTelemetry are an error that says what to install; else a sentence."""
    code = (
        "import sys\nsys.modules['opentelemetry'] = None\nfrom icecore import tracing\n"
        "print(tracing.begin('x', {'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://c'}))\n"
        "try:\n    tracing.begin('x', {'ICECORE_OTEL': '1'})\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    first, second = done.stdout.splitlines()
    assert first.startswith("expected OpenTelemetry to be installed")
    assert second.startswith(SettingsError.__name__)
    assert "icecore[otel]" in second
