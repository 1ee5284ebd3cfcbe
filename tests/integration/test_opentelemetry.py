"""Metrics and traces over OTLP, as a real receiver gets them."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest
from opentelemetry.sdk.trace import TracerProvider

from celeriac import State
from celeriac.cluster.local import LocalCluster
from celeriac.ledger import SqlLedger
from celeriac.sink_thread import SinkThread
from celeriac.task.task import Secret
from celeriac.telemetry import Telemetry, metrics
from celeriac.telemetry.sinks.opentelemetry import OpenTelemetrySink
from celeriac.telemetry.trace_context import TRACEPARENT, TRACESTATE
from tests.support.cli_runner import END_TIMEOUT, jobs, run, run_in_process, started, until
from tests.support.otlp import Span, collector
from tests.support.servers import free_port

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
RECORD = 'echo "$TRACEPARENT $TRACESTATE" > "${CELERIAC_KEY##*/}.$CELERIAC_ATTEMPT"; '
WHOLE = ["waiting", "publishing", "queued", "running"]


@pytest.fixture
def receiver(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_") or name in (TRACEPARENT, TRACESTATE)]:
        monkeypatch.delenv(name)
    with collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        yield received


def context_in(folder, key, attempt=1):
    """Return the trace and the span that a command was told."""
    return tuple((folder / f"{key}.{attempt}").read_text().split()[0].split("-")[1:3])


# — celeriac run —

ON = {"CELERIAC_OPENTELEMETRY": "true"}


def test_a_run_sends_a_span_of_each_task_with_its_parts(receiver, tmp_path):
    file = jobs(
        tmp_path,
        {"key": "good", "command": RECORD + "sleep 0.3", "queue": "gpu"},
        {"key": "bad", "command": RECORD + "exit 3", "retries": 1, "retry_delay": 0.05},
        {"key": "skipped", "command": "true", "needs": "bad"},
    )
    ended = run("run", file, cwd=tmp_path, env=ON)
    assert (ended.status, "OpenTelemetry" in ended.err) == (1, False)
    good, bad, skipped = (receiver.tasks[key] for key in ("good", "bad", "skipped"))
    assert (good.name, good.parent, good.status, good.resource["service.name"]) == ("task gpu", "", Span.OK, "celeriac")
    assert good.attributes == {
        "celeriac.key": "good",
        "celeriac.queue": "gpu",
        "celeriac.state": "success",
        "celeriac.attempt": 1,
    }
    assert context_in(tmp_path, "good") == (good.trace, good.id)
    parts = receiver.children(good)
    assert [part.name for part in parts] == WHOLE
    assert parts[-1].end - parts[-1].start >= 0.25
    ends = [good.start, *(part.end for part in parts)]
    assert [*(part.start for part in parts), good.end] == ends  # without gaps
    assert (bad.status, bad.message, bad.attributes["celeriac.attempt"]) == (Span.ERROR, "exit_code", 2)
    assert receiver.parts(bad) == [*((name, 1) for name in WHOLE), *((name, 2) for name in WHOLE)]
    failed = [(part.name, part.message) for part in receiver.children(bad) if part.status == Span.ERROR]
    assert failed == [("running", "exit_code")] * 2
    assert context_in(tmp_path, "bad", 1) == context_in(tmp_path, "bad", 2) == (bad.trace, bad.id)
    assert (skipped.status, receiver.parts(skipped)) == (0, [("waiting", 1)])
    assert len({span.trace for span in (good, bad, skipped)}) == 3
    assert set(receiver.ids().values()) == {1}


def test_a_run_sends_its_metrics_at_its_end(receiver, tmp_path):
    file = jobs(tmp_path, {"key": "good", "command": "true"}, {"key": "bad", "command": "exit 3"})
    assert run("run", file, cwd=tmp_path, env=ON).status == 1
    ends = receiver.metrics["celeriac.task_ends_total"]
    assert {(dict(labels)["state"], point.as_double or point.as_int) for labels, point in ends.items()} == {
        ("success", 1),
        ("failed", 1),
    }
    (waits,) = receiver.metrics["celeriac.task_wait_seconds"].values()
    assert (waits.count, sum(waits.bucket_counts), len(waits.bucket_counts)) == (2, 2, len(waits.explicit_bounds) + 1)


def test_a_run_inside_a_trace_continues_it(receiver, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": RECORD + "true"})
    inside = {**ON, TRACEPARENT: PARENT, TRACESTATE: "vendor=x"}
    assert run("run", file, cwd=tmp_path, env=inside).status == 0
    task = receiver.tasks["a"]
    assert (task.trace, task.parent) == (TRACE, SPAN)
    assert context_in(tmp_path, "a") == (TRACE, task.id)
    assert (tmp_path / "a.1").read_text().split()[1] == "vendor=x"


def test_a_job_names_its_own_parent(receiver, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": RECORD + "true", "env": {TRACEPARENT: PARENT}})
    assert run("run", file, cwd=tmp_path, env=ON).status == 0
    task = receiver.tasks["a"]
    assert (task.trace, task.parent) == (TRACE, SPAN)
    assert context_in(tmp_path, "a") == (TRACE, task.id)


def test_a_trace_that_is_not_sampled_is_not_sent(receiver, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": RECORD + "true"})
    assert run("run", file, cwd=tmp_path, env={**ON, TRACEPARENT: PARENT.removesuffix("1") + "0"}).status == 0
    assert receiver.metrics
    assert not receiver.tasks
    assert (tmp_path / "a.1").read_text().strip().endswith("-00")


def test_the_variables_of_opentelemetry_are_obeyed(receiver, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": "true"})
    env = {
        **ON,
        "OTEL_SERVICE_NAME": "nightly",
        "OTEL_RESOURCE_ATTRIBUTES": "team=data",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=hidden",
        "OTEL_METRICS_EXPORTER": "none",
    }
    assert run("run", file, cwd=tmp_path, env=env).status == 0
    resource = receiver.tasks["a"].resource
    assert (resource["service.name"], resource["team"]) == ("nightly", "data")
    assert {headers["x-key"] for headers in receiver.headers} == {"hidden"}
    assert not receiver.metrics


def test_without_a_receiver_a_run_has_one_more_line(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        file = jobs(tmp_path, {"key": "a", "command": "true"})
        env = {
            **ON,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://me:hidden@127.0.0.1:{unused.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hidden",
        }
        ended = run("run", "-q", file, cwd=tmp_path, env=env)
    assert ended.status == 0
    assert re.fullmatch(
        r"celeriac: OpenTelemetry: cannot send metrics and traces to .*: Connection refused(; trying again)?\n",
        ended.err,
    )
    assert "hidden" not in ended.err


def test_a_receiver_that_never_answers_does_not_hold_up_the_end(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are accepted, and no request is read
        file = jobs(tmp_path, {"key": "a", "command": "true"})
        env = {
            **ON,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
        }
        ended = run("run", "-q", file, cwd=tmp_path, env=env)
    assert (ended.status, ended.err.count("\n")) == (0, 1)
    assert "no reply in time" in ended.err


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({**ON, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc' is not supported"),
        ({**ON, "OTEL_METRIC_EXPORT_INTERVAL": "soon"}, "OTEL_METRIC_EXPORT_INTERVAL: 'soon' is not a number"),
        ({"CELERIAC_OPENTELEMETRY": "perhaps"}, "CELERIAC_OPENTELEMETRY"),
        ({"CELERIAC_STATSD": "nonsense"}, "CELERIAC_STATSD"),
        ({"CELERIAC_STATSD": "::1:8125"}, "[HOST]:PORT"),
        ({"CELERIAC_STATSD_TAGS": "nonsense"}, "give one of name, datadog, influxdb"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path, env, problem):
    ended = run_in_process("run", jobs(tmp_path, {"key": "a", "command": "true"}), cwd=tmp_path, env=env)
    assert (ended.status, problem in ended.err, ended.err.count("\n")) == (2, True, 1), ended.err


# — the Python API —


def test_a_task_that_is_queued_in_a_span_continues_its_trace(receiver, tmp_path):
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with LocalCluster(2, folder=tmp_path) as cluster:
        executor = cluster.executor()
        with SinkThread(OpenTelemetrySink(), executor.telemetry):
            with tracer.start_as_current_span("request") as request:
                executor.queue_command("inside", RECORD + "true")
            executor.queue_command("outside", RECORD + "true")
            assert {event.state for event in executor.run_until_idle()} >= {State.SUCCESS}
    inside, outside = receiver.tasks["inside"], receiver.tasks["outside"]
    context = request.get_span_context()
    assert (inside.trace, inside.parent) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert context_in(tmp_path, "inside") == (inside.trace, inside.id)
    assert outside.trace != inside.trace
    assert outside.parent == ""


def test_a_task_keeps_its_trace_in_the_ledger(receiver, tmp_path):
    """The first executor ends before it sends the task; the second one takes it over."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    url = f"sqlite:///{tmp_path}/ledger.db"
    for is_first in (True, False):
        with SqlLedger(url) as ledger, LocalCluster(1, folder=tmp_path) as cluster:
            executor = cluster.executor(ledger=ledger.open_run("main"))
            with SinkThread(OpenTelemetrySink(), executor.telemetry):
                if is_first:
                    with tracer.start_as_current_span("request") as request:
                        executor.queue_command("a", RECORD + "true", env={"TOKEN": Secret("hidden")})
                    executor.flush()
                    continue
                assert executor.recover() == 1
                assert State.SUCCESS in {event.state for event in executor.run_until_idle()}
    task, context = receiver.tasks["a"], request.get_span_context()
    assert (task.trace, task.parent) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert context_in(tmp_path, "a") == (task.trace, task.id)


