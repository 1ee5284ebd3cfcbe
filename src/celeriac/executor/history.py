"""Keep the events of the active tasks, and of the last tasks that ended, for `explain`.

A waiting task without an event takes no memory here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from celeriac.executor.priority_queue import Entry
from celeriac.task.event import Event
from celeriac.task.result import Output
from celeriac.task.task import TaskKey

MAX_ENDED = 10_000  # ended tasks that are kept
MAX_EVENTS = 100  # events of one task; beyond that, the first and the latest ones are kept
NO_OUTPUT = Output()


class TaskHistory(Struct, eq=False, gc=False):
    """The events of one task, from its first attempt on."""

    queue: str
    priority: int
    arrived: float
    """Seconds since the epoch."""

    events: tuple[Event, ...] = ()  # no list: the garbage collector looks at each container of each task
    sends: tuple[tuple[float, int], ...] = ()
    """When each attempt was sent, and its number. Only kept for a sink of traces."""

    left_out: int = 0
    """The number of events after the first one that are not kept."""

    @property
    def has_ended(self) -> bool:
        """Whether the last event is final."""
        return bool(self.events) and self.events[-1].state.is_final


class History:
    """The histories of the tasks that have an event, by key."""

    def __init__(self) -> None:
        self._active: dict[TaskKey, TaskHistory] = {}
        self._ended: OrderedDict[TaskKey, TaskHistory] = OrderedDict()
        """The task that ended last is the last one."""

    def __iter__(self) -> Iterator[TaskKey]:
        """Yield the keys of all histories."""
        yield from self._active
        yield from self._ended

    def begin(self, entry: Entry) -> None:
        """Start the history of a task before its first event. A later attempt continues the same history."""
        task = entry.task
        if task.key not in self._active:
            self._active[task.key] = TaskHistory(task.queue, task.priority, entry.arrived)

    def note_send(self, entry: Entry, when: float) -> None:
        """Note that a task is about to be sent."""
        history = self._active[entry.task.key]
        sends = (*history.sends, (when, entry.task.attempt))
        history.sends = sends if len(sends) <= MAX_EVENTS + 1 else (sends[0], *sends[-MAX_EVENTS:])

    def record(self, event: Event) -> None:
        """Add an event to the history of its task."""
        history = self._active.get(event.key)
        if history is None:
            return
        events = (*history.events, without_output(event))
        if len(events) > MAX_EVENTS:
            events = (events[0], *events[2:])
            history.left_out += 1
        history.events = events
        if event.state.is_final:
            self._end(event.key)

    def of_active(self, key: TaskKey) -> TaskHistory | None:
        """Return the history of a task that is waiting or in flight. None if it has no event."""
        return self._active.get(key)

    def of(self, key: TaskKey) -> TaskHistory | None:
        """Return the history of the latest task of this key. None if it has no event, or is no longer kept."""
        return self._active.get(key) or self._ended.get(key)

    def _end(self, key: TaskKey) -> None:
        self._ended.pop(key, None)
        self._ended[key] = self._active.pop(key)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)  # faster than a plain dict, which searches past all deleted entries


def last_event(history: TaskHistory | None) -> Event | None:
    """Return the latest event of a task, if it has any."""
    return history.events[-1] if history is not None and history.events else None


def without_output(event: Event) -> Event:
    """Return the event without the output of its command, which may be long and is not needed here."""
    execution = event.execution
    if execution is None or not (execution.stdout.size or execution.stderr.size):
        return event
    return replace(event, execution=replace(execution, stdout=NO_OUTPUT, stderr=NO_OUTPUT))
