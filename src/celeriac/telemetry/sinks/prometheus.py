"""Show what a process measures to Prometheus, in its text format or in that of OpenMetrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from celeriac.telemetry.metrics import Kind
from celeriac.telemetry.sinks.text import encodable
from celeriac.telemetry.telemetry import Distribution, Family, Telemetry

PREFIX = "celeriac_"
Render: TypeAlias = Callable[[str], tuple[bytes, str]]


def renderer_for(telemetry: Telemetry) -> Render:
    """Return a function that takes the Accept header of a request, and returns all metrics as text and its content
    type. Besides those of Celeriac there are the usual ones of a process: memory, processor time, open files."""
    registry = CollectorRegistry()
    registry.register(TelemetryCollector(telemetry))
    ProcessCollector(registry=registry)

    def render(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return render


class TelemetryCollector(Collector):
    """Reads all metrics anew for each request."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        return map(metric_of, self._telemetry.read())

    def describe(self) -> list[Metric]:
        """Return nothing: then nothing is read when the collector is registered."""
        return []


def metric_of(family: Family) -> Metric:
    """Return a family in the form of Prometheus's client."""
    metric = family.metric
    name = PREFIX + metric.name
    if metric.kind is Kind.HISTOGRAM:
        shown = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        for labels, distribution in family.distributions:
            shown.add_metric([*map(encodable, labels)], buckets_of(distribution), distribution.total)
        return shown
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    numbers = kind(name, metric.help, labels=metric.labels)
    for labels, number in family.numbers:
        numbers.add_metric([*map(encodable, labels)], number)
    return numbers


def buckets_of(distribution: Distribution) -> list[tuple[str, float]]:
    """Return the upper bound of each bucket, and how many observations are at most as large."""
    bounds = (*distribution.metric.bounds, float("inf"))
    return list(zip(map(floatToGoString, bounds), accumulate(distribution.counts), strict=True))
