"""Where spans go: OpenTelemetry's SDK and its OTLP exporter, which are imported only where there are traces."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from app import __version__
from app.observability.redaction import loggable_path

log = structlog.get_logger()


def make_provider(processor: SpanProcessor | None) -> TracerProvider:
    """A provider whose spans go to this processor, or in batches to the collector that the environment names."""
    ours = {"service.name": "soundpost", "service.version": __version__, "service.instance.id": str(uuid4())}
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())
    # What is left at the end of the process is flushed within its grace.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(_Redactor())
    provider.add_span_processor(processor or BatchSpanProcessor(_Exporter()))
    return provider


class _Redactor(SpanProcessor):
    """Takes what is secret out of the URL that the framework gives its spans: a callback's token, a signature."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        attributes = span.attributes or {}
        if "url.path" in attributes:
            span.set_attribute("url.path", loggable_path(str(attributes["url.path"])))
        if "url.query" in attributes:
            span.set_attribute("url.query", "REDACTED")


class _Exporter(OTLPSpanExporter):
    """Sends spans from a thread of its own. What goes wrong is one line a minute; the library's own are not written."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            log.warning(
                "traces_not_exported", problem="the collector does not take them: is its URL right, does it run?"
            )
        return result
