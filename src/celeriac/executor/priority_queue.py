"""Queue the tasks that wait for a slot, the most urgent first."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from celeriac.errors import TaskAlreadyQueued, UnknownTask
from celeriac.task.amounts import Amounts, amounts_of
from celeriac.task.task import Task, TaskKey

if TYPE_CHECKING:
    from celeriac.executor.limit import Limit

MAX_GROUPS = 200  # heaps; tasks that need other resources than these share one heap for each queue
MAX_READS = 10  # attempts to read the queue while another thread changes it
MIN_DEAD_TO_CLEAN = 1_000  # dead entries; with fewer of them the heaps are never cleaned


class Entry(Struct, frozen=True, order=True, gc=False):
    """A task and its place in the queue. Entries are ordered by `rank`, `order` and `serial`; `serial` is unique."""

    rank: int
    """The negated priority: a heap returns the smallest first."""

    order: int
    """The number of the task in order of arrival. A task that returns to the queue keeps it, and so keeps its place."""

    serial: int
    """The number of the entry. It distinguishes the entry of a returned task from its dead entry in the same heap."""

    task: Task
    arrived: float = 0.0
    """The time of arrival in seconds since the epoch; 0 if unknown."""


class QueueAndNeeds(Struct, frozen=True, gc=False):
    """The queue of a task, and the resources that it needs; None if those are too rare to have a heap of their own."""

    queue: str
    needs: Amounts | None


Group: TypeAlias = str | QueueAndNeeds
"""What the tasks of one heap have in common: the queue, if they need no resources."""


def group_of(task: Task) -> Group:
    """Return the group of a task."""
    needs = amounts_of(task)
    return task.queue if needs is None else QueueAndNeeds(task.queue, needs)


class PriorityQueue:
    """Heaps of the tasks that are ready, and two heaps by time for tasks that must not be sent before a time.

    There is a heap for each broker queue, and one for each combination of resources that tasks of the queue need. So a
    task that fits is found behind one that does not.

    A delay, such as that of a retry, ends on the clock of `release`. The `not_before` of a task is a time of the wall
    clock, which may jump: so it is compared with that clock until it has come.

    An entry is removed from the middle of a heap lazily: only `_alive` drops it. Such a dead entry is skipped later.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._ready: dict[Group, list[Entry]] = {}
        self._later: list[tuple[float, Entry]] = []
        self._scheduled: list[tuple[float, Entry]] = []
        self._alive: dict[TaskKey, Entry] = {}
        self._dead = 0
        self._next_serial = 0
        self._held: list[Entry] = []
        """The entries that would be ready if they were not held back."""

        self._holds: Callable[[Task], bool] | None = None
        self.aside: dict[Limit, list[Entry]] = {}
        """The entries that were set aside, in a heap for each limit that is full."""

        self.by_queue: defaultdict[str, int] = defaultdict(int)  # a `Counter` takes 0.2 µs for each change
        """The number of tasks, by queue."""

    def __len__(self) -> int:
        return len(self._alive)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._alive

    @property
    def dead_entries(self) -> int:
        """The number of removed entries that are still in a heap."""
        entries = sum(map(len, self._ready.values())) + len(self._later) + len(self._scheduled) + len(self._held)
        return entries + sum(map(len, self.aside.values())) - len(self._alive)

    def push(self, task: Task, arrived: float = 0.0, order: int | None = None) -> None:
        """Add a task at the end of its priority, or at the place that has this reserved number. Raise
        `TaskAlreadyQueued`."""
        self._put(self.place(task, arrived, order), None)

    def place(self, task: Task, arrived: float = 0.0, order: int | None = None) -> Entry:
        """Return an entry without queueing it, for a task that is in flight or blocked."""
        serial = self.reserve(1) if order is None else order
        return Entry(-task.priority, serial, serial, task, arrived)  # two fields share one int object of 32 bytes

    def reserve(self, number: int) -> int:
        """Reserve places for tasks that are pushed later. Return the number of the first place."""
        first = self._next_serial
        self._next_serial += number
        return first

    def push_back(self, entry: Entry, *, not_before: float | None = None) -> None:
        """Add an entry at its old place. It is not ready before `not_before`, on the clock of `release`."""
        self._put(replace(entry, serial=self.reserve(1)), not_before)

    def _put(self, entry: Entry, not_before: float | None) -> None:
        key = entry.task.key
        if key in self._alive:
            raise TaskAlreadyQueued(key)
        self._alive[key] = entry
        self.by_queue[entry.task.queue] += 1
        if not_before is None:
            self._make_ready(entry)
        else:
            heapq.heappush(self._later, (not_before, entry))

    def hold(self, holds: Callable[[Task], bool] | None) -> None:
        """Hold back the tasks for which a function returns True, instead of those before; None holds back none. They
        are queued, keep their places, and are not ready."""
        heaps = (self._held, *self._ready.values(), *self.aside.values())
        entries = [entry for heap in heaps for entry in heap if self._is_alive(entry)]
        self._dead -= sum(map(len, heaps)) - len(entries)
        self._holds, self._held, self._ready, self.aside = holds, [], {}, {}
        for entry in entries:
            self._make_ready(entry)

    def set_aside(self, task: Task, limit: Limit) -> None:
        """Set a task aside that `head` has returned, until `take_back` for the same limit."""
        heapq.heappush(self.aside.setdefault(limit, []), heapq.heappop(self._ready[self.group_of_head(task)]))

    def take_back(self, limit: Limit, number: int) -> None:
        """Make the most urgent tasks ready that were set aside for a limit."""
        heap = self.aside[limit]
        while heap and number > 0:
            entry = heapq.heappop(heap)
            if self._is_alive(entry):
                number -= 1
                self._make_ready(entry)
            else:
                self._dead -= 1
        if not heap:
            del self.aside[limit]

    def release(self, now: float) -> None:
        """Make the tasks ready whose delay is over, or whose `not_before` has come."""
        due = self._pop_due(self._later, now)
        if self._scheduled:
            due += self._pop_due(self._scheduled, self._wall_clock())
        for entry in due:
            self._make_ready(entry)

    def next_release(self, now: float) -> float | None:
        """Return when the next task becomes ready, as far as that depends on time. None if it does for no task."""
        times = []
        if (delay_end := self._first_time(self._later)) is not None:
            times.append(delay_end)
        if (not_before := self._first_time(self._scheduled)) is not None:
            times.append(now + max(0.0, not_before - self._wall_clock()))
        return min(times, default=None)

    def _pop_due(self, heap: list[tuple[float, Entry]], now: float) -> list[Entry]:
        """Remove the entries of a heap whose time has come. Return those that are alive."""
        entries: list[Entry] = []
        while heap and heap[0][0] <= now:
            _, entry = heapq.heappop(heap)
            if self._is_alive(entry):
                entries.append(entry)
            else:
                self._dead -= 1
        return entries

    def _first_time(self, heap: list[tuple[float, Entry]]) -> float | None:
        """Return the time of the first entry of a heap that is alive."""
        while heap and not self._is_alive(heap[0][1]):
            heapq.heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else None

    def number_ready(self, queue: str) -> int:
        """Return how many tasks of a queue do not wait for a time: at least one if there are any, and seldom too many,
        because dead entries count."""
        return sum(map(len, self._heaps_of(queue)))

    def _heaps_of(self, queue: str) -> list[list[Entry]]:
        """Return the heaps of the ready tasks of a queue."""
        return [heap for group, heap in self._ready.items() if queue_of(group) == queue]

    def head(self, *, besides: Collection[Group] = ()) -> Task | None:
        """Return the most urgent ready task of all queues and groups except `besides`."""
        best: Entry | None = None
        for group in [*self._ready]:
            if group in besides or (type(group) is not str and queue_of(group) in besides):
                continue
            if (entry := self._first_alive(group)) is not None:
                best = entry if best is None or entry < best else best
        return None if best is None else best.task

    def group_of_head(self, task: Task) -> Group:
        """Return the group of a task that `head` has returned."""
        heap = self._ready.get(group := group_of(task))
        is_own = heap and heap[0] is self._alive[task.key]
        return group if is_own else QueueAndNeeds(task.queue, None)

    def take(self, key: TaskKey) -> Entry:
        """Remove a task and return its entry. Raise `UnknownTask`.

        The head of a heap is removed at once, any other entry lazily.
        """
        entry = self._alive.pop(key, None)
        if entry is None:
            raise UnknownTask(key)
        queue = entry.task.queue
        self.by_queue[queue] -= 1
        group = group_of(entry.task)
        for heap in (self._ready.get(group), None if group is queue else self._ready.get(QueueAndNeeds(queue, None))):
            if heap and heap[0] is entry:
                heapq.heappop(heap)
                return entry
        self._mark_dead()
        return entry

    def take_all(self) -> list[Entry]:
        """Remove all tasks. Return their entries in the order in which they were added."""
        entries = list(self._alive.values())
        self._ready, self._later, self._scheduled, self._held, self.aside = {}, [], [], [], {}
        self._alive, self._dead = {}, 0
        self.by_queue = defaultdict(int, dict.fromkeys(self.by_queue, 0))
        return entries

    def reprioritise(self, key: TaskKey, priority: int) -> Task:
        """Change the priority of a task. Return the changed task. Raise `UnknownTask`.

        Tasks of the same priority stay in order of arrival.
        """
        old = self._alive.get(key)
        if old is None:
            raise UnknownTask(key)
        task = replace(old.task, priority=priority)
        due = self.due(key)
        self.take(key)
        self.push_back(replace(old, rank=-priority, task=task), not_before=due)
        return task

    def get(self, key: TaskKey) -> Entry | None:
        """Return the entry of a task."""
        return self._alive.get(key)

    def due(self, key: TaskKey) -> float | None:
        """Return the end of a task's delay; None if it has none. The cost grows with the delayed tasks."""
        return next((due for due, entry in self._later if entry is self._alive.get(key)), None)

    def is_scheduled(self, key: TaskKey) -> bool:
        """Return whether a task waits for its `not_before`, as far as `release` knows. The cost grows with those that
        do."""
        return any(entry is self._alive.get(key) for _, entry in self._scheduled)

    def place_in_line(self, key: TaskKey) -> int:
        """Return the place of a task among the ready tasks of its queue, from 1. The cost grows with their number."""
        entry = self._alive[key]
        ready = chain.from_iterable(self._heaps_of(entry.task.queue))
        if not self._dead:
            return 1 + sum(map(entry.__gt__, ready))
        return 1 + sum(other < entry and self._is_alive(other) for other in ready)

    def first_arrival(self) -> float | None:
        """Return when the task arrived that was added before all others. Any thread may call this.

        A task that returned to the queue counts from its return. The cost is small, although it grows with the tasks
        that were removed since the last one was added. A task that waits for its `not_before` does not count, and
        afterwards it counts from then.
        """
        when = self._wall_clock()
        for _ in range(MAX_READS):
            with contextlib.suppress(RuntimeError):  # another thread changed the queue in between
                counted = (entry for entry in self._alive.values() if not starts_later(entry, when))
                return next((max(entry.arrived, entry.task.not_before or 0.0) for entry in counted), None)
        return None

    def tasks(self) -> Iterator[Task]:
        """Yield every task, in the order in which they were added."""
        return (entry.task for entry in self._alive.values())

    def _make_ready(self, entry: Entry) -> None:
        """Put an entry that has no delay any more into the heap of its queue, unless its `not_before` is to come, or it
        is held back."""
        not_before = entry.task.not_before
        if not_before is not None and starts_later(entry, self._wall_clock()):
            heapq.heappush(self._scheduled, (not_before, entry))
            return
        if self._holds is not None and self._holds(entry.task):
            self._held.append(entry)
            return
        group = group_of(entry.task)
        if type(group) is not str and group not in self._ready and len(self._ready) >= MAX_GROUPS:
            group = QueueAndNeeds(entry.task.queue, None)
        heapq.heappush(self._ready.setdefault(group, []), entry)

    def _is_alive(self, entry: Entry) -> bool:
        return self._alive.get(entry.task.key) is entry

    def _first_alive(self, group: Group) -> Entry | None:
        """Drop dead entries from the top of a heap, and return its first entry. Drop the heap if it is empty."""
        heap = self._ready[group]
        while heap:
            entry = heap[0]
            if self._alive.get(entry.task.key) is entry:
                return entry
            heapq.heappop(heap)
            self._dead -= 1
        del self._ready[group]
        return None

    def _mark_dead(self) -> None:
        """Count one more dead entry. Remove all dead entries once they outnumber the others."""
        self._dead += 1
        if self._dead <= max(MIN_DEAD_TO_CLEAN, len(self._alive)):
            return
        self._held = [entry for entry in self._held if self._is_alive(entry)]
        for timed in (self._later, self._scheduled):
            timed[:] = [(due, entry) for due, entry in timed if self._is_alive(entry)]
            heapq.heapify(timed)
        self._ready = {group: [e for e in heap if self._is_alive(e)] for group, heap in self._ready.items()}
        self.aside = {limit: [e for e in heap if self._is_alive(e)] for limit, heap in self.aside.items()}
        for heap in (*self._ready.values(), *self.aside.values()):
            heapq.heapify(heap)
        self._dead = 0


def queue_of(group: Group) -> str:
    """Return the queue of a group."""
    return group if isinstance(group, str) else group.queue


def starts_later(entry: Entry, when: float) -> bool:
    """Return whether the `not_before` of a task is to come."""
    return entry.task.not_before is not None and entry.task.not_before > when
