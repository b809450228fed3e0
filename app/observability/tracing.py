"""
Traces: spans by OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT is set, and the trace context that each task keeps.

Like logging it is set up once for a process, by `start_tracing`. Until then a span is one constant that does nothing.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators import textmap
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from app import __version__

if TYPE_CHECKING:
    from datetime import timedelta

    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

log = structlog.get_logger()

# The headers `traceparent` and `tracestate` by name, as they are stored with a task and sent with its webhooks.
TraceContext = Mapping[str, str]
PARENT, STATE = "traceparent", "tracestate"
# W3C Trace Context §3.3.1.5: so much is passed on, by every receiver of a webhook too.
MAX_STATE = 512
MAX_MEMBER = 128
ENDPOINTS = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOLS = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
# The fields of a log line that its span has too: none of them is a text that callers or the upstream choose.
_SHOWN = frozenset(
    {"task_id", "upstream_task_id", "model", "clip", "attempt", "outcome", "stage", "hold_reason", "upstream_code"}
    | {"delivery_id", "event_id", "event_type", "endpoint_id", "status", "status_code", "size", "links", "lyrics"}
)
_OFF: AbstractContextManager[Span] = nullcontext(INVALID_SPAN)
_provider: TracerProvider | None = None
_tracer: Tracer | None = None


class _TraceContextPropagator(TraceContextTextMapPropagator):
    """As the W3C wants it: several `traceparent` are none, where the library takes the first."""

    def extract(
        self,
        carrier: textmap.CarrierT,
        context: Context | None = None,
        getter: textmap.Getter[textmap.CarrierT] = textmap.default_getter,
    ) -> Context:
        if len(getter.get(carrier, PARENT) or ()) > 1:
            return Context() if context is None else context
        return super().extract(carrier, context, getter)


_W3C = _TraceContextPropagator()


def is_tracing_wanted() -> bool:
    """Whether the environment, by the variables of OpenTelemetry, names a place for traces that we can send them to."""
    has_place = any(os.environ.get(name, "").strip() for name in ENDPOINTS)
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not has_place or is_off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() != "otlp":
        return False
    protocol = next((value for name in PROTOCOLS if (value := os.environ.get(name, "").strip())), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("tracing_is_off", problem=f"{PROTOCOLS[1]} is {protocol}: traces are sent by http/protobuf alone")
    return protocol == "http/protobuf"


def start_tracing(processor: SpanProcessor | None = None) -> None:
    """Record spans from now on, and hand them to this processor: by default one that exports them by OTLP."""
    global _provider, _tracer
    from app.observability.exporting import make_provider

    _provider = make_provider(processor)
    _tracer = _provider.get_tracer("soundpost", __version__)
    if "OTEL_PROPAGATORS" not in os.environ:
        # No baggage: nothing here reads it, or sends it on.
        propagate.set_global_textmap(_W3C)


def stop_tracing() -> None:
    """Record no spans from now on."""
    global _provider, _tracer
    _provider = _tracer = None


async def flush_traces(within: timedelta) -> None:
    """Export the spans that have ended, as far as the collector takes them within this time."""
    if _provider is None:
        return
    flushed: Future[bool] = Future()
    flush = threading.Thread(target=_flush, args=(_provider, flushed), daemon=True)
    flush.start()
    with suppress(TimeoutError):
        async with asyncio.timeout(within.total_seconds()):
            await asyncio.wrap_future(flushed)


def tracer_provider() -> TracerProvider | None:
    """Where the framework's spans go; None where there are none."""
    return _provider


def span(name: str, parent: TraceContext | None, kind: SpanKind = SpanKind.INTERNAL) -> AbstractContextManager[Span]:
    """A span of one attempt for a task, below the context that the task keeps; what raises in it marks it as failed."""
    return _OFF if _tracer is None else _recorded(_tracer, name, _W3C.extract(parent or {}), kind, {})


