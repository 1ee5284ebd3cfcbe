"""Send what a process measures, and a trace of each task, over OTLP/HTTP.

    Telemetry.read ─► metrics, once a minute ─────────────────────┐
    ended tasks ─► a span for each, and child spans for its parts ─┴► the exporters of the SDK ─► a collector

The variables of OpenTelemetry (OTEL_*) say where and how. The ids of a task's span are known before it is sent: see
`trace_context`. So a span is made when its task has ended, and no span is open meanwhile.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import metric_exporter, trace_exporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from celeriac.config.masking import masked_text
from celeriac.errors import InvalidConfig
from celeriac.log_lines import logger_for
from celeriac.task.state import State
from celeriac.telemetry.metrics import Kind
from celeriac.telemetry.metrics import Metric as Measured
from celeriac.telemetry.sinks.text import encodable
from celeriac.telemetry.task_spans import Part, parts_of
from celeriac.telemetry.telemetry import Distribution, EndedTask, Family, Labels, Telemetry
from celeriac.telemetry.trace_context import (
    TRACEPARENT,
    TRACESTATE,
    TraceContext,
    ids_of_task,
    parse_traceparent,
    variables_in,
)

logger = logger_for(__name__)

NAME = "celeriac"
SCOPE = InstrumentationScope(NAME)
BATCH_SIZE = 400  # tasks in one request: some 2,000 spans
DEFAULT_METRIC_INTERVAL = 60_000.0  # milliseconds, as in the SDK
DEFAULT_ENDPOINT = "http://localhost:4318"
PROTOCOL = "http/protobuf"
ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\")(]+)")


class OpenTelemetrySink:
    """Sends metrics and traces. `send` and `close` are for the sink's thread; the executor calls the others."""

    interval = 5.0
    """Seconds between two calls of `send`, the delay of a trace."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raise `InvalidConfig` for variables of OpenTelemetry that cannot be used."""
        check_protocol(environment)
        self._telemetry = Telemetry()
        self._provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
        around = variables_in(environment)
        self._parent, self._state = parse_traceparent(around.get(TRACEPARENT)), around.get(TRACESTATE)
        """The span in which this process was started, and what vendors have noted for it."""

        self._propagator = TraceContextTextMapPropagator()
        self._started = nanoseconds(time.time())
        self._endpoint = masked_text(environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or DEFAULT_ENDPOINT)
        self._metric_interval = metric_interval(environment)
        self._metrics_due = time.monotonic() + self._metric_interval
        self._is_failing = self._is_closed = self._is_sending = False
        self._errors = ErrorsOfExporters()
        try:
            self._spans = OTLPSpanExporter() if is_wanted("TRACES", environment) else None
            self._metrics = OTLPMetricExporter() if is_wanted("METRICS", environment) else None
        except Exception as error:  # noqa: BLE001 - the SDK raises what its parsers raise
            raise InvalidConfig("opentelemetry", masked_text(f"{error}"), "correct the variables OTEL_*") from None

    def begin(self, telemetry: Telemetry) -> None:
        """Send what this telemetry measures from now on. Call it before the first task is queued."""
        self._telemetry = telemetry
        if self._spans is not None:
            telemetry.keep_ended_tasks(self)

    # — for the executor —

    def caller(self) -> Mapping[str, str]:
        """Return TRACEPARENT and TRACESTATE for the span in which the calling thread is; nothing outside a span."""
        if not trace.get_current_span().get_span_context().is_valid:
            return {}
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return {name.upper(): value for name, value in carrier.items()}

    def variables(self, task_id: str, environment: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return the variables that make the spans of a command children of its task's span; None for those of
        `new_trace`."""
        given = environment.get(TRACEPARENT)
        if given is None and self._parent is None and self._provider.sampler is DEFAULT_ON:
            return None
        parent = self._parent_of(None if given is None else str.__str__(given))
        variables = {TRACEPARENT: str(self._context_of(task_id, parent))}
        if parent is self._parent and self._state:
            variables[TRACESTATE] = self._state
        return variables

    def _parent_of(self, traceparent: str | None) -> TraceContext | None:
        return parse_traceparent(traceparent) or self._parent

    def _context_of(self, task_id: str, parent: TraceContext | None) -> TraceContext:
        trace_id, span_id = ids_of_task(task_id, parent)
        if self._provider.sampler is DEFAULT_ON:  # asking it would take longer than all the rest
            return TraceContext(trace_id, span_id, parent is None or parent.is_sampled)
        around = Context() if parent is None else trace.set_span_in_context(remote_span(parent), Context())
        decision = self._provider.sampler.should_sample(around, trace_id, NAME).decision
        is_sampled = decision is Decision.RECORD_AND_SAMPLE
        return TraceContext(trace_id, span_id, is_sampled)

    # — for the thread —

    def send(self, *, is_last: bool) -> None:
        """Send the traces of the tasks that have ended, and the metrics if they are due."""
        self._errors.begin()
        self._is_sending = True
        try:
            self._send_spans(self._telemetry.take_ended_tasks())
            if is_last or time.monotonic() >= self._metrics_due:
                self._metrics_due = time.monotonic() + self._metric_interval
                self._send_metrics()
        finally:
            self._is_sending = False

    def close(self) -> None:
        """End the requests. What is being sent is lost, which is logged."""
        self._is_closed = True
        if self._is_sending:
            self._note(is_sent=False)
        for exporter in (self._spans, self._metrics):
            if exporter is not None:
                exporter.shutdown()

    def _send_metrics(self) -> None:
        if self._metrics is not None and not self._is_closed:
            self._note(is_sent=self._metrics.export(self._read()) is MetricExportResult.SUCCESS)

    def _send_spans(self, ended: list[EndedTask]) -> None:
        """Send the spans of tasks in batches. After a failure the others are dropped: the next call has newer ones."""
        for start in range(0, len(ended), BATCH_SIZE):
            spans = [span for task in ended[start : start + BATCH_SIZE] for span in self._spans_of(task)]
            if self._spans is None or self._is_closed:
                return
            if spans and not self._note(is_sent=self._spans.export(spans) is SpanExportResult.SUCCESS):
                return

    def _note(self, *, is_sent: bool) -> bool:
        """Log the first failure in a row, and the end of the failures."""
        if is_sent == self._is_failing and not (self._is_closed and is_sent):
            self._is_failing = not is_sent
            if is_sent:
                logger.warning("OpenTelemetry: %s receives metrics and traces again", self._endpoint)
            else:
                why, then = self._errors.last or "no reply in time", "" if self._is_closed else "; trying again"
                logger.warning("OpenTelemetry: cannot send metrics and traces to %s: %s%s", self._endpoint, why, then)
        return is_sent

    # — traces —

    def _spans_of(self, task: EndedTask) -> Iterator[ReadableSpan]:
        parent = self._parent_of(task.parent)
        context = self._context_of(task.id, parent)
        if not context.is_sampled:
            return
        own = span_context(context, is_remote=False)
        last, queue = task.steps[-1], encodable(task.queue)
        attributes: dict[str, str | int] = {
            "celeriac.key": encodable(task.name),
            "celeriac.queue": queue,
            "celeriac.state": last.state,
            "celeriac.attempt": last.attempt,
            **({} if last.reason is None else {"celeriac.reason": last.reason}),
        }
        parts = parts_of(task)
        yield ReadableSpan(
            name=f"task {queue}",
            context=own,
            parent=None if parent is None else span_context(parent, is_remote=True),
            resource=self._provider.resource,
            attributes=attributes,
            status=status_of(last.state, last.reason),
            start_time=nanoseconds(task.arrived),
            end_time=nanoseconds(max(task.arrived, parts[-1].end)),
            instrumentation_scope=SCOPE,
        )
        yield from (self._span_of(part, own) for part in parts)

    def _span_of(self, part: Part, parent: SpanContext) -> ReadableSpan:
        failed = part.failure is not None
        attributes: dict[str, str | int] = {"celeriac.attempt": part.attempt}
        if part.failure is not None:
            attributes["celeriac.reason"] = part.failure
        own = self._provider.id_generator.generate_span_id()
        return ReadableSpan(
            name=part.state,
            context=SpanContext(parent.trace_id, own, is_remote=False, trace_flags=parent.trace_flags),
            parent=parent,
            resource=self._provider.resource,
            attributes=attributes,
            status=Status(StatusCode.ERROR, part.failure) if failed else Status(),
            start_time=nanoseconds(part.start),
            end_time=nanoseconds(part.end),
            instrumentation_scope=SCOPE,
        )

    # — metrics —

    def _read(self) -> MetricsData:
        now = nanoseconds(time.time())
        metrics = [metric_of(family, self._started, now) for family in self._telemetry.read()]
        scope = ScopeMetrics(SCOPE, metrics, "")
        return MetricsData([ResourceMetrics(self._provider.resource, [scope], self._provider.resource.schema_url)])


def metric_of(family: Family, started: int, now: int) -> Metric:
    """Return a family in the form of OpenTelemetry. Counters and histograms are totals since the start."""
    metric = family.metric
    cumulative = AggregationTemporality.CUMULATIVE
    data: Sum | Gauge | Histogram
    if metric.kind is Kind.HISTOGRAM:
        points = [
            histogram_point(distribution, attributes_of(metric, labels), started, now)
            for labels, distribution in family.distributions
        ]
        data = Histogram(points, cumulative)
    else:
        numbers = [
            NumberDataPoint(attributes_of(metric, labels), started, now, number) for labels, number in family.numbers
        ]
        data = Sum(numbers, cumulative, is_monotonic=True) if metric.kind is Kind.COUNTER else Gauge(numbers)
    is_time = metric.kind is Kind.HISTOGRAM or metric.name.endswith("_seconds")
    return Metric(f"{NAME}.{metric.name}", metric.help, "s" if is_time else "1", data)


def attributes_of(metric: Measured, labels: Labels) -> dict[str, str]:
    return dict(zip(metric.labels, map(encodable, labels), strict=True))


def histogram_point(
    distribution: Distribution, attributes: dict[str, str], started: int, now: int
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=started,
        time_unix_nano=now,
        count=distribution.number,
        sum=distribution.total,
        bucket_counts=distribution.counts,
        explicit_bounds=distribution.metric.bounds,
        min=None,  # type: ignore[arg-type] # the protocol allows none, and none is known
        max=None,  # type: ignore[arg-type]
    )


# — settings —


def check_protocol(environment: Mapping[str, str]) -> None:
    for signal in ("", "TRACES_", "METRICS_"):
        variable = f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL"
        if (protocol := environment.get(variable) or PROTOCOL) != PROTOCOL:
            remedy = f"give {PROTOCOL}, and the port of OTLP over HTTP, which is often 4318"
            raise InvalidConfig(variable, f"{protocol!r} is not supported", remedy)


def is_wanted(signal: str, environment: Mapping[str, str]) -> bool:
    """Return whether a signal is exported: not with OTEL_TRACES_EXPORTER=none, nor with OTEL_SDK_DISABLED=true."""
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not is_disabled and environment.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() != "none"


def metric_interval(environment: Mapping[str, str]) -> float:
    """Return the seconds between two exports of metrics. Raise `InvalidConfig`."""
    variable = "OTEL_METRIC_EXPORT_INTERVAL"
    raw = environment.get(variable) or str(DEFAULT_METRIC_INTERVAL)
    try:
        return float(raw) / 1_000
    except ValueError:
        raise InvalidConfig(variable, f"{raw!r} is not a number of milliseconds", "give for example 10000") from None


def resource() -> Resource:
    """Return what the SDK says of this process, with the service name "celeriac" unless the user gives another."""
    found = Resource.create()
    is_named = not str(found.attributes.get("service.name", "")).startswith("unknown_service")
    return found if is_named else found.merge(Resource({"service.name": NAME}))


# — conversion —


def span_context(context: TraceContext, *, is_remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT)
    return SpanContext(context.trace, context.span, is_remote=is_remote, trace_flags=flags)


def remote_span(context: TraceContext) -> NonRecordingSpan:
    return NonRecordingSpan(span_context(context, is_remote=True))


def status_of(state: str, reason: str | None) -> Status:
    if state == State.FAILED:
        return Status(StatusCode.ERROR, reason)
    return Status(StatusCode.OK) if state == State.SUCCESS else Status()


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class ErrorsOfExporters(logging.Filter):
    """Keeps what the exporters log in the sink's thread, and hides it: the sink logs one line of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.last: str | None = None
        self._thread: int | None = None
        self._loggers = [logging.getLogger(module.__name__) for module in (trace_exporter, metric_exporter)]
        for each in self._loggers:
            each.addFilter(self)

    def remove(self) -> None:
        for each in self._loggers:
            each.removeFilter(self)

    def begin(self) -> None:
        """Keep what is logged in this thread from now on."""
        self.last, self._thread = None, threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        text = masked_text(record.getMessage())
        found = ERRNO.search(text)
        if found is not None:
            self.last = found[1].strip()
        elif "due to timeout" not in text:
            self.last = self.last or text[:200]
        return False
