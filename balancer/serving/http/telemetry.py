"""OpenTelemetry of the service: continues the trace of a request, and exports spans of it and of its parts.

It is on where `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) is set and `balancer[telemetry]` is
installed. The other variables of OpenTelemetry apply, such as `OTEL_SERVICE_NAME`,
`OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_TRACES_SAMPLER`. Spans have the template of the route and no path,
query or body. A valid `traceparent` gives the request its id in any case.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from balancer.dependencies import is_installed
from balancer.serving import tracing
from balancer.serving.http.logs import LOGGER

LOG = logging.getLogger(LOGGER)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_TRACE_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_LIBRARIES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
Headers = Iterable[tuple[bytes, bytes]]


class Telemetry:
    """Makes the spans of requests.

    Args:
        exporter: Where spans go; None: over OTLP to the endpoint of the environment.
    """

    def __init__(self, exporter: Any = None) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "balancer"}
        self._provider = TracerProvider(resource=Resource.create(named))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("balancer.serving")
        self._propagator = TraceContextTextMapPropagator()
        tracing.begin(self._record)

    def begin(self, method: str, headers: Headers) -> Any:
        """Begin the span of a request, as a part of the trace that its headers name."""
        from opentelemetry.trace import SpanKind

        carried = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in (b"traceparent", b"tracestate")}
        context = self._propagator.extract(carried)
        return self._tracer.start_span(method, context=context, kind=SpanKind.SERVER)

    def _record(self, name: str, parent: tracing.Parent, begin: int, end: int) -> None:
        self._tracer.start_span(name, context=parent, start_time=begin).end(end_time=end)

    def close(self) -> None:
        """Export what is left; no further spans are recorded."""
        tracing.begin(None)
        self._provider.shutdown()


class RequestTrace:
    """The id of a request and its span, if spans are recorded.

    Args:
        telemetry: None where they are not.
        method: Of the request.
        headers: Of the request.
    """

    __slots__ = ("_span", "number", "parents")

    def __init__(self, telemetry: Telemetry | None, method: str, headers: Headers) -> None:
        self.parents: tuple[tracing.Parent, ...] = ()
        if telemetry is None:
            self._span: Any = None
            self.number = _trace_id(headers) or uuid.uuid4().hex
            return
        from opentelemetry.trace import set_span_in_context

        self._span = telemetry.begin(method, headers)
        self.number = f"{self._span.get_span_context().trace_id:032x}"
        self.parents = (set_span_in_context(self._span),)

    def end(self, method: str, route: str, status: int) -> None:
        """End the span."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.update_name(f"{method} {route}")
        self._span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if status >= 500 or not status:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _trace_id(headers: Headers) -> str | None:
    for name, value in headers:
        if name == b"traceparent":
            found = _TRACE_PARENT.fullmatch(value.strip())
            return None if found is None else found[1].decode()
    return None


def telemetry_of(environment: Mapping[str, str] = os.environ) -> Telemetry | None:
    """Begin to export spans if an endpoint is configured.

    Returns:
        None where none is, or where `OTEL_SDK_DISABLED` is true or the libraries are missing; the latter is
        said in the log.
    """
    if not any(environment.get(name) for name in ENDPOINTS) or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not all(is_installed(library) for library in _LIBRARIES):
        LOG.warning("spans are not exported although an endpoint is configured: install balancer[telemetry]")
        return None
    begun = time.perf_counter()
    telemetry = Telemetry()
    LOG.info("exporting spans", extra={"fields": {"ms": round(1e3 * (time.perf_counter() - begun), 1)}})
    return telemetry
