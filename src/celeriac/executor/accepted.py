"""Hold tasks that were accepted and are not queued yet."""

from __future__ import annotations

from celeriac.executor.interfaces import TaskSource
from celeriac.task.task import DEFAULT_QUEUE, Task, TaskKey


class AcceptedTasks:
    """The rest of a source of tasks. The executor queues a part of it with each heartbeat."""

    def __init__(self) -> None:
        self._source: TaskSource | None = None
        self.queue = DEFAULT_QUEUE
        """The queue of the task that was taken last."""

        self.arrived = 0.0
        """When the tasks were accepted, in seconds since the epoch."""

    def __len__(self) -> int:
        return 0 if self._source is None else len(self._source)

    def add(self, source: TaskSource, arrived: float) -> None:
        """Hold the tasks of a source."""
        self._source, self.arrived = source, arrived

    def take(self, limit: int) -> list[Task]:
        """Remove and return the first tasks, at most `limit`."""
        tasks = [] if self._source is None else self._source.take(limit)
        if tasks:
            self.queue = tasks[-1].queue
        return tasks

    def take_keys(self) -> list[TaskKey]:
        """Remove all tasks. Return their keys."""
        return [] if self._source is None else self._source.take_keys()
