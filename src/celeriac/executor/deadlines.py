"""Know when the deadline of a task passes, by which it must have started.

waiting or blocked        ─► FAILED at once
in flight and not started ─► revoked unless a worker has started it; FAILED when that is certain
running                   ─► goes on; no other attempt follows

A deadline is a time of the wall clock. The message of a task has it, too, so that no worker starts the task later, even
while no executor runs. `revocation` ends the tasks.
"""

from __future__ import annotations

import heapq
from itertools import count

from celeriac.task.task import Task, TaskKey


class Deadlines:
    """The deadlines of tasks. A task that has started or ended may still be among them."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TaskKey]] = []
        self._numbers = count()
        """They keep keys from being compared."""

    def watch(self, task: Task) -> None:
        """Take note of the deadline of a task. It may be noted again."""
        if task.deadline is not None:
            heapq.heappush(self._heap, (task.deadline, next(self._numbers), task.key))

    @property
    def first(self) -> float | None:
        """The first deadline, in seconds since the epoch."""
        return self._heap[0][0] if self._heap else None

    def take_passed(self, when: float) -> list[TaskKey]:
        """Remove the deadlines that have passed. Return the keys of their tasks."""
        keys: dict[TaskKey, None] = {}
        while self._heap and self._heap[0][0] <= when:
            keys[heapq.heappop(self._heap)[2]] = None
        return list(keys)


def is_overdue(task: Task, when: float) -> bool:
    """Return whether a task must not start any more."""
    return task.deadline is not None and task.deadline <= when


def describe_overdue(task: Task) -> str:
    """Return, for a person, why a task has ended that is overdue."""
    from celeriac.task.moment import show_moment  # late: most tasks have no deadline

    subject = "it" if task.attempt == 1 else f"attempt {task.attempt}"
    passed = "" if task.deadline is None else f", {show_moment(task.deadline)}"
    return f"{subject} had not started by its deadline{passed}"
