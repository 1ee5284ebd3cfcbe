"""Test `PriorityQueue` against a list that is sorted at each step."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from celeriac.errors import TaskAlreadyQueued, UnknownTask
from celeriac.executor import priority_queue
from celeriac.executor.limit import Limit
from celeriac.executor.priority_queue import Entry, PriorityQueue, QueueAndNeeds, group_of
from celeriac.task.task import Task

KEYS = [f"k{n}" for n in range(12)]
QUEUES = ["a", "b", "c"]


@dataclass
class ModelTask:
    """A waiting task."""

    task: Task
    order: int
    due: float


class PriorityQueueModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.min_dead_to_clean, priority_queue.MIN_DEAD_TO_CLEAN = priority_queue.MIN_DEAD_TO_CLEAN, 3
        self.queue = PriorityQueue()
        self.waiting: dict[str, ModelTask] = {}
        self.taken: list[tuple[Entry, ModelTask]] = []
        self.now = 0.0
        self.arrivals = 0

    def teardown(self) -> None:
        priority_queue.MIN_DEAD_TO_CLEAN = self.min_dead_to_clean

    def in_order(self, besides: set[str]) -> list[Task]:
        ready = [item for item in self.waiting.values() if item.due <= self.now and item.task.queue not in besides]
        return [item.task for item in sorted(ready, key=lambda item: (-item.task.priority, item.order))]

    @rule(key=st.sampled_from(KEYS), queue=st.sampled_from(QUEUES), priority=st.integers(-2, 2))
    def push(self, key: str, queue: str, priority: int) -> None:
        task = Task(key=key, command="true", queue=queue, priority=priority)
        if key in self.waiting:
            with pytest.raises(TaskAlreadyQueued):
                self.queue.push(task)
        else:
            self.queue.push(task)
            self.waiting[key] = ModelTask(task, self.arrivals, 0.0)
        self.arrivals += key in self.waiting and self.waiting[key].task is task

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        entry = self.queue.take(key)
        item = self.waiting.pop(key)
        assert entry.task == item.task
        self.taken.append((entry, item))

    @rule(besides=st.sets(st.sampled_from(QUEUES)))
    def take_the_head(self, besides: set[str]) -> None:
        head = self.queue.head(besides=besides)
        assert head == next(iter(self.in_order(besides)), None)
        if head is not None:
            self.taken.append((self.queue.take(head.key), self.waiting.pop(str(head.key))))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), wait=st.sampled_from([None, 1.0, 3.0]))
    def push_back(self, data: st.DataObject, wait: float | None) -> None:
        entry, item = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        key = str(entry.task.key)
        if key in self.waiting:
            with pytest.raises(TaskAlreadyQueued):
                self.queue.push_back(entry)
            return
        self.queue.push_back(entry, not_before=None if wait is None else self.now + wait)
        self.waiting[key] = ModelTask(entry.task, item.order, self.now + (wait or 0.0))

    @rule(key=st.sampled_from(KEYS), priority=st.integers(-2, 2))
    def reprioritise(self, key: str, priority: int) -> None:
        if key not in self.waiting:
            with pytest.raises(UnknownTask):
                self.queue.reprioritise(key, priority)
            return
        item = self.waiting[key]
        item.task = replace(item.task, priority=priority)
        assert self.queue.reprioritise(key, priority) == item.task

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.queue.release(self.now)

    @invariant()
    def it_holds_the_tasks_it_was_given(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert {task.key for task in self.queue.tasks()} == set(self.waiting)
        assert [key for key in KEYS if key in self.queue] == [key for key in KEYS if key in self.waiting]
        delayed = [item.due for item in self.waiting.values() if item.due > self.now]
        assert self.queue.next_release(self.now) == min(delayed, default=None)

    @invariant()
    def the_head_is_the_most_urgent_task(self) -> None:
        assert self.queue.head() == next(iter(self.in_order(set())), None)


TestPriorityQueueModel = PriorityQueueModel.TestCase


def test_dead_entries_do_not_pile_up():
    queue = PriorityQueue()
    for n in range(20_000):
        queue.push(Task(key=n, command="true"))
        queue.push(Task(key=-n - 1, command="true", priority=-1))
        queue.take(-n - 1)
        queue.take(n)
    assert queue.dead_entries <= priority_queue.MIN_DEAD_TO_CLEAN + 1
    assert len(queue) == 0


def test_held_tasks_keep_their_places_and_are_not_ready():
    queue = PriorityQueue()
    for key in ("a1", "b1", "a2", "b2"):
        queue.push(Task(key=key, command="true", priority=int(key[1])))
    queue.hold(lambda task: str(task.key).startswith("a"))
    queue.push(Task(key="a3", command="true", priority=3))
    assert (len(queue), head_key(queue)) == (5, "b2")
    queue.take("a2")
    queue.take("b2")
    assert head_key(queue) == "b1"
    queue.take("b1")
    assert queue.head() is None
    assert queue.dead_entries == 1
    queue.hold(lambda task: task.key == "a3")
    assert (head_key(queue), queue.dead_entries) == ("a1", 0)
    queue.hold(None)
    assert [entry.task.key for entry in drained(queue)] == ["a3", "a1"]


def test_each_queue_counts_its_own_ready_tasks():
    queue = PriorityQueue()
    for key, name in (("a1", "a"), ("b1", "b"), ("b2", "b"), ("a2", "a"), ("a3", "a")):
        queue.push(Task(key=key, command="true", queue=name))
    queue.push(Task(key="a4", command="true", queue="a", cpus=1))
    assert [queue.number_ready(name) for name in "abc"] == [4, 2, 0]
    assert [queue.place_in_line(key) for key in ("a1", "a3", "b2")] == [1, 3, 2]


def test_removed_tasks_have_no_place_in_line():
    """Remove tasks behind the first one, with a delay, and set aside: all places are right when these have left."""
    queue, limit = PriorityQueue(), Limit("key:db", 1)
    queue.push(Task(key="full", command="true", priority=1))
    queue.push(Task(key="full too", command="true", priority=1))
    for _ in range(2):
        head = queue.head()
        assert head is not None
        queue.set_aside(head, limit)
    for key in ("first", "removed", "last"):
        queue.push(Task(key=key, command="true"))
    queue.push_back(queue.place(Task(key="delayed", command="true", priority=-1)), not_before=5.0)
    for key in ("removed", "full", "delayed"):
        queue.take(key)
    assert (queue.place_in_line("last"), queue.dead_entries) == (2, 3)
    queue.take_back(limit, 1)
    queue.release(5.0)
    assert (queue.place_in_line("last"), queue.dead_entries, queue.aside) == (3, 1, {})


def test_tasks_of_rare_needs_share_a_heap(monkeypatch):
    monkeypatch.setattr(priority_queue, "MAX_GROUPS", 2)
    queue = PriorityQueue()
    tasks = [Task(key=str(number), command="true", cpus=number) for number in range(1, 5)]
    for task in tasks[:3]:
        queue.push(task)
    shared = QueueAndNeeds("default", None)
    assert [queue.group_of_head(task) for task in tasks[:3]] == [group_of(tasks[0]), group_of(tasks[1]), shared]
    for task in tasks[:3]:
        queue.take(task.key)
    assert queue.head() is None
    queue.push(tasks[3])
    assert queue.group_of_head(tasks[3]) == group_of(tasks[3])


@pytest.mark.parametrize("seed", range(6))
def test_tasks_keep_their_order_when_removed_entries_are_dropped(monkeypatch, seed):
    monkeypatch.setattr(priority_queue, "MIN_DEAD_TO_CLEAN", 0)
    queue, random = PriorityQueue(), Random(seed)
    for key in range(200):
        task = Task(key=key, command="true", priority=random.randrange(100))
        if key % 2:
            queue.push(task)
        else:
            queue.push_back(queue.place(task), not_before=float(task.priority))
    for key in random.sample(range(200), 120):
        queue.take(key)
    assert queue.dead_entries <= 80
    releases = []
    while (release := queue.next_release(0.0)) is not None:
        queue.release(release)
        releases.append(release)
    assert releases == sorted(set(releases))
    ranks = [entry.rank for entry in drained(queue)]
    assert (ranks, len(ranks)) == (sorted(ranks), 80)
    with pytest.raises(UnknownTask):
        queue.take(0)


def head_key(queue: PriorityQueue) -> object:
    head = queue.head()
    return None if head is None else head.key


def drained(queue: PriorityQueue) -> list[Entry]:
    return [queue.take(head.key) for _ in range(len(queue)) if (head := queue.head()) is not None]
