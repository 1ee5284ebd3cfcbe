"""The decisions of the owner of submitted runs, without a ledger, an executor or a clock."""

from __future__ import annotations

from random import Random

import pytest

from celeriac.config.lease import LEASE_DURATION
from celeriac.executor.interfaces import UnfinishedTask
from celeriac.ledger.owned_run import OwnedRun, RunKey
from celeriac.ledger.owned_runs import ControlRequest
from celeriac.runs.owner_session import LOOK_INTERVAL, MAX_PAUSE, MAX_REVOKES, RETRY_DELAY, OwnerSession
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

EARLIER = 0.001  # seconds
NOW = 1_000.0


@pytest.fixture
def session() -> OwnerSession:
    return OwnerSession(Random(1))


@pytest.fixture
def jobs() -> OwnedRun:
    return OwnedRun(1, "jobs", 0, 3, None)


def unfinished(
    key: str, *, needs: tuple[str, ...] = (), state: State = State.WAITING, attempt: int = 1
) -> UnfinishedTask:
    needed = tuple(RunKey("jobs", need) for need in needs)
    return UnfinishedTask(Task(key=RunKey("jobs", key), command="true", needs=needed, attempt=attempt), state, 0.0)


def keys(tasks: list[UnfinishedTask]) -> list[str]:
    return [str(each.task.key) for each in tasks]


def no_task(key: TaskKey) -> bool:
    return False


# — when to use the ledger —


def test_a_session_looks_at_once_and_then_once_in_each_interval(session):
    assert session.should_look(NOW)
    session.begin_look(NOW)
    assert not session.should_look(NOW + LOOK_INTERVAL - EARLIER)
    assert session.should_look(NOW + LOOK_INTERVAL)


def test_an_unavailable_ledger_is_left_alone_until_the_retry_delay_is_over(session, jobs):
    session.add_runs([jobs])
    session.begin_look(NOW)
    assert session.record_failure(NOW, "locked") == "the ledger is unavailable: locked"
    assert not session.should_look(NOW + RETRY_DELAY * 0.5 - EARLIER)  # the jitter is from half to one and a half
    assert session.run_to_load(NOW + RETRY_DELAY * 0.5 - EARLIER) is None
    assert session.should_look(NOW + RETRY_DELAY * 1.5)
    assert session.run_to_load(NOW + RETRY_DELAY * 1.5) is jobs
    assert session.record_success(NOW + 2.0) == "the ledger is available again after 2.0 s"


def test_no_run_is_taken_over_for_the_time_of_a_lease_after_an_outage(session):
    assert session.may_take_over(NOW)
    session.record_failure(NOW, "locked")
    session.record_success(NOW + 2.0)
    assert not session.may_take_over(NOW + LEASE_DURATION - EARLIER)
    assert session.may_take_over(NOW + LEASE_DURATION)


def test_a_session_pauses_until_the_next_look_unless_there_is_something_to_do(session, jobs):
    session.begin_look(NOW)
    assert session.pause(NOW) == min(LOOK_INTERVAL, MAX_PAUSE)
    session.add_runs([jobs])
    assert session.pause(NOW) == 0.0
    session.record_load(NOW, NOW + 0.1, has_waiting_tasks=True)
    assert session.pause(NOW + 0.1) == pytest.approx(0.1)
    session.revoke([RunKey("jobs", "a")])
    assert session.pause(NOW + 0.1) == 0.0


# — loading —


def test_the_executor_gets_as_much_time_as_the_loading_while_tasks_wait(session, jobs):
    session.add_runs([jobs])
    session.record_load(NOW, NOW + 0.2, has_waiting_tasks=True)
    assert session.run_to_load(NOW + 0.4 - EARLIER) is None
    assert session.run_to_load(NOW + 0.4 + EARLIER) is jobs
    session.record_load(NOW, NOW + 0.2, has_waiting_tasks=False)
    assert session.run_to_load(NOW + 0.2) is jobs


