"""The event: one transition of a task, as the caller receives it."""

from __future__ import annotations

from msgspec import Struct

from celeriac.task.result import Execution, Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey


class Event(Struct, frozen=True, kw_only=True, gc=False):
    """A task has entered a state, an attempt to send it has failed, or another process has changed its priority."""

    key: TaskKey
    state: State
    when: float
    """Seconds since the epoch."""

    id: str
    """The Celery id of the attempt."""

    attempt: int
    reason: Reason | None = None
    detail: str | None = None
    """The reason as a sentence for a person."""

    execution: Execution | None = None
    """Exit code, signal, host, duration and output, if a worker reported them."""

    retry_in: float | None = None
    """Seconds until the next attempt, if the state is WAITING again."""

    priority: int | None = None
    """The new priority, if the event is a change of it. The task waits as before, and `detail` says who asked."""

    number: int = 0
    """The number of the event in its ledger, from 1 on; 0 without a ledger. A restart does not reset the numbers."""


def priority_event(task: Task, before: int, asked_by: str, when: float, number: int) -> Event:
    """Return the event of a task whose priority is no longer `before`. `asked_by` names the asker for a person."""
    return Event(
        key=task.key,
        state=State.WAITING,
        when=when,
        id=task.message_id,
        attempt=task.attempt,
        detail=f"priority changed from {before} to {task.priority}, asked by {asked_by}",
        priority=task.priority,
        number=number,
    )
