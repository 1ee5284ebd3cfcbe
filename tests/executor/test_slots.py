"""Slots of the tasks in flight: in all, per queue, and those that the live workers can run."""

from __future__ import annotations

from collections.abc import Container

import pytest

from celeriac.errors import InvalidTask
from celeriac.executor.slots import Slots, check_concurrency_key
from celeriac.task.task import Task


def task(
    key: object, queue: str = "a", *, slots: int = 1, priority: int = 0, concurrency_key: str | None = None
) -> Task:
    return Task(
        key=str(key), command="true", queue=queue, slots=slots, priority=priority, concurrency_key=concurrency_key
    )


def taken(slots: Slots, number: int, queue: str = "a", priority: int = 0) -> int:
    """Take slots for as many of these tasks as there is room for. Return how many that were."""
    for position in range(number):
        new = task((queue, priority, position), queue, priority=priority)
        if not slots.queue_has_room(new):
            return position
        slots.take(new)
    return number


def test_as_many_tasks_of_a_queue_are_in_flight_as_its_limit_allows():
    slots = Slots(9, {"a": 3})
    assert slots.limits == {"a": 3}
    slots.take(task("large", slots=2))
    assert (slots.room_of("a", 9), slots.room_of("a", 0), slots.room_of("b", 5)) == (1, 0, 5)
    assert (slots.is_at_limit(task("x", slots=2)), slots.is_at_limit(task("x"))) == (True, False)
    slots.take(task("small"))
    assert (slots.room_of("a", 9), slots.is_at_limit(task("x")), slots.is_at_limit(task("x", "b"))) == (0, True, False)
    slots.change(2, {"a": 2})
    assert (slots.room_of("a", 9), slots.open, slots.parallelism, slots.limits) == (0, -1, 2, {"a": 2})
    slots.free("large")
    assert (slots.room_of("a", 9), slots.open, slots.in_use) == (1, 1, 1)
    slots.free("unknown")
    assert (slots.room_of("a", 9), slots.open, slots.in_use) == (1, 1, 1)


def test_the_tasks_in_flight_are_counted_by_queue():
    slots = Slots(9, {})
    assert (slots.tasks_in_flight("a"), slots.tasks_by_queue()) == (0, {})
    for key, priority in (("x", 0), ("y", 5)):
        slots.take(task(key, slots=2, priority=priority))
    assert (slots.tasks_in_flight("a"), slots.tasks_in_flight("b"), slots.tasks_by_queue()) == (2, 0, {"a": 2})
    slots.free("x")
    assert (slots.tasks_in_flight("a"), slots.tasks_by_queue()) == (1, {"a": 1})


@pytest.mark.parametrize(
    ("capacity", "margin", "room"),
    [(None, 5, 1), ({"a": 3}, 0, 3), ({"a": 3}, 2, 5), ({"a": 3}, 64, 6), ({"a": 1}, 1, 2), ({"b": 3}, 5, 0)],
)
def test_the_tasks_of_a_queue_are_as_many_as_its_workers_run_and_a_margin(capacity, margin, room):
    slots = Slots(99, {})
    slots.bind(capacity, margin)
    assert taken(slots, 50) == room
    slots.free(str(("a", 0, 0)))
    assert taken(slots, 50) == min(1, room)


def test_only_tasks_that_are_as_urgent_count_for_what_the_workers_run():
    slots = Slots(99, {})
    slots.bind({"a": 2}, 0)
    assert [taken(slots, 50, priority=priority) for priority in (0, 5, 3)] == [2, 2, 0]
    assert slots.tasks_in_flight("a") == 4


def test_without_late_binding_the_workers_limit_nothing():
    slots = Slots(99, {})
    assert (taken(slots, 50), slots.workers_are_known, slots.is_served("a")) == (50, True, True)
    assert slots.queues_without_workers() == set()


def test_it_is_known_which_queues_with_tasks_have_no_worker():
    slots = Slots(99, {})
    for name in ("one", "none", "ended"):
        slots.take(task(name, name))
    slots.free("ended")
    slots.bind(None, 0)
    assert (slots.workers_are_known, slots.is_served("none"), slots.queues_without_workers()) == (False, True, set())
    slots.bind({"one": 1, "without": 0}, 0)
    assert slots.workers_are_known
    assert [slots.is_served(name) for name in ("one", "without", "none")] == [True, False, False]
    assert slots.queues_without_workers() == {"none"}


@pytest.mark.parametrize(
    ("number", "queue", "problem"),
    [
        (4, "b", None),
        (5, "b", "slots: asks for 5 of 4; ask for fewer, or raise the parallelism"),
        (2, "a", None),
        (3, "a", "slots: asks for 3, and queue 'a' has 2; ask for fewer"),
    ],
)
def test_a_task_may_ask_for_all_slots_and_no_more(number, queue, problem):
    slots = Slots(4, {"a": 2})
    if problem is None:
        slots.check(task("k", queue, slots=number))
        return
    with pytest.raises(InvalidTask) as caught:
        slots.check(task("k", queue, slots=number))
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("key", "limited", "is_valid"),
    [(None, [], True), ("db", ["db"], True), ("db", ["*"], True), ("db", ["disk"], False), ("db", [], False)],
)
def test_a_concurrency_key_needs_a_limit(key: str | None, limited: Container[str], is_valid: bool):
    if is_valid:
        check_concurrency_key(task("k", concurrency_key=key), limited)
        return
    with pytest.raises(InvalidTask, match="which has no limit"):
        check_concurrency_key(task("k", concurrency_key=key), limited)
