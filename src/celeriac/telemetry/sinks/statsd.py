"""Send what a process measures to a StatsD server, in UDP datagrams.

A counter is sent as its increase, a gauge as it is, and each observation of a histogram as a timer. A server that does
not answer costs nothing: UDP waits for no reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from random import sample

from statsd import StatsClient
from statsd.client.udp import Pipeline

from celeriac.log_lines import logger_for
from celeriac.telemetry.metrics import Kind, Metric
from celeriac.telemetry.telemetry import Labels, Telemetry

logger = logger_for(__name__)

PREFIX = "celeriac"
MAX_DATAGRAM = 1_400  # bytes: an Ethernet frame holds it with its headers, also in a tunnel
MAX_TIMERS = 2_000  # observations of one round; of more, a sample is sent, with its rate
SPECIAL = re.compile(r"[^\w-]+", re.ASCII)


class TagForm(StrEnum):
    """Where a datagram has the labels of a metric."""

    NAME = "name"
    """In the name, with points between them: `celeriac.tasks_waiting.gpu`. Every server understands it."""

    DATADOG = "datadog"
    """In tags as DataDog's agent expects them: `celeriac.tasks_waiting:3|g|#queue:gpu`."""

    INFLUXDB = "influxdb"
    """In the name as Telegraf expects them: `celeriac.tasks_waiting,queue=gpu`."""


class StatsdSink:
    """Sends all metrics of a process. Only one thread may use it."""

    interval = 1.0
    """Seconds between two calls of `send`."""

    def __init__(self, host: str, port: int, tags: TagForm = TagForm.NAME) -> None:
        self._host, self._port, self._tags = host, port, tags
        self._telemetry = Telemetry()
        self._client: StatsClient | None = None
        self._has_warned = False
        self._counters: dict[tuple[Metric, Labels], float] = {}
        """The values that were sent last."""

        self._gauges: set[tuple[Metric, Labels]] = set()
        """The gauges that the server knows."""

    def begin(self, telemetry: Telemetry) -> None:
        """Send what this telemetry measures from now on."""
        self._telemetry = telemetry
        telemetry.keep_observations()

    def send(self, *, is_last: bool) -> None:
        """Send what has changed since the last call. If the server's name has no address, try again at the next."""
        observations = self._telemetry.take_observations()
        client = self._client = self._client or self._open()
        if client is None:
            return
        with TaggedPipeline(client) as pipeline:
            self._send_numbers(pipeline)
            kind = "ms"
            if len(observations) > MAX_TIMERS:
                kind = f"ms|@{MAX_TIMERS / len(observations):.6f}"
                observations = sample(observations, MAX_TIMERS)
            for metric, seconds, labels in observations:
                pipeline.put(self._name_and_tags(metric, labels), max(0.0, seconds) * 1_000, kind)

    def close(self) -> None:
        """Close the socket."""
        if self._client is not None:
            self._client.close()

    def _open(self) -> StatsClient | None:
        """Look up the address of the server. Warn once if it has none."""
        try:
            return StatsClient(self._host, self._port, maxudpsize=MAX_DATAGRAM, ipv6=":" in self._host)
        except OSError as error:
            if not self._has_warned:
                logger.warning("cannot send metrics to StatsD at %s: %s; trying again", self._host, error.strerror)
            self._has_warned = True
            return None

    def _send_numbers(self, pipeline: TaggedPipeline) -> None:
        gauges: set[tuple[Metric, Labels]] = set()
        for family in self._telemetry.read():
            metric = family.metric
            for labels, number in family.numbers:
                if metric.kind is Kind.GAUGE:
                    gauges.add((metric, labels))
                    pipeline.put(self._name_and_tags(metric, labels), number, "g")
                elif increase := self._increase(metric, labels, number):
                    pipeline.put(self._name_and_tags(metric, labels), increase, "c")
        for metric, labels in self._gauges - gauges:  # a server keeps a gauge until it gets another value
            pipeline.put(self._name_and_tags(metric, labels), 0, "g")
        self._gauges = gauges

    def _increase(self, metric: Metric, labels: Labels, number: float) -> float:
        """Return the increase of a counter since the last call. A counter that has shrunk began again at 0."""
        before = self._counters.get((metric, labels), 0)
        self._counters[metric, labels] = number
        return number - before if number >= before else number

    def _name_and_tags(self, metric: Metric, labels: Labels) -> tuple[str, str]:
        return name_and_tags(metric, labels, self._tags)


class TaggedPipeline(Pipeline):  # type: ignore[misc]
    """Collects lines, and sends them in few datagrams. The library knows no tags, which follow the value."""

    def put(self, name_and_tags: tuple[str, str], value: float, kind: str) -> None:
        """Add a line."""
        name, tags = name_and_tags
        self._after(self._prepare(name, f"{number(value)}|{kind}", rate=1) + tags)


def number(value: float) -> str:
    """Return a number without an exponent, which some servers cannot read."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


@lru_cache(maxsize=4_000)
def name_and_tags(metric: Metric, labels: Labels, form: TagForm) -> tuple[str, str]:
    """Return the name of a metric, and what follows its value."""
    name = f"{PREFIX}.{metric.name}"
    pairs = list(zip(metric.labels, map(plain, labels), strict=True))
    if not pairs:
        return name, ""
    match form:
        case TagForm.NAME:
            return ".".join((name, *(value for _, value in pairs))), ""
        case TagForm.DATADOG:
            return name, "|#" + joined(":", pairs)
        case TagForm.INFLUXDB:
            return f"{name},{joined('=', pairs)}", ""


def joined(sign: str, pairs: Iterable[tuple[str, str]]) -> str:
    return ",".join(f"{label}{sign}{value}" for label, value in pairs)


def plain(value: str) -> str:
    """Return a label's value without characters that have a meaning in a datagram, or that are not ASCII."""
    return SPECIAL.sub("_", value)[:100] or "_"
