"""`PriorityQueue` against a list that is sorted anew each time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celeriac.errors import TaskAlreadyQueued, UnknownTask
from celeriac.executor import priority_queue
from celeriac.executor.priority_queue import Entry, PriorityQueue
from celeriac.task.task import Task

KEYS = [f"k{n}" for n in range(12)]
QUEUES = ["a", "b", "c"]


@dataclass
class Line:
    """A waiting task, as a person would note it down."""

    task: Task
    order: int
    due: float


class SortedList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cleaning, priority_queue.MIN_DEAD_TO_CLEAN = priority_queue.MIN_DEAD_TO_CLEAN, 3
        self.queue = PriorityQueue()
        self.lines: dict[str, Line] = {}
        self.taken: list[tuple[Entry, Line]] = []
        self.now = 0.0
        self.arrivals = 0

    def teardown(self) -> None:
        priority_queue.MIN_DEAD_TO_CLEAN = self.cleaning

    def in_order(self, besides: set[str]) -> list[Task]:
        ready = [line for line in self.lines.values() if line.due <= self.now and line.task.queue not in besides]
        return [line.task for line in sorted(ready, key=lambda line: (-line.task.priority, line.order))]

    @rule(key=st.sampled_from(KEYS), queue=st.sampled_from(QUEUES), priority=st.integers(-2, 2))
    def push(self, key: str, queue: str, priority: int) -> None:
        task = Task(key=key, command="true", queue=queue, priority=priority)
        if key in self.lines:
            with pytest.raises(TaskAlreadyQueued):
                self.queue.push(task)
        else:
            self.queue.push(task)
            self.lines[key] = Line(task, self.arrivals, 0.0)
        self.arrivals += key in self.lines and self.lines[key].task is task

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.lines)))
        entry = self.queue.take(key)
        line = self.lines.pop(key)
        assert entry.task == line.task
        self.taken.append((entry, line))

    @rule(besides=st.sets(st.sampled_from(QUEUES)))
    def take_the_head(self, besides: set[str]) -> None:
        head = self.queue.head(besides=besides)
        assert head == next(iter(self.in_order(besides)), None)
        if head is not None:
            self.taken.append((self.queue.take(head.key), self.lines.pop(str(head.key))))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), wait=st.sampled_from([None, 1.0, 3.0]))
    def push_back(self, data: st.DataObject, wait: float | None) -> None:
        entry, line = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        key = str(entry.task.key)
        if key in self.lines:
            with pytest.raises(TaskAlreadyQueued):
                self.queue.push_back(entry)
            return
        self.queue.push_back(entry, not_before=None if wait is None else self.now + wait)
        self.lines[key] = Line(entry.task, line.order, self.now + (wait or 0.0))

    @rule(key=st.sampled_from(KEYS), priority=st.integers(-2, 2))
    def reprioritise(self, key: str, priority: int) -> None:
        if key not in self.lines:
            with pytest.raises(UnknownTask):
                self.queue.reprioritise(key, priority)
            return
        line = self.lines[key]
        line.task = replace(line.task, priority=priority)
        assert self.queue.reprioritise(key, priority) == line.task

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.queue.release(self.now)

    @invariant()
    def it_holds_what_it_was_given(self) -> None:
        assert len(self.queue) == len(self.lines)
        assert {task.key for task in self.queue.tasks()} == set(self.lines)
        assert [key for key in KEYS if key in self.queue] == [key for key in KEYS if key in self.lines]
        held_back = [line.due for line in self.lines.values() if line.due > self.now]
        assert self.queue.next_release() == min(held_back, default=None)

    @invariant()
    def the_head_is_the_most_urgent(self) -> None:
        assert self.queue.head() == next(iter(self.in_order(set())), None)


TestSortedList = SortedList.TestCase


def test_what_was_taken_out_by_key_does_not_pile_up():
    queue = PriorityQueue()
    for n in range(20_000):
        queue.push(Task(key=n, command="true"))
        queue.push(Task(key=-n - 1, command="true", priority=-1))
        queue.take(-n - 1)
        queue.take(n)
    assert sum(map(len, queue._ready.values())) <= priority_queue.MIN_DEAD_TO_CLEAN + 1
    assert len(queue) == 0
