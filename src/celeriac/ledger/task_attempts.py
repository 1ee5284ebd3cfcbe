"""The attempts of one task, as the ledger has them now."""

from __future__ import annotations

from dataclasses import dataclass, field

from celeriac.ledger.database import Database
from celeriac.ledger.views import RunView, TaskView, earlier_events, find_run, find_task
from celeriac.task.result import Execution
from celeriac.task.state import State


@dataclass(slots=True)
class Attempts:
    """The attempts of a task, as the ledger has them now."""

    run: RunView
    task: TaskView
    ended: dict[int, Execution | None] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return str(self.task.task.key)

    @property
    def last_begun(self) -> int | None:
        """The number of the last attempt that began; None if no attempt has begun."""
        if self.task.state is State.RUNNING:
            return self.task.task.attempt
        return max((number for number, execution in self.ended.items() if execution is not None), default=None)

    def is_running(self, number: int) -> bool:
        return self.task.state is State.RUNNING and self.task.task.attempt == number

    @property
    def task_has_ended(self) -> bool:
        return self.task.state.is_final


def attempts_of(database: Database, run: str, key: str) -> Attempts:
    """Read the attempts of a task. Raises `InvalidConfig` for an unknown run or task."""
    run_view = find_run(database, run, counted=False)
    task = find_task(database, run_view, key)
    # An earlier task of this run may have had the same key, but not the same id.
    first_id, later_ids = task.task.id, f"{task.task.id}."
    events = [
        event
        for event in earlier_events(database, run_view.id, key)
        if event.priority is None and (event.id == first_id or event.id.startswith(later_ids))
    ]
    failed = {event.attempt: event.execution for event in events if event.state is State.WAITING}
    attempts = Attempts(run_view, task, failed)
    if task.state.is_final:
        attempts.ended[task.task.attempt] = task.execution
    return attempts
