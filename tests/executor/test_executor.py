"""Test `CeleryExecutor` through its public methods, one rule at a time. `test_executor_model.py` tests histories."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from random import Random

import pytest

from celeriac import testing
from celeriac.config.executor_config import Config
from celeriac.errors import ExecutorEnded, InvalidTask, InvalidTransition, TaskAlreadyQueued, UnknownTask
from celeriac.executor.executor import MAX_WAIT, CeleryExecutor
from celeriac.executor.interfaces import Receipt, Sent, UnfinishedTask, Unreadable
from celeriac.executor.requests import WaitReason
from celeriac.executor.thread_health import ThreadHealth
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Secret, Task
from celeriac.telemetry.telemetry import Telemetry
from celeriac.testing import InMemoryBroker, ManualClock


def executor_on(broker: InMemoryBroker, clock: ManualClock, **settings) -> CeleryExecutor:
    config = Config(**{"parallelism": 2, **settings})
    return CeleryExecutor(config, publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=clock)


@pytest.fixture
def executor(broker: InMemoryBroker, clock: ManualClock) -> CeleryExecutor:
    return executor_on(broker, clock)


def events_of(executor: CeleryExecutor) -> list[tuple[object, State, Reason | None]]:
    return [(event.key, event.state, event.reason) for event in executor.get_event_buffer()]


def sent_keys(broker: InMemoryBroker) -> list[object]:
    return [task.key for task in broker.messages]


def test_heartbeat_sends_the_most_urgent_tasks_in_one_batch(broker, executor):
    for key, priority in [("low", 1), ("high", 5), ("also high", 5), ("higher", 9)]:
        executor.queue_command(key, "true", priority=priority)
    executor.heartbeat()
    assert [[task.key for task in batch] for batch in broker.batches] == [["higher", "high"]]
    assert (executor.slots_available, executor.slots_occupied) == (0, 2)
    assert (executor.tasks_waiting, executor.tasks_in_flight) == (2, 2)


def test_trigger_tasks_sends_at_most_open_slots_tasks(broker, executor):
    for key in "abc":
        executor.queue_command(key, "true")
    executor.trigger_tasks(1)
    assert sent_keys(broker) == ["a"]
    executor.trigger_tasks(100)
    assert sent_keys(broker) == ["a", "b"]


def test_the_celery_id_is_known_before_a_task_is_sent(broker, executor):
    task = executor.queue_command("k", "true")
    executor.heartbeat()
    (event,) = executor.get_event_buffer()
    assert event.id == task.message_id == broker.messages[0].message_id
    assert event.number == 0, "only a ledger numbers events"


def test_a_queue_at_its_limit_is_skipped_and_a_large_task_is_not(broker, clock):
    executor = executor_on(broker, clock, parallelism=3, queue_limits={"narrow": 1})
    executor.queue_command("n1", "true", queue="narrow", priority=9)
    executor.queue_command("n2", "true", queue="narrow", priority=9)
    executor.queue_command("big", "true", slots=3, priority=5)
    executor.queue_command("small", "true")
    executor.heartbeat()
    assert sent_keys(broker) == ["n1"]
    broker.succeed("n1")
    executor.heartbeat()  # reads the end of n1, which frees its slot
    executor.heartbeat()
    assert sent_keys(broker) == ["n1", "n2"]


def test_an_error_changes_nothing(executor):
    executor.queue_command("k", "true")
    with pytest.raises(TaskAlreadyQueued):
        executor.queue_command("k", "false")
    executor.heartbeat()
    with pytest.raises(TaskAlreadyQueued):
        executor.queue_command("k", "false")
    with pytest.raises(UnknownTask):
        executor.revoke_task("unknown")
    with pytest.raises(InvalidTransition, match="'k' is queued and cannot become waiting; allowed states: running"):
        executor.change_state("k", State.WAITING)
    executor.queue_command("waits", "true", slots=2)
    with pytest.raises(InvalidTransition, match="'waits' is waiting and cannot become running"):
        executor.change_state("waits", State.RUNNING)
    assert events_of(executor) == [("k", State.QUEUED, None)]


def test_an_unavailable_broker_is_tried_once_per_pause_and_fails_no_task(broker, executor, clock):
    broker.refuse()
    for key in "abcd":
        executor.queue_command(key, "true")
    for _ in range(100):
        executor.heartbeat()
    assert [len(batch) for batch in broker.batches] == [2]
    assert executor.stats().task_publish_retries == {"a": 1, "b": 1}
    assert events_of(executor) == [(key, State.WAITING, Reason.PUBLISH_ERROR) for key in "ab"]
    assert executor.slots_available == 2
    clock.advance(1)
    broker.heal()
    executor.heartbeat()
    assert sent_keys(broker) == ["a", "b"]
    assert executor.stats().task_publish_retries == {}


def test_an_outage_fails_a_task_only_at_the_publish_deadline(broker, clock):
    executor = executor_on(broker, clock, publish_deadline=60, publish_backoff_max=5)
    broker.refuse(error=ConnectionRefusedError("port 6379"))
    executor.queue_command("k", "true")
    while executor.has_task("k"):
        executor.heartbeat()
        executor.wait(1)
    assert 60 <= clock.now - 1_000_000 < 70
    last = executor.get_event_buffer()[-1]
    assert (last.state, last.reason) == (State.FAILED, Reason.PUBLISH_ERROR)
    assert last.detail is not None
    assert last.detail.startswith("the broker did not take it in ")
    assert last.detail.endswith(" tries: ConnectionRefusedError: port 6379")


def test_an_unconfirmed_task_keeps_its_slot_and_is_resent_under_the_same_id(broker, executor, clock):
    broker.leave_unsure(delivered=True)
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert executor.slots_occupied == 1
    broker.heal()
    clock.advance(1)
    executor.heartbeat()
    assert [task.message_id for task in broker.messages] == [broker.messages[0].message_id] * 2
    assert events_of(executor) == [("k", State.PUBLISHING, Reason.PUBLISH_ERROR), ("k", State.QUEUED, None)]


def test_an_unconfirmed_task_is_resent_after_a_delay_while_others_are_sent(broker, executor, clock):
    broker.leave_unsure("unsure", delivered=False)
    for key in ("unsure", "sent"):
        executor.queue_command(key, "true")
    executor.heartbeat()
    broker.heal()
    executor.heartbeat()
    assert sent_keys(broker) == ["sent"]
    clock.advance(60)
    executor.heartbeat()
    assert sent_keys(broker) == ["sent", "unsure"]


def test_an_unconfirmed_attempt_that_has_failed_is_not_sent_again(broker, executor, clock):
    broker.leave_unsure("k", delivered=True)
    executor.queue_command("k", "true", retries=1, retry_delay=200)
    executor.heartbeat()
    broker.heal()
    broker.fail("k")
    for _ in range(3):
        executor.heartbeat()
        clock.advance(30)
    assert [task.attempt for task in broker.messages] == [1]
    clock.advance(600)
    executor.heartbeat()
    assert [task.attempt for task in broker.messages] == [1, 2]


def test_a_message_that_cannot_be_encoded_fails_only_its_task(broker, executor):
    broker.refuse("bad", transient=False)
    executor.queue_command("bad", "true")
    executor.queue_command("good", "true")
    executor.heartbeat()
    assert events_of(executor) == [("bad", State.FAILED, Reason.PUBLISH_ERROR), ("good", State.QUEUED, None)]


def test_an_exception_of_the_publisher_is_raised_and_loses_no_task(clock):
    class Broken(InMemoryBroker):
        def publish(self, tasks: Sequence[Task], *, timeout: float):
            yield Sent(tasks[0])
            raise ZeroDivisionError

    executor = executor_on(Broken(clock), clock)
    executor.queue_command("a", "true")
    executor.queue_command("b", "true")
    with pytest.raises(ZeroDivisionError):
        executor.heartbeat()
    assert events_of(executor) == [("a", State.QUEUED, None), ("b", State.PUBLISHING, Reason.PUBLISH_ERROR)]
    assert executor.slots_occupied == 2


def test_the_final_event_carries_the_report_of_the_worker(broker, executor):
    executor.queue_command("k", "true")
    executor.heartbeat()
    broker.fail("k", exit_code=3)
    executor.heartbeat()
    event = executor.get_event_buffer()[-1]
    assert (event.state, event.reason, event.detail, event.attempt) == (
        State.FAILED,
        Reason.EXIT_CODE,
        "exit code 3",
        1,
    )
    assert event.execution is not None
    assert (event.execution.host, event.execution.exit_code) == ("in-memory", 3)
    assert not executor.has_task("k")


def test_a_retry_waits_and_ignores_late_results_of_the_first_attempt(broker, executor, clock):
    executor.queue_command("k", "true", retries=1, retry_delay=10)
    executor.heartbeat()
    broker.fail("k")
    executor.heartbeat()
    waiting = executor.get_event_buffer()[-1]
    assert (waiting.state, waiting.reason) == (State.WAITING, Reason.EXIT_CODE)
    assert waiting.retry_in is not None
    executor.heartbeat()
    assert len(broker.messages) == 1
    clock.advance(waiting.retry_in)
    executor.heartbeat()
    first, second = broker.messages
    broker.put(first.message_id, Result(State.SUCCESS))
    executor.heartbeat()
    assert executor.has_task("k")
    broker.succeed("k")
    executor.heartbeat()
    end = executor.get_event_buffer()[-1]
    assert (end.state, end.attempt, end.id) == (State.SUCCESS, 2, second.message_id)


def test_a_result_of_a_state_that_no_worker_reports_is_ignored(broker, executor):
    executor.queue_command("k", "true")
    executor.heartbeat()
    broker.put(broker.message("k").message_id, Result(State.PUBLISHING))
    executor.heartbeat()
    broker.succeed("k")
    executor.heartbeat()
    assert [state for _, state, _ in events_of(executor)] == [State.QUEUED, State.SUCCESS]


def test_an_unreadable_result_is_logged_once_and_fails_its_task_after_a_timeout(broker, clock, caplog):
    executor = executor_on(broker, clock, result_unreadable_timeout=30, reconcile_interval=1)
    executor.queue_command("bad", "true")
    executor.queue_command("good", "true")
    executor.heartbeat()
    broker.put(broker.message("bad").message_id, Unreadable(ValueError("no JSON")))
    broker.succeed("good")
    with caplog.at_level(logging.WARNING):
        while executor.has_task("bad"):
            executor.heartbeat()
            executor.wait(5)
    assert [record.getMessage() for record in caplog.records] == [
        "the result of task 'bad' cannot be read: ValueError: no JSON"
    ]
    assert events_of(executor)[2:] == [("good", State.SUCCESS, None), ("bad", State.FAILED, Reason.LOST)]
    assert clock.now - 1_000_000 >= 30


def test_revoke_ends_a_waiting_task_at_once_and_one_in_flight_when_its_worker_reports(broker, executor):
    broker.obeys_revokes = False
    for key in "abc":
        executor.queue_command(key, "true", retries=5)
    executor.heartbeat()
    executor.revoke_task("c")
    executor.revoke_task("a")
    executor.heartbeat()
    assert events_of(executor)[2:] == [("c", State.REVOKED, Reason.REVOKED)]
    assert broker.revoked == [broker.message("a").message_id]
    broker.fail("a", exit_code=143)  # a revoked task is not retried, whatever its result is
    executor.heartbeat()
    assert events_of(executor) == [("a", State.REVOKED, Reason.EXIT_CODE)]


def test_the_caller_can_end_a_task(broker, executor):
    for key in "abc":
        executor.queue_command(key, "true", retries=5)
    executor.heartbeat()
    executor.success("a")
    executor.fail("b", "the scheduler gave it up")
    executor.success("c")
    events = executor.get_event_buffer()[2:]
    assert [(e.key, e.state, e.reason, e.detail) for e in events] == [
        ("a", State.SUCCESS, Reason.CALLER, None),
        ("b", State.FAILED, Reason.CALLER, "the scheduler gave it up"),
        ("c", State.SUCCESS, Reason.CALLER, None),
    ]
    assert (executor.slots_occupied, executor.tasks_waiting) == (0, 0)


def test_end_waits_for_tasks_in_flight_and_revokes_the_others(broker, executor, clock):
    for key in "abc":
        executor.queue_command(key, "true")
    executor.heartbeat()
    clock.after(100, lambda: broker.succeed("a"))
    clock.after(200, lambda: broker.fail("b"))
    assert executor.end() is True
    assert clock.now - 1_000_000 == 200
    assert events_of(executor)[2:] == [
        ("a", State.SUCCESS, None),
        ("b", State.FAILED, Reason.EXIT_CODE),
        ("c", State.REVOKED, Reason.REVOKED),
    ]
    with pytest.raises(ExecutorEnded):
        executor.queue_command("d", "true")


def test_end_returns_after_its_timeout(executor, clock):
    executor.queue_command("a", "true")
    executor.heartbeat()
    assert executor.end(timeout=10) is False
    assert clock.now - 1_000_000 == 10
    assert executor.has_task("a")


def test_end_applies_the_results_that_are_there_without_waiting(broker, executor, clock):
    executor.queue_command("a", "true")
    executor.heartbeat()
    broker.succeed("a")
    assert executor.end(timeout=0) is True
    assert (events_of(executor)[-1], clock.now) == (("a", State.SUCCESS, None), 1_000_000)


def test_terminate_revokes_everything(broker, executor):
    for key in "abc":
        executor.queue_command(key, "true")
    executor.heartbeat()
    executor.terminate()
    assert executor.end() is True
    assert sorted(events_of(executor)[2:]) == [(key, State.REVOKED, Reason.REVOKED) for key in "abc"]


def test_a_with_block_ends_the_executor_and_an_error_terminates_it(broker, clock):
    with executor_on(broker, clock) as executor:
        executor.queue_command("a", "true")
        executor.heartbeat()
        broker.succeed("a")
    assert events_of(executor)[-1] == ("a", State.SUCCESS, None)
    executor = executor_on(broker, clock)
    executor.queue_command("b", "true")
    executor.heartbeat()
    with pytest.raises(KeyError, match="mine"), executor:
        raise KeyError("mine")
    assert events_of(executor)[-1] == ("b", State.REVOKED, Reason.REVOKED)


def test_a_with_block_waits_for_its_tasks_and_after_an_error_only_for_a_while(broker, clock):
    with executor_on(broker, clock) as executor:
        executor.queue_command("a", "true")
        executor.heartbeat()
        clock.after(2 * MAX_WAIT, lambda: broker.succeed("a"))
    assert (events_of(executor)[-1], clock.now) == (("a", State.SUCCESS, None), 1_000_000 + 2 * MAX_WAIT)
    broker.obeys_revokes = False
    executor = executor_on(broker, clock)
    executor.queue_command("b", "true")
    executor.heartbeat()
    with pytest.raises(KeyError, match="mine"), executor:
        raise KeyError("mine")
    assert (clock.now, executor.tasks_in_flight) == (1_000_000 + 3 * MAX_WAIT, 1)


def test_results_are_deleted_when_the_last_event_of_their_attempt_is_taken(broker, executor, clock):
    executor.queue_command("k", "true", retries=1, retry_delay=0)
    executor.queue_command("other", "true")
    executor.heartbeat()
    broker.fail("k")
    broker.succeed("other")
    executor.heartbeat()
    assert broker.forgotten == []
    first, other = broker.message("k").message_id, broker.message("other").message_id
    executor.get_event_buffer(["k"])
    assert broker.forgotten == [first]
    executor.heartbeat()
    broker.start("k")
    executor.heartbeat()
    executor.get_event_buffer()
    assert broker.forgotten == [first, other]
    broker.succeed("k")
    executor.heartbeat()
    executor.get_event_buffer()
    assert broker.forgotten == [first, other, broker.message("k").message_id]
    assert broker.results == {}


def test_an_event_about_a_failure_to_send_deletes_no_result(broker, executor):
    broker.refuse()
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert events_of(executor) == [("k", State.WAITING, Reason.PUBLISH_ERROR)]
    assert broker.forgotten == []


def test_delete_results_off_keeps_all_results(broker, clock):
    executor = executor_on(broker, clock, delete_results=False)
    executor.queue_command("k", "true")
    executor.heartbeat()
    broker.succeed("k")
    executor.heartbeat()
    assert events_of(executor)[-1] == ("k", State.SUCCESS, None)
    assert broker.forgotten == []


def test_results_are_read_rarely_while_changes_are_pushed_and_soon_after_a_gap(broker, clock):
    executor = executor_on(broker, clock, reconcile_interval=5, reconcile_interval_pushed=60)
    broker.pushes = True
    executor.sync()
    executor.queue_command("k", "true")
    executor.heartbeat()
    broker.put(broker.message("k").message_id, Result(State.SUCCESS), hint=False)
    clock.advance(25)
    executor.heartbeat()
    assert executor.has_task("k")
    broker.pushes = False
    executor.heartbeat()
    broker.pushes = True
    clock.advance(5)
    executor.heartbeat()
    assert events_of(executor)[-1] == ("k", State.SUCCESS, None)


# — run_until_idle —


def end_later(broker: InMemoryBroker, clock: ManualClock, *keys: str) -> None:
    """Let each command succeed one second after the one before it, starting in one second."""
    for n, key in enumerate(keys, start=1):
        clock.after(n, partial(broker.succeed, key))


def test_run_until_idle_yields_each_event_as_it_comes_and_ends_with_the_last_task(broker, executor, clock):
    for key in "ab":
        executor.queue_command(key, "true")
    end_later(broker, clock, "a", "b")
    events = [(clock.now - 1_000_000, event.key, event.state) for event in executor.run_until_idle()]
    assert events == [
        (0, "a", State.QUEUED),
        (0, "b", State.QUEUED),
        (1, "a", State.SUCCESS),
        (2, "b", State.SUCCESS),
    ]
    assert list(executor.run_until_idle()) == []


def test_run_until_idle_runs_the_tasks_that_are_queued_meanwhile(broker, executor, clock):
    executor.queue_command("first", "true")
    end_later(broker, clock, "first", "next")
    ends = []
    for event in executor.run_until_idle():
        if event.state.is_final:
            ends.append(event.key)
        if ends == ["first"]:
            executor.queue_command("next", "true")
            executor.queue_command("unwanted", "true")
            executor.revoke_task("unwanted")
            ends.append("queued more")
    assert ends == ["first", "queued more", "unwanted", "next"]


def test_run_until_idle_ends_without_the_waiting_tasks_once_nothing_more_is_sent(broker, executor, clock):
    executor.queue_command("a", "true")
    executor.heartbeat()
    executor.queue_command("b", "true")
    executor.adjustments.stop_sending()
    clock.after(5, lambda: broker.succeed("a"))
    assert [event.key for event in executor.run_until_idle()] == ["a", "a"]
    assert (executor.tasks_waiting, clock.now) == (1, 1_000_005)


def test_leaving_run_until_idle_loses_no_event_and_it_may_be_called_again(broker, executor, clock):
    for key in "ab":
        executor.queue_command(key, "true")
    end_later(broker, clock, "a", "b")
    for event in executor.run_until_idle():
        assert (event.key, event.state) == ("a", State.QUEUED)
        break

    def fail_at_the_first_event() -> None:
        for event in executor.run_until_idle():
            raise RuntimeError(event.key)

    with pytest.raises(RuntimeError, match="b"):
        fail_at_the_first_event()
    assert events_of(executor) == []
    assert [event.key for event in executor.run_until_idle()] == ["a", "b"]
    assert broker.forgotten == [broker.message(key).message_id for key in "ab"]


def test_run_until_idle_ends_without_the_waiting_tasks_of_a_drained_executor(broker, executor, clock):
    for key in "abc":
        executor.queue_command(key, "true")
    end_later(broker, clock, "a", "b")
    for event in executor.run_until_idle():
        if event.state is State.QUEUED:
            executor.drain()
    assert executor.has_task("c")
    assert clock.now - 1_000_000 == 2


def test_an_end_with_abandon_gives_up_the_tasks_in_flight(executor, clock):
    for key in "abc":
        executor.queue_command(key, "true")
    executor.heartbeat()
    executor.get_event_buffer()
    assert executor.end(timeout=10, abandon=True) is True
    assert clock.now - 1_000_000 == 10
    assert events_of(executor) == [
        ("c", State.REVOKED, Reason.REVOKED),
        ("a", State.FAILED, Reason.LOST),
        ("b", State.FAILED, Reason.LOST),
    ]


# — dependencies —


def ends_of(executor: CeleryExecutor) -> dict[object, tuple[str, str | None]]:
    return {e.key: (e.state.value, e.detail) for e in executor.get_event_buffer() if e.state.is_final}


def task(key: object, *needs: object, **fields) -> Task:
    return Task(key=key, command="true", needs=needs, **fields)


def test_a_blocked_task_takes_no_slot_and_starts_when_its_needs_have_succeeded(broker, executor):
    executor.queue_tasks([task("end", "left", "right", priority=9), task("left"), task("right"), task("more")])
    executor.heartbeat()
    assert sent_keys(broker) == ["left", "right"]
    assert (executor.tasks_waiting, executor.has_task("end")) == (2, True)
    broker.succeed("left")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker) == ["left", "right", "more"]
    broker.succeed("right")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker)[3:] == ["end"]
    assert broker.message("end").needs == ("left", "right")


def test_dependants_of_a_failed_task_are_skipped_or_run_as_their_policy_says(broker, executor):
    executor.queue_tasks(
        [
            task("bad"),
            task("skipped", "bad"),
            task("in turn", "skipped", "slow"),
            task("cleans up", "in turn", "slow", on_need_failed="run"),
            task("slow"),
        ]
    )
    executor.heartbeat()
    broker.fail("bad", exit_code=3)
    executor.heartbeat()
    events = [(e.key, e.state, e.reason, e.detail, e.attempt) for e in executor.get_event_buffer()[3:]]
    assert events == [
        ("skipped", State.SKIPPED, Reason.NEED_FAILED, "needs 'bad', which failed", 1),
        ("in turn", State.SKIPPED, Reason.NEED_FAILED, "needs 'skipped', which was skipped", 1),
    ]
    assert executor.tasks_waiting == 1
    assert broker.forgotten == [broker.message("bad").message_id]
    broker.succeed("slow")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker)[2:] == ["cleans up"]


def test_dependants_wait_for_the_last_attempt(broker, executor, clock):
    executor.queue_tasks([task("retried", retries=1, retry_delay=1), task("after", "retried")])
    executor.heartbeat()
    broker.fail("retried")
    executor.heartbeat()
    assert executor.tasks_waiting == 2
    clock.advance(10)
    executor.heartbeat()
    broker.succeed("retried")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker) == ["retried", "retried", "after"]


def test_needs_may_have_ended_before_a_task_is_queued(broker, executor):
    for key in ("good", "bad"):
        executor.queue_command(key, "true")
    executor.heartbeat()
    broker.succeed("good")
    broker.fail("bad")
    executor.heartbeat()
    executor.get_event_buffer()
    executor.queue_command("a", "true", needs=["good"])
    executor.queue_command("b", "true", needs=["bad"])
    executor.queue_command("c", "true", needs=["bad"], on_need_failed="run")
    executor.queue_command("bad", "true")
    executor.queue_command("d", "true", needs=["bad"])
    assert ends_of(executor) == {"b": ("skipped", "needs 'bad', which failed")}
    executor.heartbeat()
    assert sent_keys(broker)[2:] == ["a", "c"]
    assert executor.explain("d").now.waits_for is WaitReason.NEEDS


QUEUE_FIRST = "queue 'x' first, or both together with queue_tasks"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            [task("a", "x")],
            f"needs: task 'a' needs 'x', which is unknown or ended long ago; {QUEUE_FIRST}",
        ),
        (
            [task("a"), task("b", "d"), task("c", "b"), task("d", "c", "a")],
            "needs: tasks need each other in a cycle: b needs d needs c needs b; remove one of these needs",
        ),
    ],
)
def test_a_batch_with_an_error_is_refused_as_a_whole(executor, tasks, message):
    with pytest.raises(InvalidTask) as error:
        executor.queue_tasks(tasks)
    assert str(error.value) == message
    with pytest.raises(TaskAlreadyQueued):
        executor.queue_tasks([task("a"), task("b", "a"), task("a")])
    with pytest.raises(InvalidTask, match="asks for 9 of 2"):
        executor.queue_tasks([task("a"), task("b", "a", slots=9)])
    assert (executor.tasks_waiting, executor.get_event_buffer()) == (0, [])


def test_a_blocked_task_can_be_revoked_ended_and_reprioritised(broker, executor):
    executor.queue_tasks([task("first"), *(task(key, "first") for key in "abcd"), task("e", "a"), task("f", "b")])
    with pytest.raises(TaskAlreadyQueued):
        executor.queue_command("a", "true")
    executor.revoke_task("a")
    executor.success("b")
    executor.reprioritise("d", 5)
    assert ends_of(executor) == {
        "a": ("revoked", "revoked while it waited"),
        "b": ("success", None),
        "e": ("skipped", "needs 'a', which was revoked"),
    }
    executor.success("first")
    executor.heartbeat()
    assert sent_keys(broker) == ["d", "c"]


def test_tasks_revoked_together_are_not_skipped_because_of_each_other(executor):
    executor.queue_tasks([task("a", queue="q"), task("b", "a", queue="q"), task("c", "b", queue="q"), task("d", "c")])
    assert executor.revoke_tasks(queue="q") == ["a", "b", "c"]
    assert {key: state for key, (state, _) in ends_of(executor).items()} == {
        **dict.fromkeys("abc", "revoked"),
        "d": "skipped",
    }


@pytest.mark.parametrize("how", ["end", "terminate"])
def test_the_end_revokes_blocked_tasks(broker, executor, how):
    executor.queue_tasks([task("a"), task("b", "a"), task("c", "b", on_need_failed="run")])
    getattr(executor, how)()
    assert ends_of(executor) == dict.fromkeys("abc", ("revoked", "never ran: the executor ended"))
    assert executor.tasks_waiting == 0


def test_a_draining_executor_skips_dependants_and_starts_none(broker, executor, clock):
    executor.queue_tasks([task("good"), task("bad"), task("a", "good"), task("b", "bad"), task("c", "a")])
    executor.heartbeat()
    executor.drain()
    broker.succeed("good")
    broker.fail("bad")
    executor.end()
    states = {key: state for key, (state, _) in ends_of(executor).items()}
    assert states == {"good": "success", "bad": "failed", "a": "revoked", "b": "skipped", "c": "revoked"}


def test_long_chains_and_wide_dependencies_are_fast(broker, executor):
    many = 20_000
    executor.queue_tasks([*(task(n, n - 1) for n in range(many, 0, -1)), task(0), task("last", *range(many))])
    executor.fail(0)
    assert (len(ends_of(executor)), executor.tasks_waiting) == (many + 2, 0)
    executor.queue_tasks([*(task(n, "hub") for n in range(many)), task("hub")])
    executor.success("hub")
    executor.heartbeat()
    assert sent_keys(broker) == [0, 1]


# — debugging, waiting, the testing module —


def test_debug_dump_shows_keys_and_ids_but_no_commands_and_values(broker, executor):
    executor.queue_command("k", "echo swordfish", env={"PASSWORD": Secret("hunter2"), "PLAIN": "visible"})
    executor.heartbeat()
    executor.queue_tasks([Task(key="blocked", command="true", needs=("k",))])
    dump = executor.debug_dump()
    assert "waiting: 1, of them blocked by dependencies: 1" in dump
    assert f"'k' queued id={broker.message('k').message_id} queue='default' attempt=1" in dump
    assert not [text for text in ("swordfish", "hunter2", "visible") if text in dump]


def test_stats_and_debug_dump_show_each_task_in_flight_and_each_thread(broker, clock):
    threads = (ThreadHealth(name="t", is_alive=True, round_age=1.5, unexpected_errors=0, last_error=None),)
    config = Config(parallelism=9)
    executor = CeleryExecutor(
        config, publisher=broker, results=broker, revoker=broker, clock=clock, wall_clock=clock, threads=lambda: threads
    )
    broker.obeys_revokes = False
    broker.refuse("refused", transient=True)
    broker.leave_unsure("unsure", delivered=True)
    for key in ("sent", "runs", "revoked", "refused", "unsure"):
        executor.queue_command(key, "true", queue="q")
    executor.heartbeat()
    broker.start("runs")
    executor.revoke_task("revoked")
    executor.heartbeat()
    stats = executor.stats()
    assert (stats.tasks_waiting, stats.tasks_in_flight, stats.tasks_running, stats.tasks_unconfirmed) == (1, 4, 1, 1)
    assert (stats.slots_in_use, stats.parallelism, stats.draining, stats.threads) == (4, 9, False, threads)
    assert stats.task_publish_retries == {"refused": 1, "unsure": 1}
    lines = executor.debug_dump().splitlines()
    assert [line.partition(" queue=")[2] for line in lines if " queue=" in line] == [
        "'q' attempt=1",
        "'q' attempt=1",
        "'q' attempt=1 revoking",
        "'q' attempt=1",
    ]
    assert lines[-3:-1] == [f"  {key!r} could not be sent 1 times" for key in ("refused", "unsure")]
    assert lines[-1] == "thread t: round of 1.5 s"
    executor.drain()
    assert executor.stats().draining


def test_an_executor_counts_in_the_telemetry_of_its_caller(broker, clock):
    telemetry = Telemetry()
    executor = CeleryExecutor(
        Config(), publisher=broker, results=broker, revoker=broker, clock=clock, telemetry=telemetry
    )
    assert executor.telemetry is telemetry
    assert executor_on(broker, clock).telemetry is not telemetry


def test_a_command_is_a_string_or_a_list_of_arguments(broker, executor):
    executor.queue_command("shell", "gzip -k data.csv")
    executor.queue_command("arguments", ["gzip", "-k", "data.csv"])
    executor.heartbeat()
    assert [task.command for task in broker.messages] == ["gzip -k data.csv", ("gzip", "-k", "data.csv")]


def test_delays_come_from_the_random_numbers_of_the_caller(broker, clock):
    delays = []
    for _ in range(2):
        executor = CeleryExecutor(
            Config(), publisher=broker, results=broker, revoker=broker, clock=clock, random=Random(7)
        )
        executor.queue_command("k", "true", retries=1, retry_delay=20)
        executor.heartbeat()
        broker.fail("k")
        executor.heartbeat()
        delays.append(executor.get_event_buffer()[-1].retry_in)
    assert delays[0] == delays[1]


def test_wait_returns_at_least_each_minute(executor, clock):
    executor.wait(10 * MAX_WAIT)
    assert clock.now == 1_000_000 + MAX_WAIT


def test_wait_returns_when_something_is_due_and_not_before(broker, executor, clock):
    executor.queue_command("k", "true", retries=1, retry_delay=20)
    executor.heartbeat()
    broker.fail("k")
    executor.heartbeat()
    retry_in = executor.get_event_buffer()[-1].retry_in
    executor.heartbeat()
    executor.wait(1_000)
    assert clock.now - 1_000_000 == pytest.approx(retry_in)


def test_a_heartbeat_is_due_at_once_for_a_new_task_and_never_without_tasks(broker, executor, clock):
    executor.heartbeat()
    began = clock.now
    executor.wait(20)
    assert clock.now == began + 20
    executor.queue_command("k", "true")
    executor.wait(20)
    assert clock.now == began + 20


def test_the_example_in_celeriac_testing_runs():
    assert testing.__doc__ is not None
    example = "\n".join(line[4:] for line in testing.__doc__.splitlines() if line.startswith("    "))
    names: dict[str, object] = {}
    exec("from celeriac import *\nfrom celeriac.testing import *\n" + example, names)  # the example contains assertions
    assert isinstance(names["executor"], CeleryExecutor)
    assert names["executor"].get_event_buffer() == []


def receipts(broker: InMemoryBroker, *keys: str) -> list[Receipt]:
    return broker.publish([Task(key=key, command="true") for key in keys], timeout=1)


def test_the_in_memory_broker_can_fail_one_task_or_all(broker):
    broker.refuse("a")
    broker.leave_unsure("b", delivered=False)
    assert [type(receipt).__name__ for receipt in receipts(broker, "a", "b", "c")] == ["NotSent", "Unsure", "Sent"]
    broker.heal("a")
    assert [type(receipt).__name__ for receipt in receipts(broker, "a", "b")] == ["Sent", "Unsure"]
    broker.heal()
    broker.refuse()
    assert [type(receipt).__name__ for receipt in receipts(broker, "a", "b")] == ["NotSent", "NotSent"]
    assert sent_keys(broker) == ["c", "a"]
    with pytest.raises(LookupError, match="no message of task 'b' has arrived"):
        broker.message("b")


# — pause and recovery —


def test_an_executor_that_has_stopped_sends_nothing_and_keeps_failed_attempts_waiting(clock, broker, executor):
    executor.queue_command("fails", "true", retries=1)
    executor.heartbeat()
    executor.queue_command("rest", "true")
    executor.adjustments.stop_sending()
    broker.fail("fails", exit_code=1)
    for _ in range(5):
        executor.heartbeat()
        clock.advance(10)
    assert sent_keys(broker) == ["fails"]
    assert [state for _, state, _ in events_of(executor)] == [State.QUEUED, State.WAITING]
    assert (executor.tasks_waiting, executor.tasks_in_flight) == (2, 0)
    assert executor.explain("rest").now.waits_for is WaitReason.NOTHING_MORE


def test_a_later_attempt_waits_for_no_needs_again(broker, executor):
    needs = ("gone",)
    executor.recovery.resume(
        [
            UnfinishedTask(Task(key="again", command="true", needs=needs, attempt=2), State.WAITING, 1.0),
            UnfinishedTask(Task(key="gone", command="true"), State.WAITING, 1.0),
            UnfinishedTask(Task(key="first", command="true", needs=needs), State.WAITING, 1.0),
        ]
    )
    executor.heartbeat()
    assert sent_keys(broker) == ["again", "gone"]
    assert executor.explain("first").now.waits_for is WaitReason.NEEDS


def test_a_first_attempt_that_could_not_be_sent_waits_for_its_delay_after_a_restart(clock, broker, executor):
    task = Task(key="k", command="true")
    executor.recovery.resume([UnfinishedTask(task, State.WAITING, 1.0, not_before=clock() + 30)])
    executor.heartbeat()
    assert sent_keys(broker) == []
    clock.advance(31)
    executor.heartbeat()
    assert sent_keys(broker) == ["k"]


def test_a_draining_executor_adopts_no_task(executor):
    executor.drain()
    with pytest.raises(ExecutorEnded):
        executor.adopt_tasks([Task(key="k", command="true")])
    assert executor.tasks_in_flight == 0


def test_resume_takes_over_tasks_at_any_time(clock, broker, executor):
    executor.queue_command("own", "true")
    executor.heartbeat()
    unfinished = [
        UnfinishedTask(Task(key="waits", command="true"), State.WAITING, 1.0),
        UnfinishedTask(Task(key="later", command="true", attempt=2), State.WAITING, 1.0, clock() + 30),
        UnfinishedTask(Task(key="runs", command="true"), State.RUNNING, 1.0),
        UnfinishedTask(Task(key="unwanted", command="true"), State.WAITING, 1.0, revoking=True),
        UnfinishedTask(Task(key="wide", command="true", slots=5), State.WAITING, 1.0),
    ]
    executor.recovery.resume(unfinished)
    assert (executor.tasks_waiting, executor.tasks_in_flight) == (2, 2)
    assert events_of(executor)[1:] == [
        ("unwanted", State.REVOKED, Reason.REVOKED),
        ("wide", State.FAILED, Reason.NOT_STARTED),
    ]
    broker.succeed("own")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker) == ["own", "waits"]


def test_a_revoked_unconfirmed_task_ends_once_no_worker_can_claim_it(clock, broker, executor):
    """Expect that the broker has it: it is not sent again, and a worker may still claim it."""
    broker.is_durable, broker.obeys_revokes = True, False
    broker.leave_unsure(delivered=True)
    executor.queue_command("k", "true")
    executor.heartbeat()
    executor.revoke_task("k")
    broker.heal()
    for _ in range(5):
        clock.advance(60)
        executor.heartbeat()
    assert (sent_keys(broker), executor.tasks_in_flight) == (["k"], 1)
    assert not any(state.is_final for _, state, _ in events_of(executor))
    broker.put(broker.message("k").message_id, Result(State.REVOKED, Reason.REVOKED, "revoked"))
    executor.heartbeat()
    assert [state for _, state, _ in events_of(executor)] == [State.REVOKED]


@pytest.mark.parametrize("reason", [Reason.EXIT_CODE, Reason.LOST])
def test_a_revoked_task_that_failed_while_no_executor_ran_is_not_tried_again(broker, executor, reason):
    task = Task(key="unwanted", command="true", retries=1)
    broker.put(task.message_id, Result(State.FAILED, reason, "it failed"))
    executor.recovery.resume([UnfinishedTask(task, State.RUNNING, 1.0, revoking=True)])
    executor.heartbeat()
    assert [state for _, state, _ in events_of(executor)] == [State.REVOKED]
    assert (executor.tasks_waiting, executor.tasks_in_flight, sent_keys(broker)) == (0, 0, [])


def test_revoke_tasks_revokes_waiting_tasks_and_tasks_in_flight_together(broker, executor):
    for key in "abcd":
        executor.queue_command(key, "true")
    executor.heartbeat()
    assert {task.key for task in executor.tasks()} == {*"abcd"}
    assert executor.revoke_tasks(["a", "d", "unknown", "b", "c"]) == ["d", "c", "a", "b"]
    executor.heartbeat()
    assert {key for key, state, _ in events_of(executor) if state is State.REVOKED} == {*"abcd"}
