"""Test `not_before` and `deadline` of a task, one rule at a time. `test_executor_model.py` tests histories."""

from __future__ import annotations

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import UnfinishedTask
from celeriac.executor.requests import WaitReason
from celeriac.task.result import Execution, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry import metrics
from celeriac.testing import InMemoryBroker, ManualClock

NOW = 1_800_000_000.0


class WallClock:
    """A wall clock that moves with the other one, and can be set."""

    def __init__(self, clock: ManualClock) -> None:
        self.ahead = NOW - clock.now
        self.clock = clock

    def __call__(self) -> float:
        return self.clock.now + self.ahead


@pytest.fixture
def wall_clock(clock: ManualClock) -> WallClock:
    return WallClock(clock)


@pytest.fixture
def executor(broker: InMemoryBroker, clock: ManualClock, wall_clock: WallClock) -> CeleryExecutor:
    return CeleryExecutor(
        Config(parallelism=2), publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=wall_clock
    )


def sent(broker: InMemoryBroker) -> list[object]:
    return [task.key for task in broker.messages]


def ends(executor: CeleryExecutor) -> list[tuple[object, State, Reason | None]]:
    return [(event.key, event.state, event.reason) for event in executor.get_event_buffer() if event.state.is_final]


def test_a_task_takes_no_slot_and_holds_nobody_back_before_its_time(executor, broker, clock):
    executor.queue_command("later", "true", priority=9, slots=2, not_before=NOW + 60)
    executor.queue_command("now", "true")
    executor.heartbeat()
    assert sent(broker) == ["now"]
    assert executor.slots_occupied == 1
    broker.succeed("now")
    clock.advance(59)
    executor.heartbeat()
    assert sent(broker) == ["now"]
    clock.advance(1)
    executor.heartbeat()
    assert sent(broker) == ["now", "later"]


def test_wait_returns_when_a_task_may_start(executor, clock):
    executor.queue_command("later", "true", not_before=NOW + 42)
    executor.heartbeat()
    began = clock.now
    executor.wait(60)
    assert clock.now == began + 42


def test_a_task_that_may_start_is_ready_in_its_place(executor, broker, clock):
    for key, priority in [("low", 1), ("high", 5), ("higher", 9)]:
        executor.queue_command(key, "true", priority=priority, not_before=NOW + 5)
    clock.advance(5)
    executor.heartbeat()
    assert sent(broker) == ["higher", "high"]


def test_a_clock_that_is_set_decides_and_one_that_is_set_back_calls_nothing_back(executor, broker, wall_clock):
    executor.queue_command("later", "true", not_before=NOW + 3_600)
    executor.heartbeat()
    assert sent(broker) == []
    wall_clock.ahead += 3_600
    executor.heartbeat()
    assert sent(broker) == ["later"]
    wall_clock.ahead -= 3_600
    broker.succeed("later")
    executor.heartbeat()
    assert ends(executor) == [("later", State.SUCCESS, None)]


def test_a_task_waits_for_its_needs_and_for_its_time(executor, broker, clock):
    executor.queue_command("first", "true")
    executor.queue_command("then", "true", needs=("first",), not_before=NOW + 60)
    executor.heartbeat()
    broker.succeed("first")
    executor.heartbeat()
    assert executor.explain("then").now.waits_for is WaitReason.TIME
    clock.advance(60)
    executor.heartbeat()
    assert sent(broker) == ["first", "then"]


def test_explain_names_the_time_until_it_has_come(executor, clock):
    executor.queue_command("later", "true", not_before=NOW + 60)
    executor.heartbeat()
    now = executor.explain("later").now
    assert (now.waits_for, now.facts) == (WaitReason.TIME, {"not_before": NOW + 60})
    assert now.words.startswith("waiting: it may not start before 2027-01-15 ")
    clock.advance(60)
    executor.queue_command("urgent", "true", slots=2, priority=1)
    executor.heartbeat()
    assert executor.explain("later").now.waits_for is WaitReason.SLOTS


def test_a_changed_priority_changes_no_time(executor, broker, clock):
    executor.queue_command("later", "true", not_before=NOW + 60)
    executor.reprioritise("later", 5)
    executor.heartbeat()
    assert sent(broker) == []
    clock.advance(60)
    executor.heartbeat()
    assert sent(broker) == ["later"]


def test_a_recovered_task_keeps_its_times(executor, broker, clock):
    tasks = [
        Task(key="later", command="true", not_before=NOW + 60),
        Task(key="late", command="true", deadline=NOW - 1),
    ]
    executor.recovery.resume([UnfinishedTask(task, State.WAITING, NOW) for task in tasks])
    executor.heartbeat()
    assert sent(broker) == []
    assert ends(executor) == [("late", State.FAILED, Reason.DEADLINE)]
    clock.advance(60)
    executor.heartbeat()
    assert sent(broker) == ["later"]


