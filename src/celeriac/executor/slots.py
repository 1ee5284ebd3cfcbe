"""How many tasks may be out at once, in all and per queue, and which ones are.

Late binding: of each queue no more is out than its live workers can run at once, and a margin, so that a worker never
waits for the executor. The rest stays in the executor's queue, where what is urgent overtakes it. What is more urgent
than all that is out overtakes inside the broker too, and so it need not wait for room: it is counted among its likes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from celeriac.errors import InvalidTask
from celeriac.task.task import Task, TaskKey


class Slots:
    def __init__(self, parallelism: int, queue_limits: Mapping[str, int]) -> None:
        self.parallelism = parallelism
        self._limits = dict(queue_limits)
        self._taken: dict[TaskKey, Task] = {}
        self._in_use = 0
        self._in_use_by_queue: Counter[str] = Counter()
        self._tasks_by_level: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._is_bound = False
        self._capacity: Mapping[str, int] | None = None
        self._margin = 0

    def bind(self, capacity: Mapping[str, int] | None, margin: int) -> None:
        """From now on let out no more than the live workers of each queue run at once, and up to `margin` more, but at
        most as many again as they run; of what is more urgent as many again. While that is not known (None), one task
        of each queue.
        """
        self._is_bound, self._capacity, self._margin = True, capacity, margin

    @property
    def open(self) -> int:
        return self.parallelism - self._in_use

    @property
    def in_use(self) -> int:
        return self._in_use

    def check(self, task: Task) -> None:
        """Refuse a task that could never start."""
        if task.slots > self.parallelism:
            raise InvalidTask(
                "slots", f"asks for {task.slots} of {self.parallelism}", "ask for fewer, or raise the parallelism"
            )
        limit = self._limits.get(task.queue)
        if limit is not None and task.slots > limit:
            raise InvalidTask("slots", f"asks for {task.slots}, and queue {task.queue!r} has {limit}", "ask for fewer")

    def queue_has_room(self, task: Task) -> bool:
        if self.is_at_limit(task):
            return False
        return not self._is_bound or self._tasks_before(task) < self._target(task.queue)

    def _tasks_before(self, task: Task) -> int:
        """Those of its queue that are out, and that the broker gives to a worker no later than it would give this."""
        return sum(tasks for level, tasks in self._tasks_by_level[task.queue].items() if level >= task.urgency)

    def is_at_limit(self, task: Task) -> bool:
        """Whether the limit of its queue keeps it from going."""
        limit = self._limits.get(task.queue)
        return limit is not None and self._in_use_by_queue[task.queue] + task.slots > limit

    def limit_of(self, queue: str) -> int | None:
        return self._limits.get(queue)

    def tasks_in_flight(self, queue: str) -> int:
        return self._tasks_by_level[queue].total() if queue in self._tasks_by_level else 0

    @property
    def workers_are_known(self) -> bool:
        """Whether anybody has said yet which workers live."""
        return not self._is_bound or self._capacity is not None

    def is_served(self, queue: str) -> bool:
        """Whether a live worker takes tasks of this queue, as far as that is known."""
        return self._capacity is None or self._capacity.get(queue, 0) > 0

    def queues_without_workers(self) -> set[str]:
        """Those with tasks out that no live worker takes, as far as that is known."""
        return {queue for queue, tasks in self._tasks_by_level.items() if tasks.total() and not self.is_served(queue)}

    def _target(self, queue: str) -> int:
        if self._capacity is None:
            return 1
        at_once = self._capacity.get(queue, 0)
        return at_once + min(at_once, self._margin)

    def take(self, task: Task) -> None:
        self._taken[task.key] = task
        self._in_use += task.slots
        self._in_use_by_queue[task.queue] += task.slots
        self._tasks_by_level[task.queue][task.urgency] += 1

    def free(self, key: TaskKey) -> None:
        """Give back what the task of this key holds; nothing if it holds none."""
        task = self._taken.pop(key, None)
        if task is not None:
            self._in_use -= task.slots
            self._in_use_by_queue[task.queue] -= task.slots
            self._tasks_by_level[task.queue][task.urgency] -= 1
