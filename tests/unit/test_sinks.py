"""The sinks of metrics: Prometheus, StatsD, and the thread that calls a sink."""

from __future__ import annotations

import math
import random
import socket

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from celeriac.sink_thread import SinkThread
from celeriac.surviving_loop import thread_health
from celeriac.telemetry import metrics
from celeriac.telemetry.metrics import METRICS, Kind
from celeriac.telemetry.sinks.prometheus import renderer_for
from celeriac.telemetry.sinks.statsd import MAX_DATAGRAM, MAX_TIMERS, StatsdSink, TagForm
from celeriac.telemetry.telemetry import Labels, Telemetry, Value
from tests.support.cli_runner import until

HOSTILE = [
    'say "hi"',
    "back\\slash",
    "two\nlines",
    "sn\u00f6 \u2603",
    "a|b:c#d,e=f@g.h",
    "{x}",
    "\ud800lone",
    "\x00\r\t",
]
TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def telemetry():
    """Every metric, with hostile values of its labels."""
    telemetry, dice = Telemetry(), random.Random(7)
    gauges = {
        metric: {tuple(dice.choice(HOSTILE) for _ in metric.labels): dice.random() * 1e6 for _ in range(4)}
        for metric in METRICS
        if metric.kind is Kind.GAUGE
    }
    telemetry.set_source("test", lambda: [*gauges.items()])
    for metric in METRICS:
        for _ in range(20):
            labels = [dice.choice(HOSTILE) for _ in metric.labels]
            if metric.kind is Kind.COUNTER:
                telemetry.count(metric, *labels, by=dice.randrange(1, 9))
            elif metric.kind is Kind.HISTOGRAM:
                telemetry.observe(metric, dice.expovariate(0.5), *labels)
    return telemetry


def samples_of(telemetry):
    """Return what a Prometheus must read, by name and labels."""
    samples = {}
    for family in telemetry.read():
        name = f"celeriac_{family.metric.name}"
        for labels, number in family.numbers:
            samples[name, frozenset(zip(family.metric.labels, map(shown, labels), strict=True))] = number
        for labels, distribution in family.distributions:
            pairs = [*zip(family.metric.labels, map(shown, labels), strict=True)]
            total = 0
            for bound, number in zip((*family.metric.bounds, math.inf), distribution.counts, strict=True):
                total += number
                samples[f"{name}_bucket", frozenset([*pairs, ("le", bound)])] = total
            samples[f"{name}_count", frozenset(pairs)] = distribution.number
            samples[f"{name}_sum", frozenset(pairs)] = distribution.total
    return samples


def shown(label):
    return label.replace("\ud800", "\\ud800")


