"""Tasks waiting for a slot, most urgent first."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from celeriac.errors import TaskAlreadyQueued, UnknownTask
from celeriac.task.task import Task, TaskKey

MIN_DEAD_TO_CLEAN = 1_000  # dead entries that are never worth a cleaning


class Entry(NamedTuple):
    """A task and its place in the line. Compared field by field; `serial` is unique, so tasks never are."""

    rank: int
    """The priority, negated: a heap gives the smallest first."""

    order: int
    """When it arrived. Kept for life, so that a task that comes back stands where it stood."""

    serial: int
    """Which entry of this queue it is: a task that comes back may meet a dead entry of its own in the heap."""

    task: Task
    arrived: float = 0.0
    """The same in seconds since the epoch; 0 if nobody said."""


class PriorityQueue:
    """A heap for each broker queue, and one by time for tasks that may not go before a moment.

    Removing marks an entry dead, by forgetting it; taking steps over the dead ones.
    """

    def __init__(self) -> None:
        self._ready: dict[str, list[Entry]] = {}
        self._later: list[tuple[float, Entry]] = []
        self._alive: dict[TaskKey, Entry] = {}
        self._dead = 0
        self._serials = count()

    def __len__(self) -> int:
        return len(self._alive)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._alive

    def push(self, task: Task, arrived: float = 0.0) -> None:
        self._put(self.place(task, arrived), None)

    def place(self, task: Task, arrived: float = 0.0) -> Entry:
        """A place in line for a task that is out already, should it ever come back."""
        serial = next(self._serials)
        return Entry(-task.priority, serial, serial, task, arrived)  # one number twice: it takes 32 bytes

    def push_back(self, entry: Entry, *, not_before: float | None = None) -> None:
        """Put an entry in its old place, to be taken no sooner than `not_before` (on the clock given to `release`)."""
        self._put(entry._replace(serial=next(self._serials)), not_before)

    def _put(self, entry: Entry, not_before: float | None) -> None:
        key = entry.task.key
        if key in self._alive:
            raise TaskAlreadyQueued(key)
        self._alive[key] = entry
        if not_before is None:
            self._make_ready(entry)
        else:
            heapq.heappush(self._later, (not_before, entry))

    def release(self, now: float) -> None:
        """Make ready what may go by now."""
        while self._later and self._later[0][0] <= now:
            _, entry = heapq.heappop(self._later)
            if self._is_alive(entry):
                self._make_ready(entry)
            else:
                self._dead -= 1

    def next_release(self) -> float | None:
        """When the next task becomes ready, if any is held back."""
        while self._later and not self._is_alive(self._later[0][1]):
            heapq.heappop(self._later)
            self._dead -= 1
        return self._later[0][0] if self._later else None

    def head(self, *, besides: Collection[str] = ()) -> Task | None:
        """The most urgent task that is ready, of all queues but the named ones."""
        heads = [heap[0] for queue, heap in list(self._ready.items()) if queue not in besides and self._trim(queue)]
        return min(heads).task if heads else None

    def take(self, key: TaskKey) -> Entry:
        """Take out a task: the head of its queue at the cost of one heap step, any other by forgetting it."""
        entry = self._alive.pop(key, None)
        if entry is None:
            raise UnknownTask(key)
        heap = self._ready.get(entry.task.queue)
        if heap and heap[0] is entry:
            heapq.heappop(heap)
        else:
            self._mark_dead()
        return entry

    def reprioritise(self, key: TaskKey, priority: int) -> Task:
        """Move a waiting task to another priority; among its new equals it keeps its time of arrival."""
        old = self._alive.get(key)
        if old is None:
            raise UnknownTask(key)
        task = replace(old.task, priority=priority)
        due = self.due(key)
        self.take(key)
        self.push_back(old._replace(rank=-priority, task=task), not_before=due)
        return task

    def get(self, key: TaskKey) -> Entry | None:
        return self._alive.get(key)

    def due(self, key: TaskKey) -> float | None:
        """Until when a task is held back; None if it is ready. Looks at all that are held back."""
        return next((due for due, entry in self._later if entry is self._alive.get(key)), None)

    def place_in_line(self, key: TaskKey) -> int:
        """Counted from 1, among the tasks of its queue that are ready. Looks at all of them."""
        entry = self._alive[key]
        heap = self._ready.get(entry.task.queue, ())
        if not self._dead:
            return 1 + sum(map(entry.__gt__, heap))
        return 1 + sum(other < entry and self._is_alive(other) for other in heap)

    def tasks(self) -> Iterator[Task]:
        """Every waiting task, in order of arrival in the queue."""
        return (entry.task for entry in self._alive.values())

    def _make_ready(self, entry: Entry) -> None:
        heapq.heappush(self._ready.setdefault(entry.task.queue, []), entry)

    def _is_alive(self, entry: Entry) -> bool:
        return self._alive.get(entry.task.key) is entry

    def _trim(self, queue: str) -> bool:
        """Drop dead entries from the top of a queue, and the queue with its last entry. False if nothing is left."""
        heap = self._ready[queue]
        while heap and not self._is_alive(heap[0]):
            heapq.heappop(heap)
            self._dead -= 1
        if not heap:
            del self._ready[queue]
        return bool(heap)

    def _mark_dead(self) -> None:
        """Count one more dead entry; sweep once most of what is held is dead."""
        self._dead += 1
        if self._dead <= max(MIN_DEAD_TO_CLEAN, len(self._alive)):
            return
        self._later = [(due, entry) for due, entry in self._later if self._is_alive(entry)]
        self._ready = {queue: [e for e in heap if self._is_alive(e)] for queue, heap in self._ready.items()}
        heapq.heapify(self._later)
        for heap in self._ready.values():
            heapq.heapify(heap)
        self._dead = 0
