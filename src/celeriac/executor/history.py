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

MOST_ENDED = 10_000  # tasks that have ended and are still known
MOST_MOVES = 100  # of one task; of more, the first and the latest are kept
NO_OUTPUT = Output()


@dataclass(slots=True, eq=False)
class Life:
    queue: str
    priority: int
    arrived: float
    """Seconds since the epoch."""

    moves: list[Event] = field(default_factory=list)
    left_out: int = 0

    @property
    def has_ended(self) -> bool:
        return bool(self.moves) and self.moves[-1].state.is_final


class History:
    def __init__(self) -> None:
        self._going: dict[TaskKey, Life] = {}
        self._ended: OrderedDict[TaskKey, Life] = OrderedDict()
        """The latest last."""

    def __iter__(self) -> Iterator[TaskKey]:
        """The keys of all that is known."""
        yield from self._going
        yield from self._ended

    def begin(self, entry: Entry) -> None:
        """A task is about to move for the first time, or goes on after an earlier attempt."""
        task = entry.task
        if task.key not in self._going:
            self._going[task.key] = Life(task.queue, task.priority, entry.arrived)

    def note(self, event: Event) -> None:
        life = self._going.get(event.key)
        if life is None:
            return
        life.moves.append(without_output(event))
        if len(life.moves) > MOST_MOVES:
            del life.moves[1]
            life.left_out += 1
        if event.state.is_final:
            self._end(event.key)

    def of_going(self, key: TaskKey) -> Life | None:
        """Of a task that waits or is out. None if it never moved."""
        return self._going.get(key)

    def of(self, key: TaskKey) -> Life | None:
        """Of the task that bears this key now, or that bore it last. None if it never moved, or long ago."""
        return self._going.get(key) or self._ended.get(key)

    def _end(self, key: TaskKey) -> None:
        self._ended.pop(key, None)
        self._ended[key] = self._going.pop(key)
        if len(self._ended) > MOST_ENDED:
            self._ended.popitem(last=False)  # a plain dict steps over all that left it before


def without_output(event: Event) -> Event:
    """What commands wrote may be long, and is nobody's business here."""
    execution = event.execution
    if execution is None or not (execution.stdout.size or execution.stderr.size):
        return event
    return replace(event, execution=replace(execution, stdout=NO_OUTPUT, stderr=NO_OUTPUT))
