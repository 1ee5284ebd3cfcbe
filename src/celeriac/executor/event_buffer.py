"""Hold the events that the caller has not taken yet: every transition, in order."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from celeriac.task.event import Event
from celeriac.task.task import TaskKey


class EventBuffer:
    """A list of events that is taken out whole or by key."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        """Add an event at the end."""
        self._events.append(event)

    def extend(self, events: Iterable[Event]) -> None:
        """Add events at the end."""
        self._events.extend(events)

    def put_back(self, events: Iterable[Event]) -> None:
        """Put events that were drained and not used back at the front."""
        self._events[:0] = events

    def drain(self, keys: Collection[TaskKey] | None = None) -> list[Event]:
        """Remove and return events: all, or those of the given keys."""
        if keys is None:
            events, self._events = self._events, []
            return events
        taken = [event for event in self._events if event.key in keys]
        self._events = [event for event in self._events if event.key not in keys]
        return taken
