"""A ledger in memory: for tests, and for callers that store their tasks themselves and want numbered events."""

from __future__ import annotations

from collections.abc import Iterable

from celeriac.executor.interfaces import NO_TRAITS, LedgerBatch, UnfinishedTask
from celeriac.task.event import Event
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey


class MemoryLedger:
    """A ledger that outlives its executors, and ends with its process. It keeps no tasks that have ended."""

    lease: float | None = None
    traits = NO_TRAITS

    def __init__(self) -> None:
        self._tasks: dict[TaskKey, UnfinishedTask] = {}
        self._places: dict[TaskKey, int] = {}
        self._next_place = 0
        self._events: list[Event] = []
        self._number = self._acknowledged = 0

    def check(self, task: Task) -> None:
        """Accept any key."""

    def next_place(self, number: int = 1) -> int:
        place = self._next_place
        self._next_place += number
        return place

    def write(self, batch: LedgerBatch) -> None:
        for task, arrived, place in batch.queued:
            self._tasks[task.key] = UnfinishedTask(task, State.WAITING, arrived)
            self._places[task.key] = place
        for key, record in batch.records.items():
            if record.state.is_final:
                self._tasks.pop(key, None)
                self._places.pop(key, None)
            elif (stored := self._tasks.get(key)) is not None:
                self._tasks[key] = UnfinishedTask(
                    record.task, record.state, stored.arrived, record.not_before, record.revoking
                )
        self._events += [event for event in batch.events if event.state.is_final]
        if batch.acknowledged > self._acknowledged:
            self._events = [event for event in self._events if event.number > batch.acknowledged]
        self._number, self._acknowledged = batch.last_number, batch.acknowledged

    def unfinished(self) -> Iterable[UnfinishedTask]:
        return [self._tasks[key] for key in sorted(self._tasks, key=self._places.__getitem__)]

    def numbers(self) -> tuple[int, int]:
        return self._number, self._acknowledged

    def unacknowledged(self) -> Iterable[Event]:
        return list(self._events)