def test_runs_are_loaded_one_after_the_other(session, jobs):
    other = OwnedRun(2, "other", 0, 1, None)
    session.add_runs([jobs, other])
    assert session.run_to_load(NOW) is jobs
    session.finish_load()
    assert session.run_to_load(NOW) is other
    session.finish_load()
    assert session.run_to_load(NOW) is None


def test_tasks_that_need_others_are_kept_until_their_run_is_loaded(session, jobs):
    session.add_runs([jobs])
    batch = [unfinished("a"), unfinished("b", needs=("z",))]
    assert keys(session.add_batch(jobs, batch, no_task)) == ["jobs/a"]
    assert [str(task.key) for task in session.blocked_tasks] == ["jobs/b"]
    assert keys(session.add_batch(jobs, [unfinished("z")], no_task)) == ["jobs/z"]
    assert keys(session.take_blocked(jobs)) == ["jobs/b"]
    assert session.take_blocked(jobs) == []


def test_a_second_attempt_and_a_task_in_flight_do_not_wait_for_what_they_need(session, jobs):
    batch = [unfinished("a", needs=("z",), attempt=2), unfinished("b", needs=("z",), state=State.QUEUED)]
    assert keys(session.add_batch(jobs, batch, no_task)) == ["jobs/a", "jobs/b"]


def test_tasks_that_the_executor_has_are_left_out(session, jobs):
    batch = [unfinished("a"), unfinished("b", needs=("a",))]
    assert session.add_batch(jobs, batch, lambda key: True) == []
    assert not session.blocked_tasks


# — requests to cancel —


def test_a_request_is_accepted_once_and_only_for_an_owned_run(session, jobs):
    request = ControlRequest(7, "jobs", "a", 1.0)
    assert not session.accept(request, None)
    assert session.accept(request, jobs)
    assert not session.accept(request, jobs)


def test_a_later_request_may_have_the_id_of_an_earlier_one(session, jobs):
    first, later = ControlRequest(7, "jobs", "a", 1.0), ControlRequest(7, "jobs", "a", 2.0)
    assert session.accept(first, jobs)
    assert session.accept(later, jobs)
    assert session.finished_requests() == [first, later]


def test_a_request_for_a_task_is_accepted_once_its_run_is_loaded(session, jobs):
    session.add_runs([jobs])
    assert not session.accept(ControlRequest(7, "jobs", "a", 1.0), jobs)
    session.finish_load()
    assert session.accept(ControlRequest(7, "jobs", "a", 1.0), jobs)


def test_tasks_of_a_cancelled_run_are_loaded_to_be_revoked(session, jobs):
    session.add_runs([jobs])
    assert session.accept(ControlRequest(7, "jobs", None, 1.0), jobs)
    (ready,) = session.add_batch(jobs, [unfinished("a"), unfinished("b", needs=("a",))], no_task)
    (blocked,) = session.take_blocked(jobs)
    assert (ready.revoking, blocked.revoking) == (True, True)


def test_tasks_are_revoked_in_batches(session):
    session.revoke(RunKey("jobs", str(n)) for n in range(MAX_REVOKES + 1))
    assert [len(session.next_revokes()) for _ in range(3)] == [MAX_REVOKES, 1, 0]


def test_requests_are_acknowledged_once_no_task_is_left_to_be_loaded_or_revoked(session, jobs):
    request = ControlRequest(7, "jobs", None, 1.0)
    session.add_runs([jobs])
    session.accept(request, jobs)
    session.revoke([RunKey("jobs", "a")])
    session.finish_load()
    assert not session.finished_requests()
    session.next_revokes()
    assert session.finished_requests() == [request]
    session.remove_requests()
    assert not session.finished_requests()


def test_requests_are_not_acknowledged_while_their_run_is_loaded(session, jobs):
    session.add_runs([jobs])
    session.accept(ControlRequest(7, "jobs", None, 1.0), jobs)
    assert not session.finished_requests()
    session.finish_load()
    assert session.finished_requests()
