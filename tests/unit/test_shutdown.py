"""The steps of a worker's shutdown."""

from __future__ import annotations

import pytest

from celeriac.worker.idle import IdleTimer
from celeriac.worker.shutdown_steps import END_TIMEOUT, Request, ShutdownSteps, Step

GRACE = 30.0  # seconds


@pytest.fixture
def steps() -> ShutdownSteps:
    return ShutdownSteps(GRACE)


def test_a_worker_runs_until_a_shutdown_is_requested(steps):
    assert not steps.advance(1e9)
    assert steps.step is Step.RUN
    assert not steps.may_stop(is_busy=False)


@pytest.mark.parametrize("request_", [Request.DRAIN, Request.TERM])
def test_the_first_request_lets_tasks_finish(steps, request_):
    steps.request(request_)
    assert steps.advance(100.0)
    assert steps.step is Step.DRAIN
    assert not steps.advance(100.0)
    assert not steps.may_stop(is_busy=True)
    assert steps.may_stop(is_busy=False)


def test_the_second_signal_ends_tasks(steps):
    steps.request(Request.TERM)
    steps.advance(100.0)
    steps.request(Request.TERM)
    assert steps.advance(101.0)
    assert steps.step is Step.END


@pytest.mark.parametrize(
    "requests",
    [(Request.DRAIN, Request.TERM), (Request.DRAIN, Request.DRAIN), (Request.TERM, Request.DRAIN, Request.DRAIN)],
)
def test_a_command_to_drain_never_counts_as_the_first_or_the_second_signal(steps, requests):
    for request in requests:
        steps.request(request)
        steps.advance(100.0)
    assert steps.step is Step.DRAIN


def test_quit_ends_tasks_at_once(steps):
    steps.request(Request.QUIT)
    assert [steps.advance(100.0) for _ in range(3)] == [True, True, False]
    assert steps.step is Step.END


def test_tasks_are_ended_when_the_grace_is_over(steps):
    steps.request(Request.TERM)
    assert steps.advance(100.0)
    assert not steps.advance(100.0 + GRACE - 0.1)
    assert steps.advance(100.0 + GRACE)
    assert steps.step is Step.END


def test_a_signal_does_not_extend_the_grace_of_a_drain(steps):
    steps.request(Request.DRAIN)
    steps.advance(100.0)
    steps.request(Request.TERM)
    assert not steps.advance(100.0 + GRACE - 0.1)
    assert steps.advance(100.0 + GRACE)


def test_an_idle_worker_lets_a_task_that_has_just_arrived_run_to_its_end(steps):
    steps.request(Request.IDLE)
    assert steps.advance(100.0)
    assert steps.step is Step.DRAIN
    assert not steps.advance(100.0 + 10 * GRACE)
    assert not steps.may_stop(is_busy=True)
    assert steps.may_stop(is_busy=False)


@pytest.mark.parametrize("request_", [Request.DRAIN, Request.TERM])
def test_a_later_request_limits_the_time_of_an_idle_worker(steps, request_):
    steps.request(Request.IDLE)
    steps.advance(100.0)
    steps.request(request_)
    assert not steps.advance(500.0)
    assert not steps.advance(500.0 + GRACE - 0.1)
    assert steps.advance(500.0 + GRACE)
    assert steps.step is Step.END


def test_a_worker_is_idle_after_the_limit_without_a_task():
    timer = IdleTimer(60.0)
    assert not timer.is_over(is_busy=False, activity=0, now=100.0)
    assert not timer.is_over(is_busy=True, activity=1, now=150.0)
    assert not timer.is_over(is_busy=False, activity=1, now=209.9)
    assert timer.is_over(is_busy=False, activity=1, now=210.0)


def test_a_task_that_ended_between_two_looks_counts():
    timer = IdleTimer(60.0)
    timer.is_over(is_busy=False, activity=0, now=100.0)
    assert not timer.is_over(is_busy=False, activity=1, now=160.0)
    assert timer.is_over(is_busy=False, activity=1, now=220.0)


def test_a_worker_without_a_limit_stays():
    timer = IdleTimer(None)
    assert not any(timer.is_over(is_busy=False, activity=0, now=now) for now in (0.0, 1e9))


def test_without_a_grace_tasks_are_ended_at_once():
    steps = ShutdownSteps(0.0)
    steps.request(Request.TERM)
    assert steps.advance(100.0)
    assert steps.advance(100.0)
    assert steps.step is Step.END


def test_the_event_loop_gets_a_limited_time_once_all_commands_have_ended(steps):
    steps.request(Request.QUIT)
    steps.advance(100.0)
    steps.advance(101.0)
    assert not steps.advance(1e6)
    steps.commands_ended(1e6)
    assert not steps.advance(1e6 + END_TIMEOUT - 0.1)
    assert steps.advance(1e6 + END_TIMEOUT)
    assert steps.step is Step.EXIT


def test_a_third_signal_changes_nothing(steps):
    for _ in range(3):
        steps.request(Request.TERM)
        steps.advance(100.0)
    assert not steps.advance(100.0)
    assert steps.step is Step.END
