"""What happened since the caller last looked: every move, in order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from celeriac.result import Execution, Reason
from celeriac.state import State
from celeriac.task import TaskKey


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


class EventBuffer:
    def __init__(self) -> None:
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        self._events.append(event)

    def drain(self, keys: Collection[TaskKey] | None = None) -> list[Event]:
        """Take the events out: all, or those of the given keys."""
        if keys is None:
            events, self._events = self._events, []
            return events
        taken = [event for event in self._events if event.key in keys]
        self._events = [event for event in self._events if event.key not in keys]
        return taken