def test_an_outage_of_the_receiver_is_one_line_and_so_is_its_end(receiver, monkeypatch, caplog):
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.5")  # long enough for one more attempt
    sink, telemetry = OpenTelemetrySink(), Telemetry()
    sink.begin(telemetry)
    telemetry.count(metrics.WORKER_STARTED)
    for _ in range(2):
        sink.send(is_last=True)
    with collector(port) as late:
        for _ in range(2):
            sink.send(is_last=True)
    assert late.metrics
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "Connection refused" in lines[0]
    assert "receives metrics and traces again" in lines[1]
    sink.close()
    sink.send(is_last=True)  # after the end
    assert len(caplog.records) == 2


# — celeriac submit, serve —


def test_a_submitted_run_continues_the_trace_of_its_submission(receiver, tmp_path):
    file = jobs(tmp_path, {"key": "a", "command": RECORD + "true"})
    options = ("--ledger", "ledger.db")
    submitted = run("submit", file, *options, cwd=tmp_path, env={**ON, TRACEPARENT: PARENT})
    assert submitted.status == 0, submitted.err
    with started("serve", *options, "--local", cwd=tmp_path, env=ON) as service:
        until(lambda: receiver.tasks, "the trace", END_TIMEOUT)
        service.signal(signal.SIGTERM)
        assert service.process.wait(END_TIMEOUT) == 0
    (task,) = receiver.tasks.values()
    assert (task.trace, task.parent) == (TRACE, SPAN)
    assert "celeriac.task_ends_total" in receiver.metrics