def client_span(method: str, host: str, port: int) -> AbstractContextManager[Span]:
    """The span of one HTTP request that we make. Of its URL it has the host alone: paths and queries hold secrets."""
    if _tracer is None:
        return _OFF
    attributes = {"http.request.method": method, "server.address": host, "server.port": port}
    return _recorded(_tracer, method, None, SpanKind.CLIENT, attributes)


def note_status(span: Span, status: int) -> None:
    """Note the status of the response to a request that we made."""
    span.set_attribute("http.response.status_code", status)
    if status >= 400:
        fail(span, str(status))


def record_span(name: str, parent: TraceContext | None, began: int, fields: Mapping[str, Any]) -> None:
    """
    Record what has just ended for a task whose context was not known before; `began` is in nanoseconds since the epoch.

    The span is of the task's trace, and linked with the span of the request, which is of another.
    """
    if _tracer is None:
        return
    request, context = get_current_span(), _W3C.extract(parent or {})
    links = [Link(request.get_span_context())]
    done = _tracer.start_span(name, context, SpanKind.CONSUMER, links=links, start_time=began)
    describe(done, fields)
    done.end()
    request.add_link(done.get_span_context())


def describe(span: Span, fields: Mapping[str, Any], failure: str | None = None) -> None:
    """Give a span the fields of its log line, of which none is a text of others, and mark it as failed."""
    if not span.is_recording():
        return
    span.set_attributes(
        {f"soundpost.{name}": fields[name] for name in _SHOWN & fields.keys() if fields[name] is not None}
    )
    if failure is not None:
        fail(span, failure)


def fail(span: Span, error: str) -> None:
    """Mark a span as failed. `error` is a kind of error, of few that there are."""
    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)


def name_route(scope: Scope, route: SimpleNamespace) -> None:
    """Put the route of a request that the framework does not route into its scope and its span, as it would."""
    scope["route"] = route
    if "fastapi.telemetry" in scope:
        request = get_current_span()
        request.update_name(f"{scope['method']} {route.path}")
        request.set_attribute("http.route", route.path)


def name_span(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name in a line of the log the span that is under way."""
    if _tracer is not None and (context := get_current_span().get_span_context()).is_valid:
        entry["trace_id"], entry["span_id"] = format_trace_id(context.trace_id), format_span_id(context.span_id)
    return entry


def trace_context_of(scope: Scope) -> TraceContext | None:
    """What a new task keeps: its request's span or, without one, what the caller sent, if that is valid."""
    if _tracer is not None:
        return current_context()
    for name, _ in scope["headers"]:
        if name == b"traceparent":
            break
    else:
        return None
    given: dict[str, list[str]] = {PARENT: [], STATE: []}
    for name, value in scope["headers"]:
        if (header := name.decode("latin-1")) in given:
            given[header].append(value.decode("latin-1"))
    return _kept(_W3C.extract(given))


def current_context() -> TraceContext | None:
    """The context of the span that is under way."""
    return _kept(None)


def _kept(context: Context | None) -> TraceContext | None:
    kept: dict[str, str] = {}
    _W3C.inject(kept, context)
    if len(kept.get(STATE, "")) > MAX_STATE:
        members = [member for member in kept[STATE].split(",") if len(member) <= MAX_MEMBER]
        while len(",".join(members)) > MAX_STATE:
            members.pop()
        kept[STATE] = ",".join(members)
    return kept or None


@contextmanager
def _recorded(
    tracer: Tracer, name: str, parent: Context | None, kind: SpanKind, attributes: Mapping[str, Any]
) -> Iterator[Span]:
    # Messages of exceptions may repeat what others sent: the SDK does not record them.
    span = tracer.start_span(name, parent, kind, attributes)
    with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except BaseException as error:
            fail(span, type(error).__name__)
            raise


def _flush(provider: TracerProvider, flushed: Future[bool]) -> None:
    flushed.set_running_or_notify_cancel()
    flushed.set_result(provider.force_flush())
