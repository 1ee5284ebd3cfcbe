"""Test what an executor does with the receipts of a batch, and when it is worth waking up to send more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.capacity import Capacity
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import NotSent, Receipt, Sent, UnfinishedTask, Unsure
from celeriac.executor.limit import Refusal
from celeriac.executor.places import LocalPlaces
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey
from celeriac.telemetry import metrics
from celeriac.testing import InMemoryBroker, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


@pytest.fixture
def make(broker, clock) -> Callable[..., CeleryExecutor]:
    """Make executors that are told of each change of a result, so that reads of results wake none."""

    def make(broker: InMemoryBroker = broker, **settings) -> CeleryExecutor:
        broker.pushes = True
        parts = {name: settings.pop(name) for name in ("capacity", "open_places") if name in settings}
        executor = CeleryExecutor(
            Config(**{"parallelism": 2, "reconcile_interval_pushed": 10_000, **settings}),
            publisher=broker,
            results=broker,
            revoker=broker,
            clock=clock,
            wall_clock=clock,
            **parts,
        )
        executor.sync()
        return executor

    return make


def queue(executor: CeleryExecutor, *keys: str, **fields) -> None:
    for key in keys:
        executor.queue_command(key, "true", **fields)


def sent(broker: InMemoryBroker) -> list[TaskKey]:
    return [task.key for task in broker.messages]


def last_event(executor: CeleryExecutor, key: str) -> Event:
    return executor.get_event_buffer([key])[-1]


def rest_of(executor: CeleryExecutor, clock: ManualClock, timeout: float = 40.0) -> float:
    """Return how long `wait` waits."""
    before = clock.now
    executor.wait(timeout)
    return clock.now - before


# — receipts —


def test_an_error_of_one_task_delays_only_that_task_for_as_long_as_its_event_says(make, broker, clock):
    executor = make()
    broker.refuse("a")
    queue(executor, "a", "b")
    executor.heartbeat()
    retry_in = last_event(executor, "a").retry_in
    assert retry_in is not None
    assert 0 < retry_in < Config().publish_backoff_max
    broker.heal()
    executor.heartbeat()
    assert rest_of(executor, clock) == pytest.approx(retry_in)
    assert sent(broker) == ["b"]
    executor.heartbeat()
    assert sent(broker) == ["b", "a"]


def test_in_an_outage_each_event_says_when_sending_goes_on(make, broker, clock):
    executor = make()
    broker.refuse()
    queue(executor, "a", "b")
    executor.heartbeat()
    (retry_in,) = {event.retry_in for event in executor.get_event_buffer()}
    broker.heal()
    executor.heartbeat()
    assert rest_of(executor, clock) == pytest.approx(retry_in)
    executor.heartbeat()
    assert sent(broker) == ["a", "b"]


def test_an_unconfirmed_task_is_sent_again_once_sending_goes_on(make, broker, clock):
    executor = make()
    broker.leave_unsure(delivered=False)
    queue(executor, "a")
    executor.heartbeat()
    broker.heal()
    executor.heartbeat()
    assert 0 < rest_of(executor, clock) < 40.0
    executor.heartbeat()
    assert sent(broker) == ["a"]


def test_an_unconfirmed_task_has_an_event_only_for_the_first_failure(make, broker, clock):
    executor = make()
    broker.leave_unsure(delivered=False)
    queue(executor, "a")
    for _ in range(5):
        executor.heartbeat()
        executor.wait(60.0)
    assert len(broker.batches) > 2
    (event,) = executor.get_event_buffer()
    assert (event.state, event.reason) == (State.PUBLISHING, Reason.PUBLISH_ERROR)
    assert event.detail == "not confirmed: ConnectionError: the connection broke"


def test_an_unconfirmed_task_that_is_given_up_is_revoked(make, broker, clock):
    """Expect that a message of it arrives in spite of the failures."""
    executor = make(publish_deadline=30)
    broker.leave_unsure("a", delivered=False)
    queue(executor, "a")
    while executor.has_task("a"):
        executor.heartbeat()
        executor.wait(10.0)
    assert broker.revoked == [broker.batches[0][0].message_id]
    assert last_event(executor, "a").state is State.FAILED


def test_tasks_of_a_paused_queue_are_not_sent_again_while_they_are_unconfirmed(make, broker, clock):
    executor = make()
    broker.leave_unsure("a", delivered=False)
    queue(executor, "a", queue="other")
    executor.heartbeat()
    broker.heal()
    executor.adjustments.pause("other")
    clock.advance(60)
    executor.heartbeat()
    assert (sent(broker), rest_of(executor, clock)) == ([], 40.0)


def test_only_the_first_receipt_of_a_task_counts(make, clock):
    class Repeating(InMemoryBroker):
        def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
            error = ValueError("it cannot be encoded")
            first: list[Receipt] = [NotSent(tasks[0], error, transient=False), Sent(tasks[1])]
            return [*first, Sent(tasks[0]), Unsure(tasks[1], error)]

    executor = make(Repeating(clock))
    queue(executor, "a", "b")
    executor.heartbeat()
    events = [(event.key, event.state) for event in executor.get_event_buffer()]
    assert events == [("a", State.FAILED), ("b", State.QUEUED)]
    assert executor.tasks_in_flight == 1


def test_the_time_of_sending_counts(make, clock):
    class Slow(InMemoryBroker):
        def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
            clock.advance(2.0)
            return super().publish(tasks, timeout=timeout)

    executor = make(Slow(clock))
    queue(executor, "a")
    executor.heartbeat()
    measured = {family.metric: family.distributions for family in executor.telemetry.read()}
    assert [each.total for _, each in measured[metrics.PUBLISH_SECONDS]] == [2.0]


def test_a_revoked_task_of_a_broker_that_confirmed_nothing_is_not_sent_again(make, broker, clock):
    executor = make()
    broker.is_durable, broker.obeys_revokes = True, False
    broker.leave_unsure(delivered=False)
    queue(executor, "a", "b")
    executor.heartbeat()
    broker.heal()
    executor.revoke_task("a")
    executor.drain()
    executor.cancel_unstarted()
    clock.advance(60)
    executor.heartbeat()
    assert (sent(broker), rest_of(executor, clock)) == ([], 40.0)


# — limits that a store keeps —


class Places(LocalPlaces):
    """A store that a test may let refuse everything."""

    refuses_for: float | None = None

    def reserve(self, requests):
        if self.refuses_for is None:
            return super().reserve(requests)
        return {each.id: Refusal(each.limits[0], 1, self.refuses_for) for each in requests}


def test_an_unconfirmed_task_whose_place_is_refused_keeps_its_slot_and_asks_again(make, broker, clock):
    places = Places(clock)
    executor = make(open_places=lambda: places, concurrency_limits={"db": 1})
    broker.leave_unsure(delivered=False)
    queue(executor, "a", concurrency_key="db")
    executor.heartbeat()
    broker.heal()
    clock.advance(60)
    places.refuses_for = 25.0
    executor.heartbeat()
    assert (sent(broker), executor.tasks_in_flight, executor.slots_occupied) == ([], 1, 1)
    places.refuses_for = None
    executor.heartbeat()
    assert sent(broker) == []
    assert rest_of(executor, clock) == 25.0
    executor.heartbeat()
    assert sent(broker) == ["a"]


def test_a_heartbeat_is_due_when_a_refused_place_may_be_free(make, broker, clock):
    places = Places(clock)
    executor = make(open_places=lambda: places, concurrency_limits={"db": 1})
    places.refuses_for = 15.0
    queue(executor, "a", concurrency_key="db")
    executor.heartbeat()
    executor.heartbeat()
    assert rest_of(executor, clock) == 15.0
    executor.revoke_task("a")
    executor.heartbeat()
    assert rest_of(executor, clock) == 40.0


def test_a_heartbeat_is_due_when_the_window_of_a_rate_has_begun(make, broker, clock):
    """Expect that the executor asks the store at once how long the window lasts."""
    executor = make(queue_rates={"net": "1/m"})
    queue(executor, "a", "b", queue="net")
    executor.heartbeat()
    executor.heartbeat()
    broker.start("a")
    executor.heartbeat()
    assert rest_of(executor, clock) == 0.0
    executor.heartbeat()
    executor.heartbeat()
    clock.advance(30)
    assert rest_of(executor, clock) == 30.0


# — when it is worth waking up —


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


class NoWorkers(Capacity):
    """No live worker serves any queue."""

    def by_queue(self) -> Mapping[str, int]:
        return {}

    def why_held(self, queue: str) -> None:
        return None

    def shares(self) -> None:
        return None


def test_workers_are_looked_for_twice_a_second_while_tasks_wait_for_them(make, clock):
    executor = make(capacity=NoWorkers(), parallelism=1)
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
    executor = make(capacity=NoWorkers(), parallelism=1)
    executor.recovery.resume([UnfinishedTask(Task(key="runs", command="true"), State.RUNNING, clock.now)])
    queue(executor, "waits")
    executor.heartbeat()
    assert rest_of(executor, clock, 5.0) == 5.0
