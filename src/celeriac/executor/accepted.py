"""Hold tasks that were accepted and are not queued yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from msgspec import Struct

from celeriac.executor.interfaces import TaskSource
from celeriac.executor.priority_queue import Entry
from celeriac.task.task import Task

MIN_READY = 1_000  # tasks of a queue that are ready to be sent; with fewer of them, more are queued


class AcceptedTask(NamedTuple):
    """A task that is to be queued."""

    task: Task
    arrived: float
    """Seconds since the epoch."""

    order: int
    """Its number in order of arrival: see `Entry.order`."""

    place: int
    """Its place in the ledger."""


class AcceptedSource(Struct, frozen=True):
    """A source, and the numbers of its first task."""

    tasks: TaskSource
    arrived: float
    order: int
    place: int

    def place_tasks(self, taken: Collection[tuple[int, Task]]) -> Iterator[AcceptedTask]:
        """Yield tasks that were taken, with their places."""
        for place, task in taken:
            yield AcceptedTask(task, self.arrived, self.order + place, self.place + place)


class AcceptedTasks:
    """The rest of the sources of tasks. The executor queues a part of it while few tasks of a queue are ready."""

    def __init__(self) -> None:
        self._sources: list[AcceptedSource] = []

    def __len__(self) -> int:
        return sum(len(source.tasks) for source in self._sources)

    def by_queue(self) -> Counter[str]:
        """Return the number of tasks, by queue."""
        numbers: Counter[str] = Counter()
        for source in self._sources:
            numbers[source.tasks.queue] += len(source.tasks)
        return numbers

    def most_slots(self) -> dict[str, int]:
        """Return the largest number of slots that a task asks for, by queue. The cost grows with the tasks."""
        numbers: Counter[str] = Counter()
        for source in self._sources:
            numbers[source.tasks.queue] = max(numbers[source.tasks.queue], source.tasks.most_slots())
        return numbers

    def add(self, source: AcceptedSource) -> None:
        """Hold the tasks of a source."""
        self._sources.append(source)

    def is_needed(self, number_ready: Callable[[str], int]) -> bool:
        """Return whether a part is to be queued now. `number_ready` returns how many tasks of a queue are ready."""
        return any(True for _ in self._needed(number_ready))

    def take_needed(self, limit: int, number_ready: Callable[[str], int]) -> list[AcceptedTask]:
        """Remove and return tasks that are to be queued now, about `limit`: the most urgent ones of each queue."""
        sources = list(self._needed(number_ready))
        limit_of_each = max(1, limit // max(1, len(sources)))
        return [task for source in sources for task in source.place_tasks(source.tasks.take(limit_of_each))]

    def take_named(self, names: Collection[str], queues: Collection[str]) -> list[AcceptedTask]:
        """Remove and return the tasks whose keys have these names, and all tasks of these queues."""
        named = [task for source in self._sources for task in source.place_tasks(source.tasks.take_named(names))]
        of_queues = [source for source in self._sources if source.tasks.queue in queues]
        return named + [
            task for source in of_queues for task in source.place_tasks(source.tasks.take(len(source.tasks)))
        ]

    def take_all(self) -> list[TaskSource]:
        """Remove all tasks. Return their sources."""
        sources, self._sources = self._sources, []
        return [source.tasks for source in sources]

    def number_before(self, entry: Entry) -> int:
        """Return how many tasks of the queue of an entry come before it."""
        return sum(
            source.tasks.number_before(-entry.rank, entry.order - source.order)
            for source in self._sources
            if source.tasks.queue == entry.task.queue
        )

    def _needed(self, number_ready: Callable[[str], int]) -> Iterator[AcceptedSource]:
        for source in self._sources:
            if len(source.tasks) and number_ready(source.tasks.queue) < MIN_READY:
                yield source
