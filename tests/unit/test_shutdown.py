"""The steps of a worker's shutdown."""

from __future__ import annotations

import pytest

from celeriac.worker.shutdown_steps import END_TIMEOUT, ShutdownSteps, Step

GRACE = 30.0  # seconds


@pytest.fixture
def steps() -> ShutdownSteps:
    return ShutdownSteps(GRACE)


def test_a_worker_runs_until_a_shutdown_is_requested(steps):
    assert not steps.advance(1e9, is_requested=False)
    assert steps.step is Step.RUN
    assert not steps.may_stop(is_busy=False)


def test_the_first_request_lets_tasks_finish(steps):
    assert steps.advance(100.0, is_requested=True)
    assert steps.step is Step.DRAIN
    assert not steps.may_stop(is_busy=True)
    assert steps.may_stop(is_busy=False)


def test_the_second_request_ends_tasks(steps):
    steps.advance(100.0, is_requested=True)
    assert steps.advance(101.0, is_requested=True)
    assert steps.step is Step.END


def test_tasks_are_ended_when_the_grace_is_over(steps):
    steps.advance(100.0, is_requested=True)
    assert not steps.advance(100.0 + GRACE - 0.1, is_requested=False)
    assert steps.advance(100.0 + GRACE, is_requested=False)
    assert steps.step is Step.END


def test_without_a_grace_tasks_are_ended_at_once():
    steps = ShutdownSteps(0.0)
    assert steps.advance(100.0, is_requested=True)
    assert steps.advance(100.0, is_requested=False)
    assert steps.step is Step.END


def test_the_event_loop_gets_a_limited_time_once_all_commands_have_ended(steps):
    steps.advance(100.0, is_requested=True)
    steps.advance(101.0, is_requested=True)
    assert not steps.advance(1e6, is_requested=False)
    steps.commands_ended(1e6)
    assert not steps.advance(1e6 + END_TIMEOUT - 0.1, is_requested=False)
    assert steps.advance(1e6 + END_TIMEOUT, is_requested=False)
    assert steps.step is Step.EXIT


def test_a_third_request_changes_nothing(steps):
    for _ in range(2):
        steps.advance(100.0, is_requested=True)
    assert not steps.advance(100.0, is_requested=True)
    assert steps.step is Step.END
