"""Test when an executor wakes up because it may have something to send, and how long it waits otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import UnfinishedTask
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.testing import ManualClock
from tests.support.live_workers import Workers
from tests.support.pushed import pushed_executor, queue, rest_of, sent


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def make(broker, clock) -> Callable[..., CeleryExecutor]:
    return partial(pushed_executor, broker, clock)


def test_an_executor_can_wait_before_its_first_heartbeat(broker, clock):
    executor = CeleryExecutor(Config(), publisher=broker, results=broker, revoker=broker, clock=clock)
    assert rest_of(executor, clock) == 40.0


def test_a_heartbeat_is_due_while_one_slot_is_open(make, clock):
    executor = make(parallelism=1)
    queue(executor, "a", "b")
    assert rest_of(executor, clock) == 0.0
    executor.heartbeat()
    assert rest_of(executor, clock, 5.0) == 5.0


def test_a_wide_task_that_must_wait_wakes_nothing(make, broker, clock):
    executor = make()
    queue(executor, "a")
    executor.heartbeat()
    queue(executor, "wide", slots=2)
    executor.heartbeat()
    assert (sent(broker), executor.slots_available) == (["a"], 1)
    assert rest_of(executor, clock, 5.0) == 5.0


def test_a_heartbeat_is_due_after_fewer_tasks_were_sent_than_there_are_slots(make, broker, clock):
    executor = make()
    queue(executor, "a", "b")
    executor.trigger_tasks(1)
    assert (sent(broker), rest_of(executor, clock)) == (["a"], 0.0)


def test_a_draining_executor_sleeps(make, clock):
    executor = make(parallelism=3)
    queue(executor, "later", not_before=clock.now + 10)
    queue(executor, "a")
    executor.heartbeat()
    queue(executor, "b")
    executor.drain()
    assert rest_of(executor, clock, 5.0) == 5.0
    executor.heartbeat()
    assert rest_of(executor, clock, 20.0) == 20.0


def test_nothing_is_due_after_the_last_task(make, broker, clock):
    executor = make()
    queue(executor, "a")
    executor.heartbeat()
    broker.succeed("a")
    executor.heartbeat()
    executor.get_event_buffer()
    executor.sync()
    assert rest_of(executor, clock) == 40.0


def test_a_heartbeat_is_due_for_a_task_whose_needs_have_ended(make, broker, clock):
    executor = make()
    first = Task(key="first", command="true", queue="paused")
    executor.queue_tasks([first, Task(key="then", command="true", needs=("first",))])
    executor.adjustments.pause("paused")
    executor.heartbeat()
    assert rest_of(executor, clock) == 40.0
    executor.success("first")
    assert rest_of(executor, clock) == 0.0
    executor.heartbeat()
    assert sent(broker) == ["then"]


def test_a_heartbeat_is_due_for_a_task_that_has_become_more_urgent(make, broker, clock):
    executor = make()
    queue(executor, "runs")
    executor.heartbeat()
    queue(executor, "wide", slots=2, priority=1)
    queue(executor, "narrow")
    executor.heartbeat()
    assert rest_of(executor, clock) == 40.0
    executor.reprioritise("narrow", 2)
    assert rest_of(executor, clock) == 0.0
    executor.heartbeat()
    assert sent(broker) == ["runs", "narrow"]


def test_workers_are_looked_for_twice_a_second_while_tasks_wait_for_them(make, clock):
    executor = make(capacity=Workers(), parallelism=1)
    queue(executor, "a")
    executor.heartbeat()
    assert rest_of(executor, clock) == 0.5
    executor.adjustments.pause("default")
    executor.heartbeat()
    assert rest_of(executor, clock) == 40.0
    executor.adjustments.resume("default")
    executor.revoke_task("a")
    executor.heartbeat()
    assert rest_of(executor, clock) == 40.0


def test_no_workers_are_looked_for_while_no_slot_is_open(make, clock):
    executor = make(capacity=Workers(), parallelism=1)
    executor.recovery.resume([UnfinishedTask(Task(key="runs", command="true"), State.RUNNING, clock.now)])
    queue(executor, "waits")
    executor.heartbeat()
    assert rest_of(executor, clock, 5.0) == 5.0


def test_a_cancelled_task_that_fails_first_is_tried_again_and_watched_no_more(make, broker, clock):
    """Expect that its queue has no worker any more: it does not end as revoked as well."""
    workers = Workers()
    workers.number = 3
    executor = make(capacity=workers)
    broker.obeys_revokes = False
    queue(executor, "k", retries=1, retry_delay=100)
    executor.heartbeat()
    executor.cancel_unstarted()
    broker.put(broker.message("k").message_id, Result(State.FAILED, Reason.EXIT_CODE), hint=False)
    workers.number = 0
    executor.heartbeat()
    executor.heartbeat()
    assert [event.state for event in executor.get_event_buffer()] == [State.QUEUED, State.WAITING]
    assert executor.tasks_waiting == 1
    executor.revoke_task("k")
    executor.get_event_buffer()
    executor.heartbeat()
    assert rest_of(executor, clock) == 40.0
