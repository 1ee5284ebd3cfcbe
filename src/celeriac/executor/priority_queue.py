"""Queue the tasks that wait for a slot, the most urgent first."""

from __future__ import annotations

import contextlib
import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator

from msgspec import Struct
from msgspec.structs import replace

from celeriac.errors import TaskAlreadyQueued, UnknownTask
from celeriac.task.task import Task, TaskKey

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


class PriorityQueue:
    """One heap for each broker queue, and one heap by time for tasks that must not be sent before a time.

    An entry is removed from the middle of a heap lazily: only `_alive` drops it. Such a dead entry is skipped later.
    """

    def __init__(self) -> None:
        self._ready: dict[str, list[Entry]] = {}
        self._later: list[tuple[float, Entry]] = []
        self._alive: dict[TaskKey, Entry] = {}
        self._dead = 0
        self._next_serial = 0
        self.by_queue: defaultdict[str, int] = defaultdict(int)  # a `Counter` takes 0.2 µs for each change
        """The number of tasks, by queue."""

    def __len__(self) -> int:
        return len(self._alive)

    def __contains__(self, key: TaskKey) -> bool:
        return key in self._alive

    @property
    def dead_entries(self) -> int:
        """The number of removed entries that are still in a heap."""
        return sum(map(len, self._ready.values())) + len(self._later) - len(self._alive)

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

    def release(self, now: float) -> None:
        """Make the delayed tasks ready whose delay is over."""
        while self._later and self._later[0][0] <= now:
            _, entry = heapq.heappop(self._later)
            if self._is_alive(entry):
                self._make_ready(entry)
            else:
                self._dead -= 1

    def next_release(self) -> float | None:
        """Return when the next delayed task becomes ready. None if no task is delayed."""
        while self._later and not self._is_alive(self._later[0][1]):
            heapq.heappop(self._later)
            self._dead -= 1
        return self._later[0][0] if self._later else None

    def number_ready(self, queue: str) -> int:
        """Return how many tasks of a queue do not wait for a time: at least one if there are any, and seldom too many,
        because dead entries count."""
        return len(self._ready.get(queue, ()))

    def head(self, *, besides: Collection[str] = ()) -> Task | None:
        """Return the most urgent ready task of all queues except `besides`."""
        best: Entry | None = None
        for queue in [*self._ready]:
            if queue not in besides and (entry := self._first_alive(queue)) is not None:
                best = entry if best is None or entry < best else best
        return None if best is None else best.task

    def take(self, key: TaskKey) -> Entry:
        """Remove a task and return its entry. Raise `UnknownTask`.

        The head of a heap is removed at once, any other entry lazily.
        """
        entry = self._alive.pop(key, None)
        if entry is None:
            raise UnknownTask(key)
        queue = entry.task.queue
        self.by_queue[queue] -= 1
        heap = self._ready.get(queue)
        if heap and heap[0] is entry:
            heapq.heappop(heap)
        else:
            self._mark_dead()
        return entry

    def take_all(self) -> list[Entry]:
        """Remove all tasks. Return their entries in the order in which they were added."""
        entries = list(self._alive.values())
        self._ready, self._later, self._alive, self._dead = {}, [], {}, 0
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
        """Return until when a task is delayed; None if it is ready. The cost grows with the delayed tasks."""
        return next((due for due, entry in self._later if entry is self._alive.get(key)), None)

    def place_in_line(self, key: TaskKey) -> int:
        """Return the place of a task among the ready tasks of its queue, from 1. The cost grows with their number."""
        entry = self._alive[key]
        heap = self._ready.get(entry.task.queue, ())
        if not self._dead:
            return 1 + sum(map(entry.__gt__, heap))
        return 1 + sum(other < entry and self._is_alive(other) for other in heap)

    def first_arrival(self) -> float | None:
        """Return when the task arrived that was added before all others. Any thread may call this.

        A task that returned to the queue counts from its return. The cost is small, although it grows with the tasks
        that were removed since the last one was added.
        """
        for _ in range(MAX_READS):
            with contextlib.suppress(RuntimeError):  # another thread changed the queue in between
                return next((entry.arrived for entry in self._alive.values()), None)
        return None

    def tasks(self) -> Iterator[Task]:
        """Yield every task, in the order in which they were added."""
        return (entry.task for entry in self._alive.values())

    def _make_ready(self, entry: Entry) -> None:
        heapq.heappush(self._ready.setdefault(entry.task.queue, []), entry)

    def _is_alive(self, entry: Entry) -> bool:
        return self._alive.get(entry.task.key) is entry

    def _first_alive(self, queue: str) -> Entry | None:
        """Drop dead entries from the top of a heap, and return its first entry. Drop the heap if it is empty."""
        heap = self._ready[queue]
        while heap:
            entry = heap[0]
            if self._alive.get(entry.task.key) is entry:
                return entry
            heapq.heappop(heap)
            self._dead -= 1
        del self._ready[queue]
        return None

    def _mark_dead(self) -> None:
        """Count one more dead entry. Remove all dead entries once they outnumber the others."""
        self._dead += 1
        if self._dead <= max(MIN_DEAD_TO_CLEAN, len(self._alive)):
            return
        self._later = [(due, entry) for due, entry in self._later if self._is_alive(entry)]
        self._ready = {queue: [e for e in heap if self._is_alive(e)] for queue, heap in self._ready.items()}
        heapq.heapify(self._later)
        for heap in self._ready.values():
            heapq.heapify(heap)
        self._dead = 0
