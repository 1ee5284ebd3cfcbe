"""Test `PriorityQueue` against a list that is searched in full: tasks with times, needs and limits, and holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from celeriac.executor import priority_queue
from celeriac.executor.limit import Limit
from celeriac.executor.priority_queue import Entry, PriorityQueue
from celeriac.task.task import Task, TaskKey
from celeriac.testing import ManualClock
from tests.support.long import LONG

SEEDS = 1_000 if LONG else 16
NOW = 1_800_000_000.0


@dataclass
class Item:
    """A task of `PlainQueue`, and where it is."""

    entry: Entry
    where: str = "ready"
    due: float | None = None
    limit: Limit | None = None


class PlainQueue:
    """Do what a `PriorityQueue` does, with a list that is searched in full."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.items: dict[TaskKey, Item] = {}
        self.holds: Callable[[Task], bool] | None = None

    def ready(self, *queues: str) -> list[Task]:
        ready = [
            item.entry for item in self.items.values() if item.where == "ready" and item.entry.task.queue in queues
        ]
        return [entry.task for entry in sorted(ready, key=lambda entry: (entry.rank, entry.order))]

    def put(self, entry: Entry, due: float | None = None) -> None:
        self.items[entry.task.key] = Item(entry, "delayed", due)
        if due is None:
            self.enter(self.items[entry.task.key])

    def enter(self, item: Item) -> None:
        task = item.entry.task
        item.due = item.limit = None
        if task.not_before is not None and task.not_before > self.clock.now:
            item.where, item.due = "scheduled", task.not_before
        else:
            item.where = "held" if self.holds is not None and self.holds(task) else "ready"

    def release(self) -> None:
        for item in self.items.values():
            if item.due is not None and item.due <= self.clock.now:
                self.enter(item)

    def hold(self, holds: Callable[[Task], bool] | None) -> None:
        self.holds = holds
        for item in self.items.values():
            if item.where in ("ready", "held", "aside"):
                self.enter(item)

    def aside(self, limit: Limit) -> list[Item]:
        aside = [item for item in self.items.values() if item.limit == limit]
        return sorted(aside, key=lambda item: (item.entry.rank, item.entry.order))

    def first_arrival(self) -> float | None:
        tasks = [(item.entry.arrived, item.entry.task.not_before or 0.0) for item in self.items.values()]
        return next((max(arrived, first) for arrived, first in tasks if first <= self.clock.now), None)


