"""Limit the tasks in flight: in all, per queue, by their resources, and to what the live workers can run.

Late binding: the tasks in flight of a queue are no more than its live workers run at once, plus a margin, so that a
worker never waits for the executor. The other tasks stay in the executor's queue, where an urgent task overtakes them.
An urgent task also overtakes less urgent tasks inside the broker. So only the tasks in flight of at least its urgency
count against its limit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping

from celeriac.config.executor_config import ALL_KEYS
from celeriac.errors import InvalidTask
from celeriac.executor.resources import Resources
from celeriac.task.amounts import amounts_of
from celeriac.task.task import Task, TaskKey


def check_concurrency_key(task: Task, limited_keys: Container[str]) -> None:
    """Raise `InvalidTask` for a concurrency key for which no limit is given: it would limit nothing."""
    key = task.concurrency_key
    if key is not None and key not in limited_keys and ALL_KEYS not in limited_keys:
        problem, remedy = f"has the key {key!r}, which has no limit", f"give one, such as --concurrency-limit {key}=1"
        raise InvalidTask("concurrency_key", problem, remedy)


class Slots:
    """The slots of one executor, and the tasks that hold them."""

    def __init__(self, parallelism: int, queue_limits: Mapping[str, int]) -> None:
        self.parallelism = parallelism
        self.resources = Resources()
        """The CPUs, memory and GPUs that the tasks in flight share."""

        self._limits = dict(queue_limits)
        self._taken: dict[TaskKey, Task] = {}
        self._in_use = 0
        self._in_use_by_queue: defaultdict[str, int] = defaultdict(int)  # a `Counter` takes 0.2 µs for each change
        self._tasks_by_level: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._is_bound = False
        self._capacity: Mapping[str, int] | None = None
        self._margin = 0

    def bind(self, capacity: Mapping[str, int] | None, margin: int) -> None:
        """Limit each queue to what its live workers run at once, plus `margin`, but at most twice what they run.

        A task counts only the tasks of at least its own urgency against this limit. While the capacity is not known
        (None), the limit is one task for each queue.
        """
        self._is_bound, self._capacity, self._margin = True, capacity, margin

    @property
    def open(self) -> int:
        """The open slots. It is below 0 if adopted tasks took more slots than there are."""
        return self.parallelism - self._in_use

    @property
    def in_use(self) -> int:
        """The slots of the tasks in flight."""
        return self._in_use

    @property
    def limits(self) -> Mapping[str, int]:
        """The limits of queues, in slots."""
        return self._limits

    def change(self, parallelism: int, queue_limits: Mapping[str, int]) -> None:
        """Set other limits. Tasks that hold more slots keep them."""
        self.parallelism, self._limits = parallelism, dict(queue_limits)

    def check(self, task: Task) -> None:
        """Raise `InvalidTask` for a task that could never start."""
        self.check_number(task.slots, task.queue)
        self.resources.check(task)

    def check_number(self, number: int, queue: str) -> None:
        """Raise `InvalidTask` for a number of slots with which a task of this queue could never start."""
        if number > self.parallelism:
            raise InvalidTask(
                "slots", f"asks for {number} of {self.parallelism}", "ask for fewer, or raise the parallelism"
            )
        limit = self._limits.get(queue)
        if limit is not None and number > limit:
            raise InvalidTask("slots", f"asks for {number}, and queue {queue!r} has {limit}", "ask for fewer")

    def queue_has_room(self, task: Task) -> bool:
        """Return whether a task may be sent: the limit and the live workers of its queue have room for it."""
        if self.is_at_limit(task):
            return False
        return not self._is_bound or self._tasks_before(task) < self._target(task.queue)

    def _tasks_before(self, task: Task) -> int:
        """Count the tasks in flight of the same queue that are at least as urgent as a task."""
        return sum(tasks for level, tasks in self._tasks_by_level[task.queue].items() if level >= task.urgency)

    def is_at_limit(self, task: Task) -> bool:
        """Return whether the limit of its queue leaves too few slots for a task now."""
        limit = self._limits.get(task.queue)
        return limit is not None and self._in_use_by_queue[task.queue] + task.slots > limit

    def room_of(self, queue: str, open_slots: int) -> int:
        """Return how many of the open slots the limit of a queue leaves to it."""
        limit = self._limits.get(queue)
        return open_slots if limit is None else max(0, min(open_slots, limit - self._in_use_by_queue[queue]))

    def tasks_in_flight(self, queue: str) -> int:
        """Return the number of tasks in flight of a queue."""
        return sum(self._tasks_by_level[queue].values()) if queue in self._tasks_by_level else 0

    def tasks_by_queue(self) -> dict[str, int]:
        """Return the number of tasks in flight of each queue that has or had any. Any thread may call this."""
        return {queue: sum(dict(tasks).values()) for queue, tasks in dict(self._tasks_by_level).items()}

    @property
    def workers_are_known(self) -> bool:
        """Whether the live workers are known, or need not be known."""
        return not self._is_bound or self._capacity is not None

    def is_served(self, queue: str) -> bool:
        """Return whether a live worker serves a queue, as far as that is known."""
        return self._capacity is None or self._capacity.get(queue, 0) > 0

    def queues_without_workers(self) -> set[str]:
        """Return the queues that have tasks in flight and no live worker, as far as that is known."""
        return {
            queue for queue, tasks in self._tasks_by_level.items() if any(tasks.values()) and not self.is_served(queue)
        }

    def _target(self, queue: str) -> int:
        if self._capacity is None:
            return 1
        capacity = self._capacity.get(queue, 0)
        return capacity + min(capacity, self._margin)

    def take(self, task: Task) -> None:
        """Give a task its slots."""
        slots, queue = task.slots, task.queue
        self._taken[task.key] = task
        self._in_use += slots
        self._in_use_by_queue[queue] += slots
        self._tasks_by_level[queue][task.urgency] += 1
        if (needs := amounts_of(task)) is not None:
            self.resources.take(task, needs)

    def free(self, key: TaskKey) -> None:
        """Free the slots and resources of the task of this key, if it holds any."""
        task = self._taken.pop(key, None)
        if task is not None:
            self._in_use -= task.slots
            self._in_use_by_queue[task.queue] -= task.slots
            self._tasks_by_level[task.queue][task.urgency] -= 1
            self.resources.give_back(key)
