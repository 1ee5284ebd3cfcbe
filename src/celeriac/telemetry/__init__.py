"""Count and measure what an executor and a worker do.

    executor, worker ─► Telemetry.count, observe ─► counters, histograms ─┐
    the present numbers, read when a sink asks ─► sources ────────────────┴► Telemetry.read ─► a sink

`metrics` is the only table of names. The code that counts knows no sink; a sink knows no executor.
"""

from celeriac.telemetry.metrics import METRICS, Kind, Metric
from celeriac.telemetry.telemetry import Distribution, EndedTask, Family, Step, Telemetry

__all__ = ["METRICS", "Distribution", "EndedTask", "Family", "Kind", "Metric", "Step", "Telemetry"]
