"""Hold back all tasks of an executor, or those of single queues: none is sent until that is resumed."""

from __future__ import annotations

from msgspec import Struct, field

from celeriac.task.task import Task


class Pause(Struct, frozen=True):
    """One pause."""

    asked_by: str
    since: float
    """Seconds since the epoch."""


class Pauses(Struct):
    """The pauses of one executor."""

    whole: Pause | None = None
    """The pause of the executor as a whole."""

    queues: dict[str, Pause] = field(default_factory=dict)

    def of(self, task: Task) -> Pause | None:
        """Return the pause that holds a task back."""
        return self.whole or self.queues.get(task.queue)

    def words(self) -> str:
        """Return what is paused, for a person; "" if nothing is."""
        if self.whole is not None:
            return f"paused by {self.whole.asked_by}"
        names = ", ".join(map(repr, self.queues))
        return f"{'queue' if len(self.queues) == 1 else 'queues'} {names} paused" if names else ""
