"""Test what an executor does with the receipts of a batch, and with places that a store refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import NotSent, Receipt, Sent, Unsure
from celeriac.executor.limit import Refusal
from celeriac.executor.places import LocalPlaces
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.telemetry import metrics
from celeriac.telemetry.metrics import Metric
from celeriac.telemetry.telemetry import Labels
from celeriac.testing import InMemoryBroker
from tests.support.pushed import pushed_executor, queue, rest_of, sent


@pytest.fixture
def make(broker, clock) -> Callable[..., CeleryExecutor]:
    return partial(pushed_executor, broker, clock)


def last_event(executor: CeleryExecutor, key: str) -> Event:
    return executor.get_event_buffer([key])[-1]


def counted(executor: CeleryExecutor, metric: Metric) -> dict[Labels, float]:
    return {
        labels: value for each in executor.telemetry.read() if each.metric is metric for labels, value in each.numbers
    }


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


def test_only_the_first_receipt_of_a_task_counts(clock):
    class Repeating(InMemoryBroker):
        def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
            error = ValueError("it cannot be encoded")
            first: list[Receipt] = [NotSent(tasks[0], error, transient=False), Sent(tasks[1])]
            return [*first, Sent(tasks[0]), Unsure(tasks[1], error)]

    executor = pushed_executor(Repeating(clock), clock)
    queue(executor, "a", "b")
    executor.heartbeat()
    events = [(event.key, event.state) for event in executor.get_event_buffer()]
    assert events == [("a", State.FAILED), ("b", State.QUEUED)]
    assert executor.tasks_in_flight == 1


def test_the_time_of_sending_counts(clock):
    class Slow(InMemoryBroker):
        def publish(self, tasks: Sequence[Task], *, timeout: float) -> list[Receipt]:
            clock.advance(2.0)
            return super().publish(tasks, timeout=timeout)

    executor = pushed_executor(Slow(clock), clock)
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


def test_a_failure_to_confirm_counts_once_and_until_the_task_ends(make, broker):
    executor = make(parallelism=4)
    broker.leave_unsure("a", delivered=False)
    broker.refuse("b", "c")
    queue(executor, "a", "b", "c", "d")
    executor.heartbeat()
    assert executor.stats().task_publish_retries == {"a": 1, "b": 1, "c": 1}
    executor.revoke_task("b")
    assert executor.stats().task_publish_retries == {"a": 1, "c": 1}
    executor.revoke_waiting(silently=False)
    assert executor.stats().task_publish_retries == {"a": 1}


def test_failures_are_counted(make, broker, clock):
    executor = make(parallelism=4)
    broker.leave_unsure("a", delivered=False)
    broker.refuse("b")
    queue(executor, "a", "b", "c", retries=1, retry_delay=100)
    assert counted(executor, metrics.TASKS_QUEUED) == {("default",): 3}
    for _ in range(2):
        executor.heartbeat()
        assert counted(executor, metrics.PUBLISH_UNCONFIRMED) == {("default",): 1}
        clock.advance(60)
    assert counted(executor, metrics.PUBLISH_RETRIES) == {("default",): 3}
    broker.start("c")
    executor.heartbeat()
    assert counted(executor, metrics.TASKS_RUNNING) == {("default",): 1}
    broker.fail("c")
    executor.heartbeat()
    assert counted(executor, metrics.TASKS_RUNNING) == {("default",): 0}
    assert counted(executor, metrics.TASK_RETRIES) == {("default", "exit_code"): 1}
    executor.revoke_task("c")
    assert counted(executor, metrics.TASK_ENDS) == {("default", "revoked", "revoked"): 1}


def test_a_task_that_may_not_be_sent_is_revoked_and_holds_back_none(make, broker):
    executor = make()
    executor.intake.ask_before_sending(lambda key: key != "no")
    queue(executor, "no", "yes")
    executor.heartbeat()
    assert [(event.key, event.state) for event in executor.get_event_buffer()] == [
        ("no", State.REVOKED),
        ("yes", State.QUEUED),
    ]
    assert executor.slots_occupied == 1


# — limits that a store keeps —


class Places(LocalPlaces):
    """A store that a test may let refuse the places of a key, or those of all."""

    refuses_for: float | None = None
    refuses = "key:"

    def reserve(self, requests):
        if self.refuses_for is None:
            return super().reserve(requests)
        refused = [each for each in requests if each.limits[0].name.startswith(self.refuses)]
        return {each.id: Refusal(each.limits[0], 1, self.refuses_for) for each in refused}


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
    places.refuses_for = 15.0
    executors = [make(open_places=lambda: places, concurrency_limits={"db": 1}) for _ in range(2)]
    for executor in executors:
        queue(executor, "a", concurrency_key="db")
        executor.heartbeat()
    executors[0].revoke_task("a")
    executors[1].heartbeat()
    assert rest_of(executors[1], clock) == 15.0
    assert rest_of(executors[0], clock) == 40.0


def test_the_tasks_that_have_their_places_are_sent_without_the_one_that_is_refused(make, broker, clock):
    places = Places(clock)
    places.refuses_for, places.refuses = 15.0, "key:db"
    executor = make(parallelism=9, open_places=lambda: places, concurrency_limits={"*": 1})
    for key in ("disk", "db", "net"):
        queue(executor, key, concurrency_key=key)
    executor.heartbeat()
    assert (sent(broker), executor.tasks_in_flight, executor.tasks_waiting) == (["disk", "net"], 2, 1)


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
