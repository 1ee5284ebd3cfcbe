"""Test an executor that takes over tasks of earlier ones: what it sends, revokes, records and counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celeriac.config.executor_config import Config
from celeriac.errors import InvalidTask, TaskAlreadyQueued
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import LedgerBatch, TaskRecord, UnfinishedTask
from celeriac.executor.places import LocalPlaces
from celeriac.executor.requests import ExplainReply, ExplainRequest
from celeriac.ledger.memory import MemoryLedger
from celeriac.task.result import Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey
from celeriac.telemetry import metrics
from celeriac.telemetry.metrics import Metric
from celeriac.testing import InMemoryBroker, ManualClock

NOW = 1_800_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def make(broker, clock) -> Callable[..., CeleryExecutor]:
    def make(parallelism: int = 2, limits: dict[str, int] | None = None, **parts) -> CeleryExecutor:
        return CeleryExecutor(
            Config(parallelism=parallelism, concurrency_limits=limits or {}),
            publisher=broker,
            results=broker,
            revoker=broker,
            clock=clock,
            wall_clock=clock,
            **parts,
        )

    return make


def task(key: str, **fields) -> Task:
    return Task(key=key, command="true", **fields)


def left(key: str, state: State, **fields) -> UnfinishedTask:
    return UnfinishedTask(task(key), state, NOW, **fields)


def sent(broker: InMemoryBroker) -> list[object]:
    return [task.key for task in broker.messages]


def counted(executor: CeleryExecutor, metric: Metric) -> list[float]:
    return [value for family in executor.telemetry.read() if family.metric is metric for _, value in family.numbers]


def test_a_task_that_was_about_to_be_sent_is_sent_again_where_no_lost_tasks_are_searched_for(make, broker):
    executor = make()
    unfinished = left("k", State.PUBLISHING)
    executor.recovery.resume([unfinished])
    assert executor.slots_occupied == 1
    executor.heartbeat()
    assert [each.message_id for each in broker.messages] == [unfinished.task.message_id]
    assert [event.state for event in executor.get_event_buffer()] == [State.QUEUED]


def test_tasks_that_are_taken_over_are_counted(make, broker, clock):
    executor = make(parallelism=3)
    executor.recovery.resume([left("waits", State.WAITING), left("sent", State.QUEUED), left("runs", State.RUNNING)])
    assert counted(executor, metrics.TASKS_QUEUED) == [3]
    assert counted(executor, metrics.TASKS_RUNNING) == [1]
    clock.advance(5)
    broker.put(executor.explain("sent").id or "", Result(State.RUNNING))
    executor.sync()
    starts = {family.metric: family.distributions for family in executor.telemetry.read()}[metrics.START_SECONDS]
    assert [each.total for _, each in starts] == [5.0]
    assert counted(executor, metrics.TASKS_RUNNING) == [2]


def test_a_heartbeat_is_due_for_a_waiting_task_that_is_taken_over(make, broker, clock):
    executor = make()
    executor.heartbeat()
    executor.recovery.resume([left("k", State.WAITING)])
    executor.wait(20)
    assert clock.now == NOW
    executor.heartbeat()
    assert sent(broker) == ["k"]


def test_a_delay_of_less_than_a_second_is_kept(make, broker, clock):
    executor = make()
    executor.recovery.resume([left("k", State.WAITING, not_before=NOW + 0.5)])
    executor.heartbeat()
    assert sent(broker) == []
    executor.wait(20)
    assert clock.now == NOW + 0.5
    executor.heartbeat()
    assert sent(broker) == ["k"]


def test_a_deadline_counts_for_a_task_in_flight_that_is_taken_over(make, broker, clock):
    executor = make()
    late = task("late", deadline=NOW + 30)
    executor.recovery.resume([UnfinishedTask(late, State.QUEUED, NOW)])
    clock.advance(30)
    executor.heartbeat()
    assert broker.revoked == [late.message_id]


def test_only_what_is_still_in_flight_is_revoked_again(make, broker):
    executor = make()
    unfinished = [left(key, State.QUEUED, revoking=True) for key in ("ended", "open")] + [left("wanted", State.QUEUED)]
    ended, still_open, _ = (each.task.message_id for each in unfinished)
    broker.put(ended, Result(State.SUCCESS))
    executor.recovery.resume(unfinished)
    assert broker.revoked == [still_open]


def test_a_dependant_waits_for_a_task_that_comes_next_and_for_one_that_is_taken_over(make, broker):
    executor = make(parallelism=9)
    needs = {"x": "coming", "y": "unfinished", "z": "gone"}
    unfinished = [UnfinishedTask(task(key, needs=(need,)), State.WAITING, NOW) for key, need in needs.items()]
    executor.recovery.resume([*unfinished, left("unfinished", State.QUEUED)], coming={"coming"})
    executor.heartbeat()
    assert sent(broker) == ["z"]


def test_a_dependant_of_a_task_that_has_failed_before_is_skipped(make):
    executor = make()
    dependant = UnfinishedTask(task("k", needs=("bad",)), State.WAITING, NOW)
    executor.recovery.resume([dependant], ended={"bad": State.FAILED})
    (event,) = executor.get_event_buffer()
    assert (event.state, event.detail) == (State.SKIPPED, "needs 'bad', which failed")


@pytest.mark.parametrize("state", [State.WAITING, State.QUEUED])
def test_requests_find_a_task_that_is_taken_over_by_the_name_of_its_key(make, channel, state):
    executor = make(control_channel=channel)
    executor.recovery.resume([UnfinishedTask(Task(key=(7, "k"), command="true"), state, NOW)])
    replies = channel.ask(ExplainRequest(name=str((7, "k"))))
    executor.sync()
    assert isinstance(replies[0], ExplainReply)
    assert [each.key for each in replies[0].explanations] == [(7, "k")]


def test_an_invalid_task_in_the_ledger_stops_a_recovery_only_if_it_waits(make):
    ledger = MemoryLedger()
    wide = Task(key="wide", command="true", slots=5)
    earlier = make(parallelism=5, ledger=ledger)
    earlier.queue_task(wide)
    earlier.flush()
    with pytest.raises(InvalidTask):
        make(ledger=ledger).recover()
    records: dict[TaskKey, TaskRecord] = {"wide": TaskRecord(wide, State.QUEUED, NOW)}
    ledger.write(LedgerBatch((), records, (), 0, 0))
    executor = make(ledger=ledger)
    assert executor.recover() == 1
    assert (executor.tasks_in_flight, executor.slots_available) == (1, -3)


def test_places_of_tasks_that_are_taken_over_are_renewed_at_once(make, clock):
    class LeasedPlaces(LocalPlaces):
        renew_interval: float | None = 20.0
        renewed = 0

        def renew(self, requests):
            self.renewed += len(requests)

    places = LeasedPlaces(clock)
    executor = make(open_places=lambda: places, limits={"db": 1})
    executor.recovery.resume([UnfinishedTask(task("k", concurrency_key="db"), State.RUNNING, NOW)])
    executor.heartbeat()
    assert places.renewed == 1


def test_without_an_outbox_all_tasks_wait_again(make, broker):
    executor = make(outbox=False)
    executor.recovery.resume([left("k", State.QUEUED)])
    assert (executor.tasks_waiting, executor.tasks_in_flight) == (1, 0)
    executor.heartbeat()
    assert sent(broker) == ["k"]


# — adopt_tasks —


def test_adopted_tasks_are_in_the_ledger_with_their_states(make):
    ledger = MemoryLedger()
    executor = make(ledger=ledger)
    executor.adopt_tasks([task("a")])
    executor.adopt_tasks([task("b")], State.RUNNING)
    assert executor.flush()
    assert {each.task.key: each.state for each in ledger.unfinished()} == {"a": State.QUEUED, "b": State.RUNNING}
    with pytest.raises(TaskAlreadyQueued):
        executor.adopt_tasks([task("c"), task("a")])
    assert executor.tasks_in_flight == 2


def test_an_adopted_task_that_the_ledger_cannot_store_is_refused(make):
    class RefusingLedger(MemoryLedger):
        def check(self, task: Task) -> None:
            raise InvalidTask(str(task.key), "cannot be stored", "give another key")

    executor = make(ledger=RefusingLedger())
    with pytest.raises(InvalidTask):
        executor.adopt_tasks([task("a")])
    assert executor.tasks_in_flight == 0


# — what the next executor finds —


@pytest.mark.parametrize(("outbox", "state"), [(True, State.PUBLISHING), (False, State.WAITING)])
def test_the_ledger_says_that_a_task_may_have_been_sent_before_it_is(clock, outbox, state):
    ledger = MemoryLedger()

    class Watching(InMemoryBroker):
        def publish(self, tasks, *, timeout):
            seen.extend(unfinished.state for unfinished in ledger.unfinished())
            return super().publish(tasks, timeout=timeout)

    seen: list[State] = []
    broker = Watching(clock)
    executor = CeleryExecutor(
        Config(), publisher=broker, results=broker, revoker=broker, ledger=ledger, outbox=outbox, clock=clock
    )
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert seen == [state]


def test_a_revoke_is_in_the_ledger_until_the_task_ends(make, broker):
    ledger = MemoryLedger()
    broker.obeys_revokes = False
    executor = make(ledger=ledger)
    executor.queue_command("k", "true")
    executor.heartbeat()
    executor.revoke_task("k")
    assert executor.flush()
    assert [each.revoking for each in ledger.unfinished()] == [True]
    broker.start("k")
    executor.sync()
    assert executor.flush()
    assert [(each.state, each.revoking) for each in ledger.unfinished()] == [(State.RUNNING, True)]
    broker.put(broker.message("k").message_id, Result(State.REVOKED, Reason.REVOKED))
    executor.sync()
    assert executor.flush()
    assert list(ledger.unfinished()) == []


def test_a_retry_is_in_the_ledger_with_its_time(make, broker):
    ledger = MemoryLedger()
    executor = make(ledger=ledger)
    executor.queue_command("k", "true", retries=1, retry_delay=100)
    executor.heartbeat()
    broker.fail("k")
    executor.sync()
    event = executor.get_event_buffer()[-1]
    assert executor.flush()
    assert event.retry_in is not None
    assert [(each.task.attempt, each.state, each.not_before) for each in ledger.unfinished()] == [
        (2, State.WAITING, event.when + event.retry_in)
    ]
