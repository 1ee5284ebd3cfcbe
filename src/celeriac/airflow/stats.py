"""Airflow's own metrics: what `Telemetry` counts and times, under names that begin with "celeriac.".

    executor.telemetry ─► StatsReporter, in its own thread, once a second ─► Airflow's client ─► StatsD, OpenTelemetry

Airflow sends its own numbers, such as `executor.open_slots`, in each heartbeat. This module imports Airflow at
the first use of the client.
"""

from __future__ import annotations

import inspect
import re
import threading
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from typing import Any

from celeriac.log_lines import logger_for
from celeriac.surviving_loop import SurvivingLoop
from celeriac.telemetry.metrics import Kind, Metric
from celeriac.telemetry.telemetry import Labels, Telemetry

INTERVAL = 1.0  # seconds between two reports
MAX_TIMES = 2_000  # measured times in one report; of more, an even sample is sent
CLOSE_TIMEOUT = 2.0  # seconds for the last report
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")

CLIENT_LOCATIONS = (
    ("airflow._shared.observability.metrics.stats", ""),  # 3.3: the module itself
    ("airflow._shared.observability.metrics.stats", "Stats"),  # 3.2
    ("airflow.stats", "Stats"),  # 3.1
)

log = logger_for(__name__)


def stats_client() -> Any:
    """Return Airflow's metrics client, which has `incr`, `gauge` and `timing`."""
    for module, name in CLIENT_LOCATIONS:
        with suppress(ImportError, AttributeError):
            client = import_module(module)
            client = getattr(client, name) if name else client
            if hasattr(client, "incr"):
                return client
    raise ImportError("this version of Airflow has no metrics client in a known module")


def initialize_client() -> None:
    """Configure the metrics client of this process. In a scheduler Airflow has done so, in a worker it has not."""
    try:
        from airflow.observability.metrics import stats_utils
    except ImportError:
        return  # 3.1: the client configures itself
    from airflow.configuration import conf

    client: Any = stats_client()
    is_class = inspect.isclass(client)  # 3.2
    if is_class:
        client.initialize(factory=stats_utils.get_stats_factory(client))
    else:
        legacy_names = conf.getboolean("metrics", "legacy_names_on", fallback=True)
        client.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=legacy_names)


def is_enabled() -> bool:
    """Return whether Airflow is configured to send metrics."""
    return is_on("statsd_on") or is_on("otel_on") or is_on("statsd_datadog_enabled")


def has_tags() -> bool:
    """Return whether the configured client sends tags. Plain StatsD has none, and Airflow drops them there."""
    if is_on("statsd_datadog_enabled"):
        return True
    return is_on("statsd_influxdb_enabled") if is_on("statsd_on") else is_on("otel_on")


def is_on(key: str) -> bool:
    from airflow.configuration import conf

    return bool(conf.getboolean("metrics", key, fallback=False))


def reporter_for(telemetry: Telemetry, team_name: str | None, *, worker: str | None = None) -> StatsReporter | None:
    """Return a reporter to Airflow's client, which is not started; None if Airflow sends no metrics.

    `worker` is the name of a worker.
    """
    if not is_enabled():
        return None
    return StatsReporter(telemetry, stats_client(), tagged=has_tags(), team_name=team_name, worker=worker)


class StatsReporter:
    """Reports all metrics once a second, beside the heartbeat, in its own thread."""

    def __init__(
        self,
        telemetry: Telemetry,
        client: Any,
        *,
        tagged: bool,
        team_name: str | None = None,
        worker: str | None = None,
    ) -> None:
        """Without `tagged`, labels and team become parts of the names.

        `worker` is a label of gauges alone: those of several workers would replace each other, and counters add up.
        """
        self._telemetry, self._client = telemetry, client
        self._tagged, self._team_name, self._worker = tagged, team_name, worker
        self._counts: dict[tuple[Metric, Labels], float] = {}
        """The counters at the last report."""

        self._gauges: set[tuple[Metric, Labels]] = set()
        """The gauges of the last report."""

        self._closed = threading.Event()
        self._is_started = False
        self._thread = SurvivingLoop("celeriac-stats", self._run_round, wait=self._closed.wait)
        telemetry.keep_observations()

    def start(self) -> None:
        """Report from now on. Later calls have no effect."""
        if not self._is_started:
            self._is_started = True
            self._thread.start()

    def close(self) -> None:
        """Report a last time, and end the thread."""
        self._closed.set()
        if self._is_started:
            self._thread.join(CLOSE_TIMEOUT)

    def _run_round(self) -> bool:
        is_last = self._closed.wait(INTERVAL)
        self.report()
        return not is_last

    def report(self) -> None:
        """Send each gauge, the growth of each counter since the last report, and each time that was measured since."""
        gauges: set[tuple[Metric, Labels]] = set()
        for family in self._telemetry.read():
            for labels, number in family.numbers:
                if family.metric.kind is Kind.GAUGE:
                    gauges.add((family.metric, labels))
                    self._gauge(family.metric, labels, number)
                else:
                    self._count(family.metric, labels, number)
        for metric, labels in self._gauges - gauges:  # a server keeps a gauge until it gets another value
            self._gauge(metric, labels, 0)
        self._gauges = gauges
        times = self._telemetry.take_observations()
        for metric, seconds, labels in times[:: 1 + len(times) // MAX_TIMES]:
            duration = timedelta(seconds=max(0.0, seconds))
            self._client.timing(self._name(metric, labels), duration, tags=self._tags(metric, labels))

    def _gauge(self, metric: Metric, labels: Labels, number: float) -> None:
        if self._worker is None:
            self._client.gauge(self._name(metric, labels), number, tags=self._tags(metric, labels))
            return
        name = self._name(metric, labels if self._tagged else (*labels, self._worker))
        self._client.gauge(name, number, tags={**self._tags(metric, labels), "worker": as_part(self._worker)})

    def _count(self, metric: Metric, labels: Labels, number: float) -> None:
        growth = int(number - self._counts.get((metric, labels), 0))
        if growth > 0:
            self._client.incr(self._name(metric, labels), growth, tags=self._tags(metric, labels))
            self._counts[metric, labels] = number

    def _name(self, metric: Metric, labels: Labels) -> str:
        if self._tagged:
            return f"celeriac.{metric.name}"
        team = [] if self._team_name is None else [as_part(self._team_name)]
        return ".".join(["celeriac", *team, metric.name, *map(as_part, labels)])

    def _tags(self, metric: Metric, labels: Labels) -> dict[str, str]:
        tags = dict(zip(metric.labels, labels, strict=True))
        return tags if self._team_name is None else {**tags, "team_name": self._team_name}


def as_part(text: str) -> str:
    """Return a label as one part of a name of StatsD, without the characters that Airflow refuses."""
    return NOT_IN_A_NAME.sub("_", text)[:100] or "_"
