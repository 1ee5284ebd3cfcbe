"""What has become of each task: its moves, of those that are on their way and of the last that ended.

A task that waits and never moved costs nothing here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from celeriac.executor.priority_queue import Entry
from celeriac.task.event import Event
from celeriac.task.result import Output
from celeriac.task.task import TaskKey

MAX_ENDED = 10_000  # tasks that have ended and are still known
MAX_EVENTS = 100  # of one task; of more, the first and the latest are kept
NO_OUTPUT = Output()


@dataclass(slots=True, eq=False)
class TaskHistory:
    queue: str
    priority: int
    arrived: float
    """Seconds since the epoch."""

    events: list[Event] = field(default_factory=list)
    left_out: int = 0

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and self.events[-1].state.is_final


class History:
    def __init__(self) -> None:
        self._active: dict[TaskKey, TaskHistory] = {}
        self._ended: OrderedDict[TaskKey, TaskHistory] = OrderedDict()
        """The latest last."""

    def __iter__(self) -> Iterator[TaskKey]:
        """The keys of all that is known."""
        yield from self._active
        yield from self._ended

    def begin(self, entry: Entry) -> None:
        """A task is about to move for the first time, or goes on after an earlier attempt."""
        task = entry.task
        if task.key not in self._active:
            self._active[task.key] = TaskHistory(task.queue, task.priority, entry.arrived)

    def record(self, event: Event) -> None:
        life = self._active.get(event.key)
        if life is None:
            return
        life.events.append(without_output(event))
        if len(life.events) > MAX_EVENTS:
            del life.events[1]
            life.left_out += 1
        if event.state.is_final:
            self._end(event.key)

    def of_active(self, key: TaskKey) -> TaskHistory | None:
        """Of a task that waits or is out. None if it never moved."""
        return self._active.get(key)

    def of(self, key: TaskKey) -> TaskHistory | None:
        """Of the task that bears this key now, or that bore it last. None if it never moved, or long ago."""
        return self._active.get(key) or self._ended.get(key)

    def _end(self, key: TaskKey) -> None:
        self._ended.pop(key, None)
        self._ended[key] = self._active.pop(key)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)  # a plain dict steps over all that left it before


def without_output(event: Event) -> Event:
    """What commands wrote may be long, and is nobody's business here."""
    execution = event.execution
    if execution is None or not (execution.stdout.size or execution.stderr.size):
        return event
    return replace(event, execution=replace(execution, stdout=NO_OUTPUT, stderr=NO_OUTPUT))
