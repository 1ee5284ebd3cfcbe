"""Test which tasks in flight an executor revokes, and which of them end at once."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from celeriac.executor.executor import CeleryExecutor
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.testing import InMemoryBroker, ManualClock
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


class AskedRevoker:
    """Notes what it is asked for. Its tasks do not end."""

    def __init__(self, *, is_durable: bool = True) -> None:
        self.is_durable = is_durable
        self.asked: list[tuple[list[str], bool]] = []

    def revoke(self, ids: Collection[str], *, unless_started: bool = False) -> None:
        self.asked.append((list(ids), unless_started))

    def take(self) -> list[tuple[list[str], bool]]:
        asked, self.asked = self.asked, []
        return asked


INTERVAL = 30.0  # seconds


def beat_after(executor: CeleryExecutor, clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    executor.heartbeat()


def test_a_cancelled_task_that_does_not_end_is_cancelled_again_and_again(broker, clock):
    """Expect that a failover of the result backend may have lost that it was cancelled."""
    broker.leave_unsure("unsure", delivered=False)
    revoker = AskedRevoker()
    executor = pushed_executor(broker, clock, revoker=revoker, search_interval=INTERVAL, parallelism=4)
    queue(executor, "unsure", "started", "goes-on", "unstarted")
    executor.heartbeat()
    id_of = {event.key: event.id for event in executor.get_event_buffer()}
    for key in ("started", "goes-on"):
        broker.start(key)
    executor.heartbeat()
    executor.revoke_tasks(["unsure", "started"])
    executor.cancel_unstarted()
    revoker.take()
    beat_after(executor, clock, INTERVAL)
    assert revoker.take() == []
    for _ in range(3):
        beat_after(executor, clock, INTERVAL)
        assert revoker.take() == [([id_of["unsure"], id_of["started"]], False), ([id_of["unstarted"]], True)]
    broker.succeed("started")
    broker.succeed("unstarted")
    beat_after(executor, clock, INTERVAL)
    assert revoker.take() == [([id_of["unsure"]], False)]


def test_a_task_that_was_cancelled_a_moment_ago_is_not_cancelled_again(broker, clock):
    revoker = AskedRevoker()
    executor = pushed_executor(broker, clock, revoker=revoker, search_interval=INTERVAL)
    queue(executor, "a")
    executor.heartbeat()
    clock.advance(2 * INTERVAL)
    executor.revoke_task("a")
    revoker.take()
    executor.heartbeat()
    beat_after(executor, clock, INTERVAL - 1)
    assert revoker.take() == []
    beat_after(executor, clock, 1)
    assert len(revoker.take()) == 1
    beat_after(executor, clock, INTERVAL - 1)
    assert revoker.take() == []


def test_no_task_is_cancelled_again_where_workers_claim_no_tasks(broker, clock):
    """Expect that a worker may send TERM again: it does not know that it has."""
    revoker = AskedRevoker(is_durable=False)
    executor = pushed_executor(broker, clock, revoker=revoker, search_interval=INTERVAL)
    queue(executor, "a")
    executor.heartbeat()
    executor.revoke_task("a")
    revoker.take()
    for _ in range(3):
        beat_after(executor, clock, INTERVAL)
    assert revoker.take() == []