class QueueSteps:
    """Random steps, each taken with a `PriorityQueue` and with a `PlainQueue`."""

    def __init__(self, seed: int) -> None:
        self.random, self.clock = Random(seed), ManualClock(NOW)
        self.queue, self.plain = PriorityQueue(self.clock), PlainQueue(self.clock)
        self.limits = [Limit("key:a", 1), Limit("key:b", 1)]
        self.taken: list[Entry] = []
        self.pushed = 0

    def push(self) -> None:
        self.pushed += 1
        not_before = self.clock.now + self.random.choice([-1.0, 1.0, 2.0]) if self.random.random() < 0.3 else None
        task = Task(
            key=self.pushed,
            command="true",
            queue=self.random.choice("ab"),
            priority=self.random.randint(-1, 1),
            cpus=self.random.choice([None, None, 1, 2, 3]),
            not_before=not_before,
        )
        self.queue.push(task, self.random.choice([0.0, self.clock.now]))
        entry = self.queue.get(task.key)
        assert entry is not None
        self.plain.put(entry)

    def take(self) -> None:
        if self.plain.items:
            self.take_one(self.random.choice(list(self.plain.items)))

    def take_head(self) -> None:
        if (head := self.queue.head()) is not None:
            assert not self.take_one(head.key), "the entry of the first task is removed at once"

    def take_one(self, key: TaskKey) -> bool:
        """Return whether the entry of a task was left in its heap, or all such entries were removed."""
        dead = self.queue.dead_entries
        entry = self.queue.take(key)
        assert entry is self.plain.items.pop(key).entry
        self.taken.append(entry)
        is_clean = dead + 1 > max(priority_queue.MIN_DEAD_TO_CLEAN, len(self.queue))
        assert self.queue.dead_entries in (dead, 0 if is_clean else dead + 1)
        return self.queue.dead_entries != dead

    def push_back(self) -> None:
        if self.taken:
            key = self.taken[0].task.key
            due = self.random.choice([None, self.clock.now + 1, self.clock.now + 3])
            self.queue.push_back(self.taken.pop(0), not_before=due)
            entry = self.queue.get(key)
            assert entry is not None
            self.plain.put(entry, due)

    def reprioritise(self) -> None:
        if self.plain.items:
            key = self.random.choice(list(self.plain.items))
            item, priority = self.plain.items.pop(key), self.random.randint(-1, 1)
            assert self.queue.reprioritise(key, priority).priority == priority
            entry = self.queue.get(key)
            assert entry is not None
            assert (entry.rank, entry.order) == (-priority, item.entry.order)
            self.plain.put(entry, item.due if item.where == "delayed" else None)

    def hold(self) -> None:
        holds = self.random.choice([None, None, lambda task: task.priority > 0, lambda task: task.queue == "a"])
        self.queue.hold(holds)
        self.plain.hold(holds)
        assert [self.queue.number_ready(name) for name in "ab"] == [len(self.plain.ready(name)) for name in "ab"]

    def set_aside(self) -> None:
        if (head := self.queue.head()) is not None:
            limit, item = self.random.choice(self.limits), self.plain.items[head.key]
            self.queue.set_aside(head, limit)
            item.where, item.limit = "aside", limit

    def take_back(self) -> None:
        limit, number = self.random.choice(self.limits), self.random.randint(0, 3)
        aside = self.plain.aside(limit)
        if limit in self.queue.aside:
            self.queue.take_back(limit, number)
            for item in aside[:number]:
                self.plain.enter(item)
            assert number <= len(aside) or limit not in self.queue.aside

    def take_all(self) -> None:
        if self.random.random() < 0.1:
            assert self.queue.take_all() == [item.entry for item in self.plain.items.values()]
            self.plain.items.clear()
            assert self.queue.dead_entries == 0

    def wait(self) -> None:
        self.clock.advance(1.0)

    def release(self) -> None:
        self.queue.release(self.clock.now)
        self.plain.release()

    def check(self) -> None:
        queue, items, now = self.queue, self.plain.items, self.clock.now
        for queues in ("ab", "a", "b"):
            besides = [name for name in "ab" if name not in queues]
            assert queue.head(besides=besides) == next(iter(self.plain.ready(*queues)), None)
        assert list(queue.tasks()) == [item.entry.task for item in items.values()]
        assert +Counter(queue.by_queue) == Counter(item.entry.task.queue for item in items.values())
        times = [item.due if item.where == "delayed" else max(now, item.due) for item in items.values() if item.due]
        assert queue.next_release(now) == min(times, default=None)
        assert queue.first_arrival() == self.plain.first_arrival()
        for key, item in items.items():
            assert queue.is_scheduled(key) == (item.where == "scheduled")
            assert queue.due(key) == (item.due if item.where == "delayed" else None)
        for name in "ab":
            ready = self.plain.ready(name)
            assert [queue.place_in_line(task.key) for task in ready] == list(range(1, len(ready) + 1))
            assert len(ready) <= queue.number_ready(name) <= len(ready) + queue.dead_entries


@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_any_steps_it_has_what_a_plain_list_has(monkeypatch, seed):
    monkeypatch.setattr(priority_queue, "MIN_DEAD_TO_CLEAN", 3)
    monkeypatch.setattr(priority_queue, "MAX_GROUPS", 4)
    steps = QueueSteps(seed)
    tasks = ["push", "push"] if seed % 2 else ["take", "take"]  # many or few are queued
    names = ["push", "take", "take_head", "push_back", "reprioritise", "hold", "set_aside", "take_back", "take_all"]
    for _ in range(150):
        getattr(steps, steps.random.choice([*names, *tasks, "wait", "release"]))()
        steps.check()
