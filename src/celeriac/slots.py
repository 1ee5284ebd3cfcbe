"""How many tasks may be out at once, in all and per queue, and which ones are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from celeriac.errors import InvalidTask
from celeriac.task import Task, TaskKey


class Slots:
    def __init__(self, parallelism: int, queue_limits: Mapping[str, int]) -> None:
        self.parallelism = parallelism
        self._limits = dict(queue_limits)
        self._taken: dict[TaskKey, Task] = {}
        self._in_use = 0
        self._in_use_by_queue: Counter[str] = Counter()

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
        limit = self._limits.get(task.queue)
        return limit is None or self._in_use_by_queue[task.queue] + task.slots <= limit

    def take(self, task: Task) -> None:
        self._taken[task.key] = task
        self._in_use += task.slots
        self._in_use_by_queue[task.queue] += task.slots

    def free(self, key: TaskKey) -> None:
        """Give back what the task of this key holds; nothing if it holds none."""
        task = self._taken.pop(key, None)
        if task is not None:
            self._in_use -= task.slots
            self._in_use_by_queue[task.queue] -= task.slots
