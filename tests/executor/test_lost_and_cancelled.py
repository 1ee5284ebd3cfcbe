"""Test how a lost task ends that is not sent again: it was cancelled, or the executor drains."""

from __future__ import annotations

import pytest

from celeriac import CeleryExecutor, Reason, Result, State
from tests.executor.test_lost_tasks import DETAIL, Harness


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_a_draining_executor_retries_no_lost_task(harness):
    harness.queue("k")
    harness.executor.drain()
    (event,) = harness.lose("k")
    assert (event.state, event.reason) == (State.FAILED, Reason.LOST)


def test_a_lost_task_of_a_draining_executor_fails_once_no_worker_can_claim_it(harness):
    """Expect that its message turns up again: Redis gives it back, or a worker that was frozen has it."""
    harness.broker.is_durable = True
    harness.queue("k", starts=False)
    harness.executor.drain()
    assert harness.lose("k", was_claimed=False) == []
    assert harness.executor.tasks_in_flight == 1
    assert harness.executor.explain("k").now.words.startswith("cancelling: waiting for confirmation")
    harness.broker.put(harness.broker.message("k").message_id, Result(State.REVOKED, Reason.REVOKED, "revoked"))
    harness.executor.heartbeat()
    (event,) = harness.executor.get_event_buffer()
    assert (event.state, event.reason, event.detail) == (State.FAILED, Reason.LOST, DETAIL)


def test_a_lost_task_of_a_draining_executor_that_the_user_revokes_is_revoked(harness):
    harness.broker.is_durable = True
    harness.queue("k", starts=False)
    harness.executor.drain()
    assert harness.lose("k", was_claimed=False) == []
    harness.executor.revoke_task("k")
    harness.broker.put(harness.broker.message("k").message_id, Result(State.REVOKED, Reason.REVOKED, "revoked"))
    harness.executor.heartbeat()
    (event,) = harness.executor.get_event_buffer()
    assert (event.state, event.reason) == (State.REVOKED, Reason.REVOKED)


@pytest.mark.parametrize("was_revoked", [False, True])
def test_the_claim_of_a_task_that_was_not_found_is_cancelled_as_the_task_was(harness, monkeypatch, was_revoked):
    """Expect that a worker has started it: it goes on, unless the user has revoked it."""
    asked: list[bool] = []
    harness.broker.is_durable = True
    harness.queue("k", starts=False)
    if was_revoked:
        harness.executor.revoke_task("k")
    harness.executor.drain()
    monkeypatch.setattr(harness.broker, "revoke", lambda ids, *, unless_started=False: asked.append(unless_started))
    harness.lose("k", was_claimed=False)
    assert asked == [not was_revoked]


def test_a_lost_task_of_a_draining_executor_may_still_succeed(harness):
    harness.broker.is_durable = True
    harness.queue("k", starts=False)
    harness.executor.drain()
    assert harness.lose("k", was_claimed=False) == []
    harness.broker.succeed("k")
    harness.executor.heartbeat()
    (event,) = harness.executor.get_event_buffer()
    assert (event.state, event.reason) == (State.SUCCESS, None)


def test_a_revoked_task_that_was_not_found_ends_once_no_worker_can_claim_it(harness):
    """Expect that its message turns up again: each search that misses it cancels its claim again."""
    harness.broker.is_durable = True
    harness.queue("k", starts=False)
    message_id = harness.broker.message("k").message_id
    harness.executor.revoke_task("k")
    for times in (2, 3):
        assert harness.lose("k", was_claimed=False) == []
        assert harness.broker.revoked == [message_id] * times
    harness.broker.put(message_id, Result(State.REVOKED, Reason.REVOKED, "revoked"))
    harness.executor.heartbeat()
    (event,) = harness.executor.get_event_buffer()
    assert (event.state, event.reason) == (State.REVOKED, Reason.REVOKED)


@pytest.mark.parametrize(
    ("cancel", "state"),
    [
        (CeleryExecutor.terminate, State.REVOKED),
        (CeleryExecutor.drain, State.FAILED),
        (CeleryExecutor.cancel_unstarted, State.REVOKED),
        (lambda executor: executor.revoke_task("k"), State.REVOKED),
    ],
)
def test_a_cancelled_task_that_was_not_found_ends_at_once_where_workers_claim_no_tasks(harness, cancel, state):
    harness.queue("k", starts=False)
    cancel(harness.executor)
    (event,) = harness.lose("k", was_claimed=False)
    assert (event.state, event.detail) == (state, DETAIL)
