"""Hold back all tasks of an executor, or those of single queues or runs: none is sent until that is resumed."""

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

    backlog: Pause | None = None
    """The pause that lasts until a part of what was held back has been shown."""

    queues: dict[str, Pause] = field(default_factory=dict)
    runs: dict[str, dict[str, Pause]] = field(default_factory=dict)
    """In an executor of several runs: the pauses of each run by queue; "" stands for the whole run."""

    def of(self, task: Task) -> tuple[str, Pause] | None:
        """Return what holds a task back, and its pause."""
        if self.whole is not None:
            return "the run", self.whole
        if self.backlog is not None:
            return "the run", self.backlog
        if (pause := self.queues.get(task.queue)) is not None:
            return f"queue {task.queue!r}", pause
        return self.of_run(task)

    def of_run(self, task: Task) -> tuple[str, Pause] | None:
        """Return what holds a task of one of several runs back, and its pause."""
        if not self.runs or not (pauses := self.runs.get(getattr(task.key, "run", ""))):
            return None
        if (pause := pauses.get("")) is not None:
            return "the run", pause
        pause = pauses.get(task.queue)
        return None if pause is None else (f"queue {task.queue!r} of the run", pause)

    def words(self) -> str:
        """Return what is paused, for a person; "" if nothing is."""
        if self.whole is not None:
            return f"paused by {self.whole.asked_by}"
        names = ", ".join(map(repr, self.queues))
        return f"{'queue' if len(self.queues) == 1 else 'queues'} {names} paused" if names else ""