def test_a_wrong_clock_of_the_earlier_executor_delays_no_retry_for_long(executor, broker, clock):
    task = Task(key="k", command="true", retries=1, retry_delay=5.0).next_attempt()
    executor.recovery.resume([UnfinishedTask(task, State.WAITING, NOW, not_before=NOW + 7200)])
    executor.heartbeat()
    assert sent(broker) == []
    clock.advance(1.5 * Config().retry_delay_max)
    executor.heartbeat()
    assert sent(broker) == ["k"]


def test_the_time_until_a_task_may_start_counts_neither_as_waiting_nor_as_age(executor, clock):
    executor.queue_command("later", "true", not_before=NOW + 60)
    executor.heartbeat()
    numbers = {family.metric: family.numbers for family in executor.telemetry.read()}
    assert [value for _, value in numbers[metrics.OLDEST_WAITING]] == [0.0]
    clock.advance(61)
    numbers = {family.metric: family.numbers for family in executor.telemetry.read()}
    assert [value for _, value in numbers[metrics.OLDEST_WAITING]] == [1.0]
    executor.heartbeat()
    waits = {family.metric: family.distributions for family in executor.telemetry.read()}[metrics.WAIT_SECONDS]
    assert [distribution.total for _, distribution in waits] == [1.0]


# — deadline —


def test_a_task_that_waits_at_its_deadline_fails_without_running(executor, broker, clock):
    executor.queue_command("first", "true", slots=2)
    executor.queue_command("late", "true", deadline=NOW + 30)
    executor.queue_command("after", "true", needs=("late",))
    executor.heartbeat()
    clock.advance(30)
    executor.heartbeat()
    assert sent(broker) == ["first"]
    assert ends(executor) == [
        ("late", State.FAILED, Reason.DEADLINE),
        ("after", State.SKIPPED, Reason.NEED_FAILED),
    ]
    assert executor.explain("late").now.words.startswith(
        "ended: failed: it had not started by its deadline, 2027-01-15 "
    )


def test_wait_returns_at_a_deadline(executor, clock):
    executor.queue_command("first", "true", slots=2)
    executor.queue_command("late", "true", deadline=NOW + 30)
    executor.heartbeat()
    executor.get_event_buffer()
    while not (ended := ends(executor)):
        executor.wait(60)
        executor.heartbeat()
    assert (ended, round(clock.now)) == ([("late", State.FAILED, Reason.DEADLINE)], 1_000_030)


def test_a_blocked_task_fails_at_its_deadline(executor, broker, clock):
    executor.queue_command("first", "true")
    executor.queue_command("late", "true", needs=("first",), deadline=NOW + 30)
    executor.heartbeat()
    clock.advance(30)
    executor.heartbeat()
    assert ends(executor) == [("late", State.FAILED, Reason.DEADLINE)]


def test_a_task_is_not_skipped_because_of_another_that_is_late_too(executor, clock):
    executor.queue_command("first", "true", not_before=NOW + 10, deadline=NOW + 30)
    executor.queue_command("then", "true", needs=("first",), deadline=NOW + 20)
    executor.queue_command("other", "true", needs=("first",), deadline=NOW + 30)
    clock.advance(30)
    executor.heartbeat()
    assert {reason for _, _, reason in ends(executor)} == {Reason.DEADLINE}


def run_past_the_deadline(executor, broker, clock):
    """Start a task, and let its deadline pass."""
    executor.queue_command("a", "true", deadline=NOW + 30)
    executor.heartbeat()
    broker.start("a")
    executor.heartbeat()
    clock.advance(60)
    executor.heartbeat()
    assert broker.revoked == []


def test_a_running_task_goes_on_after_its_deadline(executor, broker, clock):
    run_past_the_deadline(executor, broker, clock)
    broker.succeed("a")
    executor.heartbeat()
    assert ends(executor) == [("a", State.SUCCESS, None)]


def test_explain_says_that_a_late_task_is_cancelled_if_that_is_asked_for(executor, broker, clock):
    executor.queue_command("a", "true", deadline=NOW + 30)
    executor.heartbeat()
    broker.obeys_revokes = False
    clock.advance(30)
    executor.heartbeat()
    executor.revoke_task("a")
    assert executor.explain("a").now.words == "cancelling: waiting for confirmation that it will not start"


def test_a_task_that_its_worker_returns_after_the_deadline_is_revoked(executor, broker, clock):
    run_past_the_deadline(executor, broker, clock)
    broker.put(broker.message("a").message_id, Result(State.QUEUED))
    executor.heartbeat()
    executor.heartbeat()
    assert broker.revoked == [broker.message("a").message_id]


def test_a_task_at_the_broker_is_revoked_unless_it_has_started(executor, broker, clock):
    executor.queue_command("a", "true", deadline=NOW + 30)
    executor.heartbeat()
    broker.obeys_revokes = False
    clock.advance(30)
    executor.heartbeat()
    assert (broker.revoked, ends(executor)) == ([broker.message("a").message_id], [])
    assert executor.explain("a").now.words == (
        "its deadline has passed: waiting for confirmation that it will not start"
    )
    assert executor.slots_occupied == 1
    broker.put(broker.message("a").message_id, Result(State.REVOKED, Reason.REVOKED))
    executor.heartbeat()
    assert ends(executor) == [("a", State.FAILED, Reason.DEADLINE)]
    assert executor.slots_occupied == 0


