"""The places of tasks in traces, and the parts of their lives."""

from __future__ import annotations

import pytest

from celeriac.broker.command_message import command_message
from celeriac.task.task import Task, new_task_id
from celeriac.telemetry.task_spans import Part, parts_of
from celeriac.telemetry.telemetry import EndedTask, Step
from celeriac.telemetry.trace_context import TRACEPARENT, TRACESTATE, TraceContext, ids_of_task, parse_traceparent
from celeriac.web.trace import trace_of
from celeriac.worker.command import request_of
from celeriac.worker.output import OutputPolicy

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("parents", "states", "expected"),
    [
        ([], [], {}),
        ([f"00-{TRACE}-{SPAN}-01"], [], {TRACEPARENT: f"00-{TRACE}-{SPAN}-01"}),
        (
            [f" 00-{TRACE}-{SPAN}-00 "],
            ["a=1", "b=2"],
            {TRACEPARENT: f"00-{TRACE}-{SPAN}-00", TRACESTATE: "a=1,b=2"},
        ),
        ([f"cc-{TRACE}-{SPAN}-01-$(what) \xff"], ["a=1"], {TRACEPARENT: f"00-{TRACE}-{SPAN}-01", TRACESTATE: "a=1"}),
        ([f"00-{TRACE}-{SPAN}-01"] * 2, ["a=1"], {}),
        ([f"00-{TRACE}-{SPAN}-0g"], ["a=1"], {}),
        (["x" * 10_000], [], {}),
        ([f"00-{TRACE}-{SPAN}-01"], ["\xff"], {TRACEPARENT: f"00-{TRACE}-{SPAN}-01"}),
        ([f"00-{TRACE}-{SPAN}-01"], ["x" * 513], {TRACEPARENT: f"00-{TRACE}-{SPAN}-01"}),
    ],
)
def test_headers_name_a_trace_or_are_ignored(parents, states, expected):
    assert trace_of(parents, states) == expected


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
    ],
)
def test_a_traceparent_names_a_span(text, is_sampled):
    assert parse_traceparent(text) == TraceContext(int(TRACE, 16), int(SPAN, 16), is_sampled)


def test_a_span_is_written_as_it_was_read():
    text = f"00-{TRACE}-{SPAN}-01"
    assert str(parse_traceparent(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_anything_else_names_none(text):
    assert parse_traceparent(text) is None


def test_the_ids_of_a_task_depend_on_its_id_alone():
    task = new_task_id()
    assert ids_of_task(task, None) == ids_of_task(task, None)
    many = [ids_of_task(new_task_id(), None) for _ in range(1_000)]
    assert len({trace for trace, _ in many}) == len({span for _, span in many}) == 1_000
    assert {(trace >> 62) & 3 for trace, _ in many} == {0, 1, 2, 3}  # a sampler compares the lower half


def test_a_task_stays_in_the_trace_of_its_parent():
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-01")
    task = new_task_id()
    assert ids_of_task(task, parent) == (int(TRACE, 16), ids_of_task(task, None)[1])


def task_with(*steps):
    return EndedTask(name="k", id="i", parent=None, queue="q", arrived=100.0, steps=steps)


def test_a_task_has_a_part_for_each_state():
    steps = [Step(103, "publishing", 1), Step(104, "queued", 1), Step(106, "running", 1), Step(116, "success", 1)]
    assert parts_of(task_with(*steps)) == [
        Part("waiting", 1, 100, 103),
        Part("publishing", 1, 103, 104),
        Part("queued", 1, 104, 106),
        Part("running", 1, 106, 116),
    ]


@pytest.mark.parametrize(("started", "shown"), [(106.0, 106.0), (103.0, 104.0), (120.0, 116.0)])
def test_a_start_that_was_not_reported_is_that_of_the_result(started, shown):
    steps = [Step(103, "publishing", 1), Step(104, "queued", 1), Step(116, "success", 1, started=started)]
    assert parts_of(task_with(*steps))[2:] == [Part("queued", 1, 104, shown), Part("running", 1, shown, 116)]


def test_a_failed_attempt_ends_its_part_with_the_reason():
    steps = [
        Step(101, "publishing", 1),
        Step(102, "queued", 1),
        Step(103, "running", 1),
        Step(104, "waiting", 1, "lost"),
        Step(105, "publishing", 2),
        Step(106, "queued", 2),
        Step(107, "running", 2),
        Step(108, "failed", 2, "exit_code", 107.0),
    ]
    parts = parts_of(task_with(*steps))
    assert [(part.state, part.attempt) for part in parts] == [
        *(("waiting", 1), ("publishing", 1), ("queued", 1), ("running", 1)),
        *(("waiting", 2), ("publishing", 2), ("queued", 2), ("running", 2)),
    ]
    assert [part.failure for part in parts] == [None, None, None, "lost", None, None, None, "exit_code"]


def test_a_task_that_is_revoked_while_it_waits_has_one_part():
    assert parts_of(task_with(Step(103, "revoked", 1, "revoked"))) == [Part("waiting", 1, 100, 103)]


def test_a_clock_that_is_set_back_makes_no_negative_part():
    parts = parts_of(task_with(Step(90, "publishing", 1), Step(95, "queued", 1), Step(104, "success", 1)))
    assert [(part.start, part.end) for part in parts] == [(100, 100), (100, 100), (100, 104)]


@pytest.mark.parametrize("task_id", ["job", "job.2"])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_worker_makes_the_span_of_a_task_from_its_id(task_id, attempt):
    message = command_message(Task(key="a", command="true", id=task_id, attempt=attempt))
    environment = request_of({**message, "traced": True}, OutputPolicy()).env
    span = parse_traceparent(environment[TRACEPARENT])
    trace, span_id = ids_of_task(task_id, None)
    assert span == TraceContext(trace, span_id, is_sampled=True)
    assert TRACEPARENT not in request_of(message, OutputPolicy()).env


def test_a_worker_keeps_the_span_that_a_message_names():
    message = command_message(Task(key="a", command="true", env={TRACEPARENT: f"00-{TRACE}-{SPAN}-01"}))
    assert request_of({**message, "traced": True}, OutputPolicy()).env[TRACEPARENT] == f"00-{TRACE}-{SPAN}-01"
