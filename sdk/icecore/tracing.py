"""OpenTelemetry, for those who want it: one trace from a client's upload through the gateway to the fold.

Off unless ICECORE_OTEL=1 or OTEL_EXPORTER_OTLP_ENDPOINT is set, and nothing of OpenTelemetry is imported then. On, it
needs `pip install 'icecore[otel]'`; the OTEL_* variables say where spans go and which are kept. A program that has
a tracer provider of its own (`opentelemetry.trace.set_tracer_provider`) has our spans there.

How the fold joins: the gateway writes the trace of a sampled request into the envelopes of its records
(`Envelope.trace`). Whoever folds them makes one span for the batch, with links to the traces in it, and in each of
these traces one span `icecore.folded`, with a link to the batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from icecore.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, Tracer, TracerProvider

TRACES_MOST: Final = 32
"""So many traces of a batch are gone on with; of the others the gateway's part is there."""

Kind = Literal["internal", "server", "client", "producer", "consumer"]

_tracer: Tracer | None = None


def on() -> bool:
    """Whether spans are made."""
    return _tracer is not None


def wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the environment asks for traces."""
    environment = os.environ if environ is None else environ
    said = environment.get("ICECORE_OTEL", "").strip().lower()
    if said:
        return said in {"1", "true", "yes", "on"}
    return any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_"))


def begin(process: str, environ: Mapping[str, str] | None = None) -> str:
    """Make spans from now on, where the environment asks for it.

    Args:
        process: the service's name is icecore-PROCESS, unless OTEL_SERVICE_NAME says another.
        environ: the environment; the process's own by default.

    Returns:
        Empty, or why there are none although OTEL_EXPORTER_OTLP_ENDPOINT is set.

    Raises:
        SettingsError: ICECORE_OTEL asks for traces, and OpenTelemetry is not installed.
    """
    environment = os.environ if environ is None else environ
    if not wanted(environment):
        return ""
    try:
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            provider = _own_provider(process)
    except ImportError as error:
        why = f"expected OpenTelemetry to be installed, as traces are asked for, got: {error}"
        if not environment.get("ICECORE_OTEL"):
            return why
        raise SettingsError(why, hint="pip install 'icecore[otel]', or set ICECORE_OTEL=0") from error
    use(provider)
    return ""


def use(provider: TracerProvider | None) -> None:
    """Make spans with a provider; None ends it."""
    global _tracer  # noqa: PLW0603 - one for the process, as OpenTelemetry's own
    _tracer = None if provider is None else provider.get_tracer("icecore")


def _own_provider(process: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider as Provider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "") or f"icecore-{process}"
    provider = Provider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


@contextlib.contextmanager
def span(name: str, *, parent: str = "", kind: Kind = "internal", **attributes: Any) -> Iterator[Span]:
    """A span around a block; only while `on()`.

    Args:
        name: of few kinds: no ids, no paths of users.
        parent: a W3C traceparent of elsewhere; without it the span around this one.
        kind: OpenTelemetry's word for what it is.
        attributes: facts about it; no secrets, no payloads.
    """
    from opentelemetry.trace import SpanKind

    assert _tracer is not None, "ask on() first"
    around = _context(parent) if parent else None
    with _tracer.start_as_current_span(
        name, context=around, kind=SpanKind[kind.upper()], attributes=attributes or None
    ) as made:
        yield made


_NOTHING: Final = contextlib.nullcontext()


def maybe_span(name: str, **attributes: Any) -> contextlib.AbstractContextManager[object]:
    """A span where traces are on, and nothing where not, which costs next to nothing."""
    return _NOTHING if _tracer is None else span(name, **attributes)


def traceparent(of: Span) -> str:
    """A span as other processes are told of it."""
    where = of.get_span_context()
    return f"00-{where.trace_id:032x}-{where.span_id:016x}-{int(where.trace_flags):02x}"


def sampled() -> str:
    """The traceparent of the span around this, if it is kept; else empty."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    around = trace.get_current_span()
    where = around.get_span_context()
    return traceparent(around) if where.is_valid and where.trace_flags.sampled else ""


def folded(traces: Iterable[str], began_ns: int, ended_ns: int, **attributes: Any) -> None:
    """Tell of a batch that was folded: a span of its own, and one in each trace whose records were in it.

    Args:
        traces: `Envelope.trace` of the records.
        began_ns: when the fold began, in ns since 1970.
        ended_ns: when its commit was done.
        attributes: of the batch.
    """
    if _tracer is None:
        return
    from opentelemetry.context import Context as Root
    from opentelemetry.trace import Link, SpanKind

    contexts = [_context(text) for text in sorted(set(traces))[:TRACES_MOST]]
    links: list[Link] = [Link(_where(context)) for context in contexts]
    batch = _tracer.start_span(
        "icecore.fold", Root(), SpanKind.CONSUMER, attributes or None, links=links, start_time=began_ns
    )
    for context in contexts:
        one = _tracer.start_span(
            "icecore.folded", context, SpanKind.CONSUMER, links=[Link(batch.get_span_context())], start_time=began_ns
        )
        one.end(ended_ns)
    batch.end(ended_ns)


def _context(text: str) -> Context:
    """The context that a traceparent names; an unreadable one begins a new trace."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": text})


def _where(context: Context) -> Any:
    from opentelemetry import trace

    return trace.get_current_span(context).get_span_context()
