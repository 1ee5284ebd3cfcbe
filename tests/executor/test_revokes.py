"""Test which tasks in flight an executor revokes, and which of them end at once."""

from __future__ import annotations

import pytest

from celeriac.executor.executor import CeleryExecutor
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.testing import InMemoryBroker
from tests.support.live_workers import Workers
from tests.support.pushed import pushed_executor, queue


@pytest.fixture
def executor(broker, clock) -> CeleryExecutor:
    return pushed_executor(broker, clock)


def ids(broker: InMemoryBroker, *keys: str) -> list[str]:
    return [broker.message(key).message_id for key in keys]


def test_tasks_that_have_started_are_not_cancelled_as_unstarted(executor, broker):
    """Expect that a start may be known to the workers only."""
    queue(executor, "started", "other")
    executor.heartbeat()
    broker.start("started")
    executor.heartbeat()
    executor.get_event_buffer()
    broker.put(broker.message("other").message_id, Result(State.RUNNING), hint=False)
    executor.cancel_unstarted()
    executor.heartbeat()
    assert (broker.revoked, executor.get_event_buffer()) == (ids(broker, "other"), [])
    assert executor.tasks_in_flight == 2


def test_terminate_revokes_each_task_once(executor, broker):
    broker.obeys_revokes = False
    queue(executor, "a", "b")
    executor.heartbeat()
    executor.revoke_task("a")
    executor.terminate()
    assert broker.revoked == ids(broker, "a", "b")


def test_a_task_that_no_receipt_has_confirmed_ends_at_once_where_workers_claim_no_tasks(executor, broker):
    broker.leave_unsure("unsure", delivered=False)
    broker.obeys_revokes = False
    queue(executor, "unsure", "sent")
    executor.heartbeat()
    executor.get_event_buffer()
    executor.revoke_tasks(["unsure", "sent"])
    (event,) = executor.get_event_buffer()
    assert (event.key, event.state, event.reason) == ("unsure", State.REVOKED, Reason.REVOKED)
    assert event.detail == "revoked before the broker had confirmed it"
    assert executor.tasks_in_flight == 1


@pytest.mark.parametrize("workers_claim_tasks", [False, True])
def test_a_cancelled_task_of_no_live_worker_ends_at_once_where_workers_claim_no_tasks(
    broker, clock, workers_claim_tasks
):
    """Expect that a worker may come back with a task that it has claimed."""
    workers = Workers(3)
    executor = pushed_executor(broker, clock, capacity=workers)
    broker.obeys_revokes, broker.is_durable = False, workers_claim_tasks
    queue(executor, "k")
    executor.heartbeat()
    executor.cancel_unstarted()
    workers.number = 0
    executor.heartbeat()
    executor.heartbeat()
    assert executor.tasks_in_flight == int(workers_claim_tasks)
