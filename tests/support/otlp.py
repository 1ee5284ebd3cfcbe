"""A receiver of OpenTelemetry's data over HTTP, as a collector would be."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS: dict[str, Any] = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class Span:
    """A span, with its ids in hexadecimal digits, and its times in seconds."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.name, self.resource = span.name, resource
        self.trace, self.id, self.parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
        self.start, self.end = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
        self.attributes = values_of(span.attributes)
        self.status, self.message = span.status.code, span.status.message

    OK, ERROR = 1, 2


class Collector:
    """All that was received."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._metrics: dict[str, dict[frozenset[tuple[str, Any]], Any]] = {}

    def add(self, path: str, headers: dict[str, str], body: bytes) -> None:
        message = REQUESTS[path].FromString(body)
        with self._lock:
            self.headers.append(headers)
            for resource_spans in getattr(message, "resource_spans", ()):
                resource = values_of(resource_spans.resource.attributes)
                self._spans += [Span(span, resource) for scope in resource_spans.scope_spans for span in scope.spans]
            for resource_metrics in getattr(message, "resource_metrics", ()):
                for scope in resource_metrics.scope_metrics:
                    for metric in scope.metrics:
                        points = getattr(metric, metric.WhichOneof("data")).data_points
                        self._metrics[metric.name] = {frozenset(values_of(p.attributes).items()): p for p in points}

    @property
    def metrics(self) -> dict[str, dict[frozenset[tuple[str, Any]], Any]]:
        """The last data points of each metric, by their attributes."""
        with self._lock:
            return dict(self._metrics)

    @property
    def tasks(self) -> dict[str, Span]:
        """The spans of tasks, by their keys."""
        with self._lock:
            return {span.attributes["celeriac.key"]: span for span in self._spans if "celeriac.key" in span.attributes}

    def children(self, parent: Span) -> list[Span]:
        """Return the child spans, in the order of their starts."""
        with self._lock:
            found = [span for span in self._spans if (span.trace, span.parent) == (parent.trace, parent.id)]
        return sorted(found, key=lambda span: (span.start, span.end))

    def parts(self, parent: Span) -> list[tuple[str, int]]:
        """Return the name and the attempt of each child span."""
        return [(span.name, span.attributes["celeriac.attempt"]) for span in self.children(parent)]

    def ids(self) -> defaultdict[str, int]:
        """Return how often each span was received."""
        numbers: defaultdict[str, int] = defaultdict(int)
        with self._lock:
            for span in self._spans:
                numbers[span.id] += 1
        return numbers


def values_of(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def collector(port: int = 0) -> Iterator[Collector]:
    """Receive until the end of the block, at any port if it is 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.add(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    received = Collector(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
