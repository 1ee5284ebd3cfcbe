"""One transition of a task, as the caller is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from celeriac.task.result import Execution, Reason
from celeriac.task.state import State
from celeriac.task.task import TaskKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    key: TaskKey
    state: State
    when: float
    """Seconds since the epoch."""

    id: str
    """The Celery id of the attempt."""

    attempt: int
    reason: Reason | None = None
    detail: str | None = None
    """The reason in words, for a person."""

    execution: Execution | None = None
    """Exit code, signal, host, duration, output: set when a worker reported them."""

    retry_in: float | None = None
    """Seconds until the next attempt, when the state is WAITING again."""

    number: int = 0
    """Counts the events of a ledger, from 1 on and beyond the end of its executors; 0 without one."""