def samples_in(families):
    return {
        (sample.name, frozenset((n, float(v) if n == "le" else v) for n, v in sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("celeriac_")
    }


@pytest.mark.parametrize(
    ("accept", "parse"),
    [(TEXT, text_string_to_metric_families), (OPENMETRICS, openmetrics.text_string_to_metric_families)],
)
def test_prometheus_reads_exactly_what_was_measured(telemetry, accept, parse):
    body, content_type = renderer_for(telemetry)(accept)
    assert content_type.startswith(accept.split(";")[0])
    expected = samples_of(telemetry)
    assert len(expected) > 300
    read = samples_in(parse(body.decode()))
    assert read.keys() == expected.keys()
    assert all(math.isclose(read[key], value, rel_tol=1e-12) for key, value in expected.items())


def test_the_memory_of_the_process_is_shown_too(telemetry):
    assert b"\nprocess_resident_memory_bytes " in renderer_for(telemetry)("")[0]


# — StatsD —


@pytest.fixture
def server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        yield server


def received(server, *, until_line):
    """Return the lines that have come, up to the first one that begins so. Check the size of each datagram."""
    lines: list[str] = []
    while not any(line.startswith(until_line) for line in lines):
        datagram = server.recv(65_536)
        assert len(datagram) < MAX_DATAGRAM
        lines += datagram.decode("ascii").split("\n")
    return lines


def sink_to(server, telemetry, tags=TagForm.NAME):
    host, port = server.getsockname()
    sink = StatsdSink(host, port, tags)
    sink.begin(telemetry)
    return sink


LAST = "celeriac.heartbeat_seconds"


def send(sink, telemetry):
    """Send, with one line at the end of all."""
    telemetry.observe(metrics.HEARTBEAT_SECONDS, 0.25)
    sink.send(is_last=False)


@pytest.mark.parametrize(
    ("tags", "lines"),
    [
        (
            TagForm.NAME,
            {
                "celeriac.tasks_waiting.gpu:3|g",
                "celeriac.slots_open:0.5|g",
                "celeriac.task_ends_total.gpu.failed.exit_code:2|c",
                "celeriac.task_run_seconds.gpu.failed:1500|ms",
            },
        ),
        (
            TagForm.DATADOG,
            {
                "celeriac.tasks_waiting:3|g|#queue:gpu",
                "celeriac.slots_open:0.5|g",
                "celeriac.task_ends_total:2|c|#queue:gpu,state:failed,reason:exit_code",
                "celeriac.task_run_seconds:1500|ms|#queue:gpu,state:failed",
            },
        ),
        (
            TagForm.INFLUXDB,
            {
                "celeriac.tasks_waiting,queue=gpu:3|g",
                "celeriac.slots_open:0.5|g",
                "celeriac.task_ends_total,queue=gpu,state=failed,reason=exit_code:2|c",
                "celeriac.task_run_seconds,queue=gpu,state=failed:1500|ms",
            },
        ),
    ],
)
def test_statsd_gets_counters_gauges_and_timers(server, tags, lines):
    telemetry = Telemetry()
    telemetry.set_source("test", lambda: [(metrics.TASKS_WAITING, {("gpu",): 3}), (metrics.SLOTS_OPEN, {(): 0.5})])
    sink = sink_to(server, telemetry, tags)
    telemetry.count(metrics.TASK_ENDS, "gpu", "failed", "exit_code", by=2)
    telemetry.observe(metrics.RUN_SECONDS, 1.5, "gpu", "failed")
    send(sink, telemetry)
    assert {*received(server, until_line=LAST)} == {*lines, f"{LAST}:250|ms"}
    sink.close()


def test_statsd_gets_the_increases_of_counters(server):
    telemetry = Telemetry()
    values: dict[Labels, Value] = {("gpu",): 5}
    telemetry.set_source("test", lambda: [(metrics.TASKS_QUEUED, dict(values))])
    sink = sink_to(server, telemetry)
    sent = []
    for number in (5, 5, 9, 2):  # the last one is that of an executor that began anew
        values["gpu",] = number
        send(sink, telemetry)
        sent.append([line for line in received(server, until_line=LAST) if "tasks_queued" in line])
    name = "celeriac.tasks_queued_total.gpu"
    assert sent == [[f"{name}:5|c"], [], [f"{name}:4|c"], [f"{name}:2|c"]]
    sink.close()


def test_a_gauge_that_is_gone_is_0_for_statsd(server):
    telemetry = Telemetry()
    values: dict[Labels, Value] = {("gpu",): 5, ("cpu",): 1}
    telemetry.set_source("test", lambda: [(metrics.TASKS_WAITING, dict(values))])
    sink = sink_to(server, telemetry)
    send(sink, telemetry)
    received(server, until_line=LAST)
    del values["gpu",]
    send(sink, telemetry)
    lines = received(server, until_line=LAST)
    assert {"celeriac.tasks_waiting.gpu:0|g", "celeriac.tasks_waiting.cpu:1|g"} < {*lines}
    sink.close()


@pytest.mark.parametrize("tags", TagForm)
def test_hostile_labels_stay_in_their_line(server, telemetry, tags):
    sink = sink_to(server, telemetry, tags)
    send(sink, telemetry)
    lines = received(server, until_line=LAST)
    assert len(lines) > 100
    for line in lines:
        head, _, tail = line.partition("|#")
        assert (head.count(":"), head.count("|")) == (1, 1), line
        assert tail.count(":") == (tail.count(",") + 1 if tail else 0), line
        assert line.isprintable()
    sink.close()


def test_of_very_many_observations_statsd_gets_a_sample_with_its_rate(server):
    telemetry = Telemetry()
    sink = sink_to(server, telemetry)
    for _ in range(4 * MAX_TIMERS):
        telemetry.observe(metrics.PUBLISH_SECONDS, 0.001)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sink.send(is_last=False)
    server.settimeout(0.5)
    lines = []
    while True:
        try:
            lines += server.recv(65_536).decode().split("\n")
        except TimeoutError:
            break
    assert 0 < len(lines) <= MAX_TIMERS
    assert set(lines) == {"celeriac.publish_seconds:1|ms|@0.250000"}
    sink.close()


def test_a_statsd_server_without_an_address_is_warned_of_once(caplog):
    sink = StatsdSink("no-such-host.invalid", 8125)
    sink.begin(Telemetry())
    for _ in range(3):
        sink.send(is_last=False)
    assert len(caplog.records) == 1
    assert "no-such-host.invalid" in caplog.records[0].getMessage()
    sink.close()


def test_a_statsd_server_that_is_down_costs_nothing(server, caplog):
    telemetry = Telemetry()
    sink = sink_to(server, telemetry)
    server.close()
    for _ in range(3):
        send(sink, telemetry)  # the second one is told that nothing listens there
    assert not caplog.records
    assert not telemetry.take_observations()
    sink.close()


# — the thread —


class Recorder:
    """A sink that notes its calls."""

    interval = 0.01

    def __init__(self):
        self.calls = []

    def begin(self, telemetry):
        self.calls.append("begin")

    def send(self, *, is_last):
        self.calls.append("last" if is_last else "send")

    def close(self):
        self.calls.append("close")


def test_a_sink_sends_again_and_again_and_once_more_at_the_end():
    sink = Recorder()
    with SinkThread(sink, Telemetry()):
        until(lambda: sink.calls.count("send") >= 2, "two rounds")
    assert sink.calls[0] == "begin"
    assert sink.calls[-2:] == ["last", "close"]
    assert "celeriac-telemetry" not in {thread.name for thread in thread_health()}


def test_a_sink_that_always_raises_ends_too(caplog):
    class Raising(Recorder):
        def send(self, *, is_last):
            raise ZeroDivisionError("the bug of this test")

    with SinkThread(Raising(), Telemetry()):
        until(lambda: caplog.records, "the log line")
    until(lambda: "celeriac-telemetry" not in {thread.name for thread in thread_health()}, "the end of the thread")