def test_a_task_that_ends_in_spite_of_its_deadline_has_succeeded(executor, broker, clock):
    broker.obeys_revokes = False
    executor.queue_command("a", "true", deadline=NOW + 30)
    executor.heartbeat()
    clock.advance(31)
    executor.heartbeat()
    assert broker.revoked == [broker.message("a").message_id]
    broker.succeed("a")
    executor.heartbeat()
    assert executor.get_event_buffer()[-1].state is State.SUCCESS


def test_a_task_that_the_user_cancels_at_its_deadline_is_revoked(executor, broker, clock):
    executor.queue_command("a", "true", deadline=NOW + 30)
    executor.heartbeat()
    broker.obeys_revokes = False
    clock.advance(30)
    executor.heartbeat()
    executor.revoke_task("a")
    broker.put(broker.message("a").message_id, Result(State.REVOKED, Reason.REVOKED))
    executor.heartbeat()
    assert ends(executor) == [("a", State.REVOKED, Reason.REVOKED)]


def test_a_task_that_an_earlier_executor_has_cancelled_at_its_deadline_fails(executor, broker, clock):
    task = Task(key="a", command="true", deadline=NOW + 30)
    broker.put(task.message_id, Result(State.REVOKED, Reason.REVOKED))
    clock.advance(30)
    executor.recovery.resume([UnfinishedTask(task, State.QUEUED, NOW)])
    executor.heartbeat()
    assert ends(executor) == [("a", State.FAILED, Reason.DEADLINE)]


@pytest.mark.parametrize(
    ("execution", "end"),
    [
        (None, (State.FAILED, Reason.DEADLINE)),
        (Execution(host="h"), (State.FAILED, Reason.DEADLINE)),
        (Execution(host="h", pid=7), (State.REVOKED, Reason.REVOKED)),
    ],
    ids=["no report", "not run", "run"],
)
def test_a_task_that_ran_by_the_ledger_and_was_cancelled_at_its_deadline_fails_unless_it_has_run(
    executor, broker, clock, execution, end
):
    """Expect that a worker may have handed it back, which the earlier executor could not record."""
    task = Task(key="a", command="true", deadline=NOW + 30)
    broker.put(task.message_id, Result(State.REVOKED, Reason.REVOKED, execution=execution))
    clock.advance(30)
    executor.recovery.resume([UnfinishedTask(task, State.RUNNING, NOW)])
    executor.heartbeat()
    assert ends(executor) == [("a", *end)]


def test_a_task_that_its_worker_refuses_for_its_deadline_is_not_retried(executor, broker):
    executor.queue_command("a", "true", retries=3, deadline=NOW + 30)
    executor.heartbeat()
    broker.put(broker.message("a").message_id, Result(State.FAILED, Reason.DEADLINE, "too late"))
    executor.heartbeat()
    assert ends(executor) == [("a", State.FAILED, Reason.DEADLINE)]


def test_a_failed_attempt_is_not_retried_if_the_next_one_would_be_too_late(executor, broker, clock):
    executor.queue_command("a", "true", retries=3, retry_delay=10, deadline=NOW + 20)
    executor.heartbeat()
    broker.start("a")
    clock.advance(18)
    broker.fail("a")
    executor.heartbeat()
    (*_, event) = executor.get_event_buffer()
    assert (event.state, event.reason) == (State.FAILED, Reason.EXIT_CODE)
    assert event.detail == "exit code 1; its deadline passes before the next attempt"


def test_a_retry_that_waits_for_a_slot_fails_at_the_deadline(executor, broker, clock):
    executor.queue_command("a", "true", retries=3, retry_delay=1, deadline=NOW + 20)
    executor.queue_command("big", "true", priority=9, slots=2, not_before=NOW + 1)
    executor.heartbeat()
    clock.advance(1)
    broker.fail("a")
    executor.heartbeat()
    executor.heartbeat()
    clock.advance(30)
    executor.heartbeat()
    (*_, event) = executor.get_event_buffer()
    assert (event.key, event.attempt, event.reason) == ("a", 2, Reason.DEADLINE)
    assert event.detail.startswith("attempt 2 had not started by its deadline, ")


def test_a_key_that_is_used_again_has_its_own_deadline(executor, broker, clock):
    executor.queue_command("a", "true", deadline=NOW + 30)
    executor.heartbeat()
    broker.succeed("a")
    executor.heartbeat()
    executor.queue_command("a", "true", not_before=NOW + 100)
    clock.advance(30)
    executor.heartbeat()
    assert ends(executor) == [("a", State.SUCCESS, None)]
    assert executor.has_task("a")
