"""A ledger in memory: for tests, and for callers that keep their tasks themselves and want numbered events."""

from __future__ import annotations

from collections.abc import Iterable

from celeriac.executor.interfaces import LedgerBatch, UnfinishedTask
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey


class MemoryLedger:
    """Outlives its executors, and ends with its process. Tasks that have ended are forgotten."""

    lease: float | None = None

    def __init__(self) -> None:
        self._tasks: dict[TaskKey, UnfinishedTask] = {}
        self._events: list[Event] = []
        self._number = self._acknowledged = 0

    def check(self, task: Task) -> None:
        """Any key will do."""

    def write(self, page: LedgerBatch) -> None:
        for task, arrived in page.queued:
            self._tasks[task.key] = UnfinishedTask(task, State.WAITING, arrived)
        for key, standing in page.records.items():
            if standing.state.is_final:
                self._tasks.pop(key, None)
            elif (before := self._tasks.get(key)) is not None:
                self._tasks[key] = UnfinishedTask(
                    standing.task, standing.state, before.arrived, standing.not_before, standing.revoking
                )
        self._events += [event for event in page.events if event.state.is_final]
        if page.acknowledged > self._acknowledged:
            self._events = [event for event in self._events if event.number > page.acknowledged]
        self._number, self._acknowledged = page.last_number, page.acknowledged

    def unfinished(self) -> Iterable[UnfinishedTask]:
        return list(self._tasks.values())

    def numbers(self) -> tuple[int, int]:
        return self._number, self._acknowledged

    def unacknowledged(self) -> Iterable[Event]:
        return list(self._events)
