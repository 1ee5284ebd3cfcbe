"""Hold the events since the caller last looked: every transition, in order."""

from __future__ import annotations

from collections.abc import Collection

from celeriac.task.event import Event
from celeriac.task.task import TaskKey


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
